"""Where the public data sets come from: files, sizes, hashes, mirrors, and what to do by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from znorm.lab.datasets.files import data_root
from znorm.lab.errors import MissingDataError

__all__ = ["SOURCES", "Download", "Source", "missing"]


@dataclass(frozen=True)
class Download:
    """One file that a mirror holds.

    Parameters
    ----------
    name : str
        Of the file as it is downloaded.
    digest : str
        "md5:..." or "sha1:...", of the file as it is downloaded.
    size : int or None
        Bytes, where they are known.
    urls : tuple of str
        Mirrors, the first tried first.
    """

    name: str
    digest: str
    size: int | None
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One public data set.

    Parameters
    ----------
    task : str
        Who uses it.
    about, licence, home : str
        One line each; ``home`` is the page to cite or to log in at.
    folder : str
        Below the data folder.
    downloads : tuple of Download
        Empty where a login stands before the files.
    digests : mapping
        Of the files in ``folder`` once unpacked, relative to it, where they are known.
    by_hand : str
        Which files to put where, if they cannot be downloaded.
    """

    task: str
    about: str
    licence: str
    home: str
    folder: str
    downloads: tuple[Download, ...]
    digests: Mapping[str, str]
    by_hand: str


def _pcam(part: str, kind: str, md5: str, drive: str) -> Download:
    name = f"camelyonpatch_level_2_split_{part}_{kind}.h5.gz"
    return Download(
        name,
        f"md5:{md5}",
        None,
        (
            f"https://zenodo.org/records/2546921/files/{name}?download=1",
            f"https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t",
        ),
    )


_CIFAR10 = {
    f"cifar-10-batches-{edition}/{file}": f"{kind}:{digest}"
    for edition, kind, files in (
        (
            "bin",
            "sha1",
            {
                "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
                "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
                "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
                "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
                "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
            },
        ),
        (
            "py",
            "md5",
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
    )
    for file, digest in files.items()
}

SOURCES: Mapping[str, Source] = {
    "cifar10": Source(
        task="cifar10",
        about="60,000 photographs of 32x32 pixels in ten classes",
        licence="none stated; cite Krizhevsky 2009",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        folder="cifar10",
        downloads=(
            Download(
                "cifar-10-binary.tar.gz",
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
                170_052_171,
                (
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
                ),
            ),
        ),
        digests=_CIFAR10,
        by_hand=(
            "put data_batch_1.bin to data_batch_5.bin and test_batch.bin into "
            "{folder}/cifar-10-batches-bin/ (or the python edition's files into "
            "{folder}/cifar-10-batches-py/)"
        ),
    ),
    "patchcamelyon": Source(
        task="patchcamelyon",
        about="327,680 pathology patches of 96x96 pixels, tumour or not",
        licence="CC0; cite Veeling et al. 2018",
        home="https://github.com/basveeling/pcam",
        folder="pcam",
        downloads=(
            _pcam(
                "train",
                "x",
                "1571f514728f59376b705fc836ff4b63",
                "1Ka0XfEMiwgCYPdTI-vv6eUElOBnKFKQ2",
            ),
            _pcam(
                "train",
                "y",
                "35c2d7259d906cfc8143347bb8e05be7",
                "1269yhu3pZDP8UYFQs-NYs3FPwuK-nGSG",
            ),
            _pcam(
                "valid",
                "x",
                "d5b63470df7cfa627aeec8b9dc0c066e",
                "1hgshYGWK8V-eGRy8LToWJJgDU_rXWVJ3",
            ),
            _pcam(
                "valid",
                "y",
                "2b85f58b927af9964a4c15b8f7e8f179",
                "1bH8ZRbhSVAhScTS0p9-ZzGnX91cHT3uO",
            ),
            _pcam(
                "test",
                "x",
                "d8c2d60d490dbd479f8199bdfa0cf6ec",
                "1qV65ZqZvWzuIVthK8eVDhIwrbnsJdbg_",
            ),
            _pcam(
                "test",
                "y",
                "60a7035772fbdb7f34eb86d4420cf66a",
                "17BHrSrwWKjYsOgTMmoqrIjDy6Fa2o_gP",
            ),
        ),
        digests={},
        by_hand=(
            "put the six camelyonpatch_level_2_split_*.h5 files into {folder}/ (or the Kaggle "
            "edition's train/ and train_labels.csv)"
        ),
    ),
    "lgg_mri": Source(
        task="lgg_mri",
        about="3,929 brain MRI slices of 256x256 pixels of 110 patients, with tumour masks",
        licence="the terms of TCIA and Kaggle; cite Buda, Saha and Mazurowski 2019",
        home="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
        folder="lgg",
        downloads=(),
        digests={},
        by_hand=(
            "log in at {home}, download the archive, and put its folder kaggle_3m (with the "
            "folders TCGA_*) into {folder}/"
        ),
    ),
}


def missing(name: str) -> MissingDataError:
    """The error for a set that is not there: what to put where, and how to check it."""
    source = SOURCES[name]
    folder = data_root() / source.folder
    by_hand = source.by_hand.format(folder=folder, home=source.home)
    get = f"znorm data get {name} downloads it, or " if source.downloads else ""
    return MissingDataError(
        f"{name}: no data in {folder}; {get}{by_hand}; znorm data verify {name} then checks them"
    )
