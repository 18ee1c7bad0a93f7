"""What a trained model says of pictures: its own test part, or a folder of others."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
from znorm.lab.reporting.overlays import case, draw_cases, notable, outlined
from znorm.lab.store import Run, check_within, read_file, write_atomically, write_table
from znorm.lab.training.checkpoint import hash_state
from znorm.lab.training.device import is_there
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.weights import Trained, load

__all__ = ["outputs", "predict"]

PathLike: TypeAlias = str | os.PathLike[str]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
# Rows of the figure where no truth tells which cases are the best and the worst.
_SHOWN = 3


def predict(
    run: Run | PathLike,
    folder: PathLike | None = None,
    *,
    out: PathLike | None = None,
    trust_models: bool = False,
) -> Path:
    """Predict the test part of a finished run, or pictures in a folder.

    Parameters
    ----------
    run : Run or path
        Its folder, ``.../seed-0``.
    folder : path, optional
        Of pictures (png, tif, jpg or bmp, folders within it too) with the size and channels that
        the model was trained on. ``NAME_mask`` beside ``NAME`` is the true mask of it.
    out : path, optional
        By default a folder in ``predictions`` within the run's own. What an earlier call wrote
        there is replaced.
    trust_models : bool
        Whether a model is built that is code elsewhere, by the name that the run's specification
        has for it.

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
        If the run is not finished; for a model that is not trusted.
    DataError
        If weights or pictures are missing, unreadable or of another size, if the weights are not
        those that the run ended with, or give what is not finite; nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> runs = lab.compare(methods=["znorm"], seeds=1, epochs=1, limit=8, out=tempfile.mkdtemp())
    >>> (lab.predict(runs[0]) / "predictions.csv").read_text().splitlines()[0]
    'name,truth,predicted,no tumour,tumour'
    """
    with trust.trusting(everything=trust_models):
        return _predict(run if isinstance(run, Run) else _run(Path(run)), folder, out)


def _predict(one: Run, folder: PathLike | None, out: PathLike | None) -> Path:
    trust.check(one.spec)
    trained, output = _trained(one), tasks.TASKS[one.spec.task].output
    place = "test" if folder is None else _place(Path(folder))
    home = Path(out) if out is not None else one.folder / "predictions" / place
    for kind in ("masks", "overlays"):
        # What a link leads to is not ours to write in.
        check_within(home if out is not None else one.folder, home / kind / "a.png")
    if folder is None:
        part = tasks.load(one.spec.task, one.spec.data).test
        named = part.names or tuple(f"test-{row}" for row in range(len(part)))
        truth = True
    else:
        named, part, truth = _pictures(Path(folder), home, trained, output)
    found = _outputs(one, trained, part)
    if not found.isfinite().all():
        raise DataError(
            f"{one.folder / 'weights.pt'}: the net gives what is not finite for these pictures"
        )
    _remove_earlier(home)
    if output == "mask":
        _write_masks(home, part, named, found[:, 0] > 0, truth=truth)
    else:
        _write_classes(home, part, named, found.softmax(1), trained.classes, truth=truth)
    return home


def _run(folder: Path) -> Run:
    if not (folder / "spec.json").exists():
        raise DataError(f"{folder}: not the folder of one run, as .../METHOD__HASH/seed-0")
    return Run.open(folder)


def _remove_earlier(home: Path) -> None:
    """What an earlier call wrote, by the names in its table, and nothing else.

    The table may be anybody's: nothing outside of the folder is removed, whatever it names.
    """
    try:
        content = read_file(home / "predictions.csv", 1 << 30)
        names = [row.get("name") or "" for row in csvfiles.load(content)]
    except (FileNotFoundError, DataError, ValueError):
        return
    for kind in ("masks", "overlays"):
        if (home / kind).is_symlink():
            continue
        for name in names:
            with suppress(DataError, OSError, ValueError):
                inside(home / kind, f"{name}.png").unlink(missing_ok=True)
    (home / "cases.png").unlink(missing_ok=True)


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
    # Runs of earlier versions have no hash of the file, but one of the weights.
    if "weights_file" in hashes:
        right = hashlib.sha256(content).hexdigest() == hashes["weights_file"]
    else:
        right = hash_state(trained.state) == hashes.get("final_weights")
    if not right:
        raise DataError(f"{path}: damaged: not what the run ended with; {again}")
    return trained


def outputs(run: Run, part: Part) -> Tensor:
    """What the net of a finished run gives for each image, in order: as its loop evaluates.

    Returns
    -------
    Tensor of shape (N, classes) or (N, 1, H, W), float32
        On the CPU.

    Raises
    ------
    ConfigurationError, DataError
        If the run is not finished; if its weights are missing.
    """
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
    except RuntimeError:
        raise DataError(f"{run.folder / 'weights.pt'}: not of model {spec.model}") from None
    model = model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    pipeline = Pipeline(dataset, "none", spec.seed, device, statistics=(trained.mean, trained.std))
    found = []
    for images, _ in pipeline.evaluation_batches(part):
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
            found.append(model(images).float().cpu())
    return torch.cat(found)


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
    pixels = np.stack([read_picture(files[name], mode, size) for name in names])
    images = torch.from_numpy(pixels.reshape(len(names), *size, -1)).permute(0, 3, 1, 2)
    if masks:
        marked = np.stack([read_mask(masks[name], size) for name in names])
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
    """All that is in a folder and in those within it, but for the folder of what is written."""
    entries = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        if Path(place).resolve() == written:
            folders.clear()  # nor is it gone on within it
            continue
        entries += [Path(place, name) for name in (*folders, *files)]
    return sorted(entries)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})")


def _write_classes(
    home: Path,
    part: Part,
    names: Sequence[str],
    shares: Tensor,
    classes: Sequence[str],
    *,
    truth: bool,
) -> None:
    rows = []
    for row, name in enumerate(names):
        line: dict[str, Any] = {"name": name}
        if truth:
            line["truth"] = classes[int(part.targets[row])]
        line["predicted"] = classes[int(shares[row].argmax())]
        rows.append({**line, **dict(zip(classes, shares[row].tolist(), strict=True))})
    write_table(home / "predictions.csv", rows)


def _write_masks(
    home: Path, part: Part, names: Sequence[str], masks: Tensor, *, truth: bool
) -> None:
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
    write_table(home / "predictions.csv", rows)
