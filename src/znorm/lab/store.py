"""Runs on disk: one folder each, written so that a stop at any moment loses nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

import znorm
from znorm.lab.errors import DataError, DiskFullError, LabError, is_disk_full
from znorm.lab.metrics import Cases
from znorm.lab.spec import RunSpec
from znorm.lab.versions import version_of

__all__ = ["Run", "find", "write_atomically", "write_table"]


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` whole or not at all, even if the machine stops meanwhile.

    Raises
    ------
    DiskFullError
        If no space is left; what stood at ``path`` still stands.
    DataError
        If it cannot be written for another reason.
    """
    # Of this process alone: two that write the same file must not share a half-written one.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows with the same keys at ``path`` as csv; errors as :func:`write_atomically`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())


def _cannot_write(path: Path, error: OSError) -> LabError:
    if is_disk_full(error):
        return DiskFullError(
            f"{path}: no space left on the disk; free some and give the same command again"
        )
    return DataError(f"{path}: cannot be written ({error.strerror or error})")


class Run:
    """One run: its specification, and what its folder holds.

    Parameters
    ----------
    folder : Path
    spec : RunSpec
    """

    def __init__(self, folder: Path, spec: RunSpec) -> None:
        self.folder = folder
        self.spec = spec

    @classmethod
    def at(cls, root: str | os.PathLike[str], spec: RunSpec) -> Run:
        """Where the run with this specification belongs under ``root``."""
        method = f"{spec.method}__{spec.hash}"
        return cls(Path(root) / spec.task / spec.model / method / f"seed-{spec.seed}", spec)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """The run in a folder.

        Raises
        ------
        DataError
            If its spec.json is missing or is not one.
        """
        path = Path(folder) / "spec.json"
        try:
            return cls(Path(folder), RunSpec.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            first = str(error).splitlines()[0]
            raise DataError(
                f"{path}: not the specification of a run ({first}); move its folder away"
            ) from None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.status})"

    @property
    def result(self) -> dict[str, Any] | None:
        """What result.json holds, or None before the run has ended."""
        path = self.folder / "result.json"
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); move its folder away") from None
        if not isinstance(content, dict) or not {"status", "metrics"} <= content.keys():
            raise DataError(f"{path}: not the result of a run; move its folder away")
        return content

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of result.json; empty before the run has ended."""
        result = self.result
        return {} if result is None else result["metrics"]

    @property
    def status(self) -> str:
        """ "done", "diverged", "failed", "running", "interrupted" or "waiting"."""
        result = self.result
        if result is not None:
            return str(result["status"])
        if not self.folder.exists():
            return "waiting"
        lock = self._lock()
        try:
            with lock.acquire(timeout=0):
                pass
        except Timeout:
            return "running"
        except OSError:
            pass  # a folder that may only be read is nobody's to work in
        return "interrupted" if (self.folder / "checkpoint.pt").exists() else "waiting"

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry a finished epoch, from events.jsonl."""
        entries: dict[int, dict[str, Any]] = {}
        try:
            lines = (self.folder / "events.jsonl").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # cut off by a kill; the run writes it again when it goes on
            if isinstance(event, dict) and event.get("event") == "epoch" and "epoch" in event:
                entries[event["epoch"]] = event
        return [entries[epoch] for epoch in sorted(entries)]

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock")

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Hold the run for this process; False if another one holds it.

        The claim ends with the process, however that ends.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._lock()
            # Not at once: another process that asks for the status holds it for a moment.
            lock.acquire(timeout=1)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise _cannot_write(self.folder, error) from None
        try:
            yield True
        finally:
            lock.release()

    def announce(self) -> None:
        """Write spec.json, so that the run is known before it starts."""
        path = self.folder / "spec.json"
        if not path.exists():
            content = json.dumps(
                self.spec.model_dump(mode="json", exclude_none=True), indent=2, sort_keys=True
            )
            write_atomically(path, (content + "\n").encode())

    def begin(self) -> None:
        """Write env.json, and start events.jsonl anew.

        Events of finished epochs come again from the checkpoint.
        """
        environment = json.dumps(_environment(), indent=2, sort_keys=True)
        write_atomically(self.folder / "env.json", (environment + "\n").encode())
        write_atomically(self.folder / "events.jsonl", b"")

    def checkpoint(self) -> bytes | None:
        """The last checkpoint.

        Raises
        ------
        DataError
            If it is there and cannot be read.
        """
        path = self.folder / "checkpoint.pt"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None

    def save_checkpoint(self, content: bytes) -> None:
        """Replace the last checkpoint."""
        write_atomically(self.folder / "checkpoint.pt", content)

    def log(self, event: dict[str, Any]) -> None:
        """Add a line to events.jsonl."""
        path = self.folder / "events.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise _cannot_write(path, error) from error

    def save_cases(self, cases: Cases) -> None:
        """Write cases.csv: counts and distances of each test image, for any score later."""
        write_table(self.folder / "cases.csv", cases.rows())

    def save_weights(self, content: bytes) -> None:
        """Write weights.pt: the trained net, a third of its last checkpoint under Adam."""
        write_atomically(self.folder / "weights.pt", content)

    def cases(self) -> Cases | None:
        """What :meth:`save_cases` wrote; None if there is no such file.

        Raises
        ------
        DataError
            If it is there and cannot be read.
        """
        path = self.folder / "cases.csv"
        try:
            with open(path, newline="") as file:
                return Cases.from_rows(csv.DictReader(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); train the run anew") from None

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: its being there means that the run has ended.

        A checkpoint that nothing will go on from is then removed; that of a run which diverged or
        failed stays, to be looked at.
        """
        content = json.dumps(result, indent=2, sort_keys=True, allow_nan=False)
        write_atomically(self.folder / "result.json", (content + "\n").encode())
        if result["status"] == "done":
            with suppress(OSError):
                (self.folder / "checkpoint.pt").unlink(missing_ok=True)


def find(root: str | os.PathLike[str]) -> list[Run]:
    """Every run below ``root``, by folder.

    Raises
    ------
    DataError
        If ``root`` is no folder, or a specification in it cannot be read.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder of runs")
    # A folder within that reproduces the paper has pages of its own, with its own marks.
    others = {inner.parent for inner in path.glob("**/reproduction.json")} - {path}
    folders = sorted(spec.parent for spec in path.glob("**/seed-*/spec.json"))
    return [Run.open(folder) for folder in folders if not others & {*folder.parents}]


def _environment() -> dict[str, Any]:
    packages = ("torch", "numpy", "scipy", "scikit-learn", "pydantic")
    return {
        "znorm": znorm.__version__,
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in packages},
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv[1:],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
