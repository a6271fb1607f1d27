"""Vibe snapshots: what was measured at the end of each phase, and the difference of two in words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from scaler_wizard.errors import RunError
from scaler_wizard.store.durable import json_text, write_atomic
from scaler_wizard.store.names import safe_name
from scaler_wizard.store.rundir import RunDir


@dataclass(frozen=True)
class Snapshot:
    """Metrics of one phase."""

    phase: str
    time: float
    """Unix time in seconds."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """By name. `changelog` has words for context_tokens, perplexity, accuracy, context_retention, vibe,
    tokens_per_sec and vocabulary_size; others are said as they are called."""


def write_snapshot(run: RunDir, snapshot: Snapshot) -> None:
    """Store a phase's snapshot durably, replacing an earlier one of the same phase."""
    name = safe_name(f"{snapshot.phase}.json", "phase")
    run.snapshots.mkdir(mode=0o700, exist_ok=True)
    write_atomic(run.snapshots / name, json_text(asdict(snapshot)), fs=run.fs)


def read_snapshots(run: RunDir) -> list[Snapshot]:
    """All snapshots of a run, oldest first.

    Raises:
        RunError: one of them is damaged.
    """
    found = []
    for path in run.snapshots.glob("*.json"):
        try:
            value = json.loads(path.read_bytes())
            metrics = {str(k): float(v) for k, v in value["metrics"].items() if v is not None}
            found.append(Snapshot(str(value["phase"]), float(value["time"]), metrics))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(
                f"the snapshot {path} is damaged ({error})", "", f"delete {path}; it is only shown"
            ) from None
    return sorted(found, key=lambda snapshot: (snapshot.time, snapshot.phase))


def changelog(before: Snapshot, after: Snapshot) -> str:
    """What changed from one phase to another, in words. Pure.

    "context doubled, accuracy -3%, perplexity +0.02": context first, then quality; shares in percentage
    points, others as difference. What did not change visibly is left out; "no measured change" when
    nothing did. Only metrics that both snapshots have are compared.
    """
    shared = before.metrics.keys() & after.metrics.keys()
    names = [name for name in _WORDS if name in shared] + sorted(shared - _WORDS.keys())
    said = []
    for name in names:
        old, new = before.metrics[name], after.metrics[name]
        if math.isfinite(old) and math.isfinite(new):
            title, word = _WORDS.get(name, (name.replace("_", " "), _difference))
            said.append(f"{title} {change}" if (change := word(old, new)) else "")
    return ", ".join(filter(None, said)) or "no measured change"


def _times(old: float, new: float) -> str:
    if old == new or old <= 0 or new <= 0:
        return ""
    factor = new / old
    if factor == 2:
        return "doubled"
    if factor == 0.5:
        return "halved"
    if factor > 1:
        return f"x{factor:.3g}"
    return f"down to {new:,.0f}"


def _points(old: float, new: float) -> str:
    points = round(100 * (new - old))
    return f"{points:+d}%" if points else ""


def _difference(old: float, new: float) -> str:
    counts = old.is_integer() and new.is_integer() and max(abs(old), abs(new)) > 1
    text = f"{new - old:+.0f}" if counts else f"{new - old:+.2f}"
    return "" if float(text) == 0 else text


def _relative(old: float, new: float) -> str:
    if old <= 0:
        return ""
    percent = round(100 * (new / old - 1))
    return f"{percent:+d}%" if percent else ""


def _count(old: float, new: float) -> str:
    return f"{int(new - old):+,d}" if int(new - old) else ""


_WORDS: dict[str, tuple[str, Callable[[float, float], str]]] = {
    "context_tokens": ("context", _times),
    "accuracy": ("accuracy", _points),
    "perplexity": ("perplexity", _difference),
    "context_retention": ("context retention", _points),
    "vibe": ("vibe", _difference),
    "tokens_per_sec": ("speed", _relative),
    "vocabulary_size": ("vocabulary", _count),
}
