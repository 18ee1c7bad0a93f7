"""The table of docs/frameworks/same-training.md: each framework beside a plain loop of torch.

PYTHONPATH=src:tests .venv-frameworks/bin/python tests/frameworks/framework_table.py
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from frameworks.small_training import BATCH, IMAGES
from frameworks.ways import CASES, TRANSFORMS, WAYS, difference

PAGE = Path(__file__).parents[2] / "docs" / "frameworks" / "same-training.md"
VERSIONS = ("torch", "lightning", "transformers", "accelerate")


def rows(measure: Callable[[str, str, str], float]) -> Iterator[tuple[str, ...]]:
    """A way, a case, and the difference for each transform."""
    for way in WAYS:
        for case in CASES:
            found = [f"{measure(way, case, transform):.0e}" for transform in TRANSFORMS]
            yield (way, case, *("0" if one == "0e+00" else one for one in found))


def markdown() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONS)
    titles = ["framework", "case", *("no transform" if t == "none" else t for t in TRANSFORMS)]
    lines = [
        "# The same training in each framework",
        "",
        f"A net of 65 weights, trained with AdamW on {len(IMAGES)} rows in batches of {BATCH}, by",
        "each framework and by a plain loop of torch: backward, the clip, `optimizer.step()`.",
        "Shown is the largest difference of a weight, none of which is above 1. *bf16* is",
        "autocast, *clipped* the framework's own clipping to a norm of 0.05, *accumulated* two",
        "batches a step; *all three* accumulates four. Cases and transforms differ among",
        "themselves by more than 1e-4, so that a clip or a transform that is lost would show. The",
        "plain loop beside the Trainer of transformers has its two parameter groups, the one",
        "beside Fabric rounds images to bfloat16 where Fabric does.",
        "",
        "Written by `PYTHONPATH=src:tests python tests/frameworks/framework_table.py` with",
        f"{versions}.",
        "",
        f"| {' | '.join(titles)} |",
        f"|{'|'.join('---' for _ in titles)}|",
        *(f"| {' | '.join(row)} |" for row in rows(difference)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PAGE.write_text(markdown())
