"""The verbs on runs as functions: compare, run, report, verify, status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from znorm.lab import trust
from znorm.lab.datasets.own.tasks import task_of
from znorm.lab.deciding import added_until_decided, asked, keep
from znorm.lab.errors import ConfigurationError
from znorm.lab.looking import first_look
from znorm.lab.options import CompareOptions, PathLike, keywords
from znorm.lab.paper.page import frame_of_folder
from znorm.lab.reporting.export import pack
from znorm.lab.reporting.report import write_report
from znorm.lab.reporting.verify import Verification, verify_numbers
from znorm.lab.runs.files import write_atomically
from znorm.lab.runs.folder import Run
from znorm.lab.runs.grid import grid
from znorm.lab.runs.progress import Display, Silent
from znorm.lab.runs.runner import execute
from znorm.lab.runs.survey import Damaged, survey
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.tuning import further_runs, tuned_runs, tuning_asked

__all__ = [
    "compare",
    "export_numbers",
    "planned",
    "report",
    "report_and_damaged",
    "run",
    "status",
    "verify",
]


MOST_FOLDS = 50


def planned(options: CompareOptions) -> tuple[list[RunSpec], tuple[int, int]]:
    """The specifications of a comparison; how many runs tuning adds, and how many of them are left.

    Of a folder of your own the page of a first look is written, where the runs will be.

    Errors are those of :func:`compare`.
    """
    options = _settled(options)
    specs = _specs(options)
    asked(options, specs)
    tuning = tuning_asked(options, specs)
    _check_folder(options.out)
    first_look(specs, Path(options.out), (options.display or Silent()).note)
    return specs, (0, 0) if tuning is None else further_runs(options, tuning, specs)


@keywords(CompareOptions)
def compare(options: CompareOptions) -> list[Run]:
    """Train methods on one task and model over seeds, all else equal, and write the report.

    For one seed every method starts from the same weights and sees the same batches in the same
    order. What is there already is not trained again; what was stopped goes on where it stood.

    Parameters
    ----------
    task, model : str
        Names that :func:`znorm.lab.names` lists; by default the built-in data and its model.
    data : path, optional
        A folder of your own images, in place of a task: a folder for each class, with folders for
        groups (patients) in it where there are any; or ``images`` and ``masks``. Before anything is
        trained ``first-look.html`` shows what is there, what is doubtful and what will be done.
    table : path, optional
        A CSV file that lists those to use: file, label or mask, group, part or fold.
    folds : int, optional
        Of your own images: each of so many folds is the test part in turn, and the page has one
        more section over all of them. A group is in one of them.
    methods : sequence of str or mapping, optional
        By default the six of the paper's tables. A mapping is a method of your own: ``name``,
        ``transform`` (such as ``[{"ClipValue": {"threshold": 0.1}}, "ZNorm"]``), ``weight_decay``.
    seeds : int or sequence of int
        N means 0 to N-1.
    epochs, lr, schedule, batch_size : optional
        By default the task's.
    micro_batch : int, optional
        Images that are in memory at once; gradients of a batch's pieces add up.
    optimizer : str or mapping
        "adam", "adamw", "sgd", "rmsprop", or any class as "torch.optim.NAdam"; a mapping has
        ``name`` and the class's arguments.
    device, precision : str
        ``auto`` takes what is fastest on this machine.
    deterministic : bool
        Ask torch for deterministic algorithms.
    cuda_graph : bool, optional
        On a GPU, capture each whole step in one CUDA graph: launched at once, not kernel by kernel.
        By default where nothing within it can wait for the device, which of code from elsewhere is
        not known; a word then says so.
    compile : bool, optional
        Train the net by ``torch.compile``, which takes half a minute or so for each shape of a
        batch, and then shortens steps: the page on experiments has figures. Evaluation is as ever.
    limit : int, optional
        At most so many images of each part; the page then says so.
    set : mapping, optional
        Further keys of the specification, such as ``{"data.augment": "none"}`` or
        ``{"model_options.stem": "cifar"}``.
    workers : int, optional
        Threads that read ahead, of a set that does not fit in memory.
    jobs : int
        Runs that are trained side by side. On a CPU each is a process and has a share of the
        threads, on whose number the last bits depend; a run keeps the number that it began with. On
        a GPU, most of which a small net leaves idle, they take turns in one process, each on a
        stream of its own; several GPUs have a process each.
    retry : bool
        Whether runs that failed are trained again, whatever it was; those that ran out of memory or
        of disk are by themselves. Runs that diverged are left as they are.
    patience : int, optional
        Epochs without a better score on the validation part after which a run ends, whatever its
        method. Schedules keep the length of ``epochs``.
    best_epoch : bool
        Whether a run's scores and weights are those of the epoch that was best on the validation
        part, the first of several; by default those of its last epoch.
    start : path, optional
        A file of weights that the net of every method and seed starts from: a state_dict as torch
        saves it, or ``.safetensors``, with the net's names and shapes. A head for another number of
        classes stays as the seed draws it.
    worth : float, optional
        The smallest gain in the headline score that is worth adopting a method, by default 0.01, a
        point of accuracy. It is kept in ``question.json`` before the first run, and the report's
        answer is to that question.
    until : "decided", optional
        Add seeds to the baseline and ZNorm (or the first method beside the baseline), pair by pair,
        until the question is decided; its intervals then hold at all looks at once.
    budget : float, optional
        Minutes after which no more seeds are added.
    tune : int, optional
        Trials of each method, by which it is compared at its own best learning rate and schedule,
        too: the best on validation data, trained over the same seeds. The first trial is what all
        methods share; the others are drawn alike for all. Trials have a seed of their own.
    sampler : "random" or "tpe", optional
        How trials are drawn, by Optuna: at random, or by what a method's earlier ones scored.
    lr_range : sequence of two floats, or str, optional
        The lowest and the highest learning rate of trials, by default a tenth of the shared one and
        ten times it.
    out : path
        Where run folders and the report go.
    display : Display, optional
        What shows progress; nothing by default.

    Returns
    -------
    list of Run

    Raises
    ------
    ConfigurationError, DataError
        Before anything is trained.
    DiskFullError, Interrupted
        With the state saved where it could be.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> runs = lab.compare(methods=["znorm"], seeds=1, epochs=1, limit=16, out=tempfile.mkdtemp())
    >>> runs[0].status
    'done'
    """
    options = _settled(options)
    specs = _specs(options)
    _check_folder(options.out)
    runs = [Run.at(options.out, spec) for spec in specs]
    display = options.display or Silent()
    # What this call names is the caller's own; what else lies in the folder is not.
    with trust.trusting(trust.names_of(specs)):
        question = asked(options, specs)
        tuning = tuning_asked(options, specs)

        def checked() -> None:
            if not all((one.folder / "result.json").exists() for one in runs):
                first_look(specs, Path(options.out), display.note)
            if question is not None:
                keep(question, Path(options.out), display.note)

        def train(more: list[Run]) -> None:
            execute(more, display, options.workers, options.jobs, retry=options.retry)

        execute(runs, display, options.workers, options.jobs, checked, retry=options.retry)
        if options.until is not None and question is not None:
            for more in added_until_decided(options, question, runs, display.note):
                train(more)
                runs += more
        if tuning is not None:
            trained = [run.spec for run in runs]
            runs += [
                run
                for run in tuned_runs(options, tuning, trained, train, display.note)
                if run.spec not in trained
            ]
        report(options.out)
    return runs


def _specs(options: CompareOptions) -> list[RunSpec]:
    """The specifications of a comparison, those of one fold after those of the other."""
    if options.folds is None:
        return grid(options.methods, options.seeds, options.choices())
    folds = options.folds
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= MOST_FOLDS:
        raise ConfigurationError(
            f"folds: expected a whole number from 2 to {MOST_FOLDS}, found {folds!r}"
        )
    if options.until is not None or options.tune is not None:
        option = "until" if options.until is not None else "tune"
        raise ConfigurationError(f"folds: not together with {option}; leave one of them out")
    choices = options.choices()
    if choices.get("data.folder") is None:
        raise ConfigurationError("folds: are of your own images; give their folder as data")
    given = [key for key in ("data.fold", "data.test_share") if choices.get(key) is not None]
    if given:
        raise ConfigurationError(f"folds: gives {given[0]}; leave that out")
    choices |= {"data.folds": folds, "data.test_share": 1 / folds}
    specs: list[RunSpec] = []
    for fold in range(folds):
        specs += grid(options.methods, options.seeds, {**choices, "data.fold": fold})
    return specs


def _settled(options: CompareOptions) -> CompareOptions:
    """The options with the task that follows from a folder of the user's own."""
    if options.data is None:
        if options.table is not None:
            raise ConfigurationError("table: lists files in a folder; give that as data")
        return options
    if options.task is not None:
        raise ConfigurationError("task: follows from data; leave it out")
    folder = str(Path(options.data).expanduser().absolute())
    table = None if options.table is None else str(Path(options.table).expanduser().absolute())
    return replace(options, task=task_of(folder, table), data=folder, table=table)


def _check_folder(out: PathLike) -> None:
    """Refuse a place for runs that is a file, before anything is trained."""
    place = Path(out)
    for path in (place, *place.parents):
        if path.exists() or path.is_symlink():
            if not path.is_dir():
                raise ConfigurationError(f"out: {path} is a file; give a folder")
            return


def run(
    spec: RunSpec | Mapping[str, Any],
    *,
    out: PathLike = "runs",
    workers: int | None = None,
    retry: bool = False,
    trust_models: bool = True,
    display: Display | None = None,
) -> Run:
    """Train the one run that a specification describes, or go on with it.

    Parameters
    ----------
    spec : RunSpec or mapping
        Keys as in spec.json; what is missing takes the task's defaults.
    out : path
    workers : int, optional
    retry : bool
        As :func:`compare` takes it.
    trust_models : bool, default True
        Whether a model or optimizer that is code elsewhere is imported. What you write yourself is
        your own; pass False for a specification that somebody has sent, as ``znorm run`` does.
    display : Display, optional

    Returns
    -------
    Run
        Ended, whatever its status is.

    Raises
    ------
    ConfigurationError, DataError, DiskFullError, Interrupted
        As :func:`compare` does.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> spec = {"method": "znorm", "epochs": 1, "data.limit": 8}
    >>> lab.run(spec, out=tempfile.mkdtemp()).status
    'done'
    """
    _check_folder(out)
    with trust.trusting(everything=trust_models):
        if not isinstance(spec, RunSpec):
            trust.check(spec)  # before anything that it names is looked up
        resolved = spec if isinstance(spec, RunSpec) else resolve(spec)
        one = Run.at(out, resolved)
        execute([one], display or Silent(), workers, retry=retry)
    return one


def report(out: PathLike = "runs", *, images: bool = True, trust_models: bool = False) -> Path:
    """Write the report of all runs below ``out``: one self-contained page.

    Parameters
    ----------
    out : path
    images : bool
        Whether it shows pictures of the data; without them it may be passed on where the data may
        not.
    trust_models : bool
        Whether models are built that are code elsewhere, by the names that the folder's
        specifications have for them: for pictures of what they predict. Else the names are shown.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    DataError
        If there are no runs.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> out = tempfile.mkdtemp()
    >>> _ = lab.run({"epochs": 1, "data.limit": 8}, out=out)
    >>> lab.report(out).name
    'report.html'
    """
    return report_and_damaged(out, images=images, trust_models=trust_models)[0]


def report_and_damaged(
    out: PathLike, *, images: bool, trust_models: bool
) -> tuple[Path, list[Damaged]]:
    """As :func:`report`, and the folders that cannot be read."""
    root = Path(out)
    return write_report(root, images=images, trust_models=trust_models, frame=frame_of_folder(root))


def export_numbers(out: PathLike, file: PathLike) -> list[Damaged]:
    """Pack the numbers of all runs below ``out`` into one zip file; the folders left out of it.

    It holds each run's specification, scores by epoch and at the end, counts of test cases with
    their names and patients, and versions of packages; no weights and no pictures. The same content
    has the same bytes.

    Parameters
    ----------
    out : path
    file : path
        A name that ends in ``.zip``; what is there is replaced.

    Returns
    -------
    list
        Of each folder that could not be read: ``folder`` and ``reason``.

    Raises
    ------
    ConfigurationError
        For another name.
    DataError
        If there are no runs, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> out = tempfile.mkdtemp()
    >>> _ = lab.run({"epochs": 1, "data.limit": 8}, out=out)
    >>> lab.export_numbers(out, f"{out}/numbers.zip")
    []
    """
    path = Path(file)
    if path.suffix.lower() != ".zip" or path.is_dir():
        raise ConfigurationError(f"export: expected the name of a file, ending in .zip: {file}")
    content, damaged = pack(Path(out))
    write_atomically(path, content)
    return damaged


def verify(source: PathLike, page: PathLike | None = None) -> Verification:
    """Work out every number of a report again from the files of its runs, on any machine.

    Parameters
    ----------
    source : path
        A folder of runs, or the zip file that :func:`export_numbers` made of one.
    page : path, optional
        The report; by default the one in the folder. Without any, the files alone are compared with
        each other: scores with epochs and with counts of cases.

    Returns
    -------
    Verification
        True where all agree; ``differing`` has a line for each number that does not.

    Raises
    ------
    DataError
        If one of the two cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> out = tempfile.mkdtemp()
    >>> _ = lab.compare(methods=["baseline"], seeds=1, epochs=1, limit=8, out=out)
    >>> lab.verify(out).differing
    ()
    """
    path = None if page is None else Path(page)
    return verify_numbers(Path(source), path, frame_of_folder)


def status(out: PathLike = "runs") -> list[dict[str, Any]]:
    """The status of each run below ``out``: one dict a run.

    Parameters
    ----------
    out : path, default "runs"

    Returns
    -------
    list of dict
        task, model, method, seed, status, epochs_done, epochs, diverged_step, error, metrics,
        folder; of a folder that cannot be read folder, status and error.

    Raises
    ------
    DataError
        If there is no such folder.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> out = tempfile.mkdtemp()
    >>> _ = lab.run({"epochs": 1, "data.limit": 8}, out=out)
    >>> [(row["method"], row["status"], row["epochs_done"]) for row in lab.status(out)]
    [('baseline', 'done', 1)]
    """
    runs, damaged = survey(out)
    rows = []
    for one in runs:
        result = one.result or {}
        rows.append(
            {
                "task": one.spec.task,
                "model": one.spec.model,
                "method": one.spec.method,
                "seed": one.spec.seed,
                "status": one.status,
                "epochs_done": len(one.history),
                "epochs": one.spec.epochs,
                "diverged_step": result.get("diverged_step"),
                "error": result.get("error"),
                "metrics": result.get("metrics", {}),
                "folder": str(one.folder),
            }
        )
    nothing = dict.fromkeys(("task", "model", "method", "seed", "epochs", "diverged_step"))
    for other in damaged:
        rows.append(
            {
                **nothing,
                "status": other.status,
                "epochs_done": None,
                "error": other.reason,
                "metrics": {},
                "folder": str(other.folder),
            }
        )
    return rows
