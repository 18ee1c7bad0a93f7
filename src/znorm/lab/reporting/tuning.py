"""The trials of a table whose methods were tuned: what was chosen, and what that is worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from znorm.lab.evidence.tuning import (
    Hyperparameters,
    Tuning,
    method_key,
    validation_score,
    workload_key,
)
from znorm.lab.methods import label as label_of
from znorm.lab.metrics.score import Column
from znorm.lab.reporting.panels import Line, Panel, line_panel
from znorm.lab.reporting.strokes import Legend, Stroke, legend_of
from znorm.lab.reporting.svg import GREY, as_svg, mark, style
from znorm.lab.reporting.tables import Row, Table, Value
from znorm.lab.runs.folder import Run
from znorm.lab.stats import expected_best
from znorm.lab.tasks import TASKS
from znorm.lab.text import link

__all__ = ["TunedMethod", "TuningEvidence", "tuning_evidence", "under_way"]

# Of the range of learning rates, in logarithms: within so much of its ends a better one may lie
# beyond.
_NEAR_AN_END = 0.1
# Schedules, by how their markers are filled.
_FILLS = ("full", "none", "left", "top")


@dataclass(frozen=True)
class TunedMethod:
    """A method's trials.

    Parameters
    ----------
    label : str
    chosen : Hyperparameters
    validation : str
        The chosen trial's score.
    test, best_on_test : Value
        The chosen trial's score on the test part, and the highest there among all trials.
    trials : tuple of Value
        The validation score of each, in the order drawn; a failure's in words.
    curve : tuple of float
        The expected validation score of the best of 1, 2, ... trials; nan where it has none.
    remark : str
        "" or a word on a choice at an end of the range, or on trials that failed.
    """

    label: str
    chosen: Hyperparameters
    validation: str
    test: Value
    best_on_test: Value
    trials: tuple[Value, ...]
    curve: tuple[float, ...]
    remark: str


@dataclass(frozen=True)
class TuningEvidence:
    """All methods' trials.

    Parameters
    ----------
    methods : tuple of TunedMethod
    lines : tuple of str
    panels : tuple of Panel
    legend : tuple of (str, Stroke)
    """

    methods: tuple[TunedMethod, ...]
    lines: tuple[str, ...]
    panels: tuple[Panel, ...]
    legend: Legend


@dataclass(frozen=True)
class _Trials:
    """A method's trials as numbers: by which was chosen, and what they score on the test part.

    ``best`` is the place of the chosen one.
    """

    key: str
    label: str
    chosen: Hyperparameters
    best: int
    runs: tuple[Run, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]

    @cached_property
    def curve(self) -> tuple[float, ...]:
        """The expected validation score of the best of 1, 2, ... trials."""
        return tuple(expected_best(self.validation))


def tuning_evidence(
    root: Path,
    table: Table,
    validation_images: int | None = None,
    strokes: Mapping[str, Stroke] | None = None,
) -> TuningEvidence | None:
    """The evidence of a tuned table; None of another.

    ``validation_images`` is how many the choice was made on, where that is known; ``strokes`` are
    the looks of a page's methods by their labels, by default the table's own.
    """
    tuning = table.tuning
    if tuning is None:
        return None
    headline = table.columns[0]
    rows = {method_key(row.runs[0].spec): row for row in table.rows}
    searched = [_trials(table, tuning, key, row) for key, row in rows.items()]
    searched = [one for one in searched if len(one.runs) == len(tuning.drawn[one.key])]
    if not searched:
        return None
    looks = dict(legend_of((row.label for row in table.rows), strokes))
    stroked = [(one, looks[one.label]) for one in searched]
    return TuningEvidence(
        tuple(_method(root, headline, tuning, one) for one in searched),
        tuple(_lines(table, tuning, searched, validation_images)),
        (
            _on_validation(headline, stroked),
            _on_test(headline, stroked),
            _scatter(headline, stroked),
        ),
        tuple((one.label, stroke) for one, stroke in stroked),
    )


def _trials(table: Table, tuning: Tuning, key: str, row: Row) -> _Trials:
    runs = tuning.trials_of(table.trials, key)
    headline = table.columns[0].key
    # What a run scores that did not finish: nothing.
    test = [run.metrics.get(headline, 0.0) if run.status == "done" else 0.0 for run in runs]
    chosen = tuning.chosen[key]
    return _Trials(
        key,
        row.label,
        chosen,
        tuning.drawn[key].index(chosen),
        tuple(runs),
        tuple(map(validation_score, runs)),
        tuple(test),
    )


def _method(root: Path, headline: Column, tuning: Tuning, one: _Trials) -> TunedMethod:
    return TunedMethod(
        one.label,
        one.chosen,
        headline.show(one.validation[one.best]),
        _of_trial(root, one, one.best, headline.show(one.test[one.best])),
        _of_trial(root, one, one.test.index(max(one.test)), headline.show(max(one.test))),
        tuple(
            _of_trial(
                root,
                one,
                place,
                one.runs[place].status if score == -math.inf else headline.show(score),
            )
            for place, score in enumerate(one.validation)
        ),
        one.curve,
        _remark(tuning, one),
    )


def _of_trial(root: Path, one: _Trials, place: int, text: str) -> Value:
    run = one.runs[place]
    name = "spec.json" if run.result is None else "result.json"
    return Value(run.spec.seed, text, link(root, run.folder / name))


def _remark(tuning: Tuning, one: _Trials) -> str:
    words = []
    span = math.log(tuning.high / tuning.low)
    place = math.log(one.chosen.learning_rate / tuning.low) / span
    if not 0 <= place <= 1:
        words.append("the shared setting, outside the range of trials")
    elif not _NEAR_AN_END <= place <= 1 - _NEAR_AN_END:
        end = "lower" if place < 0.5 else "upper"
        words.append(f"near the {end} end of the range: a better one may lie beyond")
    failed = sum(score == -math.inf for score in one.validation)
    if failed:
        words.append(f"{failed} of {len(one.runs)} trials did not finish")
    return "; ".join(words)


def _lines(
    table: Table, tuning: Tuning, searched: Sequence[_Trials], images: int | None
) -> list[str]:
    headline = table.columns[0]
    how = {
        "random": "at random, the same for each method",
        "tpe": "by TPE, which learns from a method's earlier ones",
    }
    low, high = f"{tuning.low:g}", f"{tuning.high:g}"
    budgets = sorted({len(one.runs) for one in searched})
    each = " or ".join(map(str, budgets))
    lines = [
        f"{each} trials a method, drawn {how[tuning.sampler]}: learning rates from {low} to {high} "
        "in logarithms, and a schedule; the first is the shared setting. All have one seed, which "
        "no run above has. The best by the "
        f"{'best' if table.spec.best_epoch else 'last'} epoch's validation score was chosen."
    ]
    if len(budgets) > 1:
        lines.append(
            "The methods have had different numbers of trials: that is no equal budget; give all "
            "of them to the same command."
        )
    if images and TASKS[table.spec.task].output == "classes":
        best = max(max(one.validation) for one in searched)
        error = math.sqrt(best * (1 - best) / images)
        lines.append(
            f"The validation part has {images:,} images, of which one standard error of such a "
            f"score is {headline.show(error)} points: trials that differ by less are ordered by "
            "chance."
        )
    there = {method_key(row.runs[0].spec) for row in table.rows}
    lacking = [key for key in tuning.drawn if key not in there]
    if lacking:
        names = ", ".join(label_of(key.rpartition("__")[0]) for key in lacking)
        lines.append(
            f"Not in this table: {names}, of which no trial has a score, or no run at its best has "
            "been begun."
        )
    lines.append(_optimism(headline, searched))
    if tuning.sampler == "tpe":
        lines.append(
            "TPE's trials lean on each other: the curves describe these trials, and no others."
        )
    lines += _crossings(searched)
    if table.former:
        lines.append(
            f"{len(table.former)} runs of what was chosen from fewer trials are in no table."
        )
    return lines


def _optimism(headline: Column, searched: Sequence[_Trials]) -> str:
    """The gain in test scores, on the test alone, of picking there."""
    added = [max(one.test) - one.test[one.best] for one in searched]
    unit = " points" if headline.scale == 100 else ""
    return (
        f"Had the best been picked on the test part, it would look better there by "
        f"{headline.show(statistics.fmean(added))}{unit}, the mean over methods, and by up to "
        f"{headline.show(max(added))}: that is optimism, and no gain."
    )


def _crossings(searched: Sequence[_Trials]) -> list[str]:
    """A word on another leader with few trials than with all."""
    curves = {one.label: one.curve for one in searched}
    length = min(map(len, curves.values()))
    leaders = []
    for size in range(length):
        known = {m: curve[size] for m, curve in curves.items() if not math.isnan(curve[size])}
        if len(known) == len(curves):
            leaders.append((size + 1, max(known, key=lambda method: known[method])))
    if len(curves) < 2 or not leaders or leaders[0][1] == leaders[-1][1]:
        return []
    first, last = leaders[0], leaders[-1]
    return [
        f"Who leads hangs on the budget: with {first[0]} trial{'' if first[0] == 1 else 's'} "
        f"{first[1]}, with {last[0]} {last[1]}, by the expected validation score."
    ]


def _on_validation(headline: Column, stroked: Sequence[tuple[_Trials, Stroke]]) -> Panel:
    """The expected validation score of the best of so many trials."""
    lines = [_curve(headline, one.label, stroke, one.curve) for one, stroke in stroked]
    return line_panel(_validation_title(headline), "best of so many trials", lines)


def _on_test(headline: Column, stroked: Sequence[tuple[_Trials, Stroke]]) -> Panel:
    """The expected test score of that trial, and of the one that is best on the test."""
    lines = []
    for one, stroke in stroked:
        chosen = expected_best(one.validation, one.test)
        lines.append(_curve(headline, one.label, stroke, chosen))
        there = f"{one.label}, picked on the test part"
        lines.append(_curve(headline, there, stroke, expected_best(one.test), dotted=True))
    return line_panel(headline.title, "best of so many trials", lines)


def _curve(
    headline: Column, label: str, stroke: Stroke, curve: Sequence[float], *, dotted: bool = False
) -> Line:
    points = {size: headline.scale * value for size, value in enumerate(curve, start=1)}
    return Line(label, stroke, points, dotted=dotted)


def _scatter(headline: Column, stroked: Sequence[tuple[_Trials, Stroke]]) -> Panel:
    """Each trial's validation score by its learning rate; an empty marker is another schedule."""
    with style():
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        figure = Figure(figsize=(4.7, 3.3), layout="constrained")
        axes: Any = figure.subplots()
        title = _validation_title(headline)
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.set_xlabel("learning rate of the trial")
        axes.set_xscale("log")
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        fills: dict[str, str] = {}
        best = []
        for one, stroke in stroked:
            points = [
                (run, headline.scale * score)
                for run, score in zip(one.runs, one.validation, strict=True)
                if score != -math.inf
            ]
            for run, y in points:
                fill = fills.setdefault(run.spec.schedule, _FILLS[len(fills) % len(_FILLS)])
                x = run.spec.learning_rate
                drawn = axes.plot([x], [y], **_point(stroke.mark, stroke.colour, fill))
                mark(drawn, stroke.key)
            chosen = one.runs[one.best].spec
            best.append(
                f"{one.label} {headline.show(one.validation[one.best])} at a learning rate of "
                f"{chosen.learning_rate:g}, {chosen.schedule}"
            )
        handles = [
            Line2D([], [], **_point("o", GREY, fill), label=name) for name, fill in fills.items()
        ]
        axes.legend(handles=handles, frameon=False, fontsize=9)
        words = f"A point a trial. The best: {'; '.join(best)}."
        return Panel(as_svg(figure, label=f"{title} by learning rate", description=words))


def _point(mark: str, colour: str, fill: str) -> dict[str, Any]:
    return {
        "linestyle": "",
        "marker": mark,
        "color": colour,
        "fillstyle": fill,
        "markersize": 5,
    }


def _validation_title(headline: Column) -> str:
    return headline.title.replace("Test", "Validation")


def under_way(runs: Sequence[Run], tunings: Mapping[str, Tuning]) -> list[str]:
    """A line on each workload of which a method has not been trained at its best yet."""
    lines = []
    for key, tuning in tunings.items():
        mine = [run for run in runs if workload_key(run.spec) == key]
        trials = [run for run in mine if tuning.is_trial(run.spec)]
        at_their_best = {method_key(run.spec) for run in mine if tuning.is_tuned(run.spec)}
        lacking = [name for name in tuning.drawn if name not in at_their_best]
        number = sum(map(len, tuning.drawn.values()))
        ended = [run for run in trials if run.result is not None]
        if not trials or not lacking:
            continue
        reason = "the same command goes on"
        if len(ended) == number and not any(name in tuning.chosen for name in lacking):
            if at_their_best:
                continue  # of the others no trial has a score, which their table says
            reason = "no trial has a score on validation data"
        spec = trials[0].spec
        names = ", ".join(label_of(name.rpartition("__")[0]) for name in lacking)
        lines.append(
            f"Tuning of {TASKS[spec.task].label}, {spec.model}: {len(ended)} of {number} trials "
            f"have ended, and {names} {'has' if len(lacking) == 1 else 'have'} not been trained "
            f"at their best; {reason}."
        )
    return lines
