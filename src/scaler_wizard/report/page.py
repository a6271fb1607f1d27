"""A run directory to one self-contained HTML page: no script, no outside resource, every text escaped.

Knows the page's order and which fact stands where; sentences come from `words`, numbers from `record`,
pictures from `plots` and `plots_course`, the markup from `page.html.j2`. Imports no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from scaler_wizard import __version__
from scaler_wizard.errors import SpecError, WorkspaceError
from scaler_wizard.report import words
from scaler_wizard.report.bootstrap_record import bootstrap_record, shown_samples
from scaler_wizard.report.plots import Chart, candidates_chart, needle_chart, nll_chart
from scaler_wizard.report.plots_accuracy import accuracy_chart
from scaler_wizard.report.plots_bootstrap import (
    principle_chart,
    retention_chart,
    stage_chart,
    type_chart,
)
from scaler_wizard.report.plots_course import loss_chart, memory_chart, quality_chart
from scaler_wizard.report.plots_experts import abstention_chart, confusion_chart, settings_chart
from scaler_wizard.report.record import Record, load_record
from scaler_wizard.report.sections import sections
from scaler_wizard.report.table import metric_table, phase_table
from scaler_wizard.report.timeline import timeline
from scaler_wizard.report.values import MAX_TEXT, items, mapping, number, text, whole
from scaler_wizard.safety.contract import contract_hash, job_hash
from scaler_wizard.specs.contract import Contract
from scaler_wizard.specs.job import parse_job
from scaler_wizard.store.durable import write_atomic
from scaler_wizard.store.rundir import RunDir

CHARTS = (
    accuracy_chart, settings_chart, confusion_chart, abstention_chart, nll_chart, needle_chart,
    candidates_chart, loss_chart, quality_chart, memory_chart,
)  # fmt: skip
STAGE_CHARTS = (stage_chart, retention_chart, type_chart, principle_chart, loss_chart, memory_chart)
MAX_SAMPLES = 24
MAX_FACTS = 60
TONES = {"completed": "good", "failed": "bad", "stopped": "bad"}
Facts = list[tuple[str, str]]


def write_report(run_dir: Path, target: Path | None = None) -> Path:
    """Write the report of a run, finished or not, and return where it is.

    Args:
        target: the HTML file to write; report.html in the run directory when None.

    Raises:
        RunNotFoundError: `run_dir` is not a directory.
        WorkspaceError: the file cannot be written; a report that was there before is unharmed.
    """
    page = render(load_record(run_dir))
    path = target or RunDir(run_dir).report
    try:
        write_atomic(path, page)
    except OSError as error:
        raise WorkspaceError(
            f"cannot write {path} ({error.strerror})", "a file in an existing, writable folder",
            "name another file, or free some space",
        ) from error  # fmt: skip
    return path


def render(record: Record) -> str:
    """The page as text."""
    makers = CHARTS if bootstrap_record(record) is None else STAGE_CHARTS
    charts = [chart for make in makers if (chart := make(record)) is not None]
    entries, left_out = timeline(record.events)
    return _template().render(
        record=record,
        title=f"{text(record.result.get('recipe'), 40) or 'Run'} report: {text(record.id, 80)}",
        status=words.STATUS_WORDS.get(record.status, record.status),
        tone=TONES.get(record.status, "ask"),
        headline=words.headline(record),
        summary=words.summary(record),
        tiles=_tiles(record),
        metrics=metric_table(record.metrics, whole(record.result.get("seed"))) if record.metrics else None,
        phases=phase_table(record) if record.phases else None,
        charts=[(chart, _svg(chart)) for chart in charts],
        sections=sections(record),
        samples=_samples(record),
        contract=_contract(record),
        exports=_exports(record),
        reproduce=_reproduce(record),
        reproduce_words=_reproduce_words(record),
        rollbacks=_rollbacks(record),
        rehearsal=number(mapping(record.result.get("rehearsal")).get("rollback_seconds")),
        entries=entries,
        left_out=left_out,
        machine=_machine(record),
        model=_model(record),
        warnings=[text(warning) for warning in items(record.result.get("warnings")) if text(warning)],
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        words=words,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("scaler_wizard.report", ""), autoescape=True, finalize=_printable,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2")


def _printable(value: object) -> object:
    """Whatever reaches the page without having passed `text` loses its control characters here."""
    return text(value, 4 * MAX_TEXT) if isinstance(value, str) and not isinstance(value, Markup) else value


def _svg(chart: Chart) -> Markup:
    # Matplotlib wrote and escaped this markup itself; `label` has cut what a run's texts may put into it.
    return Markup(chart.svg)  # noqa: S704


def _tiles(record: Record) -> list[tuple[str, str, str]]:
    """(name, number, remark) of the few numbers that stand on top."""
    effective, target = words.contexts(record)
    tiles = []
    if effective is not None:
        of = f"of {target:,} tokens requested" if target else "tokens"
        tiles.append(("effective context", f"{effective:,}", of))
    tiles += _version_tiles(record) + _stage_tiles(record)
    for metric in record.metrics[:2]:
        if metric.after is not None:
            before = f"before: {words.share(metric.before)}" if metric.before is not None else ""
            tiles.append((metric.name, words.share(metric.after), before))
    cost = mapping(record.result.get("cost"))
    if (seconds := number(record.result.get("seconds") or cost.get("seconds"))) is not None:
        untrained = len(words.untrained_phases(record))
        steps = sum(phase.steps or 0 for phase in record.phases)
        remark = words.plural(steps, "step") + (
            f", {words.plural(untrained, 'phase')} untrained" if untrained else ""
        )
        tiles.append(("wall time", words.duration(seconds), remark))
    memory = mapping(record.result.get("memory"))
    if (peak := number(memory.get("measured_peak_bytes"))) is not None:
        limit = number(memory.get("limit_bytes"))
        tiles.append(("peak memory", words.size(peak), f"limit {words.size(limit)}" if limit else ""))
    return tiles


def _version_tiles(record: Record) -> list[tuple[str, str, str]]:
    """What became of the version that a file's training made, and its gap."""
    version = mapping(record.result.get("version"))
    if not version:
        return []
    tiles = [("version", "promoted" if version.get("promote") is True else "held", "")]
    gap = mapping(mapping(version.get("metrics")).get("gap"))
    if (value := number(gap.get("value"))) is not None:
        tiles.append(("train/validation gap", words.share(value), f"nats: {text(gap.get('kind'), 20)}"))
    return tiles


def _stage_tiles(record: Record) -> list[tuple[str, str, str]]:
    """How many stages passed, and what became of the violations."""
    found = bootstrap_record(record)
    if found is None:
        return []
    passed = {attempt.stage for attempt in found.passed}
    asked = whole(mapping(record.result.get("summary")).get("asked"))
    tiles = [("stages passed", str(len(passed)), f"of {asked}" if asked else "")]
    if found.safety is not None and found.safety.violated.after.value is not None:
        before = words.share(found.safety.violated.before.value)
        tiles.append(("violations", words.share(found.safety.violated.after.value), f"before: {before}"))
    return tiles


def _model(record: Record) -> Facts:
    model, rope = mapping(record.result.get("model")), mapping(record.result.get("rope"))
    source = text(mapping(record.job.get("model")).get("base_model"), 200)
    facts = [
        ("model", text(model.get("name"), 200) or source),
        ("architecture", text(model.get("architecture"), 80)),
        ("parameters", words.parameters(number(model.get("parameters"))) if model.get("parameters") else ""),
        ("weights SHA-256", text(model.get("sha256"), 80)),
        ("rotary positions", _rope(rope)),
        ("seed", words.count(number(record.result.get("seed"))) if "seed" in record.result else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _rope(rope: Mapping[str, Any]) -> str:
    method, factor = text(rope.get("method"), 40), number(rope.get("factor"))
    return f"{method}, factor {factor:.4g}" if method and factor is not None else method


def _samples(record: Record) -> list[dict[str, str]]:
    if bootstrap_record(record) is not None:
        return shown_samples(record)[: 3 * MAX_SAMPLES]
    rows = map(mapping, items(record.result.get("samples"))[:MAX_SAMPLES])
    return [
        {
            "prompt": text(row.get("prompt")),
            "text": text(row.get("text")),
            "kind": text(row.get("kind"), 60) or "sample",
        }
        for row in rows
        if row.get("prompt") or row.get("text")
    ]


def _contract(record: Record) -> Facts:
    raw = mapping(record.job.get("contract"))
    if not raw:
        return []
    names = {
        "authorized_by": "signed by", "approved_at": "signed at", "scope": "scope",
        "rollback_plan": "way back", "signoff": "signoff", "session_id": "session",
        "contract_version": "version",
    }  # fmt: skip
    facts = [(name, text(raw.get(key), 600)) for key, name in names.items()]
    try:
        contract = Contract.parse(dict(raw), "contract")
        facts.append(("contract SHA-256", contract_hash(contract)))
        facts.append(("job SHA-256", contract.job_hash))
        actual = job_hash(parse_job(dict(record.job)))
        same = "the job is the one that was signed" if actual == contract.job_hash else (
            f"the stored job does not match: its hash is {actual}"
        )  # fmt: skip
        facts.append(("checked", same))
    except SpecError as error:
        facts.append(("checked", f"cannot be checked: {error.found}"))
    return [(name, value) for name, value in facts if value]


def _exports(record: Record) -> Facts:
    export = mapping(record.result.get("export"))
    facts = [
        (kind, text(export.get(kind), 600))
        for kind in ("merged", "full", "adapter", "gguf")
        if export.get(kind)
    ]
    compared = mapping(export.get("logit_comparison"))
    if compared:
        facts.append(("compared with the trained model", _comparison(compared)))
    return facts


def _comparison(compared: Mapping[str, Any]) -> str:
    difference = number(compared.get("max_abs"))
    agreement, positions = number(compared.get("top1_agreement")), number(compared.get("positions"))
    parts = []
    if difference is not None:
        parts.append(f"largest logit difference {difference:.1e}")
    if agreement is not None:
        parts.append(f"same first choice at {agreement:.2%} of {words.count(positions)} positions")
    return "; ".join(parts) or "no number recorded"


def _reproduce_words(record: Record) -> str:
    if mapping(record.job.get("file")):
        return (
            "The run keeps its own copy of the file. A workspace learns the same content only once: "
            "drop it into another one with the same config.yaml, signed there."
        )
    return (
        "The job is stored with the run, its seed included. "
        "Sign it again, as each run is answered for by a person."
    )


def _reproduce(record: Record) -> list[str]:
    file = mapping(record.job.get("file"))
    if file:
        return [f"cp {shlex.quote(text(file.get('path'), 600))} INBOX/"]
    job = shlex.quote(str(record.path / "job.json"))
    return [f"cp {job} job.yaml", "scaler plan job.yaml", "scaler sign job.yaml", "scaler run job.yaml"]


def _rollbacks(record: Record) -> Facts:
    """(phase in words, command) for every committed phase."""
    run = shlex.quote(text(record.id, 120))
    return [
        (f"{phase.name} {phase.title}", f"scaler rollback {run} --to-phase {shlex.quote(phase.name)}")
        for phase in record.phases
        if phase.checkpoint
    ]


def _machine(record: Record) -> Facts:
    """Facts of the last attempt and of the plan's hardware, one level of nesting flattened."""
    facts: dict[str, str] = {}
    _flatten(mapping(record.plan.get("hardware")), "", facts)
    for event in record.events:
        if event.type == "run_started":
            _flatten(event.facts, "", facts)
    return list(facts.items())[:MAX_FACTS]


def _flatten(values: Mapping[str, Any], prefix: str, into: dict[str, str]) -> None:
    for key, value in list(values.items())[:MAX_FACTS]:
        name = prefix + text(key, 60).replace("_", " ")
        if isinstance(value, Mapping) and not prefix:
            _flatten(value, f"{name}: ", into)
        elif isinstance(value, list | tuple):
            into[name] = ", ".join(_fact(name, item) for item in value[:20])
        else:
            into[name] = _fact(name, value)
    for name in [name for name, value in into.items() if not value]:
        del into[name]


def _fact(name: str, value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(_pairs(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    found = number(value)
    if found is None:
        return text(value, 300)
    if _is_bytes(name):
        return words.size(found)
    return f"{found:,.0f}" if found == round(found) and abs(found) < 1e12 else words.amount(found)


def _pairs(value: Mapping[str, Any]) -> Iterable[str]:
    for key, item in list(value.items())[:20]:
        if shown := _fact(text(key, 60).replace("_", " "), item) if not isinstance(item, Mapping) else "":
            yield f"{text(key, 60).replace('_', ' ')} {shown}"


def _is_bytes(name: str) -> bool:
    return name.endswith((" bytes", "ram total", "ram available", "disk free", "memory total"))
