"""The LGG set on files in the structure of its Kaggle edition, and its split by patient."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from znorm.lab.datasets import lgg_mri, split
from znorm.lab.errors import ConfigurationError, DataError

PATIENTS = [f"TCGA_AA_{number:04}_19990101" for number in range(12)]


@pytest.fixture
def written(data_root: Path) -> Path:
    """12 patients of 3 slices; patient n has n % 5 squares of tumour in its second slice."""
    root = data_root / "lgg" / "kaggle_3m"
    for number, patient in enumerate(PATIENTS):
        folder = root / patient
        folder.mkdir(parents=True)
        for k in (1, 2, 10):  # by number, not by name
            pixels = np.full((256, 256, 3), [number, k, 7], dtype=np.uint8)
            mask = np.zeros((256, 256), dtype=np.uint8)
            if k == 2:
                mask[: 10 * (number % 5), :10] = 255
            Image.fromarray(pixels).save(folder / f"{patient}_{k}.tif")
            Image.fromarray(mask).save(folder / f"{patient}_{k}_mask.tif")
    return root


def test_slices_stand_beside_their_masks_in_order(written: Path) -> None:
    dataset = lgg_mri.load(**lgg_mri.resolve({}))
    seen = []
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.has_masks
        for row, (name, patient) in enumerate(zip(part.names, part.patients, strict=True)):
            number, k = PATIENTS.index(patient), int(name.rsplit("_", 1)[1])
            assert part.images[row, :, 5, 5].tolist() == [number, k, 7]
            expected = 100 * (number % 5) if k == 2 else 0
            assert int(part.targets[row].sum()) == expected
            seen.append((patient, k))
    assert sorted(seen) == [(patient, k) for patient in PATIENTS for k in (1, 2, 10)]
    assert dataset.train.names[0].endswith("_1")
    assert dataset.train.names[2].endswith("_10")
    assert dataset.outputs == 1
    assert "Part of the LGG set: 12 of 110 patients, 36 of 3,929 slices." in dataset.notes


def test_no_patient_is_in_two_parts_and_loads_are_spread(written: Path) -> None:
    chosen = lgg_mri.resolve({})["split"]
    members = [patient for part in split.SPLITS for patient in chosen[part]]
    assert sorted(members) == PATIENTS
    assert [len(chosen[part]) for part in split.SPLITS] == [8, 2, 2]
    assert lgg_mri.resolve({}) == lgg_mri.resolve({})


def test_a_split_is_stratified() -> None:
    loads = {f"p{number:03}": number / 100 for number in range(100)}
    chosen = split.by_patient(loads)
    assert [len(chosen[part]) for part in split.SPLITS] == [70, 15, 15]
    for part in split.SPLITS:
        mean = np.mean([loads[name] for name in chosen[part]])
        assert mean == pytest.approx(0.495, abs=0.02)


def test_a_split_of_the_users_own_is_read_from_a_file(written: Path, tmp_path: Path) -> None:
    own = {"train": PATIENTS[:5], "validation": [], "test": PATIENTS[5:7]}
    path = tmp_path / "split.json"
    path.write_text(json.dumps(own))
    assert lgg_mri.resolve({"split": str(path)}) == {"split": own}
    dataset = lgg_mri.load(own)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (15, 0, 6)
    assert "5 patients are in no part of the split." in dataset.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["a"], "validation": [], "test": ["a"]}, "patient a is twice .* train and test"),
        ({"train": ["a", "a"], "validation": [], "test": []}, "patient a is twice .* in train"),
        ({"train": ["a"]}, "a split has the keys train, validation, test, found train"),
        ({"train": "a", "validation": [], "test": []}, "train: expected a list of patients"),
        ([1], "a split has the keys"),
    ],
)
def test_a_split_that_is_none_is_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        split.read(path)
    assert str(path) in str(caught.value)


def test_what_is_wrong_is_named(written: Path) -> None:
    with pytest.raises(DataError, match="patient nobody of the split's test part is not there"):
        lgg_mri.load({"train": PATIENTS[:2], "validation": [], "test": ["nobody"]})
    with pytest.raises(ConfigurationError, match="need a patient each"):
        lgg_mri.load({"train": PATIENTS[:2], "validation": [], "test": []})
    folder = written / PATIENTS[0]
    mask = folder / f"{PATIENTS[0]}_1_mask.tif"
    whole = mask.read_bytes()
    Image.new("L", (256, 255)).save(mask)
    with pytest.raises(DataError, match=r"_1_mask\.tif: expected 256x256 pixels, found 255x256"):
        lgg_mri.resolve({})
    Image.new("L", (256, 256), 3).save(mask)
    with pytest.raises(
        DataError, match=r"expected a mask of 0 and 255, or of 0 and 1, found \[3\]"
    ):
        lgg_mri.resolve({})
    mask.unlink()
    with pytest.raises(DataError, match=r"_1\.tif: has no mask; expected .*_1_mask\.tif"):
        lgg_mri.resolve({})
    mask.write_bytes(whole)
    (folder / f"{PATIENTS[0]}_1.tif").rename(folder / f"{PATIENTS[0]}_one.tif")
    with pytest.raises(DataError, match=r"_one\.tif: expected .*_NUMBER\.tif"):
        lgg_mri.resolve({})
    (folder / f"{PATIENTS[0]}_one.tif").unlink()
    with pytest.raises(DataError, match=r"_1_mask\.tif: has no image beside it"):
        lgg_mri.resolve({})


def test_without_the_set_a_login_is_named(data_root: Path) -> None:
    with pytest.raises(DataError, match=r"lgg_mri: no data in .*log in at https://www\.kaggle"):
        lgg_mri.resolve({})


def test_the_key_of_the_data_does_not_depend_on_the_order_of_the_parts(written: Path) -> None:
    from znorm.lab.spec import RunSpec, resolve

    spec = resolve({"task": "lgg_mri"})
    again = RunSpec.model_validate_json(spec.canonical())
    assert (again.hash, again.data.key) == (spec.hash, spec.data.key)


@pytest.mark.parametrize("kind", ["", "_mask"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("nowhere"), "a link to nowhere, which is not there"),
        (lambda path: path.symlink_to(path), "cannot be read .Too many levels of symbolic links"),
        (lambda path: path.mkdir(), "expected a file, found a folder; move it away"),
        (lambda path: path.write_bytes(b""), "found an empty file"),
        (lambda path: path.write_bytes(b"a text"), "its content is of no known format"),
    ],
)
def test_a_slice_that_is_no_picture_is_named_in_one_line(
    written: Path, make: Callable[[Path], None], message: str, kind: str
) -> None:
    path = written / PATIENTS[3] / f"{PATIENTS[3]}_2{kind}.tif"
    path.unlink()
    make(path)
    with pytest.raises(DataError, match=rf"{path}: .*{message}") as caught:
        lgg_mri.resolve({})
    assert "\n" not in str(caught.value)


def test_a_slice_that_may_not_be_read_is_named(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", forbidden)
    with pytest.raises(DataError, match=r"_1\.tif: cannot be read \(Permission denied\)$"):
        lgg_mri.resolve({})


def test_a_patient_that_is_a_link_to_nothing_is_named(written: Path) -> None:
    (written / "README.md").write_text("of the set")
    (written / "TCGA_list.csv").write_text("of the user")
    assert len(lgg_mri.slices_here()) == 12
    (written / "TCGA_ZZ_0000_19990101").symlink_to("nowhere")
    with pytest.raises(DataError, match="TCGA_ZZ_0000_19990101: a link to nowhere, which is not"):
        lgg_mri.resolve({})


def test_slices_are_found_by_other_spellings_of_their_ending(written: Path) -> None:
    expected = lgg_mri.load(**lgg_mri.resolve({}))
    for number, path in enumerate(sorted(written.rglob("*.tif"))):
        path.rename(path.with_suffix((".TIF", ".tiff", ".tif")[number % 3]))
    dataset = lgg_mri.load(**lgg_mri.resolve({}))
    assert dataset.train.names == expected.train.names
    assert dataset.train.images.equal(expected.train.images)
    assert dataset.train.targets.equal(expected.train.targets)


@pytest.mark.parametrize("other", ["_1.TIF", "_01.tif", "_1_mask.tiff"])
def test_two_slices_of_one_number_are_refused(written: Path, other: str) -> None:
    path = written / PATIENTS[0] / f"{PATIENTS[0]}{other}"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"_0?1(_mask)?\.\w+ beside it has the same number"):
        lgg_mri.resolve({})


@pytest.mark.parametrize("kind", ["one-bit", "0-1", "palette"])
def test_masks_of_other_kinds_mark_the_same(written: Path, kind: str) -> None:
    expected = lgg_mri.load(**lgg_mri.resolve({}))
    for path in written.rglob("*_mask.tif"):
        mask = np.asarray(Image.open(path)) > 0
        picture = Image.fromarray(mask if kind == "one-bit" else mask.astype(np.uint8))
        if kind == "palette":
            picture.putpalette([0, 0, 0, 255, 255, 255])
        picture.save(path)
    dataset = lgg_mri.load(**lgg_mri.resolve({}))
    assert dataset.train.targets.equal(expected.train.targets)


def test_a_slice_of_several_pages_is_refused(written: Path) -> None:
    path = written / PATIENTS[0] / f"{PATIENTS[0]}_1.tif"
    pages = [Image.new("RGB", (256, 256), value) for value in ("red", "green")]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"_1\.tif: expected a picture of one page, found 2"):
        lgg_mri.resolve({})
