"""Predictions of finished runs: what their loop said, again, and of pictures from elsewhere."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from znorm import lab
from znorm.lab import models, prediction, tasks
from znorm.lab.cli import run as call
from znorm.lab.prediction import outputs
from znorm.lab.store import Run
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
        found = rows(lab.predict(one, home))
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
    monkeypatch.setattr(prediction, "draw_cases", lambda cases, file: drawn.extend(cases))
    lab.predict(segmenter, out=tmp_path)
    assert [one.title.split("\n")[0] for one in drawn] == ["best", "median", "worst"]
    assert all(one.truth.any() for one in drawn)


def test_masks_beside_pictures_are_their_truth(segmenter: Run, tmp_path: Path) -> None:
    part = tasks.load(segmenter.spec.task, segmenter.spec.data).test
    for row in range(3):
        Image.fromarray(part.images[row].permute(1, 2, 0).numpy()).save(tmp_path / f"{row}.tif")
        Image.fromarray(part.targets[row].numpy() * 255).save(tmp_path / f"{row}_mask.tif")
    found = rows(lab.predict(segmenter, tmp_path, out=tmp_path / "out"))
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
