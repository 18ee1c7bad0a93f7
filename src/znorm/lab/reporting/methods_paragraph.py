"""A paragraph on what was done, ready to paste: from specifications and results, and nothing else.

Each function writes one of its sentences, or several on one matter; "" where there is nothing to
say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from znorm.lab.datasets import DataSpec
from znorm.lab.errors import DataError
from znorm.lab.evidence.pairs import SHARED
from znorm.lab.evidence.tuning import TRIAL_SEED, Tuning
from znorm.lab.methods import METHODS
from znorm.lab.methods import label as label_of
from znorm.lab.reporting.data_card import DataCard
from znorm.lab.reporting.tables import Row, Table
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS
from znorm.lab.text import readable

__all__ = ["methods_paragraph"]

# What sentences below speak of; further settings that a run has are listed by their names.
_SAID = {
    "task",
    "model",
    "model_options",
    "method",
    "transform",
    "weight_decay",
    "optimizer",
    "optimizer_options",
    "learning_rate",
    "schedule",
    "loss",
    "epochs",
    "patience",
    "best_epoch",
    "start",
    "batch_size",
    "micro_batch",
    "seed",
    "precision",
    "device",
    "deterministic",
    "cuda_graph",
    "compile",
    "receipt",
    "data",
}
_DEVICES = {"cpu": "a CPU", "cuda": "a GPU", "mps": "an Apple GPU"}


def methods_paragraph(table: Table, card: DataCard) -> str:
    """The paragraph of a table, in plain sentences.

    Parameters
    ----------
    table : Table
    card : DataCard
        Of its images.
    """
    sentences = [
        _question(table),
        _data(table.spec, card),
        _methods(table.rows),
        _training(table.spec, tuned=table.tuning is not None),
        _tuning(table),
        _seeds(table),
        _scores(table),
        _statistics(table),
        _deviations(table),
        _software(table.runs),
    ]
    return " ".join(filter(None, sentences))


def _question(table: Table) -> str:
    question = table.question
    if question is None:
        return ""
    points = table.columns[0].scale == 100
    worth = f"{100 * question.worth:g} point{'' if question.worth == 0.01 else 's'}"
    text = (
        f"The question was if {label_of(question.method)} is better than the baseline by a gain "
        f"that is worth adopting it, set to {worth if points else f'{question.worth:g}'} of "
        f"{_headline(table)}."
    )
    if question.earlier:
        earlier = _listed(label_of(method) for method, _ in question.earlier)
        text += f" Other questions had been asked of the same folder before (of {earlier})."
    return text


def _headline(table: Table) -> str:
    return table.columns[0].title.replace(", %", "").replace("Test", "test")


def _data(spec: RunSpec, card: DataCard) -> str:
    task = TASKS[spec.task]
    kind = "classification" if task.output == "classes" else "segmentation"
    text = f"The task was {kind} of {task.label}"
    if card.images:
        parts = [
            f"{card.count(name):,} {name} images" + _by_class(card.classes, counts)
            for name, counts in card.images.items()
        ]
        text += f", with {_listed(parts)}"
    sentences = [f"{text}.", _split(spec.data, card), _read_as(spec.data)]
    notes = card.notes if card.images else ()  # else they say where images were looked for
    return " ".join(filter(None, [*sentences, *notes]))


def _by_class(classes: Sequence[str], counts: Sequence[int]) -> str:
    if len(counts) < 2 or len(counts) > 12 or not sum(counts):
        return ""
    shares = (f"{count:,} {name}" for name, count in zip(classes, counts, strict=False))
    return f" ({', '.join(shares)})"


def _split(data: DataSpec, card: DataCard) -> str:
    sentences = []
    if data.folds is not None:
        fold = (data.fold or 0) + 1
        sentences.append(f"The test images were those of fold {fold} of {data.folds}.")
    elif data.test_share is not None:
        text = f"A share of {data.test_share:.3g} was set apart for the test"
        sentences.append(f"{text}, fold {data.fold}." if data.fold is not None else f"{text}.")
    elif data.folder is not None:
        sentences.append("The test images were chosen beforehand.")
    if data.train or data.test:
        train, test = (_listed(parts) or "all" for parts in (data.train or (), data.test or ()))
        sentences.append(f"Training images were of the set's parts {train}, test images of {test}.")
    if data.validation:
        sentences.append(
            f"Of the training images a share of {data.validation:.3g} was held out for validation."
        )
    if data.limit:
        sentences.append(f"Each part was limited to {data.limit:,} images.")
    if card.groups:
        word = "patients" if data.split is not None else "groups"
        parts = [f"{card.groups[name]} {name}" for name in card.images if name in card.groups]
        apart = sum(card.groups.get(name, 0) for name in card.images) == card.groups.get("all")
        sentences.append(
            f"The images are of {card.groups.get('all', 0)} {word} ({', '.join(parts)}), "
            f"{'none of them in two parts' if apart else 'some of them in more than one part'}."
        )
    return " ".join(sentences)


def _read_as(data: DataSpec) -> str:
    rule = []
    if data.size is not None:
        size = f"{data.size[0]} × {data.size[1]} pixels"
        tiled = f"in tiles of {size} that overlap by {100 * (data.overlap or 0):g} %"
        rule.append(f"at {size}" if data.overlap is None else tiled)
    if data.channels is not None:
        rule.append("in grey" if data.channels == 1 else "in colour")
    if data.window is not None:
        rule.append(f"values from {data.window[0]:g} to {data.window[1]:g} mapped to 0 to 255")
    return f"Images were read {_listed(rule)}." if rule else ""


def _methods(rows: Sequence[Row]) -> str:
    texts = []
    for row in rows:
        spec = row.runs[0].spec
        known = METHODS.get(spec.method)
        about = "" if known is None else known.about
        if known is None:
            transform = json.dumps([dict(link) for link in spec.transform])
            about = f"transform {transform}, weight decay {spec.weight_decay:g}"
        texts.append(f"{row.label} ({about})")
    return f"Compared were {_listed(texts)}."


def _training(spec: RunSpec, *, tuned: bool) -> str:
    options = _options(spec.model_options)
    text = f"Each method trained {spec.model}{options} with {spec.optimizer}"
    text += _options(spec.optimizer_options)
    if tuned:
        text += ", each with its own learning rate and schedule"
    else:
        text += f", a learning rate of {spec.learning_rate:g} and a {spec.schedule} schedule"
    text += (
        f", {spec.loss.replace('_', ' ')} loss and batches of {spec.batch_size} for "
        f"{'at most ' if spec.patience else ''}{spec.epochs} epoch{'' if spec.epochs == 1 else 's'}"
    )
    if spec.patience:
        text += f", ended after {spec.patience} without a better score on validation data"
    if spec.micro_batch:
        text += f", in pieces of {spec.micro_batch} whose gradients add up"
    augment = spec.data.augment
    text += ", without augmentation" if augment == "none" else f", augmentation: {augment}"
    by = " by autocast" if spec.precision == "bfloat16" else ""
    text += f". Arithmetic was in {spec.precision}{by} on {_DEVICES[spec.device]}"
    text += ", with deterministic algorithms." if spec.deterministic else "."
    content = spec.model_dump(mode="json", exclude_none=True)
    further = [f"{key}={json.dumps(value)}" for key, value in content.items() if key not in _SAID]
    return f"{text} Further settings: {', '.join(further)}." if further else text


def _options(options: Mapping[str, object]) -> str:
    listed = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f" ({listed})" if listed else ""


def _tuning(table: Table) -> str:
    tuning: Tuning | None = table.tuning
    if tuning is None:
        return "All methods shared these settings; none was tuned."
    budgets = sorted({len(drawn) for drawn in tuning.drawn.values()})
    sampler = {"random": "at random", "tpe": "by TPE"}[tuning.sampler]
    chosen = [
        f"{label_of(key.rpartition('__')[0])} {one}" for key, one in sorted(tuning.chosen.items())
    ]
    return (
        f"Learning rate and schedule of each method were those of the best of "
        f"{' or '.join(map(str, budgets))} trials, drawn {sampler} with learning rates from "
        f"{tuning.low:g} to {tuning.high:g}, by the last epoch's score on validation data with "
        f"one seed ({TRIAL_SEED}) that no compared run has: {_listed(chosen)}."
    )


def _seeds(table: Table) -> str:
    seeds = sorted({run.spec.seed for run in table.runs})
    text = (
        f"Each was trained once for {'each of ' if len(seeds) > 1 else ''}{len(seeds)} "
        f"seed{'' if len(seeds) == 1 else 's'} ({_ranges(seeds)})"
    )
    made = [pair for row in table.rows if row.comparison for pair in row.comparison.pairs.made]
    shared = [name for key, name in SHARED.items() if made and all(key in p.verified for p in made)]
    if shared:
        text += f"; by their hashes runs of one seed shared {_listed(shared)}"
    return f"{text}."


def _ranges(seeds: Sequence[int]) -> str:
    """The seeds in short: 0 to 7, or 0, 2, 5."""
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _scores(table: Table) -> str:
    best = table.spec.best_epoch
    when = "at the epoch best on validation data" if best else "after the last epoch"
    text = f"The score was {_headline(table)} {when}"
    if table.seeds > 1:
        text += "; means are given with half the 95 % Student's t interval over seeds"
    return f"{text}."


def _statistics(table: Table) -> str:
    comparisons = [row.comparison for row in table.rows if row.comparison is not None]
    if not comparisons or max(len(one.differences) for one in comparisons) < 2:
        return "No test was made: that needs two pairs of runs or more." if comparisons else ""
    if any(one.sequential for one in comparisons):
        how = (
            "Seeds were added until the question was decided; intervals of the mean paired "
            "difference to the baseline are confidence sequences at 95 % and p values hold at "
            "every look at once, for normal differences"
        )
    else:
        how = (
            "Methods were compared with the baseline by the mean of paired differences, with a "
            "95 % t interval, a paired t test and a sign-flip test, all for a number of seeds that "
            "does not hang on the results"
        )
    count = len(comparisons)
    if count > 1:
        how += f", p of {count} comparisons adjusted by Holm's method"
    return f"{how}."


def _deviations(table: Table) -> str:
    sentences = list(table.warnings)
    for row in table.rows:
        states: dict[str, list[int]] = {}
        for run in row.runs:
            if run.status != "done":
                states.setdefault(run.status, []).append(run.spec.seed)
        for state, seeds in states.items():
            words = state if state in ("diverged", "failed") else f"did not finish ({state})"
            sentences.append(
                f"{len(seeds)} of {len(row.runs)} runs of {row.label} {words} (seed "
                f"{', '.join(map(str, seeds))})."
            )
        refused = () if row.comparison is None else row.comparison.pairs.refused
        sentences += [
            f"Seed {seed} of {row.label} was left out of the comparison: {reason}."
            for seed, reason in refused
        ]
        if row.remark:
            sentences.append(f"{row.label}: {row.remark}.")
    return " ".join(sentences) or "No run diverged, failed or was left out."


def _software(runs: Sequence[Run]) -> str:
    """The versions and machines of the runs, each that is named in their files."""
    kept = []
    for run in runs:
        try:
            content = run.environment
        except DataError:
            continue  # counted below
        if content:
            kept.append(content)
    named: dict[str, set[str]] = {}
    for content in kept:
        packages = content.get("packages")
        torch = packages.get("torch") if isinstance(packages, dict) else None
        values = {
            "znorm": content.get("znorm"),
            "torch": torch,
            "Python": content.get("python"),
            "machine": content.get("gpu") if _on_gpu(runs) else content.get("processor"),
            "system": content.get("system"),
        }
        for name, value in values.items():
            if isinstance(value, str) and value:
                named.setdefault(name, set()).add(readable(value)[:100])
    parts = [
        f"{name} {' or '.join(sorted(named[name]))}"
        for name in ("znorm", "torch", "Python")
        if name in named
    ]
    text = ""
    if parts:
        text = f"Software: {', '.join(parts)}"
        machines = [
            " or ".join(sorted(named[name])) for name in ("machine", "system") if name in named
        ]
        text += f"; {', '.join(machines)}." if machines else "."
    lacking = len(runs) - len(kept)
    if lacking:
        text += f" Of {lacking} of {len(runs)} runs the software is not known."
    return text.strip()


def _on_gpu(runs: Sequence[Run]) -> bool:
    return all(run.spec.device == "cuda" for run in runs)


def _listed(words: Iterable[str]) -> str:
    """The words in a sentence: a, b and c."""
    *others, last = [*words] or [""]
    return f"{', '.join(others)} and {last}" if others else last
