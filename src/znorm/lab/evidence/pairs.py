"""Pairs of runs that share all but the method, which is looked up and not believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from znorm.lab.runs.folder import Run

__all__ = ["REFERENCE", "SHARED", "Pair", "Pairs", "pairs_of", "why_no_pair"]

REFERENCE = "baseline"

# What runs of one seed must share, by the name of its hash in result.json.
SHARED = {
    "data": "images",
    "initial_weights": "initial weights",
    "batches": "batches (their order, or the augmentation)",
}


@dataclass(frozen=True)
class Pair:
    """A method's run and the baseline's of the same seed, both finished."""

    seed: int
    run: Run
    reference: Run

    @property
    def verified(self) -> tuple[str, ...]:
        """The things that the two are known to share, by the keys of `SHARED`.

        Runs of earlier versions did not keep all of them.
        """
        return tuple(key for key in SHARED if _hash(self.run, key) and _hash(self.reference, key))


@dataclass(frozen=True)
class Pairs:
    """A method's runs beside the baseline's.

    Parameters
    ----------
    made : tuple of Pair
    only_method_diverged, only_baseline_diverged, both_diverged : tuple of Pair
        Those of which both ended, and at least one diverged.
    refused : tuple of (int, str)
        Seeds whose two runs differ in more than the method, and in what.
    failed, waiting : tuple of int
        Seeds of which one of the two failed; of which one is not there or not finished.
    """

    made: tuple[Pair, ...] = ()
    only_method_diverged: tuple[Pair, ...] = ()
    only_baseline_diverged: tuple[Pair, ...] = ()
    both_diverged: tuple[Pair, ...] = ()
    refused: tuple[tuple[int, str], ...] = ()
    failed: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(pair.run for pair in self.made)

    @property
    def ended(self) -> int:
        """The number of pairs of which both runs ended, diverged ones too."""
        return len(self.made) + sum(
            map(len, (self.only_method_diverged, self.only_baseline_diverged, self.both_diverged))
        )

    @property
    def same_nets(self) -> bool:
        """True where the two of each pair ended with the same weights, by their hashes."""
        hashes = [
            (_hash(pair.run, "final_weights"), _hash(pair.reference, "final_weights"))
            for pair in self.made
        ]
        return bool(hashes) and all(mine is not None and mine == its for mine, its in hashes)

    @property
    def left_out(self) -> list[str]:
        """A text for each reason for which seeds are in no difference."""
        reasons = {
            "diverged, the baseline did not": [one.seed for one in self.only_method_diverged],
            "did not diverge, the baseline did": [one.seed for one in self.only_baseline_diverged],
            "diverged, and so did the baseline": [one.seed for one in self.both_diverged],
            "one of the two failed": self.failed,
            "one of the two is not there or not finished": self.waiting,
        }
        return [f"seed {seed}: {reason}" for seed, reason in self.refused] + [
            f"seed {', '.join(map(str, seeds))}: {reason}"
            for reason, seeds in reasons.items()
            if seeds
        ]


def pairs_of(runs: Sequence[Run], reference: Sequence[Run]) -> Pairs:
    """The pairs of a method's runs and the baseline's, and why others are none."""
    mine = {run.spec.seed: run for run in runs}
    theirs = {run.spec.seed: run for run in reference}
    ended: dict[tuple[str, str], list[Pair]] = {}
    refused: list[tuple[int, str]] = []
    failed: list[int] = []
    waiting: list[int] = []
    for seed in sorted({*mine, *theirs}):
        run, other = mine.get(seed), theirs.get(seed)
        if run is None or other is None:
            waiting.append(seed)
            continue
        states = run.status, other.status
        reason = why_no_pair(run, other)
        if reason is not None:
            refused.append((seed, reason))
        elif set(states) <= {"done", "diverged"}:
            ended.setdefault(states, []).append(Pair(seed, run, other))
        else:
            (failed if "failed" in states else waiting).append(seed)
    return Pairs(
        tuple(ended.get(("done", "done"), ())),
        tuple(ended.get(("diverged", "done"), ())),
        tuple(ended.get(("done", "diverged"), ())),
        tuple(ended.get(("diverged", "diverged"), ())),
        tuple(refused),
        tuple(failed),
        tuple(waiting),
    )


def why_no_pair(run: Run, reference: Run) -> str | None:
    """The thing that two runs of a seed do not share, by their hashes; None where none is known.

    Batches are compared of runs that saw all of theirs.
    """
    whole = run.status == reference.status == "done"
    for key, text in SHARED.items():
        mine, theirs = _hash(run, key), _hash(reference, key)
        if key == "batches" and _has_epochs(run) and _has_epochs(reference):
            mine, theirs = _shared_epochs(run, reference)
        if mine and theirs and mine != theirs and (key != "batches" or whole):
            return f"other {text} than the baseline's"
    return None


def _hash(run: Run, key: str) -> str | None:
    found = (run.result or {}).get("hashes", {}).get(key)
    return found if isinstance(found, str) and found else None


def _has_epochs(run: Run) -> bool:
    return _hash(run, "batches_by_epoch") is not None


def _shared_epochs(run: Run, reference: Run) -> tuple[str, str]:
    """The batches of the epochs that both were trained for: either may have ended early."""
    mine, theirs = ((_hash(one, "batches_by_epoch") or "").split() for one in (run, reference))
    count = min(len(mine), len(theirs))
    return " ".join(mine[:count]), " ".join(theirs[:count])
