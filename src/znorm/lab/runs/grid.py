"""The specifications of a comparison: methods and seeds, with all else equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from znorm.lab.errors import ConfigurationError
from znorm.lab.methods import PUBLISHED
from znorm.lab.registry import unknown
from znorm.lab.spec import RunSpec, resolve

__all__ = ["grid"]


def grid(
    methods: Sequence[str | Mapping[str, Any]] | str | None,
    seeds: int | Sequence[int],
    choices: Mapping[str, Any],
) -> list[RunSpec]:
    """The specifications of a comparison.

    Methods stand side by side within a seed, so that a grid stopped halfway is balanced.

    Parameters
    ----------
    methods : sequence of str or mapping, str or None
        None for the six of the paper's tables; a string separated by commas is a list too. A
        mapping is a method of the user's own: ``name``, ``transform`` and ``weight_decay``.
    seeds : int or sequence of int
        N means 0 to N-1.
    choices : mapping
        What all runs share, as :func:`znorm.lab.resolve` takes it.

    Raises
    ------
    ConfigurationError
        Naming the argument that is not valid.
    """
    if isinstance(methods, str):
        methods = [name.strip() for name in methods.split(",") if name.strip()]
    chosen = [_method(method) for method in (PUBLISHED if methods is None else methods)]
    for number, method in enumerate(chosen):
        for other in chosen[:number]:
            if method["method"] == other["method"] and method != other:
                raise ConfigurationError(
                    f"methods: {method['method']} is there twice and differs; give one another name"
                )
    if not chosen:
        raise ConfigurationError("methods: give at least one")
    for key in ("method", "seed", "transform", "weight_decay"):
        if choices.get(key) is not None:
            use = "seeds" if key == "seed" else "methods"
            raise ConfigurationError(f"set: {key} is what a comparison varies; use {use}")
    specs: dict[str, RunSpec] = {}
    for seed in _seeds(seeds):
        for method in chosen:
            spec = resolve({**choices, **method, "seed": seed})
            if not specs:
                # What follows from the files that are there is worked out once.
                content = spec.data.model_dump(mode="json")
                choices = {k: v for k, v in choices.items() if not k.startswith("data")}
                choices["data"] = content
            specs.setdefault(spec.canonical(), spec)
    return list(specs.values())


def _method(method: str | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(method, Mapping):
        return {"method": method}
    for key in method:
        if key not in ("name", "transform", "weight_decay"):
            raise unknown("key of a method", key, ("name", "transform", "weight_decay"))
    if not isinstance(method.get("name"), str):
        raise ConfigurationError(f"methods: a method of your own needs a name, found {method!r}")
    transform = method.get("transform")
    return {
        "method": method["name"],
        "transform": () if transform is None else transform,
        "weight_decay": method.get("weight_decay"),
    }


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, bool) or not isinstance(seeds, int | Sequence):
        raise ConfigurationError(f"seeds: expected a number or a list of numbers, found {seeds!r}")
    numbers = list(range(min(seeds, 10_001))) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise ConfigurationError(f"seeds: give at least one, found {seeds!r}")
    if len(numbers) > 10_000:
        raise ConfigurationError(f"seeds: {len(numbers):,} are too many")
    for seed in numbers:
        if not isinstance(seed, int) or seed < 0:
            raise ConfigurationError(f"seeds: expected whole numbers from 0, found {seed!r}")
    return numbers
