"""The command line: one verb, one function. Options are read here and nothing else is done."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table as RichTable

import znorm
from znorm.lab import comparison, data, planning, prediction
from znorm.lab.__main__ import INTERRUPTED
from znorm.lab.catalogue import KINDS, names
from znorm.lab.errors import ConfigurationError, DataError, Interrupted, LabError
from znorm.lab.machine import doctor as examine
from znorm.lab.paper import reproduce as paper
from znorm.lab.paper.grids import TARGETS
from znorm.lab.paper.record import Record
from znorm.lab.planning import costs_on_terminal
from znorm.lab.progress import choose
from znorm.lab.registry import unknown
from znorm.lab.reporting.beside import beside_on_terminal, paper_tables, remarks
from znorm.lab.reporting.tables import gather, on_terminal
from znorm.lab.spec import RunSpec
from znorm.lab.store import Run, find, reproductions

__all__ = ["cli", "run"]


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of version 1.2: 1e-3 and 010 are 0.001 and 10, 1:30 a text.

    Without aliases: a few lines of them stand for more than any memory holds. A key that comes
    twice is refused.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken; write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} is given twice; give it once")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT, re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)


class _Folder(click.Path):
    """A path, of which an empty one is refused: it would be the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == "":
            self.fail("expected a folder, found nothing", param, ctx)
        return super().convert(value, param, ctx)


class _Verbs(click.Group):
    """A group that answers an unknown verb with the nearest ones."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(znorm.__version__, prog_name="znorm")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compare gradient methods, honestly: same weights, same batches, intervals over seeds."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_TRUST = click.option(
    "--trust-models",
    is_flag=True,
    help="Import a model or optimizer that a specification names, code from elsewhere.",
)


@cli.command()
@click.option("--task", help="What to learn.  [default: pcam_mini, the built-in data]")
@click.option("--model", help="Which net.  [default: the task's]")
@click.option("--methods", help="Separated by commas.  [default: the six of the paper's tables]")
@click.option("--seeds", help="N for seeds 0 to N-1, or a list such as 0,3,7.  [default: 3]")
@click.option("--epochs", type=int, help="[default: the task's]")
@click.option("--optimizer", help="adam, adamw, sgd, rmsprop or a class.  [default: adam]")
@click.option("--lr", type=float, help="Learning rate.  [default: the task's]")
@click.option("--schedule", help="constant, cosine or multistep:30,35.  [default: the task's]")
@click.option("--batch-size", type=int, help="[default: the task's]")
@click.option("--micro-batch", type=int, help="Images that are in memory at once.")
@click.option("--workers", type=int, help="Threads that read ahead.  [default: as the set needs]")
@click.option("--device", help="auto, cpu, cuda or mps.  [default: auto]")
@click.option("--precision", help="auto, float32 or bfloat16.  [default: auto, the model's faster]")
@click.option("--deterministic", is_flag=True, default=None, help="Deterministic algorithms only.")
@click.option("--cuda-graph", is_flag=True, default=None, help="Each step as one CUDA graph.")
@click.option(
    "--jobs", type=int, help="Runs trained side by side; times then say little.  [default: 1]"
)
@click.option("--retry", is_flag=True, default=None, help="Train runs that failed once more.")
@click.option("--limit", type=int, help="At most N images of each part; every page then says so.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other key.")
@click.option("--config", type=click.Path(path_type=Path), help="These options, from a YAML file.")
@click.option("--out", type=_Folder(), help="Folder of the runs.  [default: runs]")
@click.option("--plan", is_flag=True, help="Say what it costs here, and train nothing.")
def compare(settings: tuple[str, ...], config: Path | None, plan: bool, **options: Any) -> int:
    """Train methods on one task and model over seeds, and report.

    The same command again goes on where it was stopped.
    """
    choices = _from_file(config, {**options, "set": None}) if config else {}
    choices = {key: value for key, value in choices.items() if value is not None}
    choices.update({key: value for key, value in options.items() if value is not None})
    choices["set"] = {**(choices.get("set") or {}), **_assignments(settings)}
    _refuse_twice({**choices, "set": None}, choices["set"])
    choices["methods"] = _listed(choices.get("methods"))
    choices["seeds"] = _numbers(choices.get("seeds", 3))
    out = choices.pop("out", "runs")
    if not isinstance(out, str | Path):
        raise ConfigurationError(f"out: expected a folder, found {out!r}")
    out = Path(out)
    choices = {key: value for key, value in choices.items() if value is not None}
    console = _console()
    if plan:
        specs = comparison.specifications(**_taken_by(comparison.specifications, choices))
        _tell_costs(specs, out)
        return 0
    runs = comparison.compare(**choices, out=out, display=choose(_console(sys.stderr)))
    for table in gather(out, [one for one in runs if _ended(one) is not None]):
        console.print(on_terminal(table))
    console.print(f"report: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return _exit_code(runs)


@cli.command()
@click.argument("target", metavar="|".join((*TARGETS, "all")))
@click.option("--scale", default="smoke", show_default=True, help="smoke, reduced or paper.")
@click.option("--models", help="Some of the target's, separated by commas.  [default: all]")
@click.option("--methods", help="Some of the six, separated by commas.  [default: all]")
@click.option("--seeds", help="N for seeds 0 to N-1, or a list.  [default: 3, at scale smoke 1]")
@click.option("--epochs", type=int, help="Instead of the scale's; not at scale paper.")
@click.option("--limit", type=int, help="At most N images of each part; not at scale paper.")
@click.option("--batch-size", type=int, help="Instead of the scale's; not at scale paper.")
@click.option("--micro-batch", type=int, help="Images that are in memory at once.")
@click.option("--workers", type=int, help="Threads that read ahead.  [default: as the set needs]")
@click.option("--device", default="auto", help="auto, cpu, cuda or mps.  [default: auto]")
@click.option("--precision", default="auto", help="auto, float32 or bfloat16.  [default: auto]")
@click.option("--deterministic", is_flag=True, help="Deterministic algorithms only.")
@click.option("--cuda-graph", is_flag=True, help="Each step as one CUDA graph.")
@click.option("--jobs", type=int, default=1, help="Runs trained side by side.  [default: 1]")
@click.option("--retry", is_flag=True, help="Train runs that failed once more.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other key.")
@click.option("--cases", help="Test slices to show in Figure 2, too, separated by commas.")
@click.option("--no-images", is_flag=True, help="No pictures of the data on the page.")
@click.option("--out", type=_Folder(), help="[default: runs/paper-SCALE]")
@click.option("--plan", is_flag=True, help="Say what it costs here, and train nothing.")
def reproduce(
    target: str, settings: tuple[str, ...], no_images: bool, plan: bool, **options: Any
) -> int:
    """Train a table or figure of the paper, and report it beside the published numbers.

    At scale paper by the paper's settings; reduced: fewer epochs and images, the same code; smoke:
    a few steps of each, which are not a result, with built-in tasks in place of images that are not
    here. The same command again goes on where it was stopped.
    """
    options["seeds"] = None if options["seeds"] is None else _numbers(options["seeds"])
    options["set"] = _assignments(settings)
    _refuse_twice(options, options["set"])
    console = _console()
    root = options["out"] or paper.default_folder(options["scale"])
    if plan:
        specs, _ = paper.planned(target, **_taken_by(paper.planned, options))
        _tell_costs(specs, root)
        return 0
    display = choose(_console(sys.stderr))
    runs = paper.reproduce(target, **options, images=not no_images, display=display)
    record = Record.read(root)
    assert record is not None
    for table in paper_tables(record, gather(root, find(root))):
        console.print(beside_on_terminal(table))
        for remark in remarks(table):
            console.print(remark, markup=False, highlight=False, soft_wrap=True)
    if not record.size.result:
        console.print(f"scale {record.scale}: {record.size.about}", highlight=False)
    console.print(f"report: {root / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return _exit_code(runs)


@cli.command("run")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", type=_Folder(), default=Path("runs"), show_default=True)
@click.option("--workers", type=int, help="Threads that read ahead.  [default: as the set needs]")
@click.option("--retry", is_flag=True, help="Train a run that failed once more.")
@_TRUST
def run_one(spec: Path, out: Path, **options: Any) -> int:
    """Train the one run that SPEC (JSON or YAML) describes, or go on with it."""
    display = choose(_console(sys.stderr))
    one = comparison.run(_read_mapping(spec), out=out, display=display, **options)
    click.echo(one.folder)
    return _exit_code([one])


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--no-images", is_flag=True, help="No pictures of the data on the page.")
@_TRUST
def report(runs: Path, no_images: bool, trust_models: bool) -> int:
    """Write the report of all runs in a folder."""
    page, damaged = comparison.write_report(runs, images=not no_images, trust_models=trust_models)
    click.echo(page)
    if damaged:
        return _fail(f"{len(damaged)} folders cannot be read; the page names them", 1)
    return 0


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=_Folder(), help="[default: predictions, in RUN]")
@_TRUST
def predict(run: Path, folder: Path | None, out: Path | None, trust_models: bool) -> int:
    """Predict the test part of the run in folder RUN, or the pictures in FOLDER.

    Writes predictions.csv; for masks also masks, outlines over the pictures, and cases.png.
    """
    display = choose(_console(sys.stderr))
    click.echo(prediction.predict(run, folder, out=out, trust_models=trust_models, display=display))
    return 0


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(runs: Path, as_json: bool) -> int:
    """Say what is done, running, waiting, interrupted, diverged or failed."""
    rows = comparison.status(runs)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return 0
    table = RichTable()
    for title in ("task", "model", "method", "seed", "status", "epochs"):
        table.add_column(title, overflow="fold")
    for row in rows:
        state = row["status"]
        if row["task"] is None:
            table.add_row(row["folder"], "", "", "", f"{state}: {row['error']}", "")
            continue
        if row["diverged_step"] is not None:
            state += f" at step {row['diverged_step']}"
        if row["error"]:
            state += f": {row['error']}"
        epochs = f"{row['epochs_done']}/{row['epochs']}"
        table.add_row(row["task"], row["model"], row["method"], str(row["seed"]), state, epochs)
    console = _console()
    console.print(table)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    console.print(", ".join(f"{number} {name}" for name, number in sorted(counts.items())))
    for folder in reproductions(runs):
        click.echo(f"{folder}: a reproduction of the paper, with a page and a status of its own")
    return 0


@cli.command("list")
@click.argument("kind", metavar="|".join(KINDS))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_names(kind: str, as_json: bool) -> int:
    """List the names of tasks, models or methods."""
    found = names(kind)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return 0
    width = max(len(name) for name in found)
    for name, about in found.items():
        click.echo(f"{name.ljust(width)}  {about}")
    return 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> int:
    """Look at this machine: versions, devices, threads, and the kernels in use."""
    found = examine()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return 0
    versions = (f"{name} {number or 'missing'}" for name, number in found["versions"].items())
    lines = [("versions", ", ".join(versions)), ("platform", found["platform"])]
    for device in found["devices"]:
        memory = f", {device['memory_gb']} GB" if device["memory_gb"] else ""
        precision = found["precision"][device["device"]]
        lines.append(
            (device["device"], f"{device['name']}{memory}; --precision auto: mostly {precision}")
        )
    threads = found["threads"]
    lines.append(("threads", f"{threads['torch']} of {threads['cores']} cores"))
    for kernel in found["kernels"]:
        why = f" ({kernel['why']})" if kernel["why"] else ""
        lines.append(("kernels", f"{kernel['device']} {kernel['dtype']}: {kernel['kernel']}{why}"))
    width = max(len(title) for title, _ in lines)
    for title, text in lines:
        click.echo(f"{title.ljust(width)}  {text}")
    return 0


@cli.group("data", cls=_Verbs)
def data_sets() -> None:
    """Public data sets: what is there, fetch them, check them."""


@data_sets.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def data_list(as_json: bool) -> int:
    """Say what is there of each set, where, and how large it is."""
    rows = data.listing()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return 0
    table = RichTable()
    for title in ("set", "there", "size", "folder", "about"):
        table.add_column(title, overflow="fold")
    for row in rows:
        there = row["state"] + (f": {row['found']}" if row["found"] else "")
        size = f"{row['bytes'] / 1e6:,.0f} MB" if row["bytes"] else ""
        table.add_row(row["name"], there, size, row["folder"] or "", row["about"])
    _console().print(table)
    return 0


@data_sets.command("get")
@click.argument("name")
def data_get(name: str) -> int:
    """Download a set, verify it, and put it where tasks look for it."""
    said = 0.0

    def progress(file: str, done: int, total: int | None) -> None:
        nonlocal said
        if time.monotonic() - said > 1 or done == total:
            said = time.monotonic()
            of = f" of {total / 1e6:,.0f}" if total else ""
            click.echo(f"{file}: {done / 1e6:,.0f}{of} MB", err=True)

    return _verified(data.get(name, progress), as_json=False)


@data_sets.command("verify")
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def data_verify(names: tuple[str, ...], as_json: bool) -> int:
    """Check sets in depth: known hashes, then every image and label.

    Without NAMES, every set of which something is there. Exit code 3 if one is wrong, or missing
    though it was named.
    """
    return _verified(data.verify(names or None), as_json=as_json)


def _verified(rows: list[dict[str, Any]], *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    for row in rows:
        if not as_json:
            parts = ", ".join(f"{name} {count:,}" for name, count in row["images"].items())
            found = "; ".join(text for text in (row["found"], parts) if text)
            hashes = f"; {len(row['verified'])} files by hash" if row["verified"] else ""
            click.echo(f"{row['name']}: {row['state']}" + (f" ({found}{hashes})" if found else ""))
        for problem in row["problems"]:
            print("znorm: " + " ".join(problem.split()), file=sys.stderr)
    return 3 if any(row["problems"] for row in rows) else 0


def run(arguments: Sequence[str]) -> int:
    """Run the command line; errors are one line on stderr.

    Returns
    -------
    int
        The exit code: 0 all done, 1 some runs failed or diverged, 2 bad configuration or usage,
        3 data missing or unreadable, 130 interrupted.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a sign such as ± must not cost the result.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with cli.make_context("znorm", list(arguments)) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except LabError as error:
        return _fail(str(error), error.exit_code)
    except (Interrupted, KeyboardInterrupt, click.Abort):
        print(INTERRUPTED, file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        if error.filename is not None:
            raise
        # Of what the output goes to: files name themselves.
        _reader_gone()
        return _fail(f"the output cannot be written ({error.strerror})", 1)
    except SystemExit as error:
        # rich turns a broken pipe into one.
        if isinstance(error.__context__, BrokenPipeError):
            return _reader_gone()
        # Of a library or a model: nothing here ends the process so.
        return _fail(f"ended by what it called (SystemExit {error.code})", 1)
    return code if isinstance(code, int) else 0


def _reader_gone() -> int:
    # Python must not try to flush the output again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int) -> int:
    print("znorm: " + " ".join(message.split()), file=sys.stderr)
    return code


def _tell_costs(specs: Sequence[RunSpec], out: Path) -> None:
    def measuring(spec: RunSpec) -> None:
        click.echo(f"measuring {spec.model} on {spec.task}", err=True)

    _console().print(costs_on_terminal(planning.plan(specs, out, measuring)))


def _taken_by(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Of these options those that a function has parameters for."""
    taken = inspect.signature(function).parameters
    return {key: value for key, value in options.items() if key in taken}


def _exit_code(runs: Sequence[Run]) -> int:
    return int(any(_ended(one) != "done" for one in runs))


def _ended(one: Run) -> str | None:
    """How a run stands; None if its files cannot be read, which has been said."""
    try:
        one.check_readable()
        return one.status
    except DataError:
        return None


def _console(file: Any = None) -> Console:
    # Names and errors are shown as they are: what stands in brackets is no markup.
    console = Console(file=file or sys.stdout, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    return console


_LARGEST = 1 << 24  # bytes


def _read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds keys and values."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ConfigurationError(f"{path}: too large for keys and values")
        content = yaml.load(text.decode(), _Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not YAML or JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path}: expected keys and values, found {type(content).__name__}"
        )
    return {str(key): value for key, value in content.items()}


def _from_file(path: Path, known: dict[str, Any]) -> dict[str, Any]:
    content = _read_mapping(path)
    valid = [name.replace("_", "-") for name in known]
    choices = {}
    for key, value in content.items():
        if key.replace("_", "-") not in valid:
            raise ConfigurationError(f"{path}: {unknown('key', key, valid)}")
        if key.replace("-", "_") in choices:
            raise ConfigurationError(f"{path}: {key} is given twice; give it once")
        choices[key.replace("-", "_")] = value
    if not isinstance(choices.get("set") or {}, dict):
        raise ConfigurationError(f"{path}: set: expected keys and values")
    return choices


def _assignments(settings: Sequence[str]) -> dict[str, Any]:
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--set {setting}: expected KEY=VALUE")
        if key in values:
            raise ConfigurationError(f"--set {key}: is given twice; give it once")
        try:
            values[key] = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigurationError(f"--set {setting}: {text!r} is not a value") from None
    return values


# Options that are keys of a specification under another name.
_KEYS = {"lr": "learning_rate", "limit": "data.limit"}


def _refuse_twice(options: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a key that is given twice: by its option and by --set, or whole and in part."""
    for key, value in settings.items():
        whole, dot, part = key.partition(".")
        if dot and isinstance(settings.get(whole), Mapping):
            again = settings[whole].get(part)
            if again is not None and again != value:
                raise ConfigurationError(
                    f"set: {key}={value} and {part}: {again} of {whole}: give one of them"
                )
    for option, value in options.items():
        key = _KEYS.get(option, option)
        data = settings.get("data")
        again = settings.get(key)
        if again is None and key.startswith("data.") and isinstance(data, Mapping):
            again = data.get(key.removeprefix("data."))
        if value is not None and value is not False and again is not None and again != value:
            raise ConfigurationError(
                f"--{option.replace('_', '-')} {value} and --set {key}={again}: give one of them"
            )


def _listed(value: Any) -> list[Any] | None:
    if value is None or isinstance(value, list):
        return value
    return [part.strip() for part in str(value).split(",") if part.strip()]


def _numbers(value: Any) -> int | list[int]:
    if isinstance(value, int | list) and not isinstance(value, bool):
        return value
    text = str(value)
    try:
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        return int(text)
    except ValueError:
        raise ConfigurationError(
            f"--seeds {text}: expected a number, or numbers separated by commas"
        ) from None
