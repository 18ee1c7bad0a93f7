"""Predictions of a trained model: of its own test split, or of a folder of pictures."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from znorm.lab import tasks, trust
from znorm.lab.datasets.own import tasks as own
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.options import PathLike
from znorm.lab.prediction.output import (
    STARTED,
    check_free,
    class_rows,
    files_of,
    files_of_earlier,
    names_of_earlier,
    remove,
    remove_earlier,
    write_masks,
)
from znorm.lab.prediction.pictures import Pictures, note_on_other_files, read_pictures
from znorm.lab.prediction.predicted import Predicted
from znorm.lab.runs.files import check_within, write_table
from znorm.lab.runs.folder import Run
from znorm.lab.runs.inference import check_images_of_run, outputs_of, trained_net
from znorm.lab.runs.progress import Display
from znorm.lab.training.weights import Trained

__all__ = ["predict"]


def predict(
    run: Run | PathLike,
    folder: PathLike | None = None,
    *,
    out: PathLike | None = None,
    threshold: float | str | None = None,
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
        the model was trained on; of a run on your own images of any size, and npy, NIfTI volumes
        and DICOM too, read by the run's own rule. ``NAME_mask`` beside ``NAME`` is the true mask of
        it. Of other files a note tells.
    out : path, optional
        By default a folder in ``predictions`` within the run's own. What an earlier call wrote
        there is replaced; what somebody else has put there is not.
    threshold : float or "validation", optional
        The probability above which a pixel is marked, or an image is of the second of two classes:
        by default 0.5 for the test part, as the report has it, and for a folder the one that was
        best on the validation part.
    trust_models : bool
        Whether a model is built that is code elsewhere, by the name that the run's specification
        has for it.
    display : Display, optional
        Gets the notes, which else are warnings.

    Returns
    -------
    Path
        Of a folder: ``predictions.csv``, a row an image; for masks ``masks/`` of the pictures' own
        size, black and white (of several classes by the values that your masks have; of a NIfTI
        volume a volume with its affine), ``overlays/`` with outlines (the truth white, the
        prediction orange) and ``cases.png``, the best, the median and the worst by Dice among
        images whose truth marks anything; without truth the first ones.

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
        note = warn if display is None else display.note
        return _predict(one, folder, out, threshold, note)


def _predict(
    one: Run,
    folder: PathLike | None,
    out: PathLike | None,
    threshold: float | str | None,
    note: Callable[[str], None],
) -> Path:
    one.check_no_link()
    trust.check(one.spec)
    trained, output = trained_net(one), tasks.TASKS[one.spec.task].output
    place = "test" if folder is None else _name_for(Path(folder))
    home = Path(out) if out is not None else one.folder / "predictions" / place
    probability = _probability(threshold, trained, of_test=folder is None)
    if folder is None:
        pictures = _test_part(one, trained)
    else:
        if home.resolve() == Path(folder).resolve():
            raise ConfigurationError(
                f"out: {home} is the folder of the pictures itself; give another"
            )
        rule = own.rule_of_data(one.spec.data)
        pictures = read_pictures(Path(folder), home, trained, output, rule)
        if text := note_on_other_files(Path(folder), home, rule):
            note(text)
    names = pictures.names if output == "mask" else ()
    files = files_of(home, pictures) if output == "mask" else []
    # All of them before anything is written: what a link leads to is not ours to write in.
    for parent in {path.parent for path in (home / "predictions.csv", *files)}:
        check_within(one.folder if out is None else home, parent / "a")
    earlier = names_of_earlier(home)
    check_free(files, set(files_of_earlier(home, earlier)))
    outputs = outputs_of(one, trained, pictures.split)
    if not outputs.isfinite().all():
        raise DataError(
            f"{one.folder / 'weights.pt'}: the net gives what is not finite for these pictures"
        )
    if threshold is None and probability != 0.5:
        note(
            f"threshold {probability:g}: the best one on validation data; the report's scores are "
            "of 0.5"
        )
    # Names first and the table last: one that is there is whole, and whatever is left by a call
    # that was stopped is known to the next.
    started = dict.fromkeys((*earlier, *names))
    if started:
        write_table(home / STARTED, [{"started": name} for name in started])
    remove_earlier(home, earlier)
    if output == "mask":
        labels = trained.classes[1:] if len(trained.classes) > 2 else ()
        predicted = Predicted(pictures, outputs, probability, labels)
        rows = write_masks(home, pictures, predicted, labels)
    else:
        rows = class_rows(pictures, outputs.softmax(1), trained.classes, probability)
    write_table(home / "predictions.csv", rows)
    remove(home / STARTED)
    return home


def _probability(threshold: float | str | None, trained: Trained, *, of_test: bool) -> float:
    """The probability from which on something is marked, or is of the second of two classes."""
    if threshold is None and of_test:
        return 0.5
    if threshold in (None, "validation"):
        return 0.5 if trained.threshold is None else trained.threshold
    try:
        number = float(threshold)
    except (TypeError, ValueError):
        number = 0.0
    if isinstance(threshold, bool) or not 0 < number < 1:
        raise ConfigurationError(
            f"threshold: expected a probability between 0 and 1, or validation, found {threshold!r}"
        )
    if trained.outputs > 2:
        raise ConfigurationError("threshold: of several classes the likeliest is taken")
    return number


def _run(folder: Path) -> Run:
    if not (folder / "spec.json").exists():
        raise DataError(f"{folder}: not the folder of one run, as .../METHOD__HASH/seed-0")
    return Run.open(folder)


def _name_for(folder: Path) -> str:
    """The name of the folder that predictions of a folder go to: no two share one."""
    whole = folder.resolve()
    return f"{whole.name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:6]}"


def _test_part(run: Run, trained: Trained) -> Pictures:
    """The test split that the run was tested on."""
    dataset = tasks.load(run.spec.task, run.spec.data)
    check_images_of_run(run, dataset)
    shape = (len(trained.mean), *trained.image_size)
    if trained.classes != dataset.classes or shape != dataset.test.images.shape[1:]:
        raise DataError(
            f"{run.folder / 'weights.pt'}: of other classes, channels or image size than the data "
            "set; train the run again"
        )
    test = dataset.test
    return Pictures(test.case_names, test, truth=True)
