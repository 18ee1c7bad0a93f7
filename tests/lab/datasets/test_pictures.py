"""Pictures and masks as people have them: what is read, and what is refused by name."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from znorm.lab.datasets import Split
from znorm.lab.datasets.files import inside, read_mask, read_picture
from znorm.lab.errors import DataError
from znorm.lab.prediction.pictures import read_pictures
from znorm.lab.training.weights import Trained

SIZE = (20, 30)
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
MARKED = RANDOM.integers(0, 2, SIZE, dtype=np.uint8)
MARKED[0, :2] = 0, 1

# What of numpy does what each EXIF orientation asks for; Pillow's own turns are not used.
TURNS: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def pictures(folder: Path, output: str = "mask") -> tuple[tuple[str, ...], Split, bool]:
    """What ``znorm predict RUN FOLDER`` takes from a folder."""
    net = Trained({}, torch.zeros(3), torch.ones(3), ("no", "yes"), 1, SIZE)
    found = read_pictures(folder, folder / "out", net, output)
    return found.names, found.split, found.truth


def refused(read: Callable[[], object]) -> str:
    """What is said, which is one line, and no warning beside it."""
    with pytest.raises(DataError) as caught:
        read()
    text = str(caught.value)
    assert "\n" not in text
    return text


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(MARKED).convert("P")
    picture.putdata(MARKED.flatten().tolist())
    picture.putpalette([value for colour in colours for value in colour])
    return picture


@pytest.mark.parametrize("read", [lambda path: read_picture(path, "RGB"), read_mask])
@pytest.mark.parametrize("ending", ["tif", "png"])
def test_a_picture_of_several_pages_is_refused_with_their_number(
    tmp_path: Path, ending: str, read: Callable[[Path], object]
) -> None:
    pages = [Image.fromarray(PIXELS // n) for n in (1, 2, 3)]
    path = tmp_path / f"a.{ending}"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    said = refused(lambda: read(path))
    assert f"a.{ending}: expected a picture of one page, found 3" in said


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(MARKED * 255),
        Image.fromarray(MARKED),
        Image.fromarray(MARKED > 0),
        palette((0, 0, 0), (255, 255, 255)),
        palette((0, 0, 0), (1, 1, 1)),
    ],
    ids=["0-255", "0-1", "one-bit", "palette-255", "palette-1"],
)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_masks_of_two_values_are_read(tmp_path: Path, picture: Image.Image, ending: str) -> None:
    path = tmp_path / f"a_mask.{ending}"
    picture.save(path)
    found = read_mask(path, SIZE)
    assert found.dtype == np.uint8
    assert np.array_equal(found, MARKED)


def test_a_bmp_is_a_mask_unless_its_pixels_would_be_read_wrongly(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    for picture in (Image.fromarray(MARKED * 255), Image.fromarray(MARKED > 0)):
        picture.save(path)
        assert np.array_equal(read_mask(path), MARKED)
    # Bytes for pixels and a palette of two: Pillow, which wrote it, reads the bytes as bits.
    palette((0, 0, 0), (255, 255, 255)).save(path)
    said = refused(lambda: read_mask(path))
    assert "a.bmp: a bmp of 8 bits a pixel with a palette of black and white" in said


@pytest.mark.parametrize(("value", "marked"), [(0, 0), (1, 1), (255, 1)])
@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_a_mask_of_one_value_marks_nothing_or_everything(
    tmp_path: Path, value: int, marked: int, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    Image.new("L", (3, 2), value).save(path)
    assert read_mask(path).tolist() == [[marked] * 3] * 2


def test_the_colours_of_a_palette_decide_and_not_its_numbers(tmp_path: Path) -> None:
    palette((255, 255, 255), (0, 0, 0)).save(tmp_path / "turned.png")
    assert np.array_equal(read_mask(tmp_path / "turned.png"), 1 - MARKED)
    picture = palette((0, 0, 0), (255, 255, 255))
    picture.save(tmp_path / "clear.png", transparency=b"\x00\xff")
    assert np.array_equal(read_mask(tmp_path / "clear.png"), MARKED)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.fromarray(MARKED * 128), r"of 0 and 255, or of 0 and 1, found \[0, 128\];"),
        (Image.fromarray(MARKED * 254 + 1), r"found \[1, 255\];"),
        (Image.fromarray(MARKED * 2), r"found \[0, 2\];"),
        (
            Image.fromarray(np.arange(600, dtype=np.uint8).reshape(SIZE)),
            r"found \[0, 1, 2, 3, 4\] and 251 more values; save it with two values",
        ),
        (palette((0, 0, 0), (128, 0, 0)), "found a palette of other colours"),
        (palette((0, 0, 0), (0, 0, 3)), "found a palette of other colours"),
        (palette((0, 0, 0), (7, 7, 7)), r"found \[0, 7\];"),
        (Image.fromarray(PIXELS), "of mode 1, L or P, found RGB; save it in grey"),
        (Image.fromarray(PIXELS).convert("RGBA"), "of mode 1, L or P, found RGBA"),
        (Image.fromarray(MARKED).convert("LA"), "of mode 1, L or P, found LA"),
        (Image.fromarray(MARKED.astype(np.uint16) * 65535), "of mode 1, L or P, found I;16"),
    ],
)
def test_a_mask_of_other_values_is_refused_with_those_it_has(
    tmp_path: Path, picture: Image.Image, message: str
) -> None:
    picture.save(tmp_path / "a_mask.png")
    with pytest.raises(DataError, match=rf"a_mask\.png: expected a mask .*{message}"):
        read_mask(tmp_path / "a_mask.png")


def test_a_mask_that_was_stored_with_loss_is_not_scored(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(MARKED * 255).save(tmp_path / "a_mask.jpg", quality=90)
    said = refused(lambda: pictures(tmp_path))
    assert "a_mask.jpg: expected a mask of 0 and 255, or of 0 and 1, found [0, 1, 2" in said
    (tmp_path / "a_mask.jpg").unlink()
    Image.fromarray(MARKED > 0).save(tmp_path / "a_mask.png")
    names, part, truth = pictures(tmp_path)
    assert (names, truth) == (("a",), True)
    assert np.array_equal(part.targets[0].numpy(), MARKED)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    ("ending", "options"),
    [
        ("png", {}),
        ("jpg", {"quality": 95}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
    ],
)
def test_a_picture_is_turned_as_its_exif_orientation_says(
    tmp_path: Path, ending: str, options: dict[str, Any], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, turned = tmp_path / f"plain.{ending}", tmp_path / f"turned.{ending}"
    Image.fromarray(PIXELS).save(plain, **options)
    Image.fromarray(PIXELS).save(turned, exif=exif, **options)
    with Image.open(plain) as picture:
        expected = TURNS[orientation](np.asarray(picture))
    # The size that is asked for is that of the picture as it is seen.
    assert np.array_equal(read_picture(turned, "RGB", expected.shape[:2]), expected)
    with pytest.raises(
        DataError, match="expected 20x20 pixels, found {}x{}".format(*expected.shape)
    ):
        read_picture(turned, "RGB", (20, 20))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_a_mask_is_turned_as_its_picture_is(tmp_path: Path, mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    kinds = {
        "1": Image.fromarray(MARKED > 0),
        "L": Image.fromarray(MARKED * 255),
        "P": palette((0, 0, 0), (255, 255, 255)),
    }
    kinds[mode].save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "a.png"), TURNS[orientation](MARKED))


def header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is that large."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in (chunk, data)
    )


def cut(**options: Any) -> Callable[[Path], None]:
    """Writes a picture that lacks its second half."""

    def write(path: Path) -> None:
        Image.fromarray(PIXELS).save(path, **options)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])

    return write


def content(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a text": (
        content(b"a text, not a picture\n"),
        "cannot be decoded (its content is of no known",
    ),
    "an empty file": (content(b""), "found an empty file; copy it here again"),
    "a web page": (content(b"\xef\xbb\xbf<!DOCTYPE html>"), "found a web page"),
    "a folder": (lambda path: path.mkdir(), "expected a file, found a folder; move it away"),
    "a link to nothing": (
        lambda path: path.symlink_to("nowhere.png"),
        "a link to nowhere.png, which is not there",
    ),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot be read (Too many levels of"),
    "a pipe": (lambda path: os.mkfifo(path), "expected a file, found a pipe or a device"),
    "a cut png": (cut(format="png"), "cannot be decoded (image file is truncated"),
    "a cut jpg": (cut(format="jpeg"), "cannot be decoded ("),
    "a cut bmp": (cut(format="bmp"), "cannot be decoded (image file is truncated"),
    "a cut tif": (cut(format="tiff"), "cannot be decoded (image file is truncated"),
    "a cut packed tif": (
        cut(format="tiff", compression="tiff_lzw"),
        "cannot be decoded (Corrupt EXIF data.",
    ),
    "a bomb": (
        content(header(60_000, 60_000)),
        "cannot be decoded (Image size (3600000000 pixels)",
    ),
    "a small bomb": (content(header(10_000, 10_000)), "cannot be decoded (Image size (100000000"),
    "a header alone": (content(header(*SIZE)), "cannot be decoded ("),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("error")
def test_what_is_no_picture_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    write, words = BAD[kind]
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    write(tmp_path / "b.png")
    for read in (
        lambda: read_picture(tmp_path / "b.png", "RGB"),
        lambda: read_mask(tmp_path / "b.png"),
        lambda: pictures(tmp_path),
    ):
        said = refused(read)
        assert said.startswith(f"{tmp_path / 'b.png'}: ")
        assert words in said


def test_a_picture_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")

    def forbidden(path: Path, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", forbidden)
    said = refused(lambda: pictures(tmp_path))
    assert said == f"{tmp_path / 'a.png'}: cannot be read (Permission denied)"


def test_a_decoder_that_fails_in_its_own_way_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")

    def broken(path: Path, **options: Any) -> None:
        raise struct.error("unpack requires\na buffer of 4 bytes")

    monkeypatch.setattr(Image, "open", broken)
    said = refused(lambda: read_picture(tmp_path / "a.png", "RGB"))
    assert said.endswith("cannot be decoded (unpack requires a buffer of 4 bytes)")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kind", ["eps", "webp", "gif", "ppm"])
def test_what_is_named_as_a_picture_and_is_of_another_kind_is_not_opened(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    if kind == "eps":
        path.write_bytes(EPS)
    else:
        Image.fromarray(PIXELS).save(path, format=kind)
    started: list[Any] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    monkeypatch.setattr("subprocess.check_call", lambda *given, **options: started.append(given))
    for read in (lambda: read_picture(path, "RGB"), lambda: read_mask(path)):
        said = refused(read)
        assert "its content is of no known format; png, tif, jpg and bmp are read" in said
    assert not started


@pytest.mark.parametrize(
    "text", ['<?xml version="1.0"?><svg width="30" height="20"/>', "<!DOCTYPE html>", "<svg/>"]
)
def test_markup_among_pictures_of_ones_own_is_no_download_that_failed(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "a.png").write_text(text)
    said = refused(lambda: pictures(tmp_path))
    assert "a.png: expected a picture, found " in said
    assert "png, tif, jpg and bmp are read" in said
    assert "download" not in said
    # Of a data set it is one.
    if text.startswith(("<?", "<!")):
        assert "download it again" in refused(lambda: read_picture(tmp_path / "a.png", "RGB"))


@pytest.mark.parametrize("inside_out", [False, True])
def test_a_link_to_a_folder_of_pictures_is_refused_by_name(
    tmp_path: Path, inside_out: bool
) -> None:
    folder = tmp_path / "scans"
    (folder / "deeper").mkdir(parents=True)
    (tmp_path / "more").mkdir()
    for place in (folder, tmp_path / "more"):
        Image.fromarray(PIXELS).save(place / "a.png")
    link = folder / "deeper" / "more" if inside_out else folder / "more"
    link.symlink_to(tmp_path / "more")
    said = refused(lambda: pictures(folder))
    assert said.startswith(f"{link}: a link to a folder, which is not followed;")
    # One to the folder of what is written is none of the pictures.
    link.unlink()
    (folder / "out").symlink_to(tmp_path / "more")
    assert pictures(folder)[0] == ("a",)


def test_other_files_beside_pictures_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name in ("b.png", "deeper/a.TIFF"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    for name in ("labels.csv", "notes.txt", "png", "deeper/Thumbs.db"):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "b.png").write_bytes(b"of an earlier call")
    names, part, truth = pictures(tmp_path)
    assert (names, truth) == (("b", "deeper/a"), False)
    assert np.array_equal(part.images[1].permute(1, 2, 0).numpy(), PIXELS)


def test_a_folder_within_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    scandir = os.scandir

    def forbidden(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    said = refused(lambda: pictures(tmp_path))
    assert said == f"{tmp_path / 'closed'}: cannot be read (Permission denied)"


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    try:
        os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/a\xff.png")
    except OSError:
        pytest.skip("this file system has no such names")
    said = refused(lambda: pictures(tmp_path))
    assert r"'a\udcff.png' in it has a name that is no text; rename it" in said
    said.encode()


@pytest.mark.parametrize("name", ["a.tif", "deeper/a.tif", "link.tif", "..a", "deeper/../a.tif"])
def test_a_name_from_a_file_is_a_file_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "set" / "deeper").mkdir(parents=True)
    (tmp_path / "set" / "link.tif").symlink_to("deeper/a.tif")
    (tmp_path / "linked").symlink_to("set")  # the folder itself may lie elsewhere
    for folder in (tmp_path / "set", tmp_path / "linked"):
        assert inside(folder, name) == folder / name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../secret", "leads out of it, to .*/secret; put the file itself there"),
        ("..", "leads out of it"),
        (".", "leads out of it"),
        ("/", "leads out of it, to /;"),
        ("/etc/passwd", "leads out of it, to /etc/passwd"),
        ("deeper/../../secret", "leads out of it"),
        ("../set-2/a", "leads out of it"),  # whose name begins with that of the folder
        ("out.tif", "leads out of it, to .*/secret"),
        ("away/secret", "leads out of it, to .*/secret"),
        ("", "is no name of a file"),
        ("a\0b", r"'a\\x00b' is no name of a file"),
        ("a" * 300, "is a name of 300 bytes; files have 255 at most"),
        ("ä" * 150, "is a name of 300 bytes"),
        ("deeper/" + "a" * 300, "is a name of 300 bytes"),
    ],
)
def test_a_name_from_a_file_that_leads_out_of_its_folder_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    folder = tmp_path / "set"
    (folder / "deeper").mkdir(parents=True)
    (folder / "out.tif").symlink_to("../secret")
    (folder / "away").symlink_to(tmp_path)
    with pytest.raises(DataError, match=message):
        inside(folder, name)
