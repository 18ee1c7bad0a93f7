"""A folder of runs that an attacker has made: nothing of it runs, nothing outside is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from znorm import lab
from znorm.lab.cli import run as call
from znorm.lab.runs.survey import find

SMALL: dict[str, Any] = {"epochs": 1, "limit": 16, "methods": ["baseline"], "seeds": 1}
ARGUMENTS = ["--epochs", "1", "--limit", "16", "--methods", "baseline", "--seeds", "1"]

NET = """
from pathlib import Path
import torch
Path({mark!r}).write_text("ran")
def make(channels, classes, image_size):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(classes))
def leave(channels, classes, image_size):
    raise SystemExit(0)
class Stepper(torch.optim.SGD):
    pass
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that leaves a mark when it is imported; it is the current one."""
    here = tmp_path / "sent"
    here.mkdir()
    (here / "sent_net.py").write_text(NET.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    sys.modules.pop("sent_net", None)
    return here


def ran(tmp_path: Path) -> bool:
    return (tmp_path / "mark").exists()


def made(out: Path, model: str = "resnet20", optimizer: str = "adam") -> Any:
    """A finished run; then its names are those of code elsewhere, its folder named to fit."""
    (one,) = lab.compare(**SMALL, out=out)
    content = json.loads((one.folder / "spec.json").read_text())
    content["model"], content["model_options"] = model, {}
    content["optimizer"], content["optimizer_options"] = optimizer, {}
    spec = lab.RunSpec.model_validate(content)
    home = out / "pcam_mini" / "sent" / f"{spec.method}__{spec.hash}"
    home.mkdir(parents=True)
    shutil.move(one.folder, home / "seed-0")
    (home / "seed-0" / "spec.json").write_text(json.dumps(content))
    (found,) = find(out)
    return found


@pytest.mark.parametrize(
    ("model", "optimizer"), [("sent_net:make", "adam"), ("resnet20", "sent_net.Stepper")]
)
def test_code_that_a_folder_names_does_not_run(
    evil: Path,
    tmp_path: Path,
    model: str,
    optimizer: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "runs"
    one = made(out, model, optimizer)
    name = model if ":" in model else optimizer
    assert call(["status", str(out)]) == 0
    assert call(["report", str(out)]) == 0
    assert model in (out / "report.html").read_text()
    capsys.readouterr()
    assert call(["predict", str(one.folder)]) == 2
    said = capsys.readouterr().err
    assert f"{name}: code that the specification names, and not this command" in said
    assert "--trust-models allows it" in said
    (one.folder / "result.json").unlink()
    for arguments in (
        ["run", str(one.folder / "spec.json"), "--out", str(tmp_path / "again")],
        ["compare", *ARGUMENTS, "--out", str(out)],
    ):
        call(arguments)
    assert not ran(tmp_path)
    with pytest.raises(lab.ConfigurationError, match="--trust-models allows it"):
        lab.predict(one)
    assert not ran(tmp_path)


def test_it_runs_where_the_command_names_or_allows_it(evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    named = ["compare", "--model", "sent_net:make", *ARGUMENTS, "--out", str(out)]
    assert call(named) == 0
    assert ran(tmp_path)
    (one,) = find(out)
    assert call(["predict", str(one.folder)]) == 2
    assert call(["predict", "--trust-models", str(one.folder)]) == 0
    specification = ["run", str(one.folder / "spec.json"), "--out", str(tmp_path / "again")]
    assert call(specification) == 2
    assert call([*specification, "--trust-models"]) == 0
    assert lab.run(one.spec, out=tmp_path / "third").status == "done"
    jobs = ["compare", "--model", "sent_net:make", *ARGUMENTS[:-1], "2", "--jobs", "2"]
    assert call([*jobs, "--out", str(tmp_path / "jobs")]) == 0


def test_a_model_that_ends_the_process_is_one_line(
    evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--model", "sent_net:leave", *ARGUMENTS]
    assert call([*arguments, "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert "model sent_net:leave cannot be built: SystemExit: 0" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_nothing_outside_is_deleted_written_or_read(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    (one,) = lab.compare(task="phantom", **SMALL, out=out)
    home = lab.predict(one)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.png").write_text("kept")
    deep = os.path.relpath(outside / "kept", home / "masks")
    named = [deep, str(outside / "kept"), "../../../x", "a\0b", ""]
    table = "name,marked\n" + "".join(f"{name},1\n" for name in named)
    for kind in ("masks", "overlays", "cases.png"):
        shutil.move(home / kind, home / f"old-{kind}")
    (home / "predictions.csv").write_text(table)
    lab.predict(one)
    assert (outside / "kept.png").read_text() == "kept"
    # Folders that are links, to be deleted and written through.
    assert (home / "predictions.csv").read_text().startswith("name,patient,tp")
    for kind in ("masks", "overlays"):
        shutil.rmtree(home / kind)
        (home / kind).symlink_to(outside)
        (home / "predictions.csv").write_text("name,marked\nkept,1\n")
        with pytest.raises(lab.DataError, match="a link leads out of"):
            lab.predict(one)
        (home / kind).unlink()
    assert sorted(path.name for path in outside.iterdir()) == ["kept.png"]
    # Files that are links: what they lead to is neither read nor written.
    secret = outside / "secret"
    secret.write_text('{"secret": 1}')
    for name in ("spec.json", "result.json", "events.jsonl", "weights.pt", ".lock"):
        path = one.folder / name
        content = path.read_bytes()
        path.unlink()
        path.symlink_to(secret)
        call(["status", str(out)])
        call(["report", str(out)])
        call(["predict", str(one.folder)])
        call(["compare", "--task", "phantom", *ARGUMENTS, "--out", str(out)])
        assert secret.read_text() == '{"secret": 1}', name
        assert "secret" not in (out / "report.html").read_text().replace(str(secret), "")
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    # The folder of the floor, and the page's own place.
    (floor,) = out.glob("phantom/threshold__*")
    shutil.rmtree(floor)
    floor.symlink_to(outside)
    with pytest.raises(lab.DataError, match="a link leads out of"):
        lab.report(out)
    floor.unlink()
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(secret)
    lab.report(out)
    assert secret.read_text() == '{"secret": 1}'


def test_markup_in_a_folder_is_text_on_the_page(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    (one,) = lab.compare(**SMALL, out=out)
    mark = "<script>alert(1)</script>"
    failed = {"status": "failed", "error": mark, "metrics": {}}
    (one.folder / "result.json").write_text(json.dumps(failed))
    (card,) = out.glob("pcam_mini/data__*.json")
    content = json.loads(card.read_text())
    card.write_text(json.dumps({**content, "notes": [mark]}))
    lab.report(out)
    assert mark not in (out / "report.html").read_text()
    assert "&lt;script&gt;" in (out / "report.html").read_text()
    for model in (f"{mark}:x", "a b:c", "../../x:y", "/etc/x:y", "a/../../b:c"):
        with pytest.raises(lab.ConfigurationError):
            lab.resolve({"model": model})


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b]",
        "[" * 20_000,
        '{"a": ' * 20_000,
        "seed: " + "9" * 5_000,
        "!!python/object/apply:os.system ['true']",
        "model: &a {name: *a}",
    ],
    ids=["aliases", "depth", "depth of JSON", "digits", "object", "itself"],
)
def test_a_bomb_in_a_file_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    for arguments in (["run", str(path)], ["compare", "--config", str(path)]):
        assert call([*arguments, "--out", str(tmp_path / "runs")]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert len(said) < 1_000
    assert not (tmp_path / "runs").exists()
    # As the specification of a run, too.
    folder = tmp_path / "runs" / "pcam_mini" / "resnet20" / "baseline__00000000" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(text)
    assert call(["status", str(tmp_path / "runs")]) == 0
    assert call(["report", str(tmp_path / "runs")]) == 1


def test_helpers_import_nothing_because_it_lies_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    command = [str(Path(sys.executable).with_name("znorm")), "compare", "--jobs", "2", *ARGUMENTS]
    command[command.index("baseline")] = "baseline,znorm"
    done = subprocess.run(
        [*command, "--out", "runs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, ran(tmp_path)) == (0, False), done.stderr


def test_numbas_cache_is_nothing_that_a_file_of_the_current_folder_names(tmp_path: Path) -> None:
    (tmp_path / ".numba_config.yaml").write_text("cache_dir: evil\n")
    code = (
        "import torch; from znorm.kernels import why_not;"
        "print(why_not(torch.device('cpu'), torch.float32) is None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-1] == "True", done.stderr
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("level", range(4))
def test_a_run_is_not_trained_through_a_link_on_the_way_to_it(
    tmp_path: Path, level: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out, outside = tmp_path / "runs", tmp_path / "outside"
    outside.mkdir()
    (one,) = lab.compare(**SMALL, out=tmp_path / "whole")
    parts = one.folder.relative_to(tmp_path / "whole").parts[: level + 1]
    link = out.joinpath(*parts)
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    assert call(["compare", *ARGUMENTS, "--out", str(out)]) == 3
    assert f"{link}: a link, which is not followed" in capsys.readouterr().err
    assert not list(outside.iterdir())
    (row,) = lab.status(out)
    assert (row["status"], row["error"]) == (
        "unreadable",
        f"{link}: a link, which is not followed",
    )


def test_nothing_is_predicted_into_what_a_link_on_the_way_leads_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = lab.compare(**SMALL, out=tmp_path / "runs")
    method, outside = one.folder.parent, tmp_path / "outside"
    method.rename(outside)
    method.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    assert call(["predict", str(one.folder)]) == 3
    assert f"{method}: a link, which is not followed" in capsys.readouterr().err
    assert sorted(outside.rglob("*")) == before
