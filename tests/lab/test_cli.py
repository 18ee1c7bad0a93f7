from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from znorm.lab.cli import run
from znorm.lab.runs.folder import Run
from znorm.lab.runs.survey import find
from znorm.lab.spec import resolve

SMALL = ["--epochs", "1", "--batch-size", "8", "--limit", "24"]
SMALL += ["--device", "cpu", "--precision", "float32"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "znorm.lab", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_compare_ends_with_the_table_and_the_path_of_the_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    arguments = ["compare", "--methods", "baseline,znorm", "--seeds", "0,2", "--out", str(out)]
    code, text, progress = call(capsys, *arguments, *SMALL)
    assert code == 0
    assert text.splitlines()[-1] == f"report: {out}/report.html"
    assert (out / "report.html").exists()
    for word in ("Baseline", "ZNorm", "Floor: colour statistics", "±"):
        assert word in text
    lines = [line for line in progress.splitlines() if "compiling" not in line]
    assert len(lines) == 5  # the grid, and a line a run
    assert {r.spec.seed for r in find(out)} == {0, 2}

    code, text, _ = call(capsys, "status", str(out), "--json")
    assert [row["status"] for row in json.loads(text)] == ["done"] * 4
    code, text, _ = call(capsys, "status", str(out))
    assert (code, text.splitlines()[-1]) == (0, "4 done")
    code, text, _ = call(capsys, "report", str(out))
    assert (code, text.strip()) == (0, f"{out}/report.html")

    spec = find(out)[0].folder / "spec.json"
    code, text, _ = call(capsys, "run", str(spec), "--out", str(tmp_path / "again"))
    assert code == 0
    assert Path(text.strip()) == tmp_path / "again" / find(out)[0].folder.relative_to(out)


def test_options_come_from_a_file_too_and_the_command_line_wins(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    content = {
        "methods": ["znorm"],
        "seeds": 1,
        "epochs": 2,
        "batch-size": 8,
        "limit": 24,
        "precision": "float32",
        "device": "cpu",
        "out": str(tmp_path / "runs"),
        "set": {"data.augment": "none"},
    }
    config.write_text(yaml.safe_dump(content))
    assert call(capsys, "compare", "--config", str(config), "--epochs", "1")[0] == 0
    (one,) = find(tmp_path / "runs")
    assert (one.spec.epochs, one.spec.data.augment, one.spec.data.limit) == (1, "none", 24)


def test_numbers_in_yaml_are_numbers_without_a_dot_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("methods: [{name: mine, transform: ZNorm, weight_decay: 1e-3}]\nseeds: 1")
    arguments = ["compare", "--config", str(config), "--out", str(tmp_path / "runs")]
    assert call(capsys, *arguments, "--set", "optimizer_options.eps=1e-7", *SMALL)[0] == 0
    (one,) = find(tmp_path / "runs")
    assert one.spec.weight_decay == 1e-3
    assert one.spec.optimizer_options["eps"] == 1e-7


@pytest.mark.parametrize("kind", ["tasks", "models", "methods"])
def test_list(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    code, text, _ = call(capsys, "list", kind, "--json")
    names = json.loads(text)
    assert code == 0
    assert set(names) & {"pcam_mini", "resnet56", "znorm"}
    assert [line.split()[0] for line in call(capsys, "list", kind)[1].splitlines()] == list(names)


def test_the_methods_are_named_as_in_the_published_tables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(json.loads(call(capsys, "list", "methods", "--json")[1]))[:6] == [
        "baseline",
        "gradient_centralization",
        "gradient_clipping",
        "weight_decay_1e-3",
        "weight_decay_1e-4",
        "znorm",
    ]


WRONG: list[tuple[list[str], int, str]] = [
    (["compar"], 2, "unknown command 'compar'; did you mean compare"),
    (["compare", "--modle", "x"], 2, "--modle"),
    (["compare", "--model", "resnet5"], 2, "unknown model 'resnet5'; did you mean resnet56"),
    (["compare", "--methods", "znrom"], 2, "unknown method 'znrom'; did you mean znorm"),
    (["compare", "--task", "pcam"], 2, "unknown task 'pcam'; did you mean pcam_mini"),
    (["compare", "--epochs", "x"], 2, "'x' is not a valid integer"),
    (["compare", "--epochs", "0"], 2, "epochs: input should be greater"),
    (["compare", "--seeds", "a"], 2, "--seeds a: expected a number"),
    (["compare", "--set", "lr=1"], 2, "unknown key 'lr'"),
    (["compare", "--set", "lr"], 2, "--set lr: expected KEY=VALUE"),
    (["compare", "--set", "epochs=2020-99-99"], 2, "'2020-99-99' is not a value"),
    (["compare", "--set", "epochs=true"], 2, "epochs: expected a number, found True"),
    (["compare", "--set", "data.validation=0.9999"], 2, "0 training and 380 test images are too"),
    (["compare", "--seeds", "99999999999999999999,"], 2, "seed: input should be less than"),
    (["compare", "--out", "/proc/znorm"], 3, "/proc/znorm"),
    (["compare", "--set", "data.limitt=1"], 2, "did you mean data.limit"),
    (["compare", "--config", "nowhere.yaml"], 2, "nowhere.yaml: cannot be read"),
    (["list", "tsks"], 2, "unknown kind 'tsks'; did you mean tasks"),
    (["list"], 2, "Missing argument"),
    (["run", "nowhere.json"], 2, "nowhere.json: cannot be read"),
    (["status", "nowhere"], 3, "nowhere: no such folder of runs"),
    (["report", "nowhere"], 3, "nowhere: no such folder of runs"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_an_error_is_one_line_that_names_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = call(capsys, *arguments)
    assert found == code
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("znorm: ")
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("methds: [znorm]", "unknown key 'methds'; did you mean methods"),
        ("- a", "expected keys and values, found list"),
        ("a: [", "not YAML or JSON"),
        ("set: 3", "set: expected keys and values"),
        ("epochs: 2020-99-99", "not YAML or JSON"),
        ("seeds: true", "--seeds True: expected a number"),
    ],
)
def test_a_wrong_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    code, _, err = call(capsys, "compare", "--config", str(path), "--out", str(tmp_path / "r"))
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err


VERBS = ["compare", "reproduce", "run", "report", "predict", "status", "list", "doctor"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, text, _ = call(capsys, verb, "--help")
    assert code == 0
    assert text.startswith("Usage: znorm")


def test_a_run_that_diverged_makes_the_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "runs")
    arguments = ["compare", "--methods", "baseline", "--seeds", "1", "--lr", "1e30", "--out", out]
    code, text, _ = call(capsys, *arguments, *SMALL)
    assert code == 1
    assert "diverged at step 2" in text


def test_a_full_disk_makes_the_exit_code_1_and_keeps_the_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["compare", "--methods", "znorm", "--seeds", "1", "--out", str(tmp_path / "runs")]
    code, _, _ = call(capsys, *arguments, *SMALL)
    (one,) = find(tmp_path / "runs")
    whole = dict(one.result or {})
    (one.folder / "result.json").unlink()
    replace = os.replace

    def full(source: str, target: str) -> None:
        if str(target).endswith("result.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        code, _, err = call(capsys, *arguments, *SMALL)
    assert code == 1
    assert len([line for line in err.splitlines() if line.startswith("znorm: ")]) == 1
    assert "no space left on the disk" in err
    assert list(one.checkpoints())
    assert call(capsys, *arguments, *SMALL)[0] == 0
    assert (one.result or {})["metrics"] == whole["metrics"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_exits_130_with_its_state_saved(
    tmp_path: Path, number: int
) -> None:
    out = tmp_path / "runs"
    arguments = ["compare", "--methods", "znorm", "--seeds", "1", "--out", str(out)]
    arguments += ["--epochs", "500", "--limit", "400", "--device", "cpu"]
    process = start(*arguments)
    deadline = time.monotonic() + 90
    while not list(out.glob("*/*/*/*/checkpoint.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        "znorm: interrupted; the same command goes on where this stopped"
    )
    (one,) = find(out)
    assert one.status == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["torch", "numpy", "znorm.lab.cli"])
def test_a_signal_while_modules_are_imported_exits_130_with_one_line(
    number: int, module: str
) -> None:
    code = (
        "import os, runpy, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Stop())\n"
        "sys.argv = ['znorm', 'list', 'tasks']\n"
        "runpy.run_module('znorm.lab', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 130
    assert result.stderr.splitlines() == [
        "znorm: interrupted; the same command goes on where this stopped"
    ]


@pytest.mark.parametrize("verb", ["list methods", "status"])
def test_output_into_a_closed_pipe_is_no_error(verb: str, tmp_path: Path) -> None:
    Run.at(tmp_path, resolve({})).announce()
    folder = str(tmp_path) if verb == "status" else ""
    command = f"{sys.executable} -m znorm.lab {verb} {folder} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == ""


def test_an_encoding_without_the_signs_costs_no_result(tmp_path: Path) -> None:
    Run.at(tmp_path, resolve({})).announce()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "znorm.lab", "status", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 waiting" in result.stdout


def test_without_arguments_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, err = call(capsys)
    assert (code, err) == (0, "")
    assert text.startswith("Usage: znorm")
    assert "compare" in text


def test_without_the_packages_of_the_lab_it_says_how_to_get_them() -> None:
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['click'] = None\n"
        "from znorm.lab.__main__ import main; sys.argv = ['znorm']; main()"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "znorm: the command line needs click; pip install 'znorm[lab]'"
    ]


def test_every_public_name_of_the_lab_is_there_and_documented() -> None:
    from znorm import lab

    for name in lab.__all__:
        assert getattr(lab, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lab.nothing


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / place
    code, _, err = call(capsys, "compare", "--methods", "znorm", "--out", str(out), *SMALL)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert f"out: {tmp_path / 'file'} is a file; give a folder" in err


def test_null_in_a_file_means_the_default_and_another_type_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text("out: null\nseeds: null\nmodel: nothing")
    assert "unknown model 'nothing'" in call(capsys, "compare", "--config", str(path))[2]
    path.write_text("out: [1]")
    code, _, err = call(capsys, "compare", "--config", str(path))
    assert (code, err) == (2, "znorm: out: expected a folder, found [1]\n")


def test_a_run_that_another_process_is_at_is_not_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["compare", "--methods", "baseline", "--seeds", "1", "--out", str(tmp_path)]
    assert call(capsys, *arguments, *SMALL)[0] == 0
    (one,) = find(tmp_path)
    (one.folder / "result.json").unlink()
    with one.claim():
        assert call(capsys, *arguments, *SMALL)[0] == 1
