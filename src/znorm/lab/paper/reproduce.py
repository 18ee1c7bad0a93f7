"""The paper's tables and figure, one call each."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from znorm.lab.datasets.files import data_root
from znorm.lab.errors import ConfigurationError, MissingDataError
from znorm.lab.models import MODELS
from znorm.lab.options import ReproduceOptions, keywords
from znorm.lab.paper.grids import SCALES, TARGETS, Scale, Target, against_stated, settings
from znorm.lab.paper.page import frame_of_folder
from znorm.lab.paper.record import Record
from znorm.lab.registry import lookup, unknown
from znorm.lab.reporting.report import write_report
from znorm.lab.runs.folder import Run
from znorm.lab.runs.grid import grid
from znorm.lab.runs.progress import Silent
from znorm.lab.runs.runner import execute
from znorm.lab.runs.survey import find
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS, load

__all__ = ["planned", "reproduce"]


def planned(options: ReproduceOptions) -> tuple[list[RunSpec], Record]:
    """The specifications of a target, or of ``all``, and the tasks that are trained for each.

    Seed by seed, and within a seed model by model with its methods side by side, so that a grid
    stopped halfway is balanced.

    Raises
    ------
    ConfigurationError
        Naming the argument that is not valid; at scale ``paper``, what the paper states.
    MissingDataError
        If images are missing; at scale ``smoke`` a built-in task stands in for them.
    """
    target, scale = options.target, options.scale
    size = lookup("scale", scale, SCALES)
    names = list(TARGETS) if target == "all" else [target]
    targets = [lookup("target", name, {**TARGETS, "all": TARGETS["table1"]}) for name in names]
    further = _flat(options.set or {})
    for key in further:
        if key.partition(".")[0] in _FIXED:
            raise ConfigurationError(
                f"set: {key} is what a target fixes; use models, methods and seeds"
            )
    choices = {**replace(options, set=None).choices(), **further}
    # Left to the scale, or to the task, where nothing is chosen.
    choices = {key: value for key, value in choices.items() if value is not None}
    wanted = _listed(options.models)
    for name in wanted or ():
        known = [model for one in targets for model in one.models]
        if name not in known:
            raise unknown(f"model of {target}", name, [name for name in MODELS if name in known])
    if wanted == []:
        raise ConfigurationError("models: give at least one")
    specs: dict[str, RunSpec] = {}
    tasks: dict[str, str] = {}
    seeds = size.seeds if options.seeds is None else options.seeds
    for name, one in zip(names, targets, strict=True):
        models = [model for model in one.models if wanted is None or model in wanted]
        if not models:
            continue
        methods = one.methods if options.methods is None else options.methods
        mine = _meant_for(one.task, choices, {other.task for other in targets})
        for spec in _specs(one, size, models, methods, seeds, mine):
            if not size.choices and (changed := against_stated(spec, one.task)):
                raise ConfigurationError(
                    f"scale {scale} is the paper's settings, found {changed[0]}; "
                    "scale reduced takes others"
                )
            specs.setdefault(spec.canonical(), spec)
            tasks[name] = spec.task
    order = list(specs.values())
    seeds_in_order = list(dict.fromkeys(spec.seed for spec in order))
    order.sort(key=lambda spec: seeds_in_order.index(spec.seed))
    return order, Record(scale, tasks)


# What a target decides, and --set cannot.
_FIXED = ("task", "model", "method", "seed", "receipt", "transform", "weight_decay")


def _flat(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the keys of data dotted, where they were nested."""
    data = choices.get("data")
    if not isinstance(data, Mapping):
        return dict(choices)
    dotted = {f"data.{key}": value for key, value in data.items()}
    return {**{key: value for key, value in choices.items() if key != "data"}, **dotted}


def _meant_for(task: str, choices: Mapping[str, Any], tasks: Collection[str]) -> dict[str, Any]:
    """The choices without those that only the data of another of these tasks takes."""
    others = {f"data.{key}" for other in tasks for key in TASKS[other].data.keys}
    taken = {f"data.{key}" for key in TASKS[task].data.keys}
    return {key: value for key, value in choices.items() if key not in others - taken}


def _specs(
    target: Target,
    size: Scale,
    models: Sequence[str],
    methods: Sequence[str] | str,
    seeds: int | Sequence[int],
    chosen: Mapping[str, Any],
) -> list[RunSpec]:
    """The specifications of one target, on its own task or on the one that stands in for it."""
    if target.one_seed:
        seeds = min(seeds, 1) if isinstance(seeds, int) else list(seeds)[:1]
    choices = {**settings(target.task, size, chosen), **target.choices}
    try:
        return [
            spec
            for model in models
            for spec in grid(methods, seeds, {**choices, "task": target.task, "model": model})
        ]
    except MissingDataError:
        if size.result:
            raise
    defaults = TASKS[target.task]
    # All but the images is as it would have been.
    choices = {
        "learning_rate": defaults.learning_rate,
        "schedule": defaults.schedule,
        "data.augment": defaults.augment,
        **{key: value for key, value in choices.items() if key not in _PARTS},
        "task": target.stand_in,
    }
    return [spec for model in models for spec in grid(methods, seeds, {**choices, "model": model})]


# Which files of a set are used means nothing for what stands in for it.
_PARTS = ("data.train", "data.test", "data.split", "data.layout")


def _listed(names: Sequence[str] | str | None) -> list[str] | None:
    if names is None:
        return None
    listed = names.split(",") if isinstance(names, str) else names
    return [name.strip() for name in listed if name.strip()]


@keywords(ReproduceOptions)
def reproduce(options: ReproduceOptions) -> list[Run]:
    """Train a table or figure of the paper, and report it beside the published numbers.

    What is there already is not trained again; what was stopped goes on where it stood.

    Parameters
    ----------
    target : str
        "table1", "table2", "table3", "figure2", "gradients" or "all".
    scale : str
        "paper": the paper's settings. "reduced": fewer epochs and images, the same code. "smoke": a
        few steps of each, which are not a result; where images are missing a built-in task stands
        in for them.
    models, methods : sequence of str or str, optional
        Some of the target's; by default all.
    seeds : int or sequence of int, optional
        N means 0 to N-1; by default 3, or 1 at scale "smoke". A figure takes the first.
    epochs, limit, batch_size : optional
        Instead of the scale's; not at scale "paper".
    micro_batch, device, precision, deterministic, cuda_graph, compile
        As :func:`znorm.lab.compare` takes them.
    set, workers, jobs, retry, display
        As :func:`znorm.lab.compare` takes them.
    cases : sequence of str or str, optional
        Names of test slices to show in Figure 2, too.
    images : bool
        Whether the page shows pictures of the data; without them it may be passed on where the
        data may not.
    out : path, optional
        By default ``runs/paper-SCALE``. A folder holds one scale.

    Returns
    -------
    list of Run

    Raises
    ------
    ConfigurationError, DataError
        Before anything is trained.
    DiskFullError, Interrupted
        With the state saved where it could be.

    References
    ----------
    Yun and Kim, arXiv 2408.01215v4.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> runs = lab.reproduce(
    ...     "table1", models="resnet56", methods="znorm", limit=8, out=tempfile.mkdtemp()
    ... )
    >>> [run.status for run in runs]
    ['done']
    """
    specs, record = planned(options)
    root = options.folder
    # A folder that the report could not read is said before anything is trained.
    if root.is_dir() and find(root) and Record.read(root) is None:
        raise ConfigurationError(
            f"{root} holds runs that are no reproduction of the paper; give another --out"
        )
    cases = tuple(_listed(options.cases) or ())
    _check_cases(cases, specs)
    asked = Record(record.scale, record.tasks, cases)
    asked.joined(root)  # another scale there is said now, and written once all is checked
    display = options.display or Silent()
    for name, task in record.tasks.items():
        named = TARGETS[name].task
        if task != named:
            display.note(f"{name}: {named} is not here ({data_root()}); {task} stands in for it")
    runs = [Run.at(root, spec) for spec in specs]
    execute(
        runs,
        display,
        options.workers,
        options.jobs,
        checked=lambda: asked.write(root),
        retry=options.retry,
    )
    write_report(root, images=options.images, frame=frame_of_folder(root))
    return runs


def _check_cases(names: Sequence[str], specs: Sequence[RunSpec]) -> None:
    """Refuse a slice that no test part of the runs with masks holds."""
    known: dict[str, Sequence[str]] = {
        spec.data_key: load(spec.task, spec.data).test.names
        for spec in {spec.data_key: spec for spec in specs}.values()
        if names and TASKS[spec.task].output == "mask"
    }
    for name in names:
        if not any(name in slices for slices in known.values()):
            near = difflib.get_close_matches(name, [n for names in known.values() for n in names])
            hint = f"; did you mean {' or '.join(near)}" if near else ""
            raise ConfigurationError(f"cases: no test slice {name!r} here{hint}")
