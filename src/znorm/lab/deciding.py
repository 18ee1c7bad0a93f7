"""Seeds that are added, pair by pair, until the question is decided or a budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from znorm.lab.errors import ConfigurationError
from znorm.lab.evidence.pairs import REFERENCE
from znorm.lab.evidence.question import WORTH, Question
from znorm.lab.options import CompareOptions
from znorm.lab.reporting.card import Card, card_of
from znorm.lab.reporting.tables import gather
from znorm.lab.runs.folder import Run
from znorm.lab.runs.grid import grid
from znorm.lab.spec import RunSpec

__all__ = ["added_until_decided", "asked", "keep"]

# Seeds that are never passed: beyond them nothing is decided that matters.
MOST_SEEDS = 1000
# Times that more seeds are tried though the last ones have made no pair.
IN_VAIN = 3


def asked(options: CompareOptions, specs: Sequence[RunSpec]) -> Question | None:
    """The question of a comparison; None without a method beside the baseline.

    One that was kept in its folder stands, but for a gain that is given anew.

    Raises
    ------
    ConfigurationError
        For a gain that is none, and where seeds are to be added without a method beside the
        baseline.
    DataError
        If the one that was kept cannot be read.
    """
    if options.until not in (None, "decided"):
        raise ConfigurationError(f"until: expected decided, found {options.until!r}")
    if options.budget is not None and not options.budget > 0:
        raise ConfigurationError(f"budget: expected minutes above 0, found {options.budget!r}")
    methods = [spec.method for spec in specs]
    new = Question.of(methods, WORTH if options.worth is None else options.worth)
    if new is None or REFERENCE not in methods:
        if options.until is not None:
            raise ConfigurationError("until: needs the baseline and a method beside it")
        return None
    kept = Question.read(Path(options.out))
    if kept is not None and kept.method in methods:
        new = Question(kept.method, kept.worth if options.worth is None else options.worth)
    return replace(new, sequential=options.until is not None).after(kept)


def keep(question: Question, root: Path, say: Callable[[str], None]) -> None:
    """Keep the question beside its runs, before the first of them.

    One in the place of another is said: what is asked once results are there is not what they were
    to answer.
    """
    kept = Question.read(root)
    if question == kept:
        return
    question.write(root)
    if kept is not None and (kept.method, kept.worth) != (question.method, question.worth):
        say(
            f"the question was of {kept.method} and a gain of {kept.worth:g}, and is now of "
            f"{question.method} and {question.worth:g}: answers to later questions count less"
        )


def added_until_decided(
    options: CompareOptions, question: Question, runs: Sequence[Run], say: Callable[[str], None]
) -> Iterator[list[Run]]:
    """The next runs to be trained, until the verdict on all that are there stands.

    Yields
    ------
    list of Run
        Of the baseline and the question's method, with further seeds.
    """
    begun = time.monotonic()
    known = list(runs)
    methods = _named(options.methods, (REFERENCE, question.method))
    pairs, in_vain = -1, 0
    while True:
        card = _card(Path(options.out), known, question)
        say("no run has ended" if card is None else card.text)
        if card is not None and not card.is_open:
            return
        now = 0 if card is None else card.pairs
        in_vain = 0 if now > pairs else in_vain + 1
        if in_vain >= IN_VAIN:
            say(
                f"{in_vain} times more seeds have brought no pair of finished runs, and nothing "
                "is decided: look at how they ended"
            )
            return
        pairs = now
        spent = (time.monotonic() - begun) / 60
        if options.budget is not None and spent >= options.budget:
            say(f"the budget of {options.budget:g} minutes is spent, and nothing is decided")
            return
        there = {run.spec.seed for run in known}
        if len(there) >= MOST_SEEDS:
            say(f"{MOST_SEEDS} seeds have decided nothing")
            return
        last = max(there)
        seeds = list(range(last + 1, last + 1 + max(1, options.jobs // 2)))
        more = [Run.at(options.out, spec) for spec in grid(methods, seeds, options.choices())]
        yield more
        known += more


def _card(root: Path, runs: Sequence[Run], question: Question) -> Card | None:
    """The card of the runs that have ended; None where there are none to compare."""
    tables = gather(root, [run for run in runs if run.result is not None], question)
    return card_of(tables[0]) if tables else None


def _named(
    methods: Sequence[str | Mapping[str, object]] | str | None, names: Sequence[str]
) -> list[str | Mapping[str, object]]:
    """The methods of these names, as the user wrote them."""
    written = methods.split(",") if isinstance(methods, str) else (methods or ())
    own = {str(one["name"]): one for one in written if isinstance(one, Mapping)}
    return [own.get(name, name) for name in names]
