"""Runs on disk: one folder each, written so that a stop at any moment loses nothing."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

import znorm
from znorm.lab import csvfiles
from znorm.lab.errors import DataError, DiskFullError, LabError, is_disk_full
from znorm.lab.metrics import Cases
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS
from znorm.lab.versions import version_of

__all__ = [
    "Damaged",
    "Run",
    "check_within",
    "find",
    "is_count",
    "is_number",
    "read_file",
    "read_json",
    "reproductions",
    "survey",
    "write_atomically",
    "write_table",
]


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
        # Made anew: a link that lies there would be written through.
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows with the same keys at ``path`` as csv; errors as :func:`write_atomically`."""
    write_atomically(path, csvfiles.dump(rows))


def read_file(path: Path, most: int = 1 << 26) -> bytes:
    """A file of a folder of runs, which anybody may have sent: a plain one, of ``most`` bytes.

    Raises
    ------
    FileNotFoundError
    DataError
        For a link, a folder, a pipe, what is larger or cannot be read.
    """
    try:
        entry = path.lstat()
        if not stat.S_ISREG(entry.st_mode):
            kind = "a link" if stat.S_ISLNK(entry.st_mode) else "no plain file"
            raise DataError(f"{path}: expected a file, found {kind}; move it away")
        if entry.st_size > most:
            raise DataError(
                f"{path}: {entry.st_size:,} bytes are more than such a file has; move it away"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def check_within(root: Path, path: Path) -> None:
    """Raise if ``path`` lies below ``root`` by its name, and elsewhere by a link on the way.

    Raises
    ------
    DataError
    """
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path}: a link leads out of {root}; take it away")


def read_json(path: Path, most: int = 1 << 24) -> Any:
    """What a JSON file holds; errors as :func:`read_file`, and a DataError for what is no JSON."""
    try:
        return json.loads(read_file(path, most))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not JSON ({reason}); move its folder away") from None


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
        self._damaged: set[str] = set()  # checkpoints that could not be read

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
            spec = RunSpec.model_validate_json(read_file(path, _LARGEST_SPEC))
        except FileNotFoundError:
            raise DataError(f"{path}: missing; not the folder of a run") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            reason = " ".join(f"{place}: {first['msg']}".split())[:200]
            raise DataError(
                f"{path}: not the specification of a run ({reason}); move its folder away"
            ) from None
        one = cls(path.parent, spec)
        one._check_name()
        return one

    def _check_name(self) -> None:
        """Raise if the folder is named as a run's, and by another specification than is in it."""
        home = self.folder.absolute()
        named = f"{home.parent.name}/{home.name}"
        own = f"{self.spec.method}__{self.spec.hash}/seed-{self.spec.seed}"
        if re.fullmatch(r".+__[0-9a-f]{8}/seed-\d+", named) and named != own:
            raise DataError(
                f"{self.folder / 'spec.json'}: was changed after the run was made: its folder "
                f"would be {own}, not {named}; put it back, or move the folder away"
            )

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.status})"

    @property
    def result(self) -> dict[str, Any] | None:
        """What result.json holds, or None before the run has ended."""
        path = self.folder / "result.json"
        try:
            content = read_json(path)
        except FileNotFoundError:
            return None
        reason = _why_no_result(content, TASKS[self.spec.task].score)
        if reason is not None:
            raise DataError(f"{path}: not the result of a run ({reason}); move its folder away")
        result: dict[str, Any] = content
        return result

    def check_readable(self) -> None:
        """Raise for a file of the run that a page or table would need, and that cannot be read.

        Raises
        ------
        DataError
        """
        if os.path.lexists(self.folder / "spec.json"):
            Run.open(self.folder)
        self.check_records()

    def check_records(self) -> None:
        """As :meth:`check_readable`, for a run whose spec.json has just been read.

        Raises
        ------
        DataError
        """
        _ = self.result, self.history

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
        try:
            with self._lock().acquire(timeout=0):
                pass
        except Timeout:
            return "running"
        except (OSError, DataError):
            pass  # a folder that may only be read is nobody's to work in
        stopped = any((self.folder / name).exists() for name in _CHECKPOINTS)
        return "interrupted" if stopped else "waiting"

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry a finished epoch, from events.jsonl."""
        entries: dict[int, dict[str, Any]] = {}
        try:
            content = read_file(self.folder / "events.jsonl", 1 << 30)
        except FileNotFoundError:
            return []
        for line in content.decode(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # cut off by a kill; the run writes it again when it goes on
            if _is_epoch(event, TASKS[self.spec.task].score, self.spec.epochs):
                entries[event["epoch"]] = event
        return [entries[epoch] for epoch in sorted(entries)]

    def check_no_link(self) -> None:
        """Raise if the run's folder, or one that is named after its specification, is a link.

        Raises
        ------
        DataError
        """
        home = self.folder.absolute()
        names = (
            f"seed-{self.spec.seed}",
            f"{self.spec.method}__{self.spec.hash}",
            self.spec.model,
            self.spec.task,
        )
        for folder, name in zip((home, *home.parents), names, strict=False):
            if folder.name != name:
                return
            if folder.is_symlink():
                raise DataError(f"{folder}: a link, which is not followed; take it away")

    def _lock(self) -> FileLock:
        self.check_no_link()
        path = self.folder / ".lock"
        if path.is_symlink():  # what it leads to would be emptied
            raise DataError(f"{path}: expected a file, found a link; take it away")
        return FileLock(path)

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Hold the run for this process; False if another one holds it.

        The claim ends with the process, however that ends.
        """
        lock = self._lock()  # which follows no link: before a folder is made there
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
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

    def check_is_there(self) -> None:
        """Raise if the run's folder has been removed, which would leave a part of it behind.

        Raises
        ------
        DataError
        """
        if not (self.folder / "spec.json").exists():
            raise DataError(
                f"{self.folder}: was removed while the run was at work; what it has done is lost"
            )

    def begin(self) -> None:
        """Write env.json, and start events.jsonl anew.

        Events of finished epochs come again from the checkpoint.
        """
        environment = json.dumps(_environment(), indent=2, sort_keys=True)
        write_atomically(self.folder / "env.json", (environment + "\n").encode())
        write_atomically(self.folder / "events.jsonl", b"")

    def checkpoints(self) -> Iterator[bytes | DataError]:
        """The last checkpoint, then the one before; in place of each an error if it is damaged."""
        for name in _CHECKPOINTS:
            path = self.folder / name
            try:
                content = unsealed(read_file(path, 1 << 40), path)
            except FileNotFoundError:
                continue
            except DataError as error:
                self._damaged.add(name)
                yield error
            else:
                yield content

    def save_checkpoint(self, content: bytes) -> None:
        """Replace the last checkpoint, which stays beside it until there is another.

        A disk that is full has room for no second one: the last is then replaced.
        """
        self.check_is_there()
        last, before = (self.folder / name for name in _CHECKPOINTS)
        if last.name in self._damaged:
            # Not over the one that the run has gone on from.
            with suppress(OSError):
                os.replace(last, last.with_name("checkpoint.damaged.pt"))
            self._damaged.clear()
        kept = last.exists()
        if kept:
            with suppress(OSError):
                os.replace(last, before)
        try:
            write_atomically(last, sealed(content))
        except BaseException:
            if kept and not last.exists():
                with suppress(OSError):
                    os.replace(before, last)
            raise

    def log(self, event: dict[str, Any]) -> None:
        """Add a line to events.jsonl."""
        self.check_is_there()
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
            return Cases.from_rows(csvfiles.load(read_file(path, 1 << 30)))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{path}: cannot be read ({error}); train the run anew") from None

    def take_back(self) -> None:
        """Forget how the run ended, so that it goes on from its checkpoint or starts anew."""
        try:
            (self.folder / "result.json").unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.folder / "result.json", error) from None

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: its being there means that the run has ended.

        A checkpoint that nothing will go on from is then removed; that of a run which diverged or
        failed stays, to be looked at.
        """
        self.check_is_there()
        content = json.dumps(result, indent=2, sort_keys=True, allow_nan=False)
        write_atomically(self.folder / "result.json", (content + "\n").encode())
        if result["status"] == "done":
            for name in _CHECKPOINTS:
                with suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Damaged:
    """A folder that a run was in, and why it cannot be read.

    Parameters
    ----------
    folder : Path
    reason : str
        One line, which names the file.
    """

    folder: Path
    reason: str

    status = "unreadable"


def survey(root: str | os.PathLike[str]) -> tuple[list[Run], list[Damaged]]:
    """Every run below ``root``, by folder, and what cannot be read as one.

    Raises
    ------
    DataError
        If ``root`` is no folder.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder of runs")
    runs: list[Run] = []
    damaged: list[Damaged] = []

    def unreadable(error: OSError) -> None:
        folder = Path(error.filename)
        damaged.append(Damaged(folder, f"{folder}: cannot be read ({error.strerror})"))

    for kind, folder in _walk(path, unreadable):
        if kind == "link":
            damaged.append(Damaged(folder, f"{folder}: a link, which is not followed"))
        if kind == "run":
            try:
                one = Run.open(folder)
                one.check_records()
                runs.append(one)
            except DataError as error:
                damaged.append(Damaged(folder, str(error)))
    runs.sort(key=lambda one: one.folder)
    damaged.sort(key=lambda one: one.folder)
    return runs, damaged


def reproductions(root: str | os.PathLike[str]) -> list[Path]:
    """The folders below ``root`` that reproduce the paper, with pages and marks of their own."""
    return sorted(folder for kind, folder in _walk(Path(root)) if kind == "reproduction")


def _walk(
    root: Path, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, Path]]:
    """Each "run", "reproduction" and "link" to a folder below ``root``; within none of them."""
    for name, folders, files in os.walk(root, onerror=onerror):
        here = Path(name)
        if here != root and _is_reproduction(here, files):
            folders.clear()
            yield "reproduction", here
        elif here.name.startswith("seed-") and _OF_A_RUN & {*folders, *files}:
            folders.clear()
            yield "run", here
        else:
            yield from (("link", here / one) for one in folders if (here / one).is_symlink())


def _is_reproduction(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder has a record of its own that can be read: one that cannot hides no runs."""
    if "reproduction.json" not in files:
        return False
    try:
        return isinstance(read_json(folder / "reproduction.json"), dict)
    except (DataError, FileNotFoundError):
        return False


def find(root: str | os.PathLike[str]) -> list[Run]:
    """Every run below ``root`` that can be read, by folder; :func:`survey` tells of the others.

    Raises
    ------
    DataError
        If ``root`` is no folder.
    """
    return survey(root)[0]


_LARGEST_SPEC = 1 << 24  # a split of a set by patient can be long
_CHECKPOINTS = ("checkpoint.pt", "checkpoint.before.pt")
_OF_A_RUN = {"spec.json", "result.json", *_CHECKPOINTS}
_SEAL = b"\nznorm sha256 "


def sealed(content: bytes) -> bytes:
    """With its own checksum at the end: what lacks it is not whole."""
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def unsealed(content: bytes, path: Path) -> bytes:
    """What :func:`sealed` was given.

    Raises
    ------
    DataError
        If the checksum is not there, or not that of the content.
    """
    end = len(_SEAL) + 64
    body, seal = content[:-end], content[-end:]
    if not seal.startswith(_SEAL):
        raise DataError(f"{path}: damaged: it lacks the checksum at its end")
    if hashlib.sha256(body).hexdigest().encode() != seal[len(_SEAL) :]:
        raise DataError(f"{path}: damaged: it is not what was written")
    return body


_STATES = ("done", "diverged", "failed")


def _why_no_result(content: Any, score: str) -> str | None:
    """What keeps it from being a run's result, in a few words."""
    if not isinstance(content, dict) or content.get("status") not in _STATES:
        return f"no status among {', '.join(_STATES)}"
    metrics = content.get("metrics")
    if not isinstance(metrics, dict) or not all(map(is_number, metrics.values())):
        return "metrics are not finite numbers by name"
    hashes = content.get("hashes", {})
    if not isinstance(hashes, dict) or not all(isinstance(v, str) for v in hashes.values()):
        return "hashes are not texts by name"
    status = content["status"]
    if status == "failed" and not isinstance(content.get("error"), str):
        return "failed, and no error"
    if status == "diverged" and not is_count(content.get("diverged_step")):
        return "diverged, and no step"
    if status == "done":
        lacking = [key for key in ("train_loss", f"test_{score}") if key not in metrics]
        if lacking:
            return f"done, and no {lacking[0]}"
        if not is_number(content.get("seconds")):
            return "done, and no seconds"
    return None


def _is_epoch(event: Any, score: str, epochs: int) -> bool:
    """Whether a line of events.jsonl is that of a finished epoch."""
    return (
        isinstance(event, dict)
        and event.get("event") == "epoch"
        and is_count(event.get("epoch"))
        and event["epoch"] <= epochs
        and all(is_number(event.get(key)) for key in ("train_loss", f"test_{score}"))
        and all(is_number(event[key]) for key in event if key not in ("event", "receipt"))
        and _is_receipt(event.get("receipt", {}))
    )


def _is_receipt(receipt: Any) -> bool:
    return isinstance(receipt, dict) and all(
        isinstance(values, dict)
        and all(map(is_number, values.values()))
        and {"norm_before", "norm_after"} <= values.keys()
        for values in receipt.values()
    )


def is_number(value: Any) -> bool:
    """Whether a value that was read is a number that a page can show."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e300
        and math.isfinite(value)
    )


def is_count(value: Any) -> bool:
    """Whether a value that was read is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 62


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
