"""The same small training by plain torch and by each framework: the same weights to rounding.

Each case runs without a transform, too: a difference there is the framework's own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from frameworks.framework_table import PAGE, rows
from frameworks.small_training import plain
from frameworks.ways import CASES, TRANSFORMS, WAYS, difference

pytestmark = [
    pytest.mark.slow,
    # Each case that clips before ZNorm says so; test_lightning.py and test_transformers.py look.
    pytest.mark.filterwarnings("ignore:znorm. .* clips before:UserWarning"),
]


def test_the_cases_differ() -> None:
    """A clip or a transform that is lost would show."""
    found = [plain(one, **case) for case in CASES.values() for one in TRANSFORMS.values()]
    for position, one in enumerate(found):
        for other in found[:position]:
            assert max((a - b).abs().max() for a, b in zip(one, other, strict=True)) > 1e-4


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_a_framework_and_a_plain_loop(way: str, case: str, transform: str) -> None:
    assert difference(way, case, transform) <= 1e-6


def test_the_page_has_every_case() -> None:
    text = Path(PAGE).read_text()
    shown = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| ")][1:]
    assert [(way.removeprefix("| "), case) for way, case in shown] == [
        (way, case) for way, case, *_ in rows(lambda *_: 0.0)
    ]
