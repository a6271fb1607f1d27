"""A second opinion on answers: a classifier with the interface of Llama Guard, here or at an address.

It is shown a request and its answer as a conversation and replies "safe", or "unsafe" with categories on the
next line. Any causal model that was taught to reply so can be one. What it says is kept; what becomes of the
answer is the caller's decision. A reply that is neither is no verdict, and never counts as safe.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn

from scaler_wizard.errors import SafetyFilterError
from scaler_wizard.inference.generate import generate, stop_token_ids
from scaler_wizard.inference.requests import Request
from scaler_wizard.models.load import load_model

MAX_REPLY_TOKENS = 32
MAX_REPLY_BYTES = 1 << 20
Exchange = tuple[str, str]
"""(request, answer)."""


@dataclass(frozen=True, slots=True)
class FilterDecision:
    """What the filter says of one exchange."""

    safe: bool | None
    """None where the reply is no verdict."""
    categories: tuple[str, ...]
    """As the filter names them: S1, S9...; none where it is safe."""
    reply: str
    """Its words, the first 200 characters."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


class SafetyFilter(Protocol):
    """What judges exchanges."""

    def judge(self, exchanges: Sequence[Exchange]) -> list[FilterDecision]:
        """One decision for each, in order.

        Raises:
            SafetyFilterError: no answer, or one that cannot be read.
        """


def read_verdict(reply: str) -> FilterDecision:
    """A Llama Guard reply: "safe" or "unsafe" on the first line, categories and commas on the second."""
    lines = [line.strip() for line in reply.strip().splitlines() if line.strip()]
    word = lines[0].casefold() if lines else ""
    if word == "safe":
        return FilterDecision(True, (), reply[:200])
    if word == "unsafe":
        named = lines[1].split(",") if len(lines) > 1 else []
        categories = tuple(name.strip()[:40] for name in named if name.strip())
        return FilterDecision(False, categories, reply[:200])
    return FilterDecision(None, (), reply[:200])


@dataclass(frozen=True)
class ModelFilter:
    """A filter in this process."""

    model: nn.Module
    tokenizer: Any

    def judge(self, exchanges: Sequence[Exchange]) -> list[FilterDecision]:
        """See `SafetyFilter.judge`. Greedy, so that equal exchanges get equal decisions."""
        stops = stop_token_ids(self.model, self.tokenizer)
        requests = [Request(self._prompt(one), MAX_REPLY_TOKENS, stops) for one in exchanges]
        return [
            read_verdict(self.tokenizer.decode(list(found.tokens), skip_special_tokens=True))
            for found in generate(self.model, requests)
        ]

    def _prompt(self, exchange: Exchange) -> tuple[int, ...]:
        text = self.tokenizer.apply_chat_template(
            conversation(exchange), tokenize=False, add_generation_prompt=True
        )
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)


def load_filter(ref: str, *, dtype: Any, device: str) -> ModelFilter:
    """A filter from a model directory or the local cache; never downloads.

    Raises:
        ModelError: see `models.load.load_model`. SafetyFilterError: a model without a chat template.
    """
    loaded = load_model(ref, dtype=dtype, device=device)
    if not loaded.tokenizer.chat_template:
        raise SafetyFilterError(
            f"the safety filter {ref} has no chat template", "a model with the interface of Llama Guard",
            "name another model in constitution.safety_filter.model, or take the section out",
        )  # fmt: skip
    return ModelFilter(loaded.model, loaded.tokenizer)


@dataclass(frozen=True)
class EndpointFilter:
    """A filter behind an OpenAI-compatible server (vLLM, llama.cpp) that applies its chat template."""

    endpoint: str
    """Up to and without /v1/chat/completions."""
    model: str
    """The name that the server knows it by."""
    timeout_sec: float = 60.0

    def judge(self, exchanges: Sequence[Exchange]) -> list[FilterDecision]:
        """See `SafetyFilter.judge`."""
        return [read_verdict(self._ask(exchange)) for exchange in exchanges]

    def _ask(self, exchange: Exchange) -> str:
        body = {
            "model": self.model, "messages": conversation(exchange), "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }  # fmt: skip
        request = urllib.request.Request(  # noqa: S310 (the spec lets http and https through, nothing else)
            f"{self.endpoint.rstrip('/')}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_sec) as answer:  # noqa: S310
                value = json.loads(answer.read(MAX_REPLY_BYTES))
            reply = value["choices"][0]["message"]["content"]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            # URLError and timeouts are OSErrors; a proxy's HTML page is a ValueError.
            reason = getattr(error, "reason", error)
            raise SafetyFilterError(
                f"the safety filter at {self.endpoint} gave no answer ({type(error).__name__}: {reason})",
                "an OpenAI-compatible server that replies safe or unsafe",
                "start it, correct constitution.safety_filter.endpoint, or take the section out; then resume",
            ) from None
        return reply if isinstance(reply, str) else ""


def conversation(exchange: Exchange) -> list[dict[str, str]]:
    """The exchange as a filter's chat template takes it: it judges the last turn."""
    request, answer = exchange
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
