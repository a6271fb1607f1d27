"""The history of a workspace's runs in words: decisions of the state database, as sentences with times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scaler_wizard.report.values import mapping, number, text

MAX_WORDS = 300


@dataclass(frozen=True)
class Told:
    """One thing that happened."""

    time: float
    """Unix time in seconds."""
    subject: str
    """File or run that it happened to."""
    words: str


def tell_run(subject: str, history: Iterable[Mapping[str, Any]]) -> list[Told]:
    """A run's history rows ({time, kind, data}) in words; what says nothing new is left out."""
    told = []
    for row in history:
        words = _sentence(text(row.get("kind"), 40), mapping(row.get("data")))
        if words:
            told.append(Told(number(row.get("time")) or 0.0, subject, words[:MAX_WORDS]))
    return told


def tell_inbox(files: Iterable[Mapping[str, Any]]) -> list[Told]:
    """What was seen in the inbox, in words."""
    return [
        Told(
            number(file.get("seen")) or 0.0,
            text(file.get("name"), 120),
            ": ".join(part for part in (text(file.get("outcome"), 20), text(file.get("note"), 240)) if part),
        )
        for file in files
    ]


def _sentence(kind: str, data: Mapping[str, Any]) -> str:
    match kind:
        case "created":
            return f"filed as a {text(data.get('recipe'), 20)} job"
        case "status":
            why = text(data.get("error"), 240)
            return f"{text(data.get('from'), 20)} -> {text(data.get('to'), 20)}" + (
                f" ({why})" if why else ""
            )
        case "phase":
            if data.get("status") != "done":
                return ""
            return f"phase {text(data.get('phase'), 20)} committed as {text(data.get('checkpoint'), 60)}"
        case "rollback":
            return f"rolled back to {text(data.get('phase'), 20)}"
        case _:
            said = (f"{text(key, 40)} {text(str(value), 120)}" for key, value in data.items() if value)
            return f"{kind.replace('_', ' ')}: {', '.join(said)}" if data else kind.replace("_", " ")
