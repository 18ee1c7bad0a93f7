"""The net of a finished run at work: its weights, and what it gives for images."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from znorm.lab import tasks
from znorm.lab.datasets import Dataset, Split
from znorm.lab.device import is_there
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.runs.files import read_file
from znorm.lab.runs.folder import Run
from znorm.lab.training.checkpoint import hash_state
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.setup import build_net, on_device
from znorm.lab.training.step import forward
from znorm.lab.training.weights import Trained, load

__all__ = ["check_images_of_run", "net_of", "outputs", "outputs_of", "trained_net"]


def trained_net(run: Run) -> Trained:
    """The weights that a finished run ended with.

    Raises
    ------
    ConfigurationError, DataError
        If the run is not finished; if its weights are missing, or not what it ended with.
    """
    if run.status != "done":
        raise ConfigurationError(f"{run.folder}: {run.status}; predictions need a finished run")
    path = run.folder / "weights.pt"
    again = "remove result.json beside it and give the command that trained the run again"
    try:
        content = read_file(path, 1 << 40)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {again}") from None
    hashes = (run.result or {}).get("hashes", {})
    trained = load(content, str(path))
    marks = tasks.TASKS[run.spec.task].output == "mask"
    fitting = 1 if marks and len(trained.classes) == 2 else len(trained.classes)
    if trained.outputs != fitting:
        raise DataError(f"{path}: expected {fitting} outputs, found {trained.outputs}; {again}")
    # Runs of earlier versions have no hash of the file, but one of the weights.
    if "weights_file" in hashes:
        right = hashlib.sha256(content).hexdigest() == hashes["weights_file"]
    else:
        right = hash_state(trained.state) == hashes.get("final_weights")
    if not right:
        raise DataError(f"{path}: damaged: not what the run ended with; {again}")
    return trained


def check_images_of_run(run: Run, dataset: Dataset) -> None:
    """Raise if the images that are here now are not those that the run was trained and tested on.

    Runs of earlier versions have not written down which these were.
    """
    before = (run.result or {}).get("hashes", {}).get("data")
    if before and before != dataset.fingerprint:
        raise DataError(
            f"{run.folder}: the images of {run.spec.task} that are here now are other ones than it "
            "was trained and tested on; put those back, or train the run again"
        )


def outputs(run: Run, split: Split, dataset: Dataset | None = None) -> Tensor:
    """The outputs of a finished run's net for each image, in order: as its loop evaluates.

    Parameters
    ----------
    run : Run
    split : Split
        The images.
    dataset : Dataset, optional
        The set that they are of, if it is to be the one that the run was tested on.

    Returns
    -------
    Tensor of shape (N, classes) or (N, 1, H, W), float32
        On the CPU.

    Raises
    ------
    ConfigurationError, DataError
        If the run is not finished; if its weights are missing; if the data set has other images
        than the run had.
    """
    if dataset is not None:
        check_images_of_run(run, dataset)
    return outputs_of(run, trained_net(run), split)


def net_of(run: Run, trained: Trained) -> nn.Module:
    """The net of a run with weights that have been read, on the CPU.

    Raises
    ------
    ConfigurationError, DataError
        If the model is not trusted; if the weights are another model's.
    """
    spec = run.spec
    if spec.model.startswith(("timm:", "smp:")):
        # Not fetched: the run's own weights are put in their place.
        options = {**spec.model_options, "pretrained": False}
        spec = spec.model_copy(update={"model_options": options})
    model = build_net(
        spec,
        channels=len(trained.mean),
        classes=trained.outputs,
        image_size=trained.image_size,
    )
    try:
        model.load_state_dict(trained.state)
    except Exception:
        # Tensors of other shapes and kinds fail in many ways; all of them mean the same.
        raise DataError(
            f"{run.folder / 'weights.pt'}: not of model {spec.model}; train the run again"
        ) from None
    return model


@torch.no_grad()
def outputs_of(run: Run, trained: Trained, split: Split) -> Tensor:
    """As :func:`outputs`, of weights that have been read."""
    spec = run.spec
    device = torch.device(spec.device if is_there(spec.device) else "cpu")
    dataset = Dataset(split, split, split, trained.classes)
    model = on_device(net_of(run, trained), device).eval()
    pipeline = Pipeline(dataset, "none", spec.seed, device, statistics=(trained.mean, trained.std))
    batches = pipeline.evaluation_batches(split)
    whole = torch.cat([forward(spec, model, images).cpu() for images, _ in batches])
    if whole.shape[1:2] != (trained.outputs,):
        raise DataError(
            f"{run.folder}: expected {trained.outputs} outputs of model {spec.model}, found "
            f"shape {tuple(whole.shape[1:])}"
        )
    return whole
