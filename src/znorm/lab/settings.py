"""Settings as a user writes them: YAML files, KEY=VALUE, and lists separated by commas."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from znorm.lab.errors import ConfigurationError
from znorm.lab.registry import unknown

__all__ = ["assignments", "from_file", "listed", "numbers", "read_mapping", "refuse_twice"]


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of version 1.2: 1e-3 and 010 are 0.001 and 10, 1:30 a text.

    Without aliases: a few lines of them stand for more than any memory holds. A key that comes
    twice is refused.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken; write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} is given twice; give it once")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT, re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)


_LARGEST = 1 << 24  # bytes


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds keys and values."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ConfigurationError(f"{path}: too large for keys and values")
        content = yaml.load(text.decode(), _Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not YAML or JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path}: expected keys and values, found {type(content).__name__}"
        )
    return {str(key): value for key, value in content.items()}


def from_file(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The options in a file, by their names.

    Raises
    ------
    ConfigurationError
        For a key that is not ``known``, or is there twice.
    """
    content = read_mapping(path)
    valid = [name.replace("_", "-") for name in known]
    choices = {}
    for key, value in content.items():
        if key.replace("_", "-") not in valid:
            raise ConfigurationError(f"{path}: {unknown('key', key, valid)}")
        if key.replace("-", "_") in choices:
            raise ConfigurationError(f"{path}: {key} is given twice; give it once")
        choices[key.replace("-", "_")] = value
    if not isinstance(choices.get("set") or {}, dict):
        raise ConfigurationError(f"{path}: set: expected keys and values")
    return choices


def assignments(settings: Sequence[str]) -> dict[str, Any]:
    """The values of KEY=VALUE, by key.

    Raises
    ------
    ConfigurationError
    """
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--set {setting}: expected KEY=VALUE")
        if key in values:
            raise ConfigurationError(f"--set {key}: is given twice; give it once")
        try:
            values[key] = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigurationError(f"--set {setting}: {text!r} is not a value") from None
    return values


def refuse_twice(
    options: Mapping[str, Any], settings: Mapping[str, Any], keys: Mapping[str, str]
) -> None:
    """Refuse a key that is given twice: by its option and by --set, or whole and in part.

    ``keys`` has the keys of a specification by the names of their options.

    Raises
    ------
    ConfigurationError
    """
    for key, value in settings.items():
        whole, dot, part = key.partition(".")
        if dot and isinstance(settings.get(whole), Mapping):
            again = settings[whole].get(part)
            if again is not None and again != value:
                raise ConfigurationError(
                    f"set: {key}={value} and {part}: {again} of {whole}: give one of them"
                )
    for option, value in options.items():
        key = keys.get(option, option)
        data = settings.get("data")
        again = settings.get(key)
        if again is None and key.startswith("data.") and isinstance(data, Mapping):
            again = data.get(key.removeprefix("data."))
        if value is not None and value is not False and again is not None and again != value:
            raise ConfigurationError(
                f"--{option.replace('_', '-')} {value} and --set {key}={again}: give one of them"
            )


def listed(value: Any) -> list[Any] | None:
    """The items of a text separated by commas; a list as it is."""
    if value is None or isinstance(value, list):
        return value
    return [part.strip() for part in str(value).split(",") if part.strip()]


def numbers(value: Any) -> int | list[int]:
    """A number, or the numbers of a text separated by commas.

    Raises
    ------
    ConfigurationError
    """
    if isinstance(value, int | list) and not isinstance(value, bool):
        return value
    text = str(value)
    try:
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        return int(text)
    except ValueError:
        raise ConfigurationError(
            f"--seeds {text}: expected a number, or numbers separated by commas"
        ) from None
