"""The paragraph on what was done: each fact of the runs has its words, and nothing has without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.kit import finished, recorded
from znorm.lab.datasets import Dataset
from znorm.lab.errors import DataError
from znorm.lab.evidence.question import Question
from znorm.lab.reporting.data_card import DataCard, data_card
from znorm.lab.reporting.methods_paragraph import methods_paragraph
from znorm.lab.reporting.tables import gather
from znorm.lab.runs.folder import Run
from znorm.lab.tasks import load

METRICS = {"test_accuracy": 0.5, "train_loss": 1.0}
CARD = DataCard(
    ("benign", "tumour"),
    {"training": (30, 10), "validation": (3, 1), "test": (5, 5)},
    ("Synthetic pictures.",),
)
HASHES = {"data": "a", "initial_weights": "b", "batches": "c"}
ENVIRONMENT = {
    "znorm": "0.1.0",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0+cpu"},
    "processor": "A processor",
    "gpu": "A GPU",
    "system": "Linux",
}


def made(root: Path, method: str = "baseline", seed: int = 0, **choices: Any) -> Run:
    result = choices.pop("result", None) or finished(
        {**METRICS, "test_accuracy": 0.5 + 0.01 * seed * len(method)}, hashes=HASHES
    )
    environment = choices.pop("environment", ENVIRONMENT)
    chosen = {"model": "resnet20", "epochs": 1, "method": method, "seed": seed, **choices}
    run = recorded(root, chosen, [METRICS], result)
    if environment is not None:
        (run.folder / "env.json").write_text(json.dumps(environment))
    return run


def paragraph(
    root: Path, runs: list[Run], card: DataCard = CARD, question: Question | None = None
) -> str:
    (table,) = gather(root, runs, question)
    return methods_paragraph(table, card)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "resnet56"}, "Each method trained resnet56 with adam"),
    "options": ({"optimizer_options": {"eps": 0.5}}, "with adam (eps=0.5"),
    "optimizer": ({"optimizer": "sgd"}, "with sgd"),
    "rate": ({"learning_rate": 0.25}, "a learning rate of 0.25 and a constant schedule"),
    "schedule": ({"schedule": "cosine"}, "and a cosine schedule"),
    "epochs": ({"epochs": 3}, "for 3 epochs,"),
    "one epoch": ({}, "for 1 epoch,"),
    "batch": ({"batch_size": 8}, "batches of 8 for"),
    "pieces": ({"batch_size": 8, "micro_batch": 4}, "in pieces of 4 whose gradients add up"),
    "loss": ({}, "cross entropy loss"),
    "augmentation": ({"data.augment": "flip"}, "augmentation: flip."),
    "none": ({"data.augment": "none"}, "without augmentation."),
    "precision": ({"precision": "bfloat16"}, "Arithmetic was in bfloat16 by autocast on a CPU."),
    "deterministic": ({"deterministic": True}, "on a CPU, with deterministic algorithms."),
    "validation": ({"data.validation": 0.25}, "a share of 0.25 was held out for validation."),
    "limit": ({"data.limit": 1200}, "Each part was limited to 1,200 images."),
    "seed": ({"seed": 5}, "Each was trained once for 1 seed (5)."),
    "own method": (
        {"method": "mine", "transform": ["UnitNorm"], "weight_decay": 0.01},
        'Compared were mine (transform [{"UnitNorm": {}}], weight decay 0.01).',
    ),
    "nothing tuned": ({}, "All methods shared these settings; none was tuned."),
    "nothing else": ({}, "No run diverged, failed or was left out."),
    "score": ({}, "The score was test accuracy after the last epoch."),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting: str, tmp_path: Path) -> None:
    choices, words = SETTINGS[setting]
    assert words in paragraph(tmp_path, [made(tmp_path, **choices)])


def test_the_data_by_part_by_class_and_by_group(tmp_path: Path) -> None:
    runs = [made(tmp_path)]
    assert (
        "The task was classification of PatchCamelyon mini, with 40 training images (30 benign, "
        "10 tumour), 4 validation images (3 benign, 1 tumour) and 10 test images (5 benign, "
        "5 tumour)."
    ) in paragraph(tmp_path, runs)
    assert "Synthetic pictures." in paragraph(tmp_path, runs)
    counts = {"training": 7, "validation": 1, "test": 2, "all": 10}
    apart = DataCard(CARD.classes, CARD.images, (), counts)
    assert (
        "The images are of 10 groups (7 training, 1 validation, 2 test), none of them in two parts."
    ) in paragraph(tmp_path, runs, apart)
    mixed = DataCard(CARD.classes, CARD.images, (), {**counts, "all": 9})
    assert "some of them in more than one part." in paragraph(tmp_path, runs, mixed)
    gone = DataCard((), {}, ("The images are not here: /secret/place",))
    text = paragraph(tmp_path, runs, gone)
    assert "The task was classification of PatchCamelyon mini." in text
    assert "secret" not in text


def test_a_card_counts_the_groups_of_each_part(tmp_path: Path) -> None:
    run = recorded(tmp_path, {"epochs": 1})
    dataset = load("pcam_mini", run.spec.data)
    assert data_card(tmp_path, run.spec, dataset).groups is None
    parts = zip((dataset.train, dataset.validation, dataset.test), ("ab", "c", "bd"), strict=True)
    train, validation, test = (
        replace(part, patients=tuple(names[place % len(names)] for place in range(len(part))))
        for part, names in parts
    )
    root = tmp_path / "named"
    found = data_card(root, run.spec, Dataset(train, validation, test, dataset.classes))
    assert found.groups == {"training": 2, "validation": 1, "test": 2, "all": 4}
    assert data_card(root, run.spec, DataError("gone")).groups == found.groups


QUESTIONS = {
    "fixed": (
        Question("znorm", 0.02),
        "better than the baseline by a gain that is worth adopting it, set to 2 points of test "
        "accuracy.",
        "with a 95 % t interval, a paired t test and a sign-flip test",
    ),
    "sequential": (
        Question("znorm", sequential=True),
        "set to 1 point of test accuracy.",
        "Seeds were added until the question was decided; intervals of the mean paired difference "
        "to the baseline are confidence sequences",
    ),
    "asked again": (
        Question("znorm", earlier=(("center_only", 0.01),)),
        "Other questions had been asked of the same folder before (of Centre only).",
        "p of 2 comparisons adjusted by Holm's method",
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_question_and_the_statistics(name: str, tmp_path: Path) -> None:
    question, asked, statistics = QUESTIONS[name]
    methods = ("baseline", "center_only", "znorm")
    runs = [made(tmp_path, method, seed) for method in methods for seed in range(3)]
    text = paragraph(tmp_path, runs, question=question)
    assert asked in text
    assert statistics in text
    assert "Each was trained once for each of 3 seeds (0 to 2); by their hashes runs of one" in text
    assert "shared images, initial weights and batches" in text
    assert "half the 95 % Student's t interval over seeds" in text


def test_one_pair_has_no_test(tmp_path: Path) -> None:
    runs = [made(tmp_path, method) for method in ("baseline", "znorm")]
    text = paragraph(tmp_path, runs)
    assert "No test was made: that needs two pairs of runs or more." in text
    assert "interval" not in text


def test_what_went_wrong_is_told(tmp_path: Path) -> None:
    fell = {"status": "diverged", "diverged_step": 1, "metrics": {}, "seconds": 1.0}
    lost = {"status": "failed", "error": "/secret/path", "metrics": {}}
    other = finished(METRICS, hashes={**HASHES, "initial_weights": "z"})
    runs = [made(tmp_path, "baseline", seed) for seed in range(4)]
    runs += [
        made(tmp_path, "znorm", seed, result=result)
        for seed, result in enumerate((None, fell, lost, other))
    ]
    text = paragraph(tmp_path, runs)
    assert "1 of 4 runs of ZNorm diverged (seed 1)." in text
    assert "1 of 4 runs of ZNorm failed (seed 2)." in text
    assert "Seed 3 of ZNorm was left out of the comparison: other initial weights" in text
    assert "secret" not in text
    assert "No run diverged" not in text


SOFTWARE: dict[str, tuple[list[Any], str]] = {
    "one": (
        [ENVIRONMENT, ENVIRONMENT],
        "Software: znorm 0.1.0, torch 2.13.0+cpu, Python 3.11.7; A processor, Linux.",
    ),
    "two": ([ENVIRONMENT, {**ENVIRONMENT, "znorm": "0.2.0"}], "znorm 0.1.0 or 0.2.0, torch"),
    "missing": ([ENVIRONMENT, None], "Of 1 of 2 runs the software is not known."),
    "no object": ([ENVIRONMENT, [1]], "Of 1 of 2 runs the software is not known."),
    "odd": ([{"znorm": 3, "packages": [], "python": "3.12\x1b"}], "Software: Python 3.12?."),
}


@pytest.mark.parametrize("name", SOFTWARE)
def test_the_software_as_the_runs_wrote_it_down(name: str, tmp_path: Path) -> None:
    environments, words = SOFTWARE[name]
    runs = [made(tmp_path, seed=n, environment=one) for n, one in enumerate(environments)]
    assert words in paragraph(tmp_path, runs)
