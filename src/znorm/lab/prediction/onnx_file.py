"""A finished run as an ONNX file: pictures as they were read in, probabilities out."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import znorm
from znorm.lab import tasks, trust
from znorm.lab.datasets.own.tasks import rule_of_data
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.models.libraries import cause
from znorm.lab.options import PathLike
from znorm.lab.own_code import probabilities
from znorm.lab.runs.files import check_within, write_atomically
from znorm.lab.runs.folder import Run
from znorm.lab.runs.inference import net_of, trained_net
from znorm.lab.training.weights import Trained

__all__ = ["export_onnx"]


class _Whole(nn.Module):
    """The net between its preprocessing and its probabilities.

    Parameters
    ----------
    net : torch.nn.Module
        In evaluation mode.
    trained : Trained
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, net: nn.Module, trained: Trained) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", trained.mean[:, None, None])
        self.register_buffer("factor", (1 / trained.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return probabilities(self.net((images.float() - self.mean) * self.factor))


def export_onnx(
    run: Run | PathLike,
    out: PathLike | None = None,
    *,
    float_input: bool = False,
    trust_models: bool = False,
) -> Path:
    """Write a finished run as one ONNX file, with its normalization inside.

    Its input ``images`` is (N, channels, height, width), uint8 from 0 to 255: pictures as the run's
    rule reads them, before any normalization; N is free. Its output ``probabilities`` is (N,
    classes), or (N, height, width) for masks of yes and no, the probability that a pixel is marked.
    The file's metadata has the classes, the specification's hash, the size and the rule. The net
    computes in float32, in which bfloat16 runs keep their weights, too.

    Parameters
    ----------
    run : Run or path
        Its folder, ``.../seed-0``.
    out : path, optional
        By default ``model.onnx`` in the run's folder; what is there is replaced.
    float_input : bool
        Whether the input is float32, still from 0 to 255: for what resizes on its way.
    trust_models : bool
        Whether a model is built that is code elsewhere, by the name that the run's specification
        has for it.

    Returns
    -------
    Path

    Raises
    ------
    ConfigurationError
        If the run is not finished, the model is not trusted or has no form in ONNX, or onnxscript
        is not installed (``pip install 'znorm[onnx]'``).
    DataError
        If the weights are missing or not those that the run ended with.
    """
    try:
        import onnxscript  # noqa: F401  torch.onnx imports it in the midst of its work
    except ImportError:
        raise ConfigurationError(
            "export needs onnxscript, which is not installed; pip install 'znorm[onnx]'"
        ) from None
    one = run if isinstance(run, Run) else _run(Path(run))
    path = one.folder / "model.onnx" if out is None else Path(out)
    if path.suffix.lower() != ".onnx" or path.is_dir():
        raise ConfigurationError(f"out: expected the name of a file, ending in .onnx: {path}")
    with trust.trusting(everything=trust_models):
        one.check_no_link()
        trust.check(one.spec)
        trained = trained_net(one)
        content = _content(one, trained, _Whole(net_of(one, trained).eval(), trained), float_input)
    if out is None:
        check_within(one.folder, path)
    write_atomically(path, content)
    return path


def _run(folder: Path) -> Run:
    if not (folder / "spec.json").exists():
        raise DataError(f"{folder}: not the folder of one run, as .../METHOD__HASH/seed-0")
    return Run.open(folder)


def _content(run: Run, trained: Trained, whole: nn.Module, float_input: bool) -> bytes:
    # Two pictures: of a single one the exporter would take the number for fixed.
    shape = (2, len(trained.mean), *trained.image_size)
    images = torch.zeros(shape, dtype=torch.float32 if float_input else torch.uint8)
    try:
        with _quietly():
            program: Any = torch.onnx.export(
                whole.eval(),
                (images,),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                dynamo=True,
                verbose=False,
            )
        program.model.metadata_props.update(_metadata(run, trained))
        content: bytes = program.model_proto.SerializeToString()
    except Exception as error:
        # The exporter fails in many ways, each with pages of text around the one thing wrong.
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise ConfigurationError(
            f"model {run.spec.model} cannot be exported to ONNX: {cause(first)}"
        ) from error
    return content


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter prints of its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _metadata(run: Run, trained: Trained) -> dict[str, str]:
    """The facts that whoever runs the file needs, as texts, which the format asks for."""
    spec = run.spec
    height, width = trained.image_size
    rule = rule_of_data(spec.data)
    content: dict[str, Any] = {
        "znorm": znorm.__version__,
        "task": spec.task,
        "output": tasks.TASKS[spec.task].output,
        "classes": list(trained.classes),
        "size": [height, width],
        "channels": len(trained.mean),
        "mean": trained.mean.tolist(),
        "std": trained.std.tolist(),
        "rule": None if rule is None else rule.text,
        "window": spec.data.window,
        "model": spec.model,
        "method": spec.method,
        "seed": spec.seed,
        "spec_hash": spec.hash,
        "threshold": trained.threshold,
        "weights_hash": (run.result or {}).get("hashes", {}).get("final_weights"),
    }
    return {
        f"znorm.{key}" if key != "znorm" else key: value
        if isinstance(value, str)
        else json.dumps(value)
        for key, value in content.items()
        if value is not None
    }
