"""Bulk generation for any causal language model: on slots where the model allows it, else by whole rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import nn

from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.inference.attention import supports_slots
from scaler_wizard.inference.engine import serving
from scaler_wizard.inference.modes import InferenceLimits, current_limits, measuring
from scaler_wizard.inference.requests import Generation, Request
from scaler_wizard.inference.whole_rows import generate_group, group_requests


class EndsTurns(Protocol):
    """What stop tokens are read from, besides the model."""

    eos_token_id: int | None


def stop_token_ids(model: nn.Module, tokenizer: EndsTurns) -> frozenset[int]:
    """Every token that ends a turn: the tokenizer's end token and those of the generation config."""
    config: Any = getattr(model, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(int(token) for token in [*ids, tokenizer.eos_token_id] if token is not None)


def _ignore(index: int, generation: Generation) -> None:
    """The default of `on_finished`."""


def generate(
    model: nn.Module,
    requests: Sequence[Request],
    *,
    limits: InferenceLimits | None = None,
    on_finished: Callable[[int, Generation], None] = _ignore,
    on_progress: OnProgress = no_progress,
) -> list[Generation]:
    """Generate for every request; results in the order of the requests.

    on_finished: called with (index of the request, its result) as each ends, for callers that write results
    down at once and resume without them: what runs beside a request does not change its result. It must not
    use the model.

    In fp32 greedy equals `model.generate` one prompt at a time.
    """
    limits = limits or current_limits()
    results: dict[int, Generation] = {}

    def finish(index: int, generation: Generation) -> None:
        results[index] = generation
        on_finished(index, generation)
        on_progress(len(results), len(requests))

    if supports_slots(model):
        with serving(model, limits) as engine:
            for request in requests:
                engine.submit(request)
            while engine.unfinished:
                for index, generation in engine.step():
                    finish(index, generation)
    else:
        with measuring(model):
            for indices in group_requests(requests, limits):
                found = generate_group(model, [requests[index] for index in indices], limits)
                for index, generation in zip(indices, found, strict=True):
                    finish(index, generation)
    return [results[index] for index in range(len(requests))]
