"""The probes by name. A new probe is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from scaler_wizard.evals.multi_key import multi_key_probe
from scaler_wizard.evals.needle import needle_probe
from scaler_wizard.evals.nll import same_target_nll, short_context_nll
from scaler_wizard.evals.qa import qa_probe
from scaler_wizard.evals.recency import recency_probe
from scaler_wizard.evals.results import ProbeResult
from scaler_wizard.evals.sanity import sanity_probe
from scaler_wizard.evals.tasks import task_probe


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe: `run(model, tokenizer, inputs, settings, on_progress)`."""

    run: Callable[..., ProbeResult]
    inputs: Literal["documents", "rows", "prompts"]
    """Held-out texts, task rows, or prompts."""
    title: str


PROBES: Final[dict[str, Probe]] = {
    "same_target_nll": Probe(
        same_target_nll, "documents", "loss of the same targets, long against base window"
    ),
    "short_context_nll": Probe(short_context_nll, "documents", "loss within the base context"),
    "needle": Probe(needle_probe, "documents", "needles at depths"),
    "multi_key": Probe(multi_key_probe, "documents", "one of several needles"),
    "recency": Probe(recency_probe, "documents", "the latest of repeated assignments"),
    "qa": Probe(qa_probe, "documents", "cloze questions, four choices"),
    "tasks": Probe(task_probe, "rows", "exactly checked answers"),
    "sanity": Probe(sanity_probe, "prompts", "two greedy and two sampled texts"),
}
