"""Trials by which each method's learning rate and schedule were chosen: kept beside the runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from znorm.lab.errors import DataError
from znorm.lab.optimizers import check_schedule
from znorm.lab.runs.files import read_file, write_atomically
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS

__all__ = [
    "SAMPLERS",
    "TRIAL_SEED",
    "Hyperparameters",
    "Sampler",
    "Tuning",
    "method_key",
    "read_tunings",
    "validation_score",
    "workload_key",
    "write_tunings",
]

_NAME = "tuning.json"
# Of every trial, and of no run of a comparison: what is chosen on a seed is not tested on it.
TRIAL_SEED = 1_000_000

Sampler = Literal["random", "tpe"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


class Hyperparameters(BaseModel):
    """The learning rate and the schedule: what is tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    schedule: str

    @field_validator("schedule")
    @classmethod
    def _known(cls, value: str) -> str:
        return check_schedule(value)

    @classmethod
    def of(cls, spec: RunSpec) -> Hyperparameters:
        return cls(learning_rate=spec.learning_rate, schedule=spec.schedule)

    def __str__(self) -> str:
        return f"{self.learning_rate:g} {self.schedule}"


class Tuning(BaseModel):
    """The trials of one workload.

    Parameters
    ----------
    sampler : "random" or "tpe"
    low, high : float
        Between which learning rates are drawn.
    drawn : mapping
        By `method_key`, in order; the first of each is what all methods share.
    chosen : mapping
        By `method_key`, the best on validation data, once all of its trials have ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampler: Sampler
    low: float = Field(gt=0, allow_inf_nan=False)
    high: float = Field(gt=0, allow_inf_nan=False)
    drawn: dict[str, tuple[Hyperparameters, ...]] = Field(default_factory=dict)
    chosen: dict[str, Hyperparameters] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Tuning:
        if not self.low < self.high:
            raise ValueError("low is not below high")
        if any(one not in self.drawn.get(key, ()) for key, one in self.chosen.items()):
            raise ValueError("something was chosen that is no trial")
        return self

    def with_trial(self, key: str, drawn: Hyperparameters) -> Tuning:
        """With one trial more of a method, whose choice is then open again."""
        everything = {**self.drawn, key: (*self.drawn.get(key, ()), drawn)}
        chosen = {other: one for other, one in self.chosen.items() if other != key}
        return self.model_copy(update={"drawn": everything, "chosen": chosen})

    @property
    def budget(self) -> int:
        """The number of trials of the method that has most."""
        return max(map(len, self.drawn.values()), default=0)

    def is_trial(self, spec: RunSpec) -> bool:
        """Tell whether a run of this workload is a trial."""
        return spec.seed == TRIAL_SEED and self._place(spec) is not None

    def is_tuned(self, spec: RunSpec) -> bool:
        """Tell whether a run of this workload has what was chosen for its method."""
        chosen = self.chosen.get(method_key(spec))
        return not self.is_trial(spec) and chosen == Hyperparameters.of(spec)

    def is_shared(self, spec: RunSpec) -> bool:
        """Tell whether a run of this workload is neither a trial nor has what one has drawn."""
        return not self.is_trial(spec) and self._place(spec) in (None, 0)

    def trials_of(self, runs: Iterable[Run], key: str) -> list[Run]:
        """The trials of a method among these runs, in the order drawn."""
        mine = [run for run in runs if method_key(run.spec) == key and self.is_trial(run.spec)]
        return sorted(mine, key=lambda run: self._place(run.spec) or 0)

    def is_former(self, spec: RunSpec) -> bool:
        """Tell whether a run of this workload has what was chosen once, from fewer trials."""
        return not (self.is_trial(spec) or self.is_tuned(spec) or self.is_shared(spec))

    def _place(self, spec: RunSpec) -> int | None:
        drawn, own = self.drawn.get(method_key(spec), ()), Hyperparameters.of(spec)
        return drawn.index(own) if own in drawn else None


def validation_score(run: Run) -> float:
    """The score of a trial by which is chosen: the last epoch's on the validation part.

    -inf of a run that did not finish, or has none.
    """
    score = run.metrics.get(f"validation_{TASKS[run.spec.task].score}", math.nan)
    return score if run.status == "done" and math.isfinite(score) else -math.inf


def workload_key(spec: RunSpec) -> str:
    """Eight hex digits, the same for runs that differ in method, seed and hyperparameters alone."""
    return hashlib.sha256(spec.workload.encode()).hexdigest()[:8]


def method_key(spec: RunSpec) -> str:
    """The method's name and eight hex digits of what it does: a name alone makes no method."""
    content = spec.model_dump(mode="json", include={"transform", "weight_decay"})
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return f"{spec.method}__{digest}"


_FILE: TypeAdapter[dict[str, Tuning]] = TypeAdapter(dict[str, Tuning])


def read_tunings(root: Path) -> dict[str, Tuning]:
    """Those of a folder, by `workload_key`.

    Raises
    ------
    DataError
        If they cannot be read.
    """
    path = root / _NAME
    try:
        return _FILE.validate_json(read_file(path))
    except FileNotFoundError:
        return {}
    except ValidationError:
        raise DataError(
            f"{path}: not the trials of a comparison; move it away, and they are drawn anew"
        ) from None


def write_tunings(root: Path, tunings: Mapping[str, Tuning]) -> None:
    """Keep them, in place of earlier ones."""
    content: Any = {key: tuning.model_dump(mode="json") for key, tuning in tunings.items()}
    write_atomically(root / _NAME, (json.dumps(content, indent=1) + "\n").encode())
