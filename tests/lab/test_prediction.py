"""Predictions of finished runs: what their loop said, again, and of pictures from elsewhere."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from znorm import lab
from znorm.lab import models, tasks
from znorm.lab.cli import run as call
from znorm.lab.datasets import Dataset
from znorm.lab.prediction import output
from znorm.lab.runs.folder import Run
from znorm.lab.runs.inference import outputs
from znorm.lab.training import weights

SMALL: dict[str, Any] = {
    "methods": ["znorm"],
    "seeds": 1,
    "epochs": 1,
    "limit": 12,
    "device": "cpu",
    "precision": "float32",
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Run:
    (one,) = lab.compare(batch_size=8, out=tmp_path_factory.mktemp("c"), **SMALL)
    return one


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("s")
    (one,) = lab.compare(task="phantom", batch_size=2, out=out, lr=1e-2, **SMALL)
    return one


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def mask(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_labels_of_the_test_part_are_those_that_were_scored(classifier: Run) -> None:
    found = rows(lab.predict(classifier))
    assert len(found) == 12
    right = [row["truth"] == row["predicted"] for row in found]
    assert sum(right) / 12 == pytest.approx(classifier.metrics["test_accuracy"])
    for row in found:
        shares = {name: float(row[name]) for name in ("no tumour", "tumour")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
        assert row["predicted"] == max(shares, key=lambda name: shares[name])


def test_masks_of_the_test_part_are_those_that_were_scored(segmenter: Run, tmp_path: Path) -> None:
    folder = lab.predict(segmenter, out=tmp_path / "found")
    cases = segmenter.cases()
    assert cases is not None
    assert [(row["name"], int(row["tp"]), int(row["fp"])) for row in rows(folder)] == [
        (row["name"], row["tp"], row["fp"]) for row in cases.rows()
    ]
    for row in rows(folder):
        drawn = mask(folder / "masks" / f"{row['name']}.png")
        assert set(np.unique(drawn)) <= {0, 255}
        assert (drawn > 0).sum() == int(row["tp"]) + int(row["fp"])
        assert mask(folder / "overlays" / f"{row['name']}.png").shape == (64, 64, 3)
    assert (folder / "cases.png").exists()


def test_pictures_of_a_folder_give_what_the_same_images_gave(
    classifier: Run, segmenter: Run, tmp_path: Path
) -> None:
    for one in (classifier, segmenter):
        part = tasks.load(one.spec.task, one.spec.data).test
        home = tmp_path / one.spec.task
        (home / "deeper").mkdir(parents=True)
        for row, image in enumerate(part.images):
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(home / "deeper" / f"{row:02}.png")
        whole = outputs(one, part)
        found = rows(lab.predict(one, home, threshold=0.5))
        assert [row["name"] for row in found] == [f"deeper/{row:02}" for row in range(12)]
        if one is classifier:
            assert [float(row["tumour"]) for row in found] == whole.softmax(1)[:, 1].tolist()
            assert "truth" not in found[0]
        else:
            marked = (whole[:, 0] > 0).flatten(1).sum(1).tolist()
            assert [int(row["marked"]) for row in found] == marked
            (drawn,) = (one.folder / "predictions").glob("phantom-*/cases.png")
            assert drawn.exists()


def test_what_an_earlier_call_wrote_is_replaced_and_nothing_else(
    segmenter: Run, tmp_path: Path
) -> None:
    part = tasks.load(segmenter.spec.task, segmenter.spec.data).test
    for place in ("a", "b"):  # of the same name, in different folders
        (tmp_path / place / "scans").mkdir(parents=True)
        picture = Image.fromarray(part.images[0].permute(1, 2, 0).numpy())
        picture.save(tmp_path / place / "scans" / f"{place} $^$ 1.png")
    folders = {lab.predict(segmenter, tmp_path / place / "scans") for place in ("a", "b")}
    assert len(folders) == 2
    home = tmp_path / "a" / "scans" / "out"  # within the pictures: not taken for some
    for _ in range(2):
        assert len(rows(lab.predict(segmenter, tmp_path / "a" / "scans", out=home))) == 1
    (home / "masks" / "mine.png").write_bytes(b"")
    lab.predict(segmenter, out=home)
    assert not (home / "masks" / "a $^$ 1.png").exists()
    assert (home / "masks" / "mine.png").exists()


def test_the_figure_is_of_slices_with_something_to_mark(
    segmenter: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(output, "draw_cases", lambda cases, file, labels: drawn.extend(cases))
    lab.predict(segmenter, out=tmp_path)
    assert [one.title.split("\n")[0] for one in drawn] == ["best", "median", "worst"]
    assert all(one.truth.any() for one in drawn)


def test_masks_beside_pictures_are_their_truth(segmenter: Run, tmp_path: Path) -> None:
    part = tasks.load(segmenter.spec.task, segmenter.spec.data).test
    for row in range(3):
        Image.fromarray(part.images[row].permute(1, 2, 0).numpy()).save(tmp_path / f"{row}.tif")
        Image.fromarray(part.targets[row].numpy() * 255).save(tmp_path / f"{row}_mask.tif")
    found = rows(lab.predict(segmenter, tmp_path, out=tmp_path / "out", threshold=0.5))
    cases = segmenter.cases()
    assert cases is not None
    assert [float(row["dice"]) for row in found] == cases.counts.dice()[:3].tolist()
    (tmp_path / "2_mask.tif").unlink()
    with pytest.raises(lab.DataError, match=r"2\.tif: has no mask, and others have"):
        lab.predict(segmenter, tmp_path, out=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_predicted_is_named(
    classifier: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(lab.DataError, match="no such folder of pictures"):
        lab.predict(classifier, tmp_path / "nothing")
    (tmp_path / "some").mkdir()
    with pytest.raises(lab.DataError, match=r"no pictures in it; valid endings: \.png"):
        lab.predict(classifier, tmp_path / "some")
    Image.new("RGB", (30, 32)).save(tmp_path / "some" / "a.png")
    assert call(["predict", str(classifier.folder), str(tmp_path / "some")]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a.png: expected 32x32 pixels, found 32x30" in error
    Image.new("L", (32, 32)).save(tmp_path / "some" / "a.png")
    with pytest.raises(lab.DataError, match="expected a picture of mode RGB, found L"):
        lab.predict(classifier, tmp_path / "some")
    Image.new("RGB", (32, 32)).save(tmp_path / "some" / "a.jpg")
    with pytest.raises(lab.DataError, match=r"a\.png: a\.jpg beside it has the same name"):
        lab.predict(classifier, tmp_path / "some")
    made_up = tasks.load(classifier.spec.task, classifier.spec.data)
    unfinished = Run.at(tmp_path, classifier.spec)
    unfinished.announce()
    with pytest.raises(lab.ConfigurationError, match="waiting; predictions need a finished run"):
        lab.predict(unfinished.folder)
    unfinished.finish(classifier.result or {})
    with pytest.raises(lab.DataError, match=r"weights\.pt: missing; remove result\.json"):
        lab.predict(unfinished.folder)
    unfinished.save_weights(b"something else")
    with pytest.raises(lab.DataError, match=r"weights\.pt: not the weights of a run"):
        lab.predict(unfinished.folder)
    unfinished.save_weights(
        weights.dump(models.build("resnet20", channels=3, classes=3, image_size=32), made_up)
    )
    with pytest.raises(lab.DataError, match=r"weights\.pt: damaged: not what the run ended"):
        lab.predict(unfinished.folder)
    assert call(["predict", str(tmp_path)]) == 3
    assert "not the folder of one run, as .../METHOD__HASH/seed-0" in capsys.readouterr().err


def test_a_run_of_another_machine_is_predicted_here(segmenter: Run, tmp_path: Path) -> None:
    content = segmenter.spec.model_dump(mode="json", exclude_none=True)
    other = Run.at(tmp_path, type(segmenter.spec).model_validate({**content, "device": "cuda"}))
    other.announce()
    other.save_weights((segmenter.folder / "weights.pt").read_bytes())
    other.finish(segmenter.result or {})
    part = tasks.load(other.spec.task, other.spec.data).test
    torch.testing.assert_close(outputs(other, part), outputs(segmenter, part))


def scans(one: Run, folder: Path, *names: str) -> Path:
    """A folder of pictures with these names, from the run's test part."""
    part = tasks.load(one.spec.task, one.spec.data).test
    for row, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(part.images[row].permute(1, 2, 0).numpy()).save(path)
    return folder


def copy(one: Run, root: Path) -> Run:
    """The same run in a folder of its own."""
    other = Run.at(root, one.spec)
    shutil.copytree(one.folder, other.folder, ignore=shutil.ignore_patterns("predictions"))
    return other


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["masks", "overlays"])
@pytest.mark.parametrize("given", [True, False])
def test_nothing_is_written_through_a_link_further_down(
    segmenter: Run, tmp_path: Path, kind: str, given: bool
) -> None:
    one = copy(segmenter, tmp_path / "sent")
    folder = scans(one, tmp_path / "scans", "a", "sub/deep/a")
    home = tmp_path / "out" if given else lab.predict(one, folder)
    shutil.rmtree(home, ignore_errors=True)
    (tmp_path / "victim" / "deep").mkdir(parents=True)
    (tmp_path / "victim" / "deep" / "a.png").write_text("mine")
    (home / kind).mkdir(parents=True)
    (home / kind / "sub").symlink_to(tmp_path / "victim")
    with pytest.raises(lab.DataError, match="a link leads out of"):
        lab.predict(one, folder, out=home if given else None)
    assert contents(tmp_path / "victim") == {"deep/a.png": b"mine"}
    assert [path.name for path in home.rglob("*")] == [kind, "sub"]  # nothing at all


def test_images_that_were_exchanged_are_not_the_test_part_of_the_run(
    classifier: Run,
    segmenter: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    load = tasks.load

    def exchanged(name: str, data: Any) -> Dataset:
        held = load(name, data)
        images = held.test.images.clone()
        images[0, 0, 0, 0] ^= 1
        return replace(held, test=replace(held.test, images=images))

    monkeypatch.setattr(tasks, "load", exchanged)
    for one in (classifier, segmenter):
        out = tmp_path / one.spec.task
        assert call(["predict", str(one.folder), "--out", str(out)]) == 3
        said = capsys.readouterr().err
        assert f"the images of {one.spec.task} that are here now are other ones than it was" in said
        assert len(said.splitlines()) == 1
        assert not out.exists()
    # Runs of earlier versions do not say which images they had.
    old = copy(classifier, tmp_path / "old")
    result = old.result
    assert result is not None
    del result["hashes"]["data"]
    old.finish(result)
    assert len(rows(lab.predict(old))) == 12


def test_a_prediction_that_was_stopped_does_not_look_whole_and_is_replaced(
    segmenter: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    folders = [scans(segmenter, tmp_path / name, *(name + n for n in "12")) for name in "abc"]
    expected = contents(lab.predict(segmenter, folders[2], out=tmp_path / "fresh"))
    lab.predict(segmenter, folders[0], out=out)
    write = output.write_atomically
    written: list[Path] = []

    def stopped(path: Path, content: bytes) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(output, "write_atomically", stopped)
        for folder in (folders[1], folders[0]):
            written.clear()
            with pytest.raises(KeyboardInterrupt):
                lab.predict(segmenter, folder, out=out)
            assert not (out / "predictions.csv").exists()
            assert {f"{kind}/{folder.name}1.png" for kind in ("masks", "overlays")} < {
                *contents(out)
            }
    lab.predict(segmenter, folders[2], out=out)
    assert contents(out) == expected


@pytest.mark.parametrize(
    "table", [None, "", "name\na\n", "name,score\na,1\n", "name,predicted,yes,no\na,maybe,1,0\n"]
)
@pytest.mark.parametrize("own", ["masks/a.png", "overlays/a.png", "cases.png", "masks/b.png"])
def test_files_of_ones_own_are_neither_removed_nor_overwritten(
    segmenter: Run, tmp_path: Path, own: str, table: str | None
) -> None:
    folder = scans(segmenter, tmp_path / "scans", "a")
    out = tmp_path / "out"
    (out / own).parent.mkdir(parents=True)
    (out / own).write_text("mine")
    if table is not None:
        (out / "predictions.csv").write_text(table)
    before = contents(out)
    if table is None and own == "masks/b.png":
        lab.predict(segmenter, folder, out=out)
        assert (out / own).read_text() == "mine"
        return
    refused = out / ("predictions.csv" if table is not None else own)
    with pytest.raises(lab.DataError, match=rf"{refused}: .* earlier call.*; move it away, or"):
        lab.predict(segmenter, folder, out=out)
    assert contents(out) == before


def test_a_place_serves_one_run_after_another(
    classifier: Run, segmenter: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    folder = scans(segmenter, tmp_path / "scans", "a")
    alone = contents(lab.predict(classifier, out=tmp_path / "fresh"))
    lab.predict(segmenter, folder, out=out)
    lab.predict(classifier, out=out)
    assert contents(out) == alone == {"predictions.csv": alone["predictions.csv"]}
    (out / "masks" / "test-0.png").write_text("mine")  # a name of a table without masks
    lab.predict(segmenter, folder, out=out)
    assert (out / "masks" / "test-0.png").read_text() == "mine"
    assert [row["name"] for row in rows(out)] == ["a"]


def test_what_is_not_read_of_a_folder_is_said(
    classifier: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scans(classifier, tmp_path / "scans", "a")
    for name in ("c.webp", "d.gif", "deeper/e.dcm", "f\x1b.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    words = ["predict", str(classifier.folder), str(folder), "--threshold", "0.5"]
    assert call([*words, "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'o'}\n"
    told = "4 files of other kinds not read: 'c.webp', 'd.gif', 'deeper/e.dcm', ..."
    assert said.err == f"{folder}: {told}\n"
    with pytest.warns(UserWarning, match="4 files of other kinds not read") as caught:
        lab.predict(classifier, folder, out=tmp_path / "o")
    assert caught[0].filename == __file__
    # The folder of what is written is no place for pictures of one's own.
    for home in (folder, tmp_path / "scans" / "." / ".." / "scans"):
        assert call(["predict", str(classifier.folder), str(folder), "--out", str(home)]) == 2
        assert "is the folder of the pictures itself; give another" in capsys.readouterr().err


def put(one: Run, change: Callable[[dict[str, Any]], None]) -> None:
    """Weights of another form, with a result that knows them."""
    held = torch.load(one.folder / "weights.pt", weights_only=True)
    change(held)
    buffer = io.BytesIO()
    torch.save(held, buffer)
    one.save_weights(buffer.getvalue())
    result = one.result
    assert result is not None
    result["hashes"]["weights_file"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    one.finish(result)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", ["a"], "classes are not two or more"),
        ("classes", ["a", "b", "c"], "outputs do not fit 3 classes"),
        ("classes", [["a"], ["b"]], "classes are not names"),
        ("classes", "ab", "classes are not two or more"),
        ("classes", ["tumour", "tumour"], "classes have a name twice"),
        ("classes", ["truth", "name"], "a class is called truth, which is a column of its own"),
        ("classes", ["tumour", "no tumour"], "of other classes, channels or image size than"),
        ("mean", None, "mean and std are not finite numbers of 1 or 3 channels"),
        ("mean", [1.0, 1.0, 1.0], "mean and std are not"),
        ("mean", torch.tensor(1.0), "mean and std are not"),
        ("mean", torch.full((3,), torch.nan), "mean and std are not"),
        ("std", torch.ones(5), "mean and std are not"),
        ("std", torch.zeros(3), "std is not above 0"),
        ("outputs", 10**12, "outputs do not fit 2 classes"),
        ("outputs", 2.0, "outputs do not fit 2 classes"),
        ("outputs", 1, "expected 2 outputs, found 1"),
        ("image_size", [32], "image_size is not a height and a width"),
        ("image_size", [32, 10**9], "image_size is not"),
        ("image_size", [16, 16], "of other classes, channels or image size than"),
        ("state", [], "state is not tensors by name"),
        ("state", {1: torch.ones(1)}, "state is not tensors by name"),
        ("state", {"a": "b"}, "state is not tensors by name"),
        ("state", {}, "not of model resnet20"),
    ],
)
def test_weights_of_another_form_are_one_line(
    classifier: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: Any,
    message: str,
) -> None:
    one = copy(classifier, tmp_path)
    put(one, lambda held: held.update({key: value}))
    assert call(["predict", str(one.folder)]) == 3
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "weights.pt: " in said
    assert message in said
    assert not (one.folder / "predictions").exists()
