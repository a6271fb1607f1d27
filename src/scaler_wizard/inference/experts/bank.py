"""The experts of one base: their adapters in memory, by content hash, each checked before it may serve.

An adapter that does not fit is refused with what was found, never loaded in part: peers that look up tensors
by name serve the bare base when a prefix is wrong. One that fits must change what the base says of a probe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from scaler_wizard.errors import ExpertError, IncompatibleModelError, UnknownExpertError
from scaler_wizard.inference.attention import Piece, PrefillStep, slots_attached, supports_slots
from scaler_wizard.inference.experts.forward import PackedTokens, packed_logits
from scaler_wizard.inference.experts.layers import (
    AdapterWeights,
    StackCache,
    adapters_attached,
    applying,
    group_weights,
    plan_pass,
)
from scaler_wizard.inference.experts.prompt import BASE
from scaler_wizard.inference.experts.sites import adaptable_linears, adapter_pairs
from scaler_wizard.inference.modes import measuring, vocabulary_size
from scaler_wizard.inference.requests import Request
from scaler_wizard.inference.slab import Row, Slab
from scaler_wizard.models.adapter_io import read_adapter_config, read_adapter_tensors
from scaler_wizard.models.hashing import state_hash
from scaler_wizard.models.rope import base_model

PROBE_TOKENS: Final = 16
# Logits of the probe must move by this share of the largest: rounding in fp32 moves them by 1e-6.
LEAST_EFFECT: Final = 1e-5

Mode = Literal["alora", "lora"]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter in memory."""

    hash: str
    """SHA-256 (hex) of its tensors and of what its configuration says about them."""
    weights: AdapterWeights
    invocation: tuple[int, ...] | None
    """Tokens that switch an activated adapter on; None: a plain LoRA, on from the first token."""

    @property
    def mode(self) -> Mode:
        """ "alora": shares the base's reading of the content; "lora": reads all of it itself."""
        return "lora" if self.invocation is None else "alora"


@dataclass(frozen=True, slots=True)
class Expert:
    """An adapter under a label."""

    label: str
    adapter: Adapter
    start: tuple[int, ...]
    """Tokens between the content and the answer: the invocation, or what a plain LoRA was trained with."""

    @property
    def mode(self) -> Mode:
        """See `Adapter.mode`."""
        return self.adapter.mode


class Bank:
    """Adapters of one base model. What it holds may grow while an engine runs; nothing of it changes."""

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: a base model, without an adapter.

        Raises:
            IncompatibleModelError: its attention cannot go on from keys and values that others made.
        """
        assert base_model(model) is model, "a bank adapts the base, not a model with an adapter"
        if not supports_slots(model):
            raise IncompatibleModelError(
                f"experts on a {type(model).__name__} whose attention or positions depend on the whole row",
                "causal softmax attention whose rotary frequencies do not follow the length",
                "take another base, or another RoPE method (yarn, llama3, linear, ntk)",
            )
        self.model: Any = model
        self.linears = adaptable_linears(model)
        self._adapters: dict[str, Adapter] = {}
        self._experts: dict[str, Expert] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the experts, in the order they were added."""
        return tuple(self._experts)

    @property
    def nbytes(self) -> int:
        """Bytes of all adapters held."""
        return sum(adapter.weights.nbytes for adapter in self._adapters.values())

    def add(self, label: str, directory: Path, *, start: Sequence[int] = ()) -> Expert:
        """Load an expert from a PEFT directory.

        start: for a plain LoRA, the tokens between content and answer that it was trained with; an activated
            one brings its own.

        Raises:
            ExpertError: the label is taken, the adapter is there under another label, has no effect or does
                not fit. ModelError: see `models.adapter_io.load_adapter`.
        """
        if label == BASE or label in self._experts:
            raise ExpertError(
                f'the label "{label}" for the adapter in {directory} is taken',
                f'a label of its own for each expert; "{BASE}" is the base model\'s',
                "give one of the two experts another label",
            )
        adapter = self._read(directory)
        for held in self._experts.values():
            if held.adapter.hash == adapter.hash:
                raise ExpertError(
                    f'the experts "{held.label}" and "{label}" are one adapter (content {adapter.hash[:12]})',
                    "adapters that differ, or one label",
                    "point one of the labels to the adapter that was meant",
                )
        if adapter.invocation is not None and start and tuple(start) != adapter.invocation:
            raise ExpertError(
                f"start tokens {list(start)[:8]} for the activated adapter in {directory}",
                f"its invocation, {list(adapter.invocation)[:8]}",
                "leave the start tokens out: an activated adapter brings its own",
            )
        self._adapters[adapter.hash] = adapter
        expert = Expert(label, adapter, tuple(start) if adapter.invocation is None else adapter.invocation)
        self._experts[label] = expert
        return expert

    def load(self, directory: Path) -> Adapter:
        """Load an adapter that is nobody's expert: a router's own. Errors as in `add`."""
        adapter = self._read(directory)
        return self._adapters.setdefault(adapter.hash, adapter)

    def expert(self, label: str) -> Expert:
        """The expert of a label.

        Raises:
            UnknownExpertError: there is none.
        """
        if label not in self._experts:
            raise UnknownExpertError(
                f'no expert "{label[:80]}"',
                f"one of: {', '.join(self._experts) or 'none, this bank is empty'}",
                "correct the label, or add the expert's adapter",
            )
        return self._experts[label]

    def adapter(self, content: str) -> Adapter:
        """The adapter of a content hash.

        Raises:
            UnknownExpertError: it was not loaded.
        """
        if content not in self._adapters:
            raise UnknownExpertError(
                f"no adapter with the content {content[:12]}",
                f"one of the {len(self._adapters)} loaded ones",
                "load the adapter's directory first, or check that its files are those that were promoted",
            )
        return self._adapters[content]

    def _read(self, directory: Path) -> Adapter:
        config = read_adapter_config(directory)
        if config.peft_type != "LORA":
            raise ExpertError(f"a {config.peft_type} adapter in {directory}", "a LoRA adapter")
        invocation = getattr(config, "alora_invocation_tokens", None)
        tokens = None if invocation is None else tuple(invocation)
        if tokens is not None and max(tokens) >= vocabulary_size(self.model):
            raise ExpertError(
                f"the adapter in {directory} is invoked by token {max(tokens)}",
                f"token ids below {vocabulary_size(self.model)}, the base's vocabulary",
                "use the base model the adapter was trained on",
            )
        tensors = read_adapter_tensors(directory)
        weights = group_weights(adapter_pairs(self.model, self.linears, config, tensors, directory))
        meaning = {"r": config.r, "alpha": config.lora_alpha, "rslora": config.use_rslora, "on": tokens}
        digest = hashlib.sha256(json.dumps([state_hash(tensors), meaning], sort_keys=True).encode())
        adapter = Adapter(digest.hexdigest(), weights, tokens)
        if adapter.hash not in self._adapters:
            self._refuse_without_effect(adapter, directory)
        return adapter

    def _refuse_without_effect(self, adapter: Adapter, directory: Path) -> None:
        """The canary: on a probe, the model with the adapter must say something else than without."""
        vocabulary = vocabulary_size(self.model)
        probe = [i * (vocabulary - 1) // (PROBE_TOKENS - 1) for i in range(PROBE_TOKENS)]
        with measuring(self.model), slots_attached(self.model), adapters_attached(self.linears):
            without, on = self._probe(probe, None), self._probe(probe, adapter.weights)
        effect, scale = float((on - without).abs().max()), float(without.abs().max())
        if not on.isfinite().all():
            raise ExpertError(
                f"with the adapter in {directory} the base answers with numbers that are not finite",
                "an adapter that was trained on this base, in a format whose range it fits",
                "check how the adapter was trained",
            )
        if effect <= LEAST_EFFECT * scale:
            raise ExpertError(
                f"the adapter in {directory} changes nothing: logits of a probe move by {effect:.1e}",
                f"a trained adapter (more than {LEAST_EFFECT * scale:.1e})",
                "train the adapter, or leave the expert out: it would answer exactly as the base",
            )

    def _probe(self, tokens: list[int], weights: AdapterWeights | None) -> Tensor:
        """Logits [probe tokens, vocabulary] with an adapter on all of them, in float32."""
        row = Row(0, Request(tuple(tokens), 1), tokens, len(tokens), len(tokens), len(tokens))
        row.slab = Slab(len(tokens), [row])
        step = PrefillStep([Piece(row, 0, len(tokens))], self.model.device)
        chosen = plan_pass([weights] * len(tokens), StackCache(), torch.device("cpu"))
        with applying(chosen):
            return packed_logits(self.model, PackedTokens(tokens, range(len(tokens))), step, 0).float()
