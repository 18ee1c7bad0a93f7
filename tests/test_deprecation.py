"""What a user of an old name sees and gets, and that no old name stays longer than was said."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

import znorm
from znorm.deprecation import Renamed, deprecated, renamed_attributes, renamed_keyword

PACKAGE = Path(znorm.__file__).parent


@deprecated(since="0.3", removed_in="0.5", instead="znorm.new")
def old(a: int, *, b: int = 2) -> tuple[int, int]:
    """What it does."""
    return a, b


@renamed_keyword("colour", "color", since="1.2", removed_in="2.0")
def paint(thing: str, color: str = "red", **more: int) -> tuple[object, ...]:
    return thing, color, more


@renamed_keyword("maximum", "limit", since="1.2", removed_in="2.0")
@dataclass(frozen=True)
class Clip:
    limit: float = 1.0
    select: str = "weights"


class Softer(Clip):
    pass


def line() -> int:
    """The number of the line that this is called on."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def one(caught: Any) -> tuple[type[Warning], str, str, int]:
    (record,) = caught
    return record.category, str(record.message), record.filename, record.lineno


def test_a_deprecated_function_works_and_names_the_line_that_calls_it() -> None:
    with pytest.warns(FutureWarning) as caught:
        given, at = old(1, b=3), line()
    assert given == (1, 3)
    text = "old is deprecated since znorm 0.3 and goes in 0.5: use znorm.new"
    assert one(caught) == (FutureWarning, text, __file__, at)
    assert old.__doc__ == "What it does."
    assert list(inspect.signature(old).parameters) == ["a", "b"]


def test_an_old_keyword_is_handed_on_by_its_new_name() -> None:
    with pytest.warns(FutureWarning) as caught:
        given, at = paint("door", colour="blue", coats=2), line()
    assert given == ("door", "blue", {"coats": 2})
    text = "paint(colour=...) is deprecated since znorm 1.2 and goes in 2.0: use color=..."
    assert one(caught) == (FutureWarning, text, __file__, at)


@pytest.mark.parametrize("made", [Clip, Softer])
def test_an_old_keyword_of_a_class(made: type[Clip]) -> None:
    with pytest.warns(FutureWarning) as caught:
        given, at = made(maximum=3.0, select="all"), line()  # type: ignore[call-arg]
    assert type(given) is made
    assert (given.limit, given.select) == (3.0, "all")
    text = "Clip(maximum=...) is deprecated since znorm 1.2 and goes in 2.0: use limit=..."
    assert one(caught) == (FutureWarning, text, __file__, at)


def test_new_names_are_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paint("door", "blue") == paint("door", color="blue") == ("door", "blue", {})
        assert Clip(2.0) == Clip(limit=2.0)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (("door",), {"color": "red", "colour": "blue"}, "colour= is the old name of color="),
        (("door", "red"), {"colour": "blue"}, "multiple values for argument 'color'"),
    ],
)
def test_both_names_at_once_are_refused(
    arguments: tuple[str, ...], keywords: dict[str, Any], message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TypeError, match=message):
            paint(*arguments, **keywords)


def test_a_name_that_never_was_is_still_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'most'"):
        Clip(most=1.0)  # type: ignore[call-arg]


def test_what_the_library_calls_on_behalf_of_a_user_names_the_users_line() -> None:
    library = types.ModuleType("library")
    library.__dict__["paint"] = paint
    source = "def fence():\n    return paint('fence', colour='green')\n"
    exec(compile(source, str(PACKAGE / "fences.py"), "exec"), library.__dict__)
    with pytest.warns(FutureWarning) as caught:
        given, at = library.fence(), line()
    assert given == ("fence", "green", {})
    assert one(caught)[2:] == (__file__, at)


def test_a_renamed_attribute_is_the_very_object(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("shelf")
    new = "znorm.transforms.ZNorm"
    module.__dict__["__getattr__"] = renamed_attributes(
        "shelf", Renamed("ZScore", new, since="0.3", removed_in="0.5")
    )
    monkeypatch.setitem(sys.modules, "shelf", module)
    with pytest.warns(FutureWarning) as caught:
        given, at = module.ZScore, line()
    assert given is znorm.ZNorm
    text = "shelf.ZScore is deprecated since znorm 0.3 and goes in 0.5: use znorm.transforms.ZNorm"
    assert one(caught) == (FutureWarning, text, __file__, at)
    with pytest.raises(AttributeError, match="module 'shelf' has no attribute 'ZScores'"):
        _ = module.ZScores


@pytest.mark.parametrize("home", ["shelf.py", "shelf/__init__.py"], ids=["module", "package"])
def test_a_user_sees_it_without_asking_in_a_module_that_is_imported(
    home: str, tmp_path: Path
) -> None:
    """Python asks a package for a name out of its own import machinery, and a module directly."""
    (tmp_path / home).parent.mkdir(exist_ok=True)
    (tmp_path / home).write_text(
        "from znorm.deprecation import Renamed, renamed_attributes\n"
        "__getattr__ = renamed_attributes(\n"
        "    __name__, Renamed('Old', 'znorm.ZNorm', since='0.3', removed_in='0.5'))\n"
    )
    # `from ... import` asks a package twice; Python shows one warning of the two.
    (tmp_path / "training.py").write_text("import torch\n\nfrom shelf import Old\nprint(Old())\n")
    (tmp_path / "start.py").write_text(
        f"import sys\nsys.path[:0] = [{str(PACKAGE.parent)!r}]\nimport training\n"
    )
    done = subprocess.run(
        [sys.executable, "start.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    shown = [text for text in done.stderr.splitlines() if "Warning" in text]
    assert shown == [
        f"{tmp_path}/training.py:3: FutureWarning: shelf.Old is deprecated since znorm 0.3 and "
        "goes in 0.5: use znorm.ZNorm"
    ]
    assert done.stdout.startswith("ZNorm(")


def broken_words(source: str, version: str) -> Iterator[str]:
    """What of a file's deprecations has overstayed in a version, or warns for too short a time."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "removed_in" not in given:
            continue
        since, removed_in = (Version(ast.literal_eval(given[k])) for k in ("since", "removed_in"))
        if Version(Version(version).base_version) >= removed_in:
            yield f"line {node.lineno}: was to go in {removed_in}, and this is {version}"
        if removed_in.release[:2] <= since.release[:2]:
            yield f"line {node.lineno}: {since} to {removed_in} is no whole minor version"


@pytest.mark.parametrize(
    ("since", "removed_in", "version", "word"),
    [
        ("0.3", "0.5", "0.4.9", ""),
        ("0.3", "0.5", "0.5.0.dev0", "was to go"),
        ("0.3", "0.5", "0.5.0", "was to go"),
        ("0.3", "0.5", "0.10.0", "was to go"),
        ("0.9", "0.10", "0.9.1", ""),
        ("0.9", "1.0", "0.9.1", ""),
        ("0.3", "0.3.1", "0.3.0", "no whole minor"),
        ("0.3.2", "0.3.2", "0.3.0", "no whole minor"),
    ],
)
def test_the_check_itself(since: str, removed_in: str, version: str, word: str) -> None:
    source = f"answer = renamed('a', 'b', since={since!r}, removed_in={removed_in!r})"
    found = " ".join(broken_words(source, version))
    assert word in found
    assert bool(found) == bool(word)


def test_nothing_deprecated_overstays() -> None:
    """Take away what is named here, with its tests, and say so in CHANGELOG.md under Removed."""
    found = {
        str(file.relative_to(PACKAGE)): words
        for file in sorted(PACKAGE.rglob("*.py"))
        if (words := list(broken_words(file.read_text(), znorm.__version__)))
    }
    assert not found
