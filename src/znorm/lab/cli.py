"""The command line: one verb, one function. Options are read here and nothing else is done."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import click
from rich.console import Console
from rich.table import Table as RichTable

import znorm
from znorm.lab import api, data, prediction
from znorm.lab.catalogue import KINDS, names
from znorm.lab.errors import (
    INTERRUPTED,
    ConfigurationError,
    DataError,
    Interrupted,
    LabError,
)
from znorm.lab.evidence.question import Question
from znorm.lab.evidence.tuning import read_tunings
from znorm.lab.options import CompareOptions, ReproduceOptions, fields_of
from znorm.lab.paper import reproduce as paper
from znorm.lab.paper.grids import TARGETS
from znorm.lab.paper.record import Record
from znorm.lab.paper.tables import paper_on_terminal, paper_tables, remarks
from znorm.lab.prediction.onnx_file import export_onnx
from znorm.lab.registry import unknown
from znorm.lab.reporting.card import card_of
from znorm.lab.reporting.export import LEFT_OUT, PACKED
from znorm.lab.reporting.folds import over_folds
from znorm.lab.reporting.prospects import prospects_on_terminal
from znorm.lab.reporting.tables import gather, on_terminal
from znorm.lab.runs import cost
from znorm.lab.runs.folder import Run
from znorm.lab.runs.progress import choose
from znorm.lab.runs.survey import find, reproductions
from znorm.lab.settings import (
    assignments,
    from_file,
    listed,
    numbers,
    read_mapping,
    refuse_twice,
)
from znorm.lab.spec import RunSpec
from znorm.lab.system import doctor as examine
from znorm.lab.text import readable

__all__ = ["cli", "run"]

F = TypeVar("F", bound=Callable[..., Any])


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


def _option(field: Field[Any], kind: Any) -> Callable[[F], F]:
    """The option of the command line for one of Python; None where it is left out."""
    name, help = f"--{field.name.replace('_', '-')}", field.metadata["help"]
    types = set(get_args(kind)) or {kind}
    if field.name == "set":
        return click.option(name, multiple=True, metavar="KEY=VALUE", help=help)
    if kind is bool and field.default:
        return click.option(f"--no-{name[2:]}", name[2:], flag_value=False, default=None, help=help)
    if types == {bool, type(None)}:
        return click.option(f"{name}/--no-{name[2:]}", default=None, help=help)
    if kind is bool:
        return click.option(name, is_flag=True, default=None, help=help)
    if os.PathLike[str] in types:
        return click.option(name, type=_Folder(), help=help)
    # A list or a mapping is written as a text.
    plain = types <= {int, float, str, type(None)}
    number = next((one for one in (int, float) if plain and one in types), None)
    return click.option(name, type=number, help=help)


def _options(verb: type, only: Iterable[str] | None = None) -> Callable[[F], F]:
    """Give a command the options of a verb, or some of them."""
    kinds = get_type_hints(verb)

    def decorate(command: F) -> F:
        for field in reversed(fields_of(verb)):
            if field.metadata["help"] is not None and (only is None or field.name in only):
                command = _option(field, kinds[field.name])(command)
        return command

    return decorate


def _written(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were written, their lists and settings read."""
    chosen = {key: value for key, value in options.items() if value is not None}
    chosen["set"] = assignments(options["set"])
    return chosen


@cli.command()
@_options(CompareOptions)
@click.option("--config", type=click.Path(path_type=Path), help="These options, from a YAML file.")
@click.option("--plan", is_flag=True, help="Say what it costs here, and train nothing.")
def compare(config: Path | None, plan: bool, **options: Any) -> int:
    """Train methods on one task and model over seeds, and report.

    The same command again goes on where it was stopped.
    """
    choices = from_file(config, options) if config else {}
    choices = {key: value for key, value in choices.items() if value is not None}
    written = _written(options)
    choices = {**choices, **written, "set": {**(choices.get("set") or {}), **written["set"]}}
    refuse_twice({**choices, "set": None}, choices["set"], CompareOptions.keys())
    choices["methods"] = listed(choices.get("methods"))
    choices["seeds"] = numbers(choices.get("seeds", 3))
    if not isinstance(choices.setdefault("out", "runs"), str | Path):
        raise ConfigurationError(f"out: expected a folder, found {choices['out']!r}")
    out = choices["out"] = Path(choices["out"])
    choices = {key: value for key, value in choices.items() if value is not None}
    console = _console()
    if plan:
        options_ = CompareOptions(**choices, display=choose(_console(sys.stderr)))
        _tell_costs(*api.planned(options_), out, choices.get("worth"))
        return 0
    runs = api.compare(**choices, display=choose(_console(sys.stderr)))
    ended = [one for one in runs if _ended(one) is not None]
    tables = gather(out, ended, Question.read(out), read_tunings(out))
    for table in tables:
        console.print(on_terminal(table))
        if (card := card_of(table)) is not None:
            console.print(card.text, markup=False, highlight=False, soft_wrap=True)
    for found in over_folds(tables):
        console.print(found.headline, markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return _exit_code(runs)


@cli.command()
@click.argument("target", metavar="|".join((*TARGETS, "all")))
@_options(ReproduceOptions)
@click.option("--plan", is_flag=True, help="Say what it costs here, and train nothing.")
def reproduce(target: str, plan: bool, **options: Any) -> int:
    """Train a table or figure of the paper, and report it beside the published numbers.

    At scale paper by the paper's settings; reduced: fewer epochs and images, the same code; smoke:
    a few steps of each, which are not a result, with built-in tasks in place of images that are not
    here. The same command again goes on where it was stopped.
    """
    written = _written(options)
    if "seeds" in written:
        written["seeds"] = numbers(written["seeds"])
    refuse_twice(written, written["set"], ReproduceOptions.keys())
    console = _console()
    chosen = ReproduceOptions(target, **written)
    root = chosen.folder
    if plan:
        _tell_costs(paper.planned(chosen)[0], (0, 0), root)
        return 0
    runs = paper.reproduce(target, **written, display=choose(_console(sys.stderr)))
    record = Record.read(root)
    assert record is not None
    for table in paper_tables(record, gather(root, find(root), None, read_tunings(root))):
        console.print(paper_on_terminal(table))
        for remark in remarks(table):
            console.print(remark, markup=False, highlight=False, soft_wrap=True)
    if not record.size.result:
        console.print(f"scale {record.scale}: {record.size.about}", highlight=False)
    console.print(f"report: {root / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return _exit_code(runs)


@cli.command("run")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", type=_Folder(), default=Path("runs"), show_default=True)
@_options(CompareOptions, only=["workers"])
@click.option("--retry", is_flag=True, help="Train a run that failed once more.")
@_TRUST
def run_one(spec: Path, out: Path, **options: Any) -> int:
    """Train the one run that SPEC (JSON or YAML) describes, or go on with it."""
    display = choose(_console(sys.stderr))
    one = api.run(read_mapping(spec), out=out, display=display, **options)
    click.echo(one.folder)
    return _exit_code([one])


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--no-images", is_flag=True, help="No pictures of the data on the page.")
@click.option("--export", type=_Folder(), metavar="FILE.zip", help="Pack all numbers, too.")
@click.option(
    "--verify",
    is_flag=False,
    flag_value="",
    metavar="[REPORT.html]",
    help="Write nothing: work out every number of the page again, and say which differ.",
)
@_TRUST
def report(
    runs: Path, no_images: bool, export: Path | None, verify: str | None, trust_models: bool
) -> int:
    """Write the report of all runs in a folder.

    With --verify RUNS may also be a file that --export made.
    """
    if verify is not None:
        if export is not None or no_images:
            raise click.UsageError("--verify writes nothing; leave --export and --no-images out")
        return _verify(runs, Path(verify) if verify else None)
    page, damaged = api.report_and_damaged(runs, images=not no_images, trust_models=trust_models)
    click.echo(page)
    if export is not None:
        api.export_numbers(runs, export)
        click.echo(f"{export}: holds {PACKED}; not {LEFT_OUT}")
    if damaged:
        return _fail(f"{len(damaged)} folders cannot be read; the page names them", 1)
    return 0


def _verify(source: Path, page: Path | None) -> int:
    found = api.verify(source, page)
    for remark in found.remarks:
        click.echo(readable(remark))
    for line in found.differing:
        click.echo(readable(line))
    if not found:
        return _fail(f"{len(found.differing)} of {found.checked:,} numbers and files differ", 1)
    click.echo(f"{found.checked:,} numbers checked: all agree")
    return 0


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=_Folder(), help="[default: predictions, in RUN]")
@click.option(
    "--threshold",
    metavar="P|validation",
    help="The probability above which something is marked, or of the second of two classes.  "
    "[default: 0.5 for the test part; for FOLDER the best one on validation data]",
)
@_TRUST
def predict(run: Path, folder: Path | None, **options: Any) -> int:
    """Predict the test part of the run in folder RUN, or the pictures in FOLDER.

    Writes predictions.csv; for masks also masks, outlines over the pictures, and cases.png.
    """
    display = choose(_console(sys.stderr))
    click.echo(prediction.predict(run, folder, **options, display=display))
    return 0


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=_Folder(), metavar="FILE.onnx", help="[default: model.onnx, in RUN]")
@click.option("--float-input", is_flag=True, help="Input in float32, not uint8; still 0 to 255.")
@_TRUST
def export(run: Path, out: Path | None, float_input: bool, trust_models: bool) -> int:
    """Write the run in folder RUN as an ONNX file: pictures in, probabilities out."""
    click.echo(export_onnx(run, out, float_input=float_input, trust_models=trust_models))
    return 0


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(runs: Path, as_json: bool) -> int:
    """Say what is done, running, waiting, interrupted, diverged or failed."""
    rows = api.status(runs)
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
    listing = names(kind)
    if as_json:
        click.echo(json.dumps(listing, indent=2))
        return 0
    width = max(len(name) for name in listing)
    for name, about in listing.items():
        click.echo(f"{name.ljust(width)}  {about}")
    return 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> int:
    """Look at this machine: versions, devices, threads, and the kernels in use."""
    system = examine()
    if as_json:
        click.echo(json.dumps(system, indent=2))
        return 0
    versions = (f"{name} {number or 'missing'}" for name, number in system["versions"].items())
    lines = [("versions", ", ".join(versions)), ("platform", system["platform"])]
    for device in system["devices"]:
        memory = f", {device['memory_gb']} GB" if device["memory_gb"] else ""
        precision = system["precision"][device["device"]]
        lines.append(
            (device["device"], f"{device['name']}{memory}; --precision auto: mostly {precision}")
        )
    threads = system["threads"]
    lines.append(("threads", f"{threads['torch']} of {threads['cores']} cores"))
    for kernel in system["kernels"]:
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


def _tell_costs(
    specs: Sequence[RunSpec], further: tuple[int, int], out: Path, worth: float | None = None
) -> None:
    def measuring(spec: RunSpec) -> None:
        click.echo(f"measuring {spec.model} on {spec.task}", err=True)

    console, costs = _console(), cost.plan(specs, out, measuring, further)
    console.print(cost.costs_on_terminal(costs))
    for table in prospects_on_terminal(specs, out, costs, worth):
        console.print(table)


def _exit_code(runs: Sequence[Run]) -> int:
    return int(any(_ended(one) != "done" for one in runs))


def _ended(one: Run) -> str | None:
    """The status of a run; None if its files cannot be read, which has been said."""
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
