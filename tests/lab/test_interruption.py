"""Signals that come twice, late or while something is written cost nothing, and are told once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from znorm.lab.cli import run as call
from znorm.lab.errors import Interrupted
from znorm.lab.runs import folder
from znorm.lab.runs.folder import Run
from znorm.lab.runs.parallel import _wait
from znorm.lab.runs.survey import find
from znorm.lab.spec import resolve
from znorm.lab.training import interruption
from znorm.lab.training.interruption import Interruption

SAID = "znorm: interrupted; the same command goes on where this stopped"


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_two_signals_at_once_count_as_one() -> None:
    with Interruption() as stop, stop.deferred():
        send()
        send()
        assert stop.requested
        assert not stop.at_once


def test_a_second_one_later_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "TOGETHER", 0.0)
    with Interruption() as stop, stop.deferred():
        send()
        with pytest.raises(Interrupted):
            send()
        assert stop.at_once


@pytest.mark.parametrize("moment", ["sealed", "write_atomically"])
def test_a_signal_while_a_checkpoint_is_written_waits_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(interruption, "TOGETHER", 0.0)
    one = Run.at(tmp_path, resolve({}))
    one.announce()
    one.save_checkpoint(b"first")
    original = getattr(folder, moment)

    def interrupted(*arguments: object) -> object:
        send()
        send()
        return original(*arguments)

    monkeypatch.setattr(folder, moment, interrupted)

    def save() -> None:
        with Interruption() as stop, stop.deferred(), stop.held_back():
            one.save_checkpoint(b"second")

    with pytest.raises(Interrupted):
        save()
    assert list(one.checkpoints()) == [b"second", b"first"]
    assert not list(one.folder.glob("*.tmp"))


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_a_save_that_is_broken_off_leaves_the_last_checkpoint_and_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    one = Run.at(tmp_path, resolve({}))
    one.announce()
    one.save_checkpoint(b"first")

    def broken(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(error):
        one.save_checkpoint(b"second")
    assert list(one.checkpoints()) == [b"first"]
    assert not list(one.folder.glob("*.tmp"))


def test_a_helper_that_saves_is_waited_for_whatever_signals_come() -> None:
    code = "import time; time.sleep(1.5)"
    other = subprocess.Popen([sys.executable, "-c", code])
    sender = "import os, sys, time\nfor _ in range(2): time.sleep(0.3); os.kill({}, 2)"
    signals = subprocess.Popen([sys.executable, "-c", sender.format(os.getpid())])
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _wait(other)
        signals.wait()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert other.returncode == 0  # by itself


@pytest.mark.slow
def test_two_signals_to_a_comparison_end_it_as_one_does(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    command = [sys.executable, "-m", "znorm.lab", "compare", "--methods", "baseline,znorm"]
    command += ["--seeds", "1", "--epochs", "500", "--limit", "200", "--jobs", "2"]
    command += ["--device", "cpu", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/*/*/*/checkpoint.pt"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # as timeout does: to the process, then to its group
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert err.splitlines()[-1] == SAID
    assert err.count(SAID) == 1
    assert "Traceback" not in err
    assert [one.status for one in find(out)] == ["interrupted"] * 2  # no helper holds one
    for one in find(out):
        assert (one.folder / "checkpoint.pt").exists()
        assert not list(one.folder.glob("*.tmp"))
    assert call(["status", str(out)]) == 0
