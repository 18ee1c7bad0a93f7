"""Masks beside the ground truth: those of each method's net, on the same test slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from znorm.lab.datasets import Dataset
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.metrics import masks_of
from znorm.lab.reporting.overlays import case, draw_cases, notable
from znorm.lab.reporting.tables import Table, images_of
from znorm.lab.runs.folder import Run
from znorm.lab.runs.inference import outputs

__all__ = ["MaskFigure", "mask_figure"]


@dataclass(frozen=True)
class MaskFigure:
    """The figure as SVG, if it could be drawn, and what a reader must know of it."""

    svg: str
    caption: str


def mask_figure(table: Table, dataset: Dataset, further: Sequence[str] = ()) -> MaskFigure | None:
    """Outlines of one seed's nets, a column a method.

    Rows are the best, the median and the worst slice by Dice, its mean over the methods, among
    test slices whose truth marks anything; then those that are named. None without finished runs
    of a segmenter.

    Parameters
    ----------
    table : Table
    dataset : Dataset
    further : sequence of str
        Names of more test slices; what is not there is told in the caption.
    """
    test = dataset.test
    done = [run for run in table.runs if run.status == "done"]
    if len(images_of(done)) > 1:
        done = [run for run in done if images_of([run]) == {dataset.fingerprint}]
    seeds = [run.spec.seed for run in done]
    if not test.has_masks or not seeds:
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
        of_each = {label: run.cases() for label, run in runs.items()}
    except DataError as error:
        return MaskFigure("", f"Not drawn: {error}")
    counted = {label: cases for label, cases in of_each.items() if cases is not None}
    names = next(iter(counted.values())).names if counted else ()
    if len(counted) < len(runs) or any(cases.names != names for cases in counted.values()):
        return MaskFigure("", "Not drawn: the methods' cases.csv are not of the same test slices.")
    there = set(test.case_names)
    names = next(iter(counted.values())).case_names
    dice = torch.stack([cases.dice() for cases in counted.values()]).mean(0)
    present = next(iter(counted.values())).target_found.tolist()
    chosen = notable(dice.tolist(), present)
    titles = {f"{title}\n{names[row]}": names[row] for title, row in chosen.items()}
    titles |= {name: name for name in further if name in names}
    drawable = {title: name for title, name in titles.items() if name in there}
    if not drawable:
        return MaskFigure("", "Not drawn: no test slice that is here has anything to mark.")
    few = test.take_cases(list(drawable.values()))
    places = {name: place for place, name in enumerate(few.case_names)}
    masks, missing = {}, []
    for label, run in runs.items():
        try:
            logits = few.cases(outputs(run, few, dataset))
            masks[label] = [masks_of(one[None])[0] for one in logits]
        except (ConfigurationError, DataError) as error:
            missing.append(f"{label} is not drawn: {error}.")
    if not masks:
        return MaskFigure("", " ".join(missing))
    images, targets = few.cases(few.images), few.cases(few.targets)
    drawn = [
        case(
            title,
            images[place],
            targets[place],
            {label: of_method[place] for label, of_method in masks.items()},
        )
        for title, place in ((title, places[name]) for title, name in drawable.items())
    ]
    unknown = [name for name in (*further, *titles.values()) if name not in there]
    caption = (
        f"Seed {seed}. White: the true outline; orange: the net's. The best, the median and the "
        "worst of the test slices with something to mark, by Dice, mean over the methods."
    )
    if unknown:
        caption += f" Not among the test slices here: {', '.join(dict.fromkeys(unknown))}."
    caption += "".join(f" {text}" for text in missing)
    labels = dataset.classes[1:] if len(dataset.classes) > 2 else ()
    if labels:
        caption += f" In orange and further colours: {', '.join(labels)}."
    return MaskFigure(draw_cases(drawn, labels=labels), caption)
