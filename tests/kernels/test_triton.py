"""Kernels for a GPU, without one: in Triton's interpreter, and compiled to machine code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import znorm
from znorm import kernels

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    """`tests/gpu`, in a process of its own: what Triton is to be is chosen when it is imported."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "ZNORM_KERNELS": "triton"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    assert " passed" in found.stdout


POINTERS = {
    "addresses": "*i64",
    "items": "*i64",
    "rows": "*i64",
    "spans": "*i64",
    "bound": "fp32",
    "partial": "*fp64",
    "moments": "*fp64",
    "coefficients": "*fp32",
    "sums": "*fp64",
    "row_of_unit": "*i64",
    "z_score": "*fp64",
    "inv_scale": "*fp64",
    "found_inf": "*fp32",
    "constants": "*fp32",
    "groups": "*i64",
    "hyperparameters": "*fp64",
    "initialized": "*i64",
}
FLAGS = ("DECIDES", "RECORDS", "HAS_INV_SCALE", "HAS_FOUND_INF")
BLOCK = 1024


def kernels_of_a_gpu() -> dict[str, tuple[Any, int]]:
    """Each kernel that is launched, and the kind of its update."""
    from znorm.kernels.triton import clamp
    from znorm.kernels.triton import kernels as compiled_kernels
    from znorm.kernels.triton.updates import RULES

    launched = {
        name: (getattr(module, name), 0)
        for module, names in ((compiled_kernels, ("measure", "merge")), (clamp, clamp.__all__[1:]))
        for name in names
    }
    kinds = {"affine": compiled_kernels.AFFINE} | {name: rule.kind for name, rule in RULES.items()}
    launched |= {name: (compiled_kernels.finish, kind) for name, kind in kinds.items()}
    return launched | {f"advance {name}": (rule.advance, 0) for name, rule in RULES.items()}


def compiled(kernel: Any, kind: int, capability: int, dtype: str, flag: bool = True) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    known = {"DTYPE": getattr(triton.language, dtype), "BLOCK": BLOCK, "KIND": kind}
    known |= dict.fromkeys(FLAGS, flag)
    constants = {key: value for key, value in known.items() if key in kernel.arg_names}
    signature = {
        key: "constexpr" if key in constants else POINTERS.get(key, "i32")
        for key in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_to_machine_code(
    capability: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, (kernel, kind) in kernels_of_a_gpu().items():
        made = compiled(kernel, kind, capability, dtype)
        assert made.asm["cubin"]
        ptx = made.asm["ptx"]
        assert "atom" not in ptx
        assert ".local" not in ptx  # no registers spilled to memory
        if name in STREAMS:
            check_widths(name, ptx, {"float32": 4}.get(dtype, 2))


def test_they_compile_without_what_a_step_can_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, (kernel, kind) in kernels_of_a_gpu().items():
        if set(FLAGS) & set(kernel.arg_names):
            ptx = compiled(kernel, kind, 90, "float32", flag=False).asm["ptx"]
            if name in STREAMS:
                check_widths(name, ptx, 4)


# Of each kernel the streams that it reads and writes, element by element.
STREAMS = {"measure": (1, 0), "affine": (1, 1), "clamp": (1, 1), "sgd": (3, 2), "adam": (4, 3)}


def check_widths(name: str, ptx: str, size: int) -> None:
    """A kernel has two forms: one goes 16 bytes at a time, the other element by element."""
    each = BLOCK // 128  # elements that one of 128 threads has of a block
    for direction, several in zip(("ld", "st"), STREAMS[name], strict=True):
        wide = len(re.findall(rf"\b{direction}\.global\.v4\.b32", ptx))
        assert wide == several * each * size // 16, (name, direction)
        if size == 2:  # 16 bits are nothing but elements; 32 are coefficients, too
            narrow = len(re.findall(rf"\b{direction}\.global\.b16", ptx))
            shift = name == "measure" and direction == "ld"  # the first of the unit
            assert narrow == several * each + shift, (name, direction)
    # No way through shared memory to change which thread holds what, but where threads add up.
    assert ".shared" not in ptx or name in ("measure", "clamp")


def run(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout


@pytest.mark.parametrize("how", ["missing", "no interpreter", "failing"])
def test_what_cannot_be_used_warns_once_and_steps_go_on(how: str) -> None:
    code = f"""
        import sys, warnings
        import torch
        if {how!r} == "missing":
            sys.modules["triton"] = None
        import znorm
        if {how!r} == "failing":
            from znorm.kernels.triton import kernels
            kernels.measure = None
        warnings.simplefilter("always")
        p = torch.nn.Parameter(torch.zeros(3, 2))
        optimizer = znorm.optim.SGD([p], lr=1.0, transform=znorm.ZNorm())
        with warnings.catch_warnings(record=True) as caught:
            for _ in range(2):
                p.grad = torch.arange(6.0).view(3, 2)
                optimizer.step()
        print(len(caught), caught[0].message)
        print(p.tolist())
        """
    interprets = {} if how == "no interpreter" else {"TRITON_INTERPRET": "1"}
    first, weights = run(code, ZNORM_KERNELS="triton", **interprets).splitlines()
    assert first.startswith("1 znorm: ")
    wanted = {
        "missing": "it comes with torch on Linux",
        "no interpreter": "Triton runs on a CPU with TRITON_INTERPRET=1 alone",
        "failing": "steps take the slower reference kernels",
    }
    assert wanted[how] in first
    assert weights.startswith("[[2.92")  # twice (0 - 2.5) / 1.7078


def test_on_a_gpu_it_is_triton_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZNORM_KERNELS", raising=False)
    gpu: Any = torch.device("cuda")
    assert kernels.name_on(gpu) == "triton"
    assert kernels.why_not(gpu, torch.float32, load=False) is None
    assert "not float64" in str(kernels.why_not(gpu, torch.float64, load=False))
    assert znorm.ZNorm() is not None
