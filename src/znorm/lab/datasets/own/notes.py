"""Sentences on the user's own images that whoever reads their results must know."""

from __future__ import annotations

from znorm.lab.datasets.own.contents import Contents
from znorm.lab.datasets.split import SPLITS

__all__ = ["notes_of"]


def notes_of(contents: Contents) -> list[str]:
    """The reading and division of the images, and what limits their scores."""
    listing, rule = contents.listing, contents.rule
    sizes = {(one.height, one.width) for one in contents.facts.values()}
    smallest, largest = min(sizes), max(sizes)
    there = f"{smallest[0]}x{smallest[1]}"
    if len(sizes) > 1:
        there += f" to {largest[0]}x{largest[1]}"
    notes = [
        f"Your images, {listing.form}: {len(listing.items):,} of {there} pixels, taken as "
        f"{rule.text}."
    ]
    if rule.overlap is not None:
        notes.append(
            "Test scores are of whole pictures, put together of their tiles; scores by epoch, on "
            "validation data and of the floor count what lies in two tiles twice."
        )
    if rule.labels is not None and len(rule.labels) > 1:
        notes.append(
            f"Masks mark {', '.join(rule.labels)}: a score is the mean of those of each, without "
            "what neither truth nor prediction has in that part; and so is the floor's."
        )
    if contents.unit is not None:
        notes.append("Distances are in millimetres, by the pixel spacing of the files.")
    if any(item.part for item in listing.items):
        notes.append("The parts are your own.")
    if folds := listing.folds:
        tested = next(iter({listing.items[p].fold for p in contents.in_part("test")}))
        notes.append(f"The {len(folds)} folds are your own; {tested} is tested.")
    if listing.grouped:
        counts = {
            part: len({listing.items[place].group for place in contents.in_part(part)})
            for part in SPLITS
        }
        notes.append(
            f"Split by group, such as a patient: {counts['train']} for training, "
            f"{counts['validation']} for validation, {counts['test']} for test; none is in two."
        )
    else:
        notes.append(
            "Every image is a group of its own: if several are of one patient, scores are "
            "optimistic; give groups by folders within the classes, or in a table."
        )
    if listing.unread:
        notes.append(
            f"{len(listing.unread)} files of other kinds were not read, such as "
            f"{listing.unread[0]!r}."
        )
    return notes
