"""Imports go one way: no module imports one that imports it, nor one of a layer above its own.

Read from the source, so that imports within functions and those for type checkers count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"

# Modules, or packages with all that is in them, from the ground up: what stands in a line imports
# from the lines above it alone, and from its own package. Two in one line know nothing of each
# other.
LAYERS: list[tuple[str, ...]] = [
    ("znorm._torch_internals", "znorm.moments", "znorm.layers"),
    ("znorm.parameter_info", "znorm.deprecation", "znorm.sharding"),
    ("znorm.selection",),
    ("znorm.transforms",),
    ("znorm.kernels",),
    ("znorm.entries",),
    ("znorm.layout",),
    ("znorm.engine",),
    ("znorm.functional", "znorm.receipts", "znorm.idle", "znorm.wrappers", "znorm.step_hooks"),
    ("znorm.attachment",),
    ("znorm.optim", "znorm.backward"),
    ("znorm",),  # the names that are shown to users
    ("znorm.integrations",),
    ("znorm.lab.errors", "znorm.lab.versions", "znorm.lab.numbers", "znorm.lab.text"),
    ("znorm.lab.importing",),
    ("znorm.lab.registry", "znorm.lab.csvfiles", "znorm.lab.stats"),
    (
        "znorm.lab.losses",
        "znorm.lab.methods",
        "znorm.lab.metrics",
        "znorm.lab.models",
        "znorm.lab.own_code",
    ),
    ("znorm.lab.optimizers",),
    ("znorm.lab.device",),
    ("znorm.lab.datasets",),
    ("znorm.lab.tasks",),
    ("znorm.lab.spec",),
    ("znorm.lab.trust",),
    ("znorm.lab.training",),
    ("znorm.lab.runs",),
    ("znorm.lab.evidence",),
    ("znorm.lab.reporting",),
    ("znorm.lab.options",),
    ("znorm.lab.deciding", "znorm.lab.tuning", "znorm.lab.looking"),
    ("znorm.lab.paper", "znorm.lab.prediction"),
    ("znorm.lab.api", "znorm.lab.data", "znorm.lab.system", "znorm.lab.catalogue"),
    ("znorm.lab.settings",),
    ("znorm.lab.cli",),
    ("znorm.lab.__main__",),
    ("znorm.lab",),  # the names that are shown to users
]
# Where a circle is a mistake.
WITHOUT_CIRCLES = ("znorm",)


def modules() -> dict[str, Path]:
    """Each module of the package, by its name; a package by that of its folder."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that one of them imports, wherever in it that stands.

    ``from package import module`` imports the module; what a package's own file then does is
    counted where a name of that file is asked for.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports are not followed here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: {*imported(name, path, known)} - {name} for name, path in known.items()}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def place(name: str) -> tuple[int, str] | None:
    """The layer of a module, and the entry of it that names the module most exactly."""
    entries = [
        (number, entry)
        for number, layer in enumerate(LAYERS)
        for entry in layer
        if within(name, entry) and (entry not in ("znorm", "znorm.lab") or name == entry)
    ]
    return max(entries, key=lambda entry: len(entry[1]), default=None)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which is reached from every other one."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        waiting, seen = [start], set()
        while waiting:
            for following in edges[waiting.pop()] - seen:
                seen.add(following)
                waiting.append(following)
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in seen if name in reached[other]))
        for name, seen in reached.items()
        if name in seen
    }
    return sorted(map(list, groups))


def test_no_import_leads_back_to_where_it_came_from() -> None:
    edges = graph()
    assert len(edges) > 100
    checked = {
        name: {other for other in edges[name] if any(within(other, p) for p in WITHOUT_CIRCLES)}
        for name in edges
        if any(within(name, p) for p in WITHOUT_CIRCLES)
    }
    assert circles(checked) == []


def test_imports_go_down_the_layers() -> None:
    upwards = []
    for name, others in graph().items():
        here = place(name)
        for other in others:
            there = place(other)
            if here is None or there is None or here[1] == there[1]:
                continue
            if there[0] >= here[0]:
                upwards.append(f"{name} imports {other}")
    assert sorted(upwards) == []


def test_every_module_has_its_layer() -> None:
    assert [name for name in modules() if place(name) is None] == []


def test_the_library_imports_nothing_of_the_lab() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if not within(name, "znorm.lab") and within(other, "znorm.lab")
    ]
    assert wrong == []


def test_a_circle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str]()}
    assert circles(edges) == [["b", "c"]]
