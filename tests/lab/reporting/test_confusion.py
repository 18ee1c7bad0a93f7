"""Confusion matrices: kept by a run, read again, summed over seeds, and said where they lack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import confusion_matrix

from lab.kit import PLAIN, finished, recorded
from znorm import lab
from znorm.lab import tasks
from znorm.lab.errors import DataError
from znorm.lab.metrics import ClassCases
from znorm.lab.reporting.confusion import confusions
from znorm.lab.reporting.page import write_page
from znorm.lab.reporting.tables import gather
from znorm.lab.runs.folder import Run
from znorm.lab.runs.inference import outputs

METRICS = {"test_accuracy": 0.5, "train_loss": 1.0}


def made(root: Path, method: str, seed: int, counts: list[list[int]] | None, names: str) -> Run:
    choices = {"model": "resnet20", "epochs": 1, "method": method, "seed": seed}
    run = recorded(root, choices, [METRICS], finished(METRICS))
    if counts is not None:
        pairs = [
            (names[true], names[predicted])
            for true, line in enumerate(counts)
            for predicted, number in enumerate(line)
            for _ in range(number)
        ]
        truth, predicted = zip(*pairs, strict=True)
        numbered = tuple(str(number) for number in range(len(pairs)))
        run.save_cases(ClassCases(numbered, None, truth, predicted, (0.5,) * len(pairs)))
    return run


def test_a_run_keeps_the_counts_of_its_last_scores(tmp_path: Path) -> None:
    choices = {**PLAIN, "model": "resnet20", "epochs": 1, "data": {"limit": 40}}
    run = lab.run(choices, out=tmp_path)
    counts = run.confusion()
    assert counts is not None
    dataset = tasks.load(run.spec.task, run.spec.data)
    predicted = outputs(run, dataset.test, dataset).argmax(1)
    # scikit-learn counts the same predictions.
    expected = confusion_matrix(dataset.test.labels, predicted, labels=[0, 1]).tolist()
    own = [[counts.get((a, b), 0) for b in dataset.classes] for a in dataset.classes]
    assert own == expected
    right = sum(cases for (true, guess), cases in counts.items() if true == guess)
    assert right / len(dataset.test) == pytest.approx(run.metrics["test_accuracy"])
    assert torch.tensor(own).sum() == len(dataset.test)


def test_sums_over_seeds_by_hand(tmp_path: Path) -> None:
    runs = [
        made(tmp_path, "baseline", 0, [[3, 1], [0, 4]], "ab"),
        made(tmp_path, "baseline", 1, [[2, 2], [1, 3]], "ab"),
        made(tmp_path, "znorm", 0, [[4, 0], [2, 2]], "ab"),
        made(tmp_path, "znorm", 1, None, "ab"),
    ]
    (table,) = gather(tmp_path, runs)
    found = confusions(tmp_path, table, ["b", "a"])
    assert found is not None
    assert found.classes == ("b", "a")
    baseline, znorm = found.matrices
    assert baseline.counts == ((7, 1), (3, 5))
    assert znorm.counts == ((2, 2), (0, 4))
    assert [baseline.share(0, 0), znorm.share(0, 1)] == [7 / 8, 0.5]
    assert found.missing.startswith("1 of 4 runs are of an earlier version")
    assert [(one.text, (tmp_path / one.link).exists()) for one in baseline.values] == [
        ("0", True),
        ("1", True),
    ]
    page = write_page(tmp_path, runs, {runs[0].spec.data_key: DataError("no data here")})
    text = page.read_text()
    assert '<td data-label="a" style="--share: 12.5%">1<span>12.5 %</span></td>' in text
    assert "1 of 4 runs are of an earlier version" in text


def test_of_many_classes_the_pairs_that_are_confused_most(tmp_path: Path) -> None:
    names = "abcdefghijklm"
    counts = [[5 if i == j else 0 for j in range(13)] for i in range(13)]
    counts[2][4], counts[7][1] = 3, 9
    runs = [made(tmp_path, method, 0, counts, names) for method in ("baseline", "znorm")]
    (table,) = gather(tmp_path, runs)
    found = confusions(tmp_path, table, list(names))
    assert found is not None
    pairs = [(one.true, one.predicted, one.counts) for one in found.pairs]
    assert pairs == [("h", "b", (9, 9)), ("c", "e", (3, 3))]
    text = write_page(
        tmp_path, runs, {runs[0].spec.data_key: DataError("no data here")}
    ).read_text()
    assert "the 2 pairs with most of them" in text


HEAD = "name,patient,truth,predicted,share\n"


@pytest.mark.parametrize(
    "content",
    [
        "",
        HEAD,
        "name,truth\na,b\n",
        f"{HEAD}1,,a,b,2\n",
        f"{HEAD}1,,a,b,x\n",
        f"{HEAD}1,p,a,b,0\n2,,a,b,0\n",
    ],
)
def test_cases_that_cannot_be_read_are_named_on_the_page(content: str, tmp_path: Path) -> None:
    run = made(tmp_path, "baseline", 0, [[3, 1], [0, 4]], "ab")
    (run.folder / "cases.csv").write_text(content)
    (table,) = gather(tmp_path, [run])
    found = confusions(tmp_path, table, ["a", "b"])
    assert found is not None
    assert found.matrices == ()
    assert "cases.csv: cannot be read" in found.missing


def test_of_two_classes_the_counts_follow_from_what_earlier_versions_kept(tmp_path: Path) -> None:
    run = made(tmp_path, "baseline", 0, None, "ab")
    shares = {"test_specificity": 3 / 7, "test_sensitivity": 10 / 11}
    run.finish({**(run.result or {}), "metrics": {**METRICS, **shares}})
    (table,) = gather(tmp_path, [run])
    found = confusions(tmp_path, table, ["a", "b"], (7, 11))
    assert found is not None
    assert [matrix.counts for matrix in found.matrices] == [((3, 4), (1, 10))]
    assert found.matrices[0].values[0].link.endswith("seed-0/result.json")
    assert found.missing == ""
    for classes, images in ((["a", "b"], (7, 12)), (["a", "b"], ()), (["a", "b", "c"], (7, 11, 0))):
        other = confusions(tmp_path, table, classes, images)
        assert other is not None
        assert other.matrices == ()


def test_segmenters_and_unfinished_runs_have_none(tmp_path: Path) -> None:
    choices = {"task": "phantom", "model": "attention_unet", "epochs": 1}
    masks = {"test_f1": 0.5, "train_loss": 1.0}
    run = recorded(tmp_path / "masks", choices, [masks], finished(masks))
    (table,) = gather(tmp_path, [run])
    assert confusions(tmp_path, table, ["a"]) is None
    waiting = recorded(tmp_path / "none", {"model": "resnet20", "epochs": 1})
    (table,) = gather(tmp_path, [waiting])
    assert confusions(tmp_path, table, ["a"]) is None
