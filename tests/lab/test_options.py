"""The options of the verbs stand once: Python, the command line and files take the same ones."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest

from znorm import lab
from znorm.lab.cli import cli
from znorm.lab.options import CompareOptions, ReproduceOptions, SharedOptions
from znorm.lab.spec import keys

VERBS: dict[str, Any] = {"compare": CompareOptions, "reproduce": ReproduceOptions}
# What the command line alone has, and what it alone has not.
ONLY_THERE = {"plan", "config", "help"}
ONLY_HERE = {"display"}


@pytest.mark.parametrize("verb", VERBS)
def test_functions_take_the_options_by_name_with_their_defaults(verb: str) -> None:
    signature = inspect.signature(getattr(lab, verb))
    options = {one.name: one for one in fields(VERBS[verb])}
    assert signature.parameters.keys() == options.keys()
    for name, parameter in signature.parameters.items():
        if name == "target":
            assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        else:
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert parameter.default == options[name].default
    assert signature.return_annotation == "list[Run]"


@pytest.mark.parametrize("verb", VERBS)
def test_the_docstring_tells_each_of_them(verb: str) -> None:
    text = inspect.getdoc(getattr(lab, verb)) or ""
    described = text.partition("Parameters\n")[2].partition("\nReturns\n")[0]
    for name in inspect.signature(getattr(lab, verb)).parameters:
        assert name in described.replace(",", " ").split(), name


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_has_each_of_them_and_leaves_defaults_to_python(verb: str) -> None:
    command = cli.commands[verb]
    given = {p.name: p for p in command.params if isinstance(p, click.Option)}
    arguments = ["table1"] if verb == "reproduce" else []
    left_out = command.make_context(verb, arguments).params
    names = {one.name for one in fields(VERBS[verb])} - ONLY_HERE - {"target"}
    assert given.keys() - ONLY_THERE == names
    types = get_type_hints(VERBS[verb])
    for name in names:
        option = given[name]
        assert option.help
        assert left_out[name] is None or name == "set"
        assert option.opts == ["--no-images" if name == "images" else f"--{name.replace('_', '-')}"]
        if types[name] in (int, int | None):
            assert option.type is click.INT
        if types[name] == float | None:
            assert option.type is click.FLOAT
        assert option.is_flag == (types[name] in (bool, bool | None))


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_that_is_a_key_is_one_of_a_specification(verb: str) -> None:
    named = VERBS[verb].keys()
    assert set(named.values()) <= set(keys())
    assert len(set(named.values())) == len(named)


def test_what_is_shared_is_written_once() -> None:
    """A verb may say another default or help; a type of its own is another option."""
    shared = {one.name for one in fields(SharedOptions)}
    assert len(shared) > 12
    for options in VERBS.values():
        kinds = get_type_hints(options)
        own = [name for name in vars(options).get("__annotations__", {}) if name in shared]
        assert set(own) <= {"methods", "epochs", "batch_size", "limit"}
        for name in set(own) - {"methods"}:
            assert kinds[name] == get_type_hints(SharedOptions)[name]


@pytest.mark.parametrize(("verb", "arguments"), [("compare", ()), ("reproduce", ("table1",))])
def test_an_option_that_is_not_there_is_answered_with_the_nearest(
    verb: str, arguments: tuple[str, ...]
) -> None:
    unexpected = rf"^{verb}\(\) got an unexpected keyword argument"
    with pytest.raises(TypeError, match=f"{unexpected} 'epoch'; did you mean epochs"):
        getattr(lab, verb)(*arguments, epoch=3)
    with pytest.raises(TypeError, match=f"{unexpected} 'batchsize'; did you mean batch_size"):
        getattr(lab, verb)(*arguments, batchsize=3)


def test_what_is_missing_or_too_much_is_said_of_the_function() -> None:
    with pytest.raises(TypeError, match=r"^reproduce\(\) missing a required argument: 'target'$"):
        lab.reproduce()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^compare\(\) too many positional arguments$"):
        lab.compare("pcam_mini")  # type: ignore[misc]


def test_choices_are_keys_of_a_specification_and_those_of_set_come_last() -> None:
    options = CompareOptions(lr=0.1, limit=8, set={"data.limit": 4, "data.augment": "none"})
    chosen = options.choices()
    assert (chosen["learning_rate"], chosen["data.limit"], chosen["task"]) == (0.1, 4, None)
    assert chosen["data.augment"] == "none"
    assert chosen["cuda_graph"] is None  # False would change a hash
    assert not {"out", "seeds", "methods", "jobs", "retry", "workers", "display"} & chosen.keys()


def test_the_folder_of_a_reproduction_is_of_its_scale() -> None:
    assert ReproduceOptions("table1", scale="reduced").folder == Path("runs/paper-reduced")
    assert ReproduceOptions("table1", out="x").folder == Path("x")
