"""A run on disk: one folder, written so that a stop at any moment loses nothing."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import ValidationError

from znorm.lab import csvfiles
from znorm.lab.errors import DataError
from znorm.lab.metrics import Cases, ClassCases
from znorm.lab.numbers import is_count
from znorm.lab.runs.checks import is_epoch, why_no_result
from znorm.lab.runs.environment import environment
from znorm.lab.runs.files import (
    cannot_write,
    read_file,
    read_json,
    sealed,
    unsealed,
    write_atomically,
    write_table,
)
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS

__all__ = ["CHECKPOINTS", "Run"]

T = TypeVar("T")

CHECKPOINTS = ("checkpoint.pt", "checkpoint.before.pt")  # the last, and the one before
_LARGEST_SPEC = 1 << 24  # a split of a set by patient can be long


class Run:
    """One run: its specification, and what its folder holds.

    Parameters
    ----------
    folder : Path
    spec : RunSpec

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> one = lab.run({"epochs": 1, "data.limit": 8}, out=tempfile.mkdtemp())
    >>> one.status, len(one.history), "test_accuracy" in one.metrics
    ('done', 1, True)
    """

    def __init__(self, folder: Path, spec: RunSpec) -> None:
        self.folder = folder
        self.spec = spec
        self._damaged: set[str] = set()  # checkpoints that could not be read
        # events.jsonl as it was when it was last read: a page asks for it many times.
        self._read: tuple[tuple[int, ...], list[dict[str, Any]]] | None = None

    @classmethod
    def at(cls, root: str | os.PathLike[str], spec: RunSpec) -> Run:
        """The run with this specification, in its place under ``root``."""
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
        run = cls(path.parent, spec)
        run._check_name()
        return run

    def _check_name(self) -> None:
        """Raise if the folder is named as a run's, and by another specification than is in it."""
        home = self.folder.absolute()
        named = f"{home.parent.name}/{home.name}"
        expected = f"{self.spec.method}__{self.spec.hash}/seed-{self.spec.seed}"
        if re.fullmatch(r".+__[0-9a-f]{8}/seed-\d+", named) and named != expected:
            raise DataError(
                f"{self.folder / 'spec.json'}: was changed after the run was made: its folder "
                f"would be {expected}, not {named}; put it back, or move the folder away"
            )

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.status})"

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None before the run has ended."""
        path = self.folder / "result.json"
        try:
            content = read_json(path)
        except FileNotFoundError:
            return None
        reason = why_no_result(content, TASKS[self.spec.task].score)
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
    def environment(self) -> dict[str, Any]:
        """The content of env.json; empty before the run has begun.

        Raises
        ------
        DataError
            If it is there and cannot be read.
        """
        path = self.folder / "env.json"
        try:
            content = read_json(path)
        except FileNotFoundError:
            return {}
        if not isinstance(content, dict):
            raise DataError(f"{path}: not the environment of a run; move it away")
        return content

    @property
    def epochs(self) -> int:
        """The epochs of the whole run: fewer than the specification's where its patience ended."""
        ended = (self.result or {}).get("epochs") if self.spec.patience else None
        return ended if is_count(ended) and ended is not None else self.spec.epochs

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
        stopped = any((self.folder / name).exists() for name in CHECKPOINTS)
        return "interrupted" if stopped else "waiting"

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry a finished epoch, from events.jsonl."""
        path = self.folder / "events.jsonl"
        try:
            entry = path.lstat()
            state = (entry.st_ino, entry.st_mode, entry.st_size, entry.st_mtime_ns)
            if self._read is None or self._read[0] != state:
                self._read = state, self._epochs(read_file(path, 1 << 30))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        return list(self._read[1])

    def _epochs(self, content: bytes) -> list[dict[str, Any]]:
        entries: dict[int, dict[str, Any]] = {}
        for line in content.decode(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # cut off by a kill; the run writes it again when it goes on
            if is_epoch(event, TASKS[self.spec.task].score, self.spec.epochs):
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
            raise cannot_write(self.folder, error) from None
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
        content = json.dumps(environment(), indent=2, sort_keys=True)
        write_atomically(self.folder / "env.json", (content + "\n").encode())
        write_atomically(self.folder / "events.jsonl", b"")

    def checkpoints(self) -> Iterator[bytes | DataError]:
        """The last checkpoint, then the one before; in place of each an error if it is damaged."""
        for name in CHECKPOINTS:
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
        last, before = (self.folder / name for name in CHECKPOINTS)
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
            raise cannot_write(path, error) from error

    def save_cases(self, cases: Cases | ClassCases) -> None:
        """Write cases.csv: of each test image counts and distances, or its classes."""
        write_table(self.folder / "cases.csv", cases.rows())

    def save_weights(self, content: bytes) -> None:
        """Write weights.pt: the trained net, a third of its last checkpoint under Adam."""
        write_atomically(self.folder / "weights.pt", content)

    def cases(self) -> Cases | None:
        """The cases of a run on masks, from cases.csv; None if there is no such file.

        Raises
        ------
        DataError
            If it is there and cannot be read.
        """
        return self._cases(Cases.from_rows) if self._marks else None

    def class_cases(self) -> ClassCases | None:
        """As :meth:`cases`, of a run on classes. Runs of earlier versions did not keep them."""
        return None if self._marks else self._cases(ClassCases.from_rows)

    def confusion(self) -> Mapping[tuple[str, str], int] | None:
        """Test images by true and predicted class; None where :meth:`class_cases` is.

        Raises
        ------
        DataError
            If the cases are there and cannot be read.
        """
        cases = self.class_cases()
        return None if cases is None else Counter(zip(cases.truth, cases.predicted, strict=True))

    @property
    def _marks(self) -> bool:
        return TASKS[self.spec.task].output == "mask"

    def _cases(self, from_rows: Callable[[list[dict[str, str]]], T]) -> T | None:
        path = self.folder / "cases.csv"
        try:
            return from_rows(csvfiles.load(read_file(path, 1 << 30)))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{path}: cannot be read ({error}); train the run anew") from None

    def take_back(self) -> None:
        """Forget how the run ended, so that it goes on from its checkpoint or starts anew."""
        try:
            (self.folder / "result.json").unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.folder / "result.json", error) from None

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: its being there means that the run has ended.

        A checkpoint that nothing will go on from is then removed; that of a run which diverged or
        failed stays, to be looked at.
        """
        self.check_is_there()
        content = json.dumps(result, indent=2, sort_keys=True, allow_nan=False)
        write_atomically(self.folder / "result.json", (content + "\n").encode())
        if result["status"] == "done":
            for name in CHECKPOINTS:
                with suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
