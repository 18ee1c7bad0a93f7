"""What a trained model says of pictures: its own test part, or a folder of others."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from znorm.lab import csvfiles, models, tasks, trust
from znorm.lab.datasets import Dataset, Part
from znorm.lab.datasets.files import inside, read_mask, read_picture, stat_file
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.metrics import Cases
from znorm.lab.metrics.segmentation import Counts
from znorm.lab.progress import Display
from znorm.lab.reporting.overlays import case, draw_cases, notable, outlined
from znorm.lab.store import Run, check_within, read_file, write_atomically, write_table
from znorm.lab.training.checkpoint import hash_state
from znorm.lab.training.device import is_there
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.weights import RESERVED, Trained, load

__all__ = ["outputs", "predict"]

PathLike: TypeAlias = str | os.PathLike[str]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
# The names of what a call is about to write, while it does: what it leaves if it is stopped.
_STARTED = "predictions.started.csv"
# Names of files that are not read, of which a note has so many.
_NAMED = 3
# Columns of a table of masks, without truth and with it; by them a table is known for one of ours.
_MARKED = ["name", "marked"]
_COUNTS = [field.name for field in fields(Counts)]
_DISTANCES = ["hausdorff", "hausdorff95", "hausdorff_rows"]
_SCORED = ["name", "patient", *_COUNTS, *_DISTANCES, "dice"]
# Rows of the figure where no truth tells which cases are the best and the worst.
_SHOWN = 3


def predict(
    run: Run | PathLike,
    folder: PathLike | None = None,
    *,
    out: PathLike | None = None,
    trust_models: bool = False,
    display: Display | None = None,
) -> Path:
    """Predict the test part of a finished run, or pictures in a folder.

    Parameters
    ----------
    run : Run or path
        Its folder, ``.../seed-0``.
    folder : path, optional
        Of pictures (png, tif, jpg or bmp, folders within it too) with the size and channels that
        the model was trained on. ``NAME_mask`` beside ``NAME`` is the true mask of it. Of other
        files a note tells.
    out : path, optional
        By default a folder in ``predictions`` within the run's own. What an earlier call wrote
        there is replaced; what somebody else has put there is not.
    trust_models : bool
        Whether a model is built that is code elsewhere, by the name that the run's specification
        has for it.
    display : Display, optional
        Gets the notes, which else are warnings.

    Returns
    -------
    Path
        Of a folder: ``predictions.csv``, a row an image; for masks ``masks/`` as black and white
        pictures, ``overlays/`` with outlines (the truth white, the prediction orange) and
        ``cases.png``, the best, the median and the worst by Dice among images whose truth marks
        anything; without truth the first ones.

    Raises
    ------
    ConfigurationError
        If the run is not finished; for a model that is not trusted; if ``out`` is ``folder``.
    DataError
        If weights or pictures are missing, unreadable or of another size, if the weights are not
        those that the run ended with, or give what is not finite, if the test part has other images
        than the run was tested on, or if what is in the way was not written by an earlier call;
        nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> runs = lab.compare(methods=["znorm"], seeds=1, epochs=1, limit=8, out=tempfile.mkdtemp())
    >>> (lab.predict(runs[0]) / "predictions.csv").read_text().splitlines()[0]
    'name,truth,predicted,no tumour,tumour'
    """
    with trust.trusting(everything=trust_models):
        one = run if isinstance(run, Run) else _run(Path(run))
        warn = partial(warnings.warn, stacklevel=3)
        return _predict(one, folder, out, warn if display is None else display.note)


def _predict(
    one: Run, folder: PathLike | None, out: PathLike | None, note: Callable[[str], None]
) -> Path:
    one.check_no_link()
    trust.check(one.spec)
    trained, output = _trained(one), tasks.TASKS[one.spec.task].output
    place = "test" if folder is None else _place(Path(folder))
    home = Path(out) if out is not None else one.folder / "predictions" / place
    if folder is None:
        named, part = _test_part(one, trained)
        truth = True
    else:
        if home.resolve() == Path(folder).resolve():
            raise ConfigurationError(
                f"out: {home} is the folder of the pictures itself; give another"
            )
        named, part, truth = _pictures(Path(folder), home, trained, output)
        if unread := _unread(Path(folder), home):
            note(f"{folder}: {_told(unread)}")
    files = _files_of(home, named) if output == "mask" else []
    # All of them before anything is written: what a link leads to is not ours to write in.
    for parent in {path.parent for path in (home / "predictions.csv", *files)}:
        check_within(one.folder if out is None else home, parent / "a")
    earlier = _earlier(home)
    _check_free(files, set(_files_of(home, earlier)))
    found = _outputs(one, trained, part)
    if not found.isfinite().all():
        raise DataError(
            f"{one.folder / 'weights.pt'}: the net gives what is not finite for these pictures"
        )
    # Names first and the table last: one that is there is whole, and whatever is left by a call
    # that was stopped is known to the next.
    started = dict.fromkeys((*earlier, *(named if output == "mask" else ())))
    if started:
        write_table(home / _STARTED, [{"started": name} for name in started])
    _remove_earlier(home, earlier)
    if output == "mask":
        rows = _write_masks(home, part, named, found[:, 0] > 0, truth=truth)
    else:
        rows = _classes(part, named, found.softmax(1), trained.classes, truth=truth)
    write_table(home / "predictions.csv", rows)
    _unlink(home / _STARTED)
    return home


def _run(folder: Path) -> Run:
    if not (folder / "spec.json").exists():
        raise DataError(f"{folder}: not the folder of one run, as .../METHOD__HASH/seed-0")
    return Run.open(folder)


def _files_of(home: Path, names: Sequence[str]) -> list[Path]:
    """The pictures that are written of masks with these names."""
    kinds = [home / kind / f"{name}.png" for name in names for kind in ("masks", "overlays")]
    return [*kinds, home / "cases.png"] if names else []


def _check_free(files: Iterable[Path], earlier: Container[Path]) -> None:
    for path in files:
        if path not in earlier and os.path.lexists(path):
            raise DataError(
                f"{path}: is in the way and not of an earlier call; move it away, or give another "
                "folder with --out"
            )


def _earlier(home: Path) -> list[str]:
    """The names of masks that earlier calls wrote, one that was stopped too.

    Raises
    ------
    DataError
        If the table is not one that a call wrote: it is somebody's own.
    """
    names: list[str] = []
    for path in (home / "predictions.csv", home / _STARTED):
        try:
            rows = csvfiles.load(read_file(path, 1 << 30))
        except FileNotFoundError:
            continue
        except ValueError:
            rows = []
        columns = list(rows[0]) if rows else []
        if columns == ["started"] and path.name == _STARTED:
            names += [row["started"] for row in rows]
        elif columns in (_MARKED, _SCORED) and path.name != _STARTED:
            names += [row["name"] for row in rows]
        elif path.name == _STARTED or not _is_of_classes(columns, rows):
            raise DataError(
                f"{path}: not what an earlier call wrote; move it away, or give another folder "
                "with --out"
            )
    return list(dict.fromkeys(names))


def _is_of_classes(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bool:
    known = [name for name in RESERVED if name in columns]
    classes = columns[len(known) :]
    return (
        list(columns[: len(known)]) == known
        and {"name", "predicted"} <= set(known)
        and len(classes) > 1
        and all(row["predicted"] in classes for row in rows)
    )


def _remove_earlier(home: Path, names: Sequence[str]) -> None:
    """What earlier calls wrote, the table first, and nothing else.

    The table may be anybody's: nothing outside of the folder is removed, whatever it names.
    """
    _unlink(home / "predictions.csv")
    for kind in ("masks", "overlays"):
        if (home / kind).is_symlink():
            continue
        for name in names:
            with suppress(DataError, OSError, ValueError):
                inside(home / kind, f"{name}.png").unlink(missing_ok=True)
    if names:
        _unlink(home / "cases.png")


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be removed ({error.strerror or error})") from None


def _place(folder: Path) -> str:
    """Where predictions of a folder go: no two folders share one."""
    whole = folder.resolve()
    return f"{whole.name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:6]}"


def _trained(run: Run) -> Trained:
    if run.status != "done":
        raise ConfigurationError(f"{run.folder}: {run.status}; predictions need a finished run")
    path = run.folder / "weights.pt"
    again = "remove result.json beside it and give the command that trained the run again"
    try:
        content = read_file(path, 1 << 40)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {again}") from None
    hashes = (run.result or {}).get("hashes", {})
    trained = load(content, str(path))
    fitting = 1 if tasks.TASKS[run.spec.task].output == "mask" else len(trained.classes)
    if trained.outputs != fitting:
        raise DataError(f"{path}: expected {fitting} outputs, found {trained.outputs}; {again}")
    # Runs of earlier versions have no hash of the file, but one of the weights.
    if "weights_file" in hashes:
        right = hashlib.sha256(content).hexdigest() == hashes["weights_file"]
    else:
        right = hash_state(trained.state) == hashes.get("final_weights")
    if not right:
        raise DataError(f"{path}: damaged: not what the run ended with; {again}")
    return trained


def _test_part(run: Run, trained: Trained) -> tuple[tuple[str, ...], Part]:
    """The test part that the run was tested on, and its names."""
    dataset = tasks.load(run.spec.task, run.spec.data)
    _check_same(run, dataset)
    shape = (len(trained.mean), *trained.image_size)
    if trained.classes != dataset.classes or shape != dataset.test.images.shape[1:]:
        raise DataError(
            f"{run.folder / 'weights.pt'}: of other classes, channels or image size than the data "
            "set; train the run again"
        )
    part = dataset.test
    return part.names or tuple(f"test-{row}" for row in range(len(part))), part


def _check_same(run: Run, dataset: Dataset) -> None:
    """Raise if the images that are here now are not those that the run was trained and tested on.

    Runs of earlier versions have not written down which these were.
    """
    before = (run.result or {}).get("hashes", {}).get("data")
    if before and before != dataset.fingerprint:
        raise DataError(
            f"{run.folder}: the images of {run.spec.task} that are here now are other ones than it "
            "was trained and tested on; put those back, or train the run again"
        )


def outputs(run: Run, part: Part, dataset: Dataset | None = None) -> Tensor:
    """What the net of a finished run gives for each image, in order: as its loop evaluates.

    Parameters
    ----------
    run : Run
    part : Part
        The images.
    dataset : Dataset, optional
        Which they are of, if they are to be those that the run was tested on.

    Returns
    -------
    Tensor of shape (N, classes) or (N, 1, H, W), float32
        On the CPU.

    Raises
    ------
    ConfigurationError, DataError
        If the run is not finished; if its weights are missing; if the data set has other images
        than the run had.
    """
    if dataset is not None:
        _check_same(run, dataset)
    return _outputs(run, _trained(run), part)


@torch.no_grad()
def _outputs(run: Run, trained: Trained, part: Part) -> Tensor:
    spec = run.spec
    trust.check(spec)
    device = torch.device(spec.device if is_there(spec.device) else "cpu")
    dataset = Dataset(part, part, part, trained.classes)
    model = models.build(
        spec.model,
        channels=len(trained.mean),
        classes=trained.outputs,
        image_size=trained.image_size,
        **spec.model_options,
    )
    try:
        model.load_state_dict(trained.state)
    except Exception:
        # Tensors of other shapes and kinds fail in many ways; all of them mean the same.
        raise DataError(
            f"{run.folder / 'weights.pt'}: not of model {spec.model}; train the run again"
        ) from None
    model = model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    pipeline = Pipeline(dataset, "none", spec.seed, device, statistics=(trained.mean, trained.std))
    found = []
    for images, _ in pipeline.evaluation_batches(part):
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
            found.append(model(images).float().cpu())
    whole = torch.cat(found)
    if whole.shape[1:2] != (trained.outputs,):
        raise DataError(
            f"{run.folder}: expected {trained.outputs} outputs of model {spec.model}, found "
            f"shape {tuple(whole.shape[1:])}"
        )
    return whole


def _pictures(
    folder: Path, home: Path, trained: Trained, output: str
) -> tuple[tuple[str, ...], Part, bool]:
    """The pictures of a folder by name, with their masks if all of them have one."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures")
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in _files(folder, home)
    }
    masks = {
        name: files[f"{name}_mask"]
        for name in files
        if output == "mask" and f"{name}_mask" in files
    }
    names = tuple(
        name for name in files if name.removesuffix("_mask") not in masks or name in masks
    )
    if not names:
        raise DataError(f"{folder}: no pictures in it; valid endings: {', '.join(SUFFIXES)}")
    if masks and len(masks) < len(names):
        lacking = next(name for name in names if name not in masks)
        raise DataError(f"{files[lacking]}: has no mask, and others have; give all or none one")
    mode = "L" if len(trained.mean) == 1 else "RGB"
    size = trained.image_size
    pixels = np.stack([read_picture(files[name], mode, size, own=True) for name in names])
    images = torch.from_numpy(pixels.reshape(len(names), *size, -1)).permute(0, 3, 1, 2)
    if masks:
        marked = np.stack([read_mask(masks[name], size, own=True) for name in names])
        return names, Part(images, torch.from_numpy(marked), names), True
    nothing = (len(names), *size) if output == "mask" else (len(names),)
    kind = torch.uint8 if output == "mask" else torch.int64
    return names, Part(images, torch.zeros(nothing, dtype=kind), names), False


def _files(folder: Path, home: Path) -> Iterator[Path]:
    """Pictures in a folder, but for those that were written here."""
    seen: dict[Path, Path] = {}
    for path in _entries(folder, home.resolve()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        stat_file(path)
        relative = path.relative_to(folder).as_posix()
        if relative != relative.encode(errors="replace").decode():
            raise DataError(f"{folder}: {relative!r} in it has a name that is no text; rename it")
        bare = path.with_suffix("")
        if bare in seen:
            raise DataError(f"{path}: {seen[bare].name} beside it has the same name")
        seen[bare] = path
        yield path


def _entries(folder: Path, written: Path) -> list[Path]:
    """All that is in a folder and in those within it, but for the folder of what is written.

    Raises
    ------
    DataError
        If one cannot be read; for a link to a folder, whose pictures would be missed.
    """
    entries = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        if Path(place).resolve() == written:
            folders.clear()  # nor is it gone on within it
            continue
        for path in (Path(place, name) for name in folders):
            if path.is_symlink() and path.resolve() != written:
                raise DataError(
                    f"{path}: a link to a folder, which is not followed; put the folder itself "
                    "there, or take the link away"
                )
        entries += [Path(place, name) for name in (*folders, *files)]
    return sorted(entries)


def _unread(folder: Path, home: Path) -> list[str]:
    """The files in a folder that are not of the kinds that are read."""
    return [
        path.relative_to(folder).as_posix()
        for path in _entries(folder, home.resolve())
        if path.suffix.lower() not in SUFFIXES and not path.is_dir()
    ]


def _told(unread: Sequence[str]) -> str:
    files = "1 file" if len(unread) == 1 else f"{len(unread)} files"
    more = ", ..." if len(unread) > _NAMED else ""
    return f"{files} of other kinds not read: {', '.join(map(repr, unread[:_NAMED]))}{more}"


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})")


def _classes(
    part: Part,
    names: Sequence[str],
    shares: Tensor,
    classes: Sequence[str],
    *,
    truth: bool,
) -> list[dict[str, Any]]:
    rows = []
    for row, name in enumerate(names):
        line: dict[str, Any] = {"name": name}
        if truth:
            line["truth"] = classes[int(part.targets[row])]
        line["predicted"] = classes[int(shares[row].argmax())]
        rows.append({**line, **dict(zip(classes, shares[row].tolist(), strict=True))})
    return rows


def _write_masks(
    home: Path, part: Part, names: Sequence[str], masks: Tensor, *, truth: bool
) -> list[dict[str, Any]]:
    """The pictures of all masks; their rows in the table come back."""
    rows: list[dict[str, Any]]
    if truth:
        cases = Cases.of(masks, part.targets > 0, names, part.patients or None)
        scores = cases.counts.dice().tolist()
        rows = [{**row, "dice": score} for row, score in zip(cases.rows(), scores, strict=True)]
        shown = notable(scores, cases.target_found.tolist())
    else:
        rows = [
            {"name": name, "marked": int(mask.sum())}
            for name, mask in zip(names, masks, strict=True)
        ]
        shown = {names[row]: row for row in range(min(_SHOWN, len(names)))}
    figure = []
    for row, name in enumerate(names):
        mask = masks[row].numpy()
        one = case(part, row, name, {"Prediction": mask}, truth=truth)
        buffer = io.BytesIO()
        Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="PNG")
        write_atomically(home / "masks" / f"{name}.png", buffer.getvalue())
        write_atomically(home / "overlays" / f"{name}.png", outlined(one))
    for title, row in shown.items():
        label = f"{title}\n{names[row]}" if truth else title
        predictions = {"Prediction": masks[row].numpy()}
        figure.append(case(part, row, label, predictions, truth=truth))
    if figure:
        buffer = io.BytesIO()
        draw_cases(figure, buffer)
        write_atomically(home / "cases.png", buffer.getvalue())
    return rows
