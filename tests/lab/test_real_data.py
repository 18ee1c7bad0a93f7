"""Every task on its real files, where $ZNORM_DATA_DIR holds them; none of them is needed here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from znorm import lab
from znorm.lab import data, tasks
from znorm.lab.methods import METHODS
from znorm.lab.models import MODELS, output_of
from znorm.lab.spec import resolve
from znorm.lab.tasks import TASKS, sets

pytestmark = pytest.mark.slow

CLASSIFIERS = [name for name in MODELS if output_of(name) == "classes"]
SEGMENTERS = [name for name in MODELS if output_of(name) == "mask"]
# Where the files are, every method trains every net. Without them two methods are enough for the
# large nets: what differs between methods does not see the net.
LARGE = {"resnet101", "resnet152", "densenet121", "densenet169", "resnet50_unet", "unetplusplus"}


def there(task: str) -> bool:
    if TASKS[task].data.origin is None:
        return True
    if "ZNORM_DATA_DIR" not in os.environ:
        return False
    states = {row["name"]: row["state"] for row in data.listing()}
    return states[task] in ("whole", "part")


@pytest.mark.parametrize("task", ["cifar10", "patchcamelyon", "lgg_mri"])
def test_what_is_there_is_right(task: str) -> None:
    if not there(task):
        pytest.skip(f"no files of {task} in $ZNORM_DATA_DIR")
    (row,) = data.verify([task])
    assert row["problems"] == []
    dataset = tasks.load(task, resolve({"task": task}).data)
    if task == "lgg_mri":
        patients = [set(p.patients) for p in (dataset.train, dataset.validation, dataset.test)]
        assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
        share = dataset.train.labels.double().mean()
        assert 0.2 < share < 0.5  # 34.9 % of the whole set's slices hold tumour
    else:
        counts = dataset.train.class_counts(len(dataset.classes))
        assert min(counts) > 0.9 * max(counts)


@pytest.mark.parametrize("task", sets())
@pytest.mark.parametrize("model", MODELS)
def test_each_task_trains_each_of_its_models(task: str, model: str, tmp_path: Path) -> None:
    if output_of(model) != TASKS[task].output:
        pytest.skip(f"{model} is not for {task}")
    if not there(task):
        pytest.skip(f"no files of {task} in $ZNORM_DATA_DIR")
    whole = "ZNORM_DATA_DIR" in os.environ
    few = not whole and model in LARGE
    runs = lab.compare(
        task=task,
        model=model,
        methods=["baseline", "znorm"] if few else list(METHODS),
        seeds=1,
        epochs=1,
        batch_size=4,
        lr=1e-3,
        limit=4 if few else 12,
        precision="float32",
        out=tmp_path,
    )
    assert {run.status for run in runs} == {"done"}
    assert len({run.result["hashes"]["initial_weights"] for run in runs if run.result}) == 1
    score = TASKS[task].score
    assert all(0 <= run.metrics[f"test_{score}"] <= 1 for run in runs)
    assert (tmp_path / "report.html").exists()
    if TASKS[task].output == "mask":
        assert all((run.folder / "cases.csv").exists() for run in runs)
