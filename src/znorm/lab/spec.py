"""The specification of one run: everything that decides its numbers, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from znorm.lab import methods, models, optimizers
from znorm.lab.datasets import DataSpec
from znorm.lab.device import resolve_device, resolve_precision, why_not_captured
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.losses import LOSSES
from znorm.lab.metrics import DEFINITIONS
from znorm.lab.models.start import digest_of
from znorm.lab.own_code import check_names, is_own
from znorm.lab.registry import lookup, unknown
from znorm.lab.tasks import TASKS

__all__ = ["RunSpec", "keys", "resolve"]


# Beyond these a number is a slip of the hand.
MOST_EPOCHS = 1_000_000
MOST_IMAGES = 1_000_000


class RunSpec(BaseModel):
    """One run, fully resolved: no field is ``auto``.

    Parameters
    ----------
    task, model, method, loss : str
        Names that ``znorm list`` prints; a method may be the user's own, a loss
        "package.module:function".
    model_options : mapping
        The model's own, such as {"stem": "cifar"}.
    transform : tuple of mapping
        The method's links, each a transform's name and its arguments.
    weight_decay : float
        The method's.
    optimizer : str
        A name, or a class such as "torch.optim.NAdam".
    optimizer_options : mapping
        Arguments that differ from the class's defaults.
    learning_rate : float
    schedule : str
        "constant", "cosine" or "multistep:EPOCH,...".
    epochs, batch_size : int
    micro_batch : int or None
        Images that are in memory at once; gradients of a batch's pieces add up.
    seed : int
        Of the initial weights, the order of batches and the augmentation.
    precision : "float32" or "bfloat16"
        bfloat16 is by autocast; weights stay in float32.
    device : str
        "cpu", "cuda" or "mps".
    deterministic : bool
        Whether torch is asked for deterministic algorithms.
    cuda_graph : bool or None
        Whether a whole step is captured in a CUDA graph, and the evaluation of a batch.
    compile : bool or None
        Whether the net is trained by ``torch.compile``.
    receipt : bool or None
        Whether each epoch's receipt of gradients is kept, in events.jsonl: norms, moments and
        angles of each layer's weights, before and after the transform.
    metrics : tuple of str or None
        Further scores, each "package.module:function".
    patience : int or None
        Epochs without a better score on the validation part after which the run ends.
    best_epoch : bool or None
        Whether scores and weights are those of the epoch that was best there.
    start : str or None
        A file of weights that every run starts from; where it lies is no part of the hash.
    start_digest : str or None
        The hash of these weights.
    data : DataSpec
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    task: str
    # A part of the run's folder: nothing that leads out of it.
    model: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+:/-]*$")
    model_options: dict[str, Any] = Field(default_factory=dict)
    method: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    transform: tuple[dict[str, dict[str, Any]], ...] = ()
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    optimizer: str
    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    schedule: str
    loss: str
    epochs: int = Field(ge=1, le=MOST_EPOCHS)
    batch_size: int = Field(ge=2, le=MOST_IMAGES)
    micro_batch: int | None = Field(default=None, ge=2, le=MOST_IMAGES)
    seed: int = Field(ge=0, lt=2**63)
    precision: Literal["float32", "bfloat16"]
    device: Literal["cpu", "cuda", "mps"]
    deterministic: bool
    cuda_graph: bool | None = None
    compile: bool | None = None
    receipt: bool | None = None
    metrics: tuple[str, ...] | None = None
    patience: int | None = Field(default=None, ge=1, le=MOST_EPOCHS)
    best_epoch: bool | None = None
    start: str | None = None
    start_digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    data: DataSpec

    @field_validator("learning_rate", "epochs", "batch_size", "seed", "patience", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("expected a number")
        return value

    @field_validator("cuda_graph", "compile", "receipt", "best_epoch")
    @classmethod
    def _said_or_not(cls, value: bool | None) -> bool | None:
        return value or None  # what is left out changes no hash

    @field_validator("task", "loss")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        registry: Mapping[str, Any] = TASKS if info.field_name == "task" else LOSSES
        if info.field_name == "task" or not is_own(value):
            lookup(str(info.field_name), value, registry)
        return value

    @field_validator("metrics", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        return value or None

    @field_validator("model")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if any(part in ("", ".", "..") for part in value.split("/")):
            raise ValueError("expected the name of a model, found a path that leads elsewhere")
        return value

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        return optimizers.check_schedule(value)

    @model_validator(mode="after")
    def _fits(self) -> RunSpec:
        models.options_of(self.model, self.model_options)
        methods.resolve(self.method, self.transform, self.weight_decay)
        if "." not in self.optimizer:
            # A class elsewhere is looked for when it is needed, not when its runs are listed.
            optimizers.check(self.optimizer, self.optimizer_options, self.weight_decay)
        TASKS[self.task].check(self.model, self.loss)
        check_names(self.metrics or (), DEFINITIONS)
        if self.start is not None and self.start_digest is None:
            raise ValueError("start: needs start_digest, the hash of the weights in the file")
        if self.cuda_graph and self.device != "cuda":
            raise ValueError(f"cuda_graph: needs device cuda, found {self.device}")
        return self

    def canonical(self, *, seed: bool = True) -> str:
        """JSON with sorted keys and no white space, with or without the seed.

        What is None is left out, so that a later key that nobody sets changes no hash.
        """
        left_out = {"start"} if seed else {"start", "seed"}
        content = self.model_dump(mode="json", exclude=left_out, exclude_none=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @property
    def configuration(self) -> str:
        """The same for runs that differ in nothing but method and seed."""
        content = self.model_dump(
            mode="json", exclude={"method", "seed", "start", "transform", "weight_decay"}
        )
        return json.dumps(content, sort_keys=True)

    @property
    def across_folds(self) -> str:
        """As `configuration`, the same for all folds of the same images, which it goes through."""
        if self.data.folds is None:
            return self.configuration
        # What follows from the training images differs with the fold.
        data = self.data.model_copy(update={"fold": None, "contents": None, "window": None})
        return self.model_copy(update={"data": data}).configuration

    @property
    def workload(self) -> str:
        """As `configuration`, for runs that may differ in learning rate and schedule, too.

        Kept in files, so that what is None is left out, as in `canonical`.
        """
        varied = {"method", "seed", "transform", "weight_decay", "learning_rate", "schedule"}
        varied.add("start")
        content = self.model_dump(mode="json", exclude=varied, exclude_none=True)
        return json.dumps(content, sort_keys=True)

    @property
    def data_key(self) -> str:
        """The same for runs on the same images of the same task."""
        return f"{self.task} {self.data.key}"

    @property
    def hash(self) -> str:
        """Eight hex digits of the specification without its seed."""
        return hashlib.sha256(self.canonical(seed=False).encode()).hexdigest()[:8]


_FREE = ("model_options", "optimizer_options")


def keys() -> list[str]:
    """Every key that ``--set`` takes, but for the options of models and optimizers."""
    nested = [f"data.{name}" for name in DataSpec.model_fields]
    return [name for name in RunSpec.model_fields if name != "data"] + nested


def resolve(choices: Mapping[str, Any]) -> RunSpec:
    """Fill in the task's defaults, and what ``auto`` means on this machine and for its data.

    Parameters
    ----------
    choices : mapping
        By the keys of ``keys()``, dotted or nested. What is missing or None takes its default;
        ``method`` and ``seed`` too, as ``baseline`` and 0. ``model`` and ``optimizer`` may be
        mappings of ``name`` and their options.

    Returns
    -------
    RunSpec

    Raises
    ------
    ConfigurationError
        Naming the key or value that is not valid.
    DataError
        If the parts of the data cannot be told, since it is missing or unreadable.

    Examples
    --------
    >>> from znorm import lab
    >>> spec = lab.resolve({"method": "znorm", "epochs": 3, "data.augment": "none"})
    >>> spec.task, spec.epochs, spec.optimizer
    ('pcam_mini', 3, 'adam')
    """
    nested = _nested(choices)
    data = nested.pop("data")
    name = nested.pop("task", None) or "pcam_mini"
    task = lookup("task", name, TASKS)
    values: dict[str, Any] = {
        "model": task.model,
        "method": "baseline",
        "optimizer": "adam",
        "learning_rate": task.learning_rate,
        "schedule": task.schedule,
        "loss": task.loss,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "seed": 0,
        "precision": "auto",
        "device": "auto",
        "deterministic": False,
    }
    values.update({key: value for key, value in nested.items() if value is not None})
    values["task"] = name
    if not is_own(values["loss"]):
        lookup("loss", values["loss"], LOSSES)
    values["model_options"] = models.options_of(values["model"], values.get("model_options") or {})
    task.check(values["model"], values["loss"])
    values["transform"], values["weight_decay"] = methods.resolve(
        values["method"], values.get("transform"), values.get("weight_decay")
    )
    values["optimizer_options"] = optimizers.options_of(
        values["optimizer"], values.get("optimizer_options"), values["weight_decay"]
    )
    values["device"] = resolve_device(values["device"])
    values["precision"] = resolve_precision(values["precision"], values["device"], values["model"])
    if values.get("cuda_graph") is None:
        reason = why_not_captured(
            values["model"], values["optimizer"], values["transform"], values["loss"]
        )
        values["cuda_graph"] = values["device"] == "cuda" and reason is None
    if values.get("start") is not None:
        values |= _started(values["start"], values.get("start_digest"))
    values["data"] = {
        "augment": data.pop("augment", None) or task.augment,
        "limit": data.pop("limit", None),
    }
    for key, value in data.items():
        if value is not None and key not in task.data.keys:
            valid = ", ".join(f"data.{known}" for known in ("augment", "limit", *task.data.keys))
            raise ConfigurationError(f"task {name} takes no data.{key}; it takes {valid}")
    values["data"].update(task.data.resolve({k: v for k, v in data.items() if v is not None}))
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_first_line(error)) from None


def _started(path: Any, digest: str | None) -> dict[str, str]:
    """The file of weights and their hash."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigurationError(f"start: expected a file of weights, found {path!r}")
    place = str(Path(path).expanduser().absolute())
    found = digest_of(place)
    if digest is not None and digest != found:
        raise DataError(f"start: {place}: holds other weights than start_digest says")
    return {"start": place, "start_digest": found}


def _nested(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys taken apart; unknown ones refused."""
    nested: dict[str, Any] = {"data": {}}
    for key in ("model", "optimizer"):
        if isinstance(choices.get(key), Mapping):
            options = dict(choices[key])
            named = options.pop("name", None)
            if not isinstance(named, str):
                raise ConfigurationError(
                    f"{key}: expected its name among its options, as name: ..."
                )
            choices = {**choices, key: named, f"{key}_options": options}
    for key in ("task", "model", "method", "optimizer", "loss", "schedule"):
        if not isinstance(choices.get(key), str | None):
            raise ConfigurationError(f"{key}: expected a name, found {choices[key]!r}")
    for key, value in choices.items():
        if not isinstance(key, str):
            raise unknown("key", key, keys())
        first, dot, rest = key.partition(".")
        if first in _FREE and not dot and not isinstance(value, Mapping | None):
            raise ConfigurationError(f"{key}: expected options by name, found {value!r}")
        if first in _FREE and dot:
            nested.setdefault(first, {})[rest] = value
        elif first in _FREE:
            nested.setdefault(first, {}).update(value or {})
        elif key == "data" and isinstance(value, Mapping):
            for name in value:
                if f"data.{name}" not in keys():
                    raise unknown("key", f"data.{name}", keys())
            nested["data"].update(value)
        elif key not in keys():
            raise unknown("key", key, keys())
        elif first == "data":
            nested["data"][rest] = value
        else:
            nested[key] = value
    return nested


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not place:
        return message
    return f"{place}: {message[0].lower()}{message[1:]}, found {first['input']!r}"
