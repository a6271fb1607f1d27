"""`scaler data`: check, look at, convert, generate and value data files before training on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from scaler_wizard.cli.data_words import histogram
from scaler_wizard.cli.options import JsonOption, print_json
from scaler_wizard.data.convert import convert_file
from scaler_wizard.data.generate import generated_rows, parse_levels, parse_tasks
from scaler_wizard.data.jsonl_writer import JsonlWriter, check_target
from scaler_wizard.data.profiles import PROFILES, find_profile
from scaler_wizard.data.sample import load_tokenizer
from scaler_wizard.data.validate import Level, validate_file
from scaler_wizard.data.validation_report import ValidationReport
from scaler_wizard.errors import DataError, DataFileMissingError
from scaler_wizard.jobs.data_value import measure_data_value
from scaler_wizard.planning.locate import resolve_model

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

SHOWN_ROWS = 3

FileArgument = Annotated[
    Path, typer.Argument(help="JSONL, JSON, CSV, TSV, Parquet, Arrow, text, or a saved dataset's folder.")
]
ModelOption = Annotated[
    str | None, typer.Option(help="Count tokens with this model's tokenizer (else characters).")
]
MaxLengthOption = Annotated[int | None, typer.Option(min=1, help="Name rows longer than this.")]
ValidationOption = Annotated[Path | None, typer.Option(help="A file whose rows must not stand in this one.")]
QuarantineOption = Annotated[
    Path | None, typer.Option(help="Where bad lines go (default: FILE.quarantine.jsonl beside it).")
]
OnBadLine = Literal["quarantine", "fail"]
BadLineOption = Annotated[OnBadLine, typer.Option(help="Set a bad line aside, or fail at the first.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")]


@app.callback()
def data() -> None:
    """Data files before they are trained on. No command changes the file it reads."""


@app.command()
def validate(
    file: FileArgument,
    level: Annotated[Level, typer.Option(help="How closely to look.")] = Level.STANDARD,
    model: ModelOption = None,
    max_length: MaxLengthOption = None,
    validation: ValidationOption = None,
    quarantine: QuarantineOption = None,
    on_bad_line: BadLineOption = "quarantine",
    strict: Annotated[bool, typer.Option("--strict", help="Fail on any problem at all.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Say whether a file can be learned from and what is wrong with it; bad lines go to a quarantine file.

    Leaves with 5 when the file cannot be used, or, with --strict, when anything was found.
    """
    place = None if dry_run else quarantine or _quarantine_of(file)
    report = _report(file, level, model, max_length, validation, place, on_bad_line)
    typer.echo(report.words())
    if json:
        print_json(report.as_dict())
    if report.fatal or (strict and not report.clean):
        raise typer.Exit(DataError.exit_code)


@app.command()
def analyze(
    file: FileArgument,
    model: ModelOption = None,
    max_length: MaxLengthOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Look for near duplicates too (slower).")] = False,
    json: JsonOption = False,
) -> None:
    """Show a file's format, counts, lengths and repeats; writes nothing."""
    level = Level.DEEP if deep else Level.STANDARD
    report = _report(file, level, model, max_length, None, None, "quarantine")
    typer.echo(report.words())
    for line in histogram(report.lengths):
        typer.echo(line)
    if json:
        print_json(report.as_dict())


@app.command()
def convert(
    file: FileArgument,
    out: Annotated[Path, typer.Argument(help="JSON Lines file to write.")],
    profile: Annotated[str, typer.Option(help=f"Shape conversations: {', '.join(PROFILES)}.")] = "none",
    seed: Annotated[int, typer.Option(help="Seed of what a profile draws.")] = 0,
    system_prompt: Annotated[
        str | None, typer.Option(help="System turn for conversations without one.")
    ] = None,
    quarantine: QuarantineOption = None,
    on_bad_line: BadLineOption = "quarantine",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Write any format as messages JSON Lines; the file read stays as it is unless --force names it."""
    check_target(out, force=force)
    with _progress(f"converting {file.name}") as on_progress:
        done = convert_file(
            file, None if dry_run else out, profile=find_profile(profile), seed=seed,
            system_prompt=system_prompt, quarantine=quarantine or _quarantine_of(file),
            on_bad_line=on_bad_line, force=force, on_progress=on_progress,
        )  # fmt: skip
    typer.echo(done.words())
    if json:
        print_json(asdict(done))


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(help="JSON Lines file to write.")],
    task: Annotated[str, typer.Option(help='Task names with commas, or "all".')] = "all",
    level: Annotated[
        str, typer.Option(help="easy (1-3), medium (4-7), hard (8-10), all, 4, or 2-5.")
    ] = "all",
    count: Annotated[int, typer.Option(min=1, help="Rows.")] = 1000,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.")] = 0,
    split: Annotated[
        Literal["train", "held_out"], typer.Option(help="held_out rows never stand in train files.")
    ] = "train",
    form: Annotated[
        Literal["instruction", "question"], typer.Option(help="An explicit request or an implicit one.")
    ] = "instruction",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Write generated tasks with exactly one right answer each, no row twice."""
    tasks, levels = parse_tasks(task), parse_levels(level)
    check_target(out, force=force)
    rows = generated_rows(tasks, levels, count, seed, split=split, form=form)
    if dry_run:
        shown = [row.as_dict() for row in rows]
        for row in islice(shown, SHOWN_ROWS):
            typer.echo(
                f"{row['task']} level {row['level']}: {row['messages'][0]['content']} -> {row['answer']}"
            )
    else:
        with JsonlWriter(out, force=force) as writer:
            for generated in rows:
                writer.write(generated.as_dict())
    typer.echo(f"{count:,} rows of {len(tasks)} tasks; " + ("nothing written" if dry_run else f"wrote {out}"))
    if json:
        print_json(
            {
                "out": None if dry_run else str(out), "rows": count, "tasks": list(tasks),
                "levels": list(levels), "seed": seed, "split": split, "form": form,
            }
        )  # fmt: skip


@app.command()
def value(
    file: FileArgument,
    model: Annotated[
        str, typer.Option(help='A model directory, a hub name in the local cache, or "seedling".')
    ] = "seedling",
    sample: Annotated[int, typer.Option(min=8, help="Rows to measure with; half are trained on.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Probe steps.")] = 16,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of the probe.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of sample and probe.")] = 0,
    json: JsonOption = False,
) -> None:
    """Estimate what a file would teach a model: its loss before, and after a probe that is thrown away."""
    if not file.exists():
        raise DataFileMissingError(f"there is no data file {file}", "an existing file", "check the path")
    resolve_model(model)
    with Console(stderr=True).status(f"probing {model} with {file.name}"):
        found = measure_data_value(
            model, file, sample=sample, steps=steps, learning_rate=learning_rate, seed=seed
        )
    typer.echo(f"{file}: {found['words']}")
    if json:
        print_json(found)


def _report(
    file: Path,
    level: Level,
    model: str | None,
    max_length: int | None,
    validation: Path | None,
    quarantine: Path | None,
    on_bad_line: OnBadLine,
) -> ValidationReport:
    tokenizer: Any = load_tokenizer(resolve_model(model)) if model is not None else None
    with _progress(f"reading {file.name}") as on_progress:
        return validate_file(
            file, level, tokenizer=tokenizer, max_length=max_length, validation=validation,
            quarantine=quarantine, on_bad_line=on_bad_line, on_progress=on_progress,
        )  # fmt: skip


def _quarantine_of(file: Path) -> Path:
    return file.with_name(file.name + ".quarantine.jsonl")


@contextmanager
def _progress(description: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar over the file's bytes on a terminal; nothing into a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
