"""Doubtful images of the user's own, each kind put there by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lab.own_folders import classes, picture, saved, spec_of, with_masks
from znorm.lab import tasks
from znorm.lab.cli import run as call
from znorm.lab.datasets.own.doubts import Doubt, doubts_of
from znorm.lab.datasets.own.tasks import contents_of_data


@pytest.fixture(autouse=True)
def _data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path / "decoded"))


def doubts(root: Path) -> dict[str, Doubt]:
    spec = spec_of(root)
    contents = contents_of_data(spec.data)
    found = doubts_of(contents, tasks.load(spec.task, spec.data))
    return {one.what: one for one in found}


def parts(root: Path) -> dict[str, str]:
    contents = contents_of_data(spec_of(root).data)
    names = [item.name for item in contents.listing.items]
    return dict(zip(names, contents.parts, strict=True))


def test_nothing_is_doubtful_about_images_that_differ(tmp_path: Path) -> None:
    assert doubts(classes(tmp_path / "own")) == {}


def test_copies_in_two_parts_and_of_two_classes_are_told_from_others(tmp_path: Path) -> None:
    root = classes(tmp_path / "own", count=20)
    of_part: dict[str, list[str]] = {}
    for name, part in parts(root).items():
        if name.startswith("cat"):
            of_part.setdefault(part, []).append(name)
    train, test = of_part["train"], of_part["test"]
    dog = next(n for n, part in parts(root).items() if part == "train" and n.startswith("dog"))
    shutil.copy(root / train[0], root / train[1])
    shutil.copy(root / train[2], root / test[0])
    shutil.copy(root / train[3], root / dog)
    found = doubts(root)
    assert set(found) == {
        "the same image in two parts",
        "the same image with another class",
        "the same image twice",
    }
    assert found["the same image twice"].groups == (tuple(sorted(train[:2])),)
    (across,) = found["the same image in two parts"].groups
    assert set(across) == {train[2], test[0]}
    (differing,) = found["the same image with another class"].groups
    assert set(differing) == {train[3], dog}


def test_empty_and_squeezed_images(tmp_path: Path) -> None:
    root = classes(tmp_path / "own")
    saved(root / "cat" / "cat-3.png", np.full((16, 12, 3), 7, dtype=np.uint8))
    saved(root / "cat" / "cat-4.png", picture(4, (16, 30, 3)))
    found = doubts(root)
    assert found["the same in every pixel"].groups == (("cat/cat-3.png",),)
    assert found["squeezed"].groups == (("cat/cat-4.png",),)


def test_masks_that_mark_all_and_nothing(tmp_path: Path) -> None:
    root = with_masks(tmp_path / "own")
    saved(root / "masks" / "3_mask.png", np.full((16, 12), 255, dtype=np.uint8))
    assert doubts(root)["marked as a whole"].groups == (("images/3.png",),)
    for path in (root / "masks").iterdir():
        saved(path, np.zeros((16, 12), dtype=np.uint8))
    assert {one for one in doubts(root) if "nowhere" in one} == {
        f"marked nowhere in the {part} part" for part in ("train", "validation", "test")
    }


def test_the_page_is_there_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = classes(tmp_path / "own & <more>")
    shutil.copy(root / "cat" / "cat-0.png", root / "cat" / "cat-1.png")
    (root / "cat" / "notes.txt").write_text("a")
    out = tmp_path / "runs"
    words = ["compare", "--data", str(root), "--epochs", "1", "--device", "cpu", "--plan"]
    assert call([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"a first look: {out / 'first-look.html'}; doubtful: the same image" in said
    page = (out / "first-look.html").read_text()
    assert "own &amp; &lt;more&gt;" in page
    assert page.count('<img src="data:image/png') == 5  # the test images
    assert "1 file of other kinds, not read" in page
    assert "--set data.size=[HEIGHT,WIDTH]" in page
    assert "own%20%26%20%3Cmore%3E/cat/cat-1.png" in page
    # No run was begun.
    assert sorted(path.name for path in out.iterdir()) == ["first-look.html", "parts.csv"]


def test_the_parts_are_a_table_that_gives_them_again(tmp_path: Path) -> None:
    root, out = classes(tmp_path / "own", count=24, patients=8), tmp_path / "runs"
    words = ["compare", "--data", str(root), "--epochs", "1", "--device", "cpu", "--plan"]
    assert call([*words, "--out", str(out)]) == 0
    again = spec_of(root, out / "parts.csv")
    assert again.data.contents == spec_of(root).data.contents
    assert call([*words, "--out", str(out), "--folds", "4"]) == 0
    for fold in range(4):
        mine = contents_of_data(spec_of(root, out / "folds.csv", fold=fold).data)
        theirs = contents_of_data(spec_of(root, test_share=0.25, fold=fold).data)
        assert [one == "test" for one in mine.parts] == [one == "test" for one in theirs.parts]
