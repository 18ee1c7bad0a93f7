"""Each method at its own best learning rate and schedule, from an equal number of trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.evidence.tuning import (
    SAMPLERS,
    TRIAL_SEED,
    Hyperparameters,
    Sampler,
    Tuning,
    method_key,
    read_tunings,
    validation_score,
    workload_key,
    write_tunings,
)
from znorm.lab.methods import label
from znorm.lab.options import CompareOptions
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec

__all__ = ["further_runs", "tuned_runs", "tuning_asked"]

# About the shared learning rate, where no range is given: a decade to each side.
_FACTOR = 10.0
_SCHEDULES = ("constant", "cosine")
MOST_TRIALS = 1000
# TPE draws so many at random before it learns from them.
_RANDOM_FIRST = 5
# Draws of a trial that is not one of the earlier ones: the same again would teach nothing.
_AGAIN = 100


def tuning_asked(options: CompareOptions, specs: Sequence[RunSpec]) -> Tuning | None:
    """The tuning of a comparison, with what its folder has of it; None where none is asked for.

    Parameters
    ----------
    options : CompareOptions
    specs : sequence of RunSpec
        Of the comparison, in which all methods share what is tuned.

    Raises
    ------
    ConfigurationError
        For a value that is not valid, and for one by which other trials were drawn there.
    DataError
        If those cannot be read.
    """
    if options.tune is None:
        for name in ("sampler", "lr_range"):
            if getattr(options, name) is not None:
                raise ConfigurationError(f"{name}: is for trials; give tune, how many")
        return None
    number: Any = options.tune
    if isinstance(number, bool) or not isinstance(number, int) or not 2 <= number <= MOST_TRIALS:
        raise ConfigurationError(f"tune: expected 2 to {MOST_TRIALS} trials, found {number!r}")
    if options.sampler not in (None, *SAMPLERS):
        raise ConfigurationError(
            f"sampler: expected {' or '.join(SAMPLERS)}, found {options.sampler!r}"
        )
    if any(spec.seed == TRIAL_SEED for spec in specs):
        raise ConfigurationError(f"seeds: {TRIAL_SEED} is that of trials; take others")
    if specs[0].data.validation == 0:
        raise ConfigurationError(
            "tune: what is best is chosen on validation data, and data.validation is 0; raise it"
        )
    shared = Hyperparameters.of(specs[0])
    asked = _range(options.lr_range)
    out = Path(options.out)
    kept = read_tunings(out).get(workload_key(specs[0]))
    if kept is None:
        low, high = asked or (shared.learning_rate / _FACTOR, shared.learning_rate * _FACTOR)
        return Tuning(sampler=options.sampler or "random", low=low, high=high)
    elsewhere = f"than trials in {out} were drawn by; give another out"
    if options.sampler not in (None, kept.sampler):
        raise ConfigurationError(f"sampler: {options.sampler} is another one {elsewhere}")
    if asked not in (None, (kept.low, kept.high)):
        raise ConfigurationError(f"lr_range: is another one {elsewhere}")
    if any(drawn and drawn[0] != shared for drawn in kept.drawn.values()):
        raise ConfigurationError(f"lr, schedule: {shared} are others {elsewhere}")
    return kept


def _range(value: Any) -> tuple[float, float] | None:
    """The lowest and the highest learning rate."""
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    try:
        low, high = (float(part) for part in parts)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low < high < math.inf:
        raise ConfigurationError(
            f"lr_range: expected two learning rates, the lower one first, such as 1e-4,1e-1, "
            f"found {value!r}"
        )
    return low, high


def further_runs(
    options: CompareOptions, tuning: Tuning, specs: Sequence[RunSpec]
) -> tuple[int, int]:
    """The number of runs that tuning adds to a comparison, and of those still to be trained."""
    methods = _by_method(specs)
    number = len(methods) * _budget(options, tuning) + len(specs)
    known = [
        _with(spec, drawn, TRIAL_SEED)
        for key, spec in methods.items()
        for drawn in tuning.drawn.get(key, ())
    ]
    known += _chosen(tuning, specs)
    ended = sum(Run.at(options.out, spec).result is not None for spec in known)
    same = sum(spec in specs for spec in _chosen(tuning, specs))
    return number - same, number - ended


def tuned_runs(
    options: CompareOptions,
    tuning: Tuning,
    specs: Sequence[RunSpec],
    train: Callable[[list[Run]], None],
    say: Callable[[str], None],
) -> list[Run]:
    """Make the trials, choose, and train each method at its own best over the comparison's seeds.

    Parameters
    ----------
    options, tuning, specs
        As `tuning_asked` takes and gives them.
    train : callable (runs)
        Trains those that have not ended.
    say : callable (text)

    Returns
    -------
    list of Run
        Those at each method's best; without a method of which no trial finished. None while trials
        have not ended, which another process may be at.
    """
    out, methods = Path(options.out), _by_method(specs)
    trials: dict[str, list[Run]] = {key: [] for key in methods}
    if _budget(options, tuning) > (options.tune or 0):
        say(f"{tuning.budget} trials a method are there already, and all of them count")
    for numbers in _rounds(tuning.sampler, _budget(options, tuning)):
        for key, spec in methods.items():
            scores = [validation_score(run) for run in trials[key]]
            for number in numbers:
                drawn = tuning.drawn.get(key, ())
                if number == len(drawn):
                    made = _draw(tuning, Hyperparameters.of(spec), number, drawn, scores)
                    tuning = tuning.with_trial(key, made)
                one = _with(spec, tuning.drawn[key][number], TRIAL_SEED)
                trials[key].append(Run.at(out, one))
        _keep(out, specs[0], tuning)
        # Methods stand side by side: stopped halfway, they have had as many.
        train([trials[key][number] for number in numbers for key in methods])
        left = [run for runs in trials.values() for run in runs if not _has_ended(run)]
        if left:
            say(
                f"{len(left)} trials have not ended, the first in {left[0].folder}: nothing is "
                "chosen yet; the same command goes on"
            )
            return []
    best: dict[str, Hyperparameters] = {}
    for key, runs in trials.items():
        name = label(methods[key].method)
        scores = [validation_score(run) for run in runs]
        if max(scores) == -math.inf:
            say(f"{name}: no trial has a score on validation data; it is not tuned")
            continue
        best[key] = tuning.drawn[key][scores.index(max(scores))]
        say(f"{name}: {best[key]}, the best of {len(runs)} on validation data")
    tuning = tuning.model_copy(update={"chosen": {**tuning.chosen, **best}})
    _keep(out, specs[0], tuning)
    tuned = [Run.at(out, spec) for spec in _chosen(tuning, specs)]
    train(tuned)
    return tuned


def _has_ended(run: Run) -> bool:
    try:
        return run.result is not None
    except DataError:
        return False  # which has been said


def _by_method(specs: Sequence[RunSpec]) -> dict[str, RunSpec]:
    return {method_key(spec): spec for spec in specs}


def _budget(options: CompareOptions, tuning: Tuning) -> int:
    return max(options.tune or 0, tuning.budget)


def _rounds(sampler: Sampler, budget: int) -> Iterator[range]:
    """Trials that are drawn at once: all of them, where none is drawn by what others scored."""
    if sampler == "random":
        yield range(budget)
    else:
        yield from (range(number, number + 1) for number in range(budget))


def _chosen(tuning: Tuning, specs: Sequence[RunSpec]) -> list[RunSpec]:
    return [
        _with(spec, tuning.chosen[method_key(spec)], spec.seed)
        for spec in specs
        if method_key(spec) in tuning.chosen
    ]


def _with(spec: RunSpec, drawn: Hyperparameters, seed: int) -> RunSpec:
    return spec.model_copy(update={**drawn.model_dump(), "seed": seed})


def _keep(out: Path, spec: RunSpec, tuning: Tuning) -> None:
    write_tunings(out, {**read_tunings(out), workload_key(spec): tuning})


def _draw(
    tuning: Tuning,
    shared: Hyperparameters,
    number: int,
    drawn: Sequence[Hyperparameters],
    scores: Sequence[float],
) -> Hyperparameters:
    """A method's next trial: the first is what all share, the others are Optuna's.

    It follows from its number, and with TPE from what the method's earlier ones scored; not from
    how often the search was stopped. By numbers alone all methods try the same.
    """
    if number == 0:
        return shared
    import optuna  # a quarter of a second, and only this needs it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space: dict[str, Any] = {
        "learning_rate": optuna.distributions.FloatDistribution(tuning.low, tuning.high, log=True),
        "schedule": optuna.distributions.CategoricalDistribution(
            tuple(dict.fromkeys((shared.schedule, *_SCHEDULES)))
        ),
    }
    for again in range(_AGAIN):
        seed = number + again * MOST_TRIALS
        study = optuna.create_study(direction="maximize", sampler=_sampler(tuning.sampler, seed))
        if tuning.sampler == "tpe":
            for one, score in zip(drawn, scores, strict=True):
                if tuning.low <= one.learning_rate <= tuning.high:
                    # The lowest of all scores, for one that has none: not to be tried again.
                    value = 0.0 if score == -math.inf else score
                    study.add_trial(
                        optuna.trial.create_trial(
                            params=one.model_dump(), distributions=space, value=value
                        )
                    )
        found = study.ask(space).params
        rounded = float(f"{found['learning_rate']:.3g}")
        made = Hyperparameters(
            learning_rate=min(max(rounded, tuning.low), tuning.high), schedule=found["schedule"]
        )
        if made not in drawn:
            break
    return made


def _sampler(name: Sampler, seed: int) -> Any:
    from optuna.samplers import RandomSampler, TPESampler

    if name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=_RANDOM_FIRST)
