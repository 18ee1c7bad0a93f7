"""The specification of one run: everything that decides its numbers, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from znorm.lab.errors import ConfigurationError
from znorm.lab.methods import METHODS, OPTIMIZERS
from znorm.lab.models import MODELS
from znorm.lab.registry import lookup, unknown
from znorm.lab.tasks import TASKS
from znorm.lab.training.device import resolve_device, resolve_precision
from znorm.lab.training.sampler import AUGMENTATIONS

__all__ = ["DataSpec", "RunSpec", "keys", "resolve"]


_REGISTRIES: Mapping[str, Mapping[str, Any]] = {
    "task": TASKS,
    "model": MODELS,
    "method": METHODS,
    "optimizer": OPTIMIZERS,
}


class DataSpec(BaseModel):
    """Which images are used, and how they are changed.

    Parameters
    ----------
    augment : str
        "none", or "dihedral" for flips and quarter turns.
    validation : float
        The share of the training images that is set apart.
    limit : int or None
        At most so many images of each part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    augment: str
    validation: float = Field(ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, value: str) -> str:
        lookup("augmentation", value, dict.fromkeys(AUGMENTATIONS, 0))
        return value


class RunSpec(BaseModel):
    """One run, fully resolved: no field is ``auto``.

    Parameters
    ----------
    task, model, method, optimizer : str
        Names that ``znorm list`` prints.
    learning_rate : float
    epochs, batch_size : int
    seed : int
        Of the initial weights, the order of batches and the augmentation.
    precision : "float32" or "bfloat16"
        bfloat16 is by autocast; weights stay in float32.
    device : str
        "cpu", "cuda" or "mps".
    deterministic : bool
        Whether torch is asked for deterministic algorithms.
    data : DataSpec
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    model: str
    method: str
    optimizer: str
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    seed: int = Field(ge=0, lt=2**63)
    precision: Literal["float32", "bfloat16"]
    device: Literal["cpu", "cuda", "mps"]
    deterministic: bool
    data: DataSpec

    @field_validator("learning_rate", "epochs", "batch_size", "seed", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("expected a number")
        return value

    @field_validator("task", "model", "method", "optimizer")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        assert info.field_name is not None
        lookup(info.field_name, value, _REGISTRIES[info.field_name])
        return value

    def canonical(self, *, seed: bool = True) -> str:
        """JSON with sorted keys and no white space, with or without the seed."""
        content = self.model_dump(mode="json", exclude=None if seed else {"seed"})
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """Eight hex digits of the specification without its seed."""
        return hashlib.sha256(self.canonical(seed=False).encode()).hexdigest()[:8]


def keys() -> list[str]:
    """Every key that ``--set`` takes."""
    nested = [f"data.{name}" for name in DataSpec.model_fields]
    return [name for name in RunSpec.model_fields if name != "data"] + nested


def resolve(choices: Mapping[str, Any]) -> RunSpec:
    """Fill in the task's defaults, and what ``auto`` means on this machine.

    Parameters
    ----------
    choices : mapping
        By the keys of :func:`keys`, dotted or nested. What is missing or None takes its default;
        ``method`` and ``seed`` too, as ``baseline`` and 0.

    Raises
    ------
    ConfigurationError
        Naming the key or value that is not valid.
    """
    given = _nested(choices)
    task = lookup("task", given.get("task") or "pcam_mini", TASKS)
    data = given.pop("data")
    values: dict[str, Any] = {
        "task": "pcam_mini",
        "model": task.model,
        "method": "baseline",
        "optimizer": "adam",
        "learning_rate": task.learning_rate,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "seed": 0,
        "precision": "auto",
        "device": "auto",
        "deterministic": False,
    }
    values.update({key: value for key, value in given.items() if value is not None})
    for key, registry in _REGISTRIES.items():
        lookup(key, values[key], registry)
    values["device"] = resolve_device(values["device"])
    values["precision"] = resolve_precision(values["precision"], values["device"])
    values["data"] = {"augment": task.augment, "validation": task.validation}
    values["data"].update({key: value for key, value in data.items() if value is not None})
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_first_line(error)) from None


def _nested(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys taken apart; unknown ones refused."""
    flat: dict[str, Any] = {}
    for key, value in choices.items():
        if key == "data" and isinstance(value, Mapping):
            flat.update({f"data.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    nested: dict[str, Any] = {"data": {}}
    for key, value in flat.items():
        if key not in keys():
            raise unknown("key", key, keys())
        if key.startswith("data."):
            nested["data"][key.removeprefix("data.")] = value
        else:
            nested[key] = value
    return nested


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]}, found {first['input']!r}"
