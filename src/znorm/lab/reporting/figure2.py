"""The paper's Figure 2: what each method's net marks on the same test slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from znorm.lab.datasets import Dataset
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.prediction import outputs
from znorm.lab.reporting.overlays import case, draw_cases, notable
from znorm.lab.reporting.tables import Table, images_of
from znorm.lab.store import Run

__all__ = ["Figure2", "figure2"]


@dataclass(frozen=True)
class Figure2:
    """The figure as SVG, if it could be drawn, and what a reader must know of it."""

    svg: str
    caption: str


def figure2(table: Table, dataset: Dataset, cases: Sequence[str] = ()) -> Figure2 | None:
    """Outlines of one seed's nets, a column a method.

    Rows are the best, the median and the worst slice by Dice, its mean over the methods, among
    test slices whose truth marks anything; then those that are named. None without finished runs
    of a segmenter.

    Parameters
    ----------
    table : Table
    dataset : Dataset
    cases : sequence of str
        Names of further test slices; what is not there is told in the caption.
    """
    part = dataset.test
    done = [run for run in table.runs if run.status == "done"]
    if len(images_of(done)) > 1:
        done = [run for run in done if images_of([run]) == {dataset.fingerprint}]
    seeds = [run.spec.seed for run in done]
    if not part.has_masks or not seeds:
        return None
    # The seed that most methods have finished, the first of them if there are several.
    seed = min(set(seeds), key=lambda one: (-seeds.count(one), one))
    runs: dict[str, Run] = {
        row.label: run
        for row in table.rows
        for run in row.runs
        if run.spec.seed == seed and run in done
    }
    try:
        counted = {label: held for label, run in runs.items() if (held := run.cases()) is not None}
    except DataError as error:
        return Figure2("", f"Not drawn: {error}")
    names = next(iter(counted.values())).names if counted else ()
    if len(counted) < len(runs) or any(held.names != names for held in counted.values()):
        return Figure2("", "Not drawn: the methods' cases.csv are not of the same test slices.")
    places = {name: place for place, name in enumerate(part.names)}
    dice = torch.stack([held.counts.dice() for held in counted.values()]).mean(0)
    present = next(iter(counted.values())).target_found.tolist()
    chosen = notable(dice.tolist(), present)
    titles = {f"{title}\n{names[row]}": names[row] for title, row in chosen.items()}
    titles |= {name: name for name in cases if name in names}
    rows = {title: places[name] for title, name in titles.items() if name in places}
    if not rows:
        return Figure2("", "Not drawn: no test slice that is here has anything to mark.")
    few = part.take(torch.tensor(list(rows.values())))
    masks, missing = {}, []
    for label, run in runs.items():
        try:
            masks[label] = (outputs(run, few, dataset)[:, 0] > 0).numpy()
        except (ConfigurationError, DataError) as error:
            missing.append(f"{label} is not drawn: {error}.")
    if not masks:
        return Figure2("", " ".join(missing))
    drawn = [
        case(few, place, title, {label: found[place] for label, found in masks.items()})
        for place, title in enumerate(rows)
    ]
    unknown = [name for name in (*cases, *titles.values()) if name not in places]
    caption = (
        f"Seed {seed}. White: the true outline; orange: the net's. The best, the median and the "
        "worst of the test slices with something to mark, by Dice, mean over the methods."
    )
    if unknown:
        caption += f" Not among the test slices here: {', '.join(dict.fromkeys(unknown))}."
    caption += "".join(f" {text}" for text in missing)
    return Figure2(draw_cases(drawn), caption)
