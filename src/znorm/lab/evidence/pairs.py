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
    refused : tuple of (int, str)
        Seeds whose two runs differ in more than the method, and in what.
    diverged, reference_diverged : tuple of int
        Seeds of which only the method's run, or only the baseline's, diverged.
    missing : tuple of int
        Seeds of which one of the two is not there, unfinished or failed.
    """

    made: tuple[Pair, ...]
    refused: tuple[tuple[int, str], ...]
    diverged: tuple[int, ...]
    reference_diverged: tuple[int, ...]
    missing: tuple[int, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(pair.run for pair in self.made)

    @property
    def same_nets(self) -> bool:
        """True where the two of each pair ended with the same weights, by their hashes."""
        hashes = [
            (_hash(pair.run, "final_weights"), _hash(pair.reference, "final_weights"))
            for pair in self.made
        ]
        return all(mine is not None and mine == theirs for mine, theirs in hashes)


def pairs_of(runs: Sequence[Run], reference: Sequence[Run]) -> Pairs:
    """The pairs of a method's runs and the baseline's, and why others are none."""
    mine = {run.spec.seed: run for run in runs}
    theirs = {run.spec.seed: run for run in reference}
    made: list[Pair] = []
    refused: list[tuple[int, str]] = []
    ended: dict[tuple[str, str], list[int]] = {}
    missing: list[int] = []
    for seed in sorted({*mine, *theirs}):
        run, other = mine.get(seed), theirs.get(seed)
        if run is None or other is None:
            missing.append(seed)
            continue
        states = run.status, other.status
        reason = why_no_pair(run, other)
        if reason is not None:
            refused.append((seed, reason))
        elif states == ("done", "done"):
            made.append(Pair(seed, run, other))
        elif set(states) <= {"done", "diverged"}:
            ended.setdefault(states, []).append(seed)
        else:
            missing.append(seed)
    return Pairs(
        tuple(made),
        tuple(refused),
        tuple(ended.get(("diverged", "done"), ())),
        tuple(ended.get(("done", "diverged"), ())),
        tuple(missing),
    )


def why_no_pair(run: Run, reference: Run) -> str | None:
    """The thing that two runs of a seed do not share, by their hashes; None where none is known.

    Batches are compared of runs that saw all of theirs.
    """
    whole = run.status == reference.status == "done"
    for key, text in SHARED.items():
        mine, theirs = _hash(run, key), _hash(reference, key)
        if mine and theirs and mine != theirs and (key != "batches" or whole):
            return f"other {text} than the baseline's"
    return None


def _hash(run: Run, key: str) -> str | None:
    found = (run.result or {}).get("hashes", {}).get(key)
    return found if isinstance(found, str) and found else None
