"""One packed row of tokens through a model: the only place where the routed engine calls it.

A content with images comes as embeddings with their rotary positions (`EmbeddedPrompt`); text as token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.inference.attention import SlotStep
from scaler_wizard.inference.experts.prompt import EmbeddedPrompt
from scaler_wizard.models.vision import is_vision_model


@dataclass(frozen=True, slots=True)
class EmbeddedSpan:
    """Tokens `start` to `end` of an embedded content, standing at `first` in the packed row."""

    first: int
    prompt: EmbeddedPrompt
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """N tokens of one pass."""

    tokens: Sequence[int]
    """Token ids; those under an embedded span are not read."""
    positions: Sequence[int]
    """Rotary positions; those under an embedded span are not read."""
    embedded: Sequence[EmbeddedSpan] = ()


def packed_logits(model: Any, packed: PackedTokens, step: SlotStep, kept: int | Tensor) -> Tensor:
    """Logits [kept, vocabulary]: of all tokens when `kept` is 0, the last ones, or those at given places.

    model: a transformers model with "scaler_slots" attention.
    """
    device = model.device
    if packed.embedded:
        return _embedded_logits(model, packed, step, kept)
    output = model(
        input_ids=torch.tensor([packed.tokens], device=device),
        position_ids=torch.tensor([packed.positions], device=device),
        use_cache=False,
        logits_to_keep=kept,
        slots=step,
    )
    logits: Tensor = output.logits[0]
    return logits


def _embedded_logits(model: Any, packed: PackedTokens, step: SlotStep, kept: int | Tensor) -> Tensor:
    device = model.device
    # A visual token's id is negative: it stands for its image and has no embedding.
    ids = torch.tensor([packed.tokens], device=device).clamp_min(0)
    embeds = model.get_input_embeddings()(ids)
    positions = torch.tensor(packed.positions, device=device).expand(3, 1, -1).clone()
    visual = torch.zeros_like(ids, dtype=torch.bool)
    levels: list[tuple[Tensor, ...]] = []
    for span in packed.embedded:
        place = slice(span.first, span.first + span.end - span.start)
        embeds[0, place] = span.prompt.embeds[span.start : span.end]
        positions[:, 0, place] = span.prompt.positions[:, span.start : span.end]
        visual[0, place] = span.prompt.visual[span.start : span.end]
        before = int(span.prompt.visual[: span.start].sum())
        there = slice(before, before + int(visual[0, place].sum()))
        levels.append(tuple(level[there] for level in span.prompt.deepstack))
    if not is_vision_model(model):
        # A text model's positions have one axis: time.
        output = model(
            inputs_embeds=embeds, position_ids=positions[0], use_cache=False, logits_to_keep=kept, slots=step
        )
        return cast(Tensor, output.logits[0])
    # The decoder itself: the whole model would look for pixels, and takes no deepstack.
    hidden = model.get_decoder()(
        inputs_embeds=embeds,
        position_ids=positions,
        visual_pos_masks=visual,
        deepstack_visual_embeds=[torch.cat(level) for level in zip(*levels, strict=True)],
        use_cache=False,
        slots=step,
    ).last_hidden_state[0]
    chosen = kept if isinstance(kept, Tensor) else slice(-kept, None) if kept else slice(None)
    return cast(Tensor, model.get_output_embeddings()(hidden[chosen]))


class _EnoughError(Exception):
    """Ends a pass after the layer whose output was wanted."""


@contextmanager
def tapped(model: Any, layer: int, *, stop: bool = False) -> Iterator[list[Tensor]]:
    """Catch the hidden states [1, N, h] after so many decoder layers of each pass made inside.

    stop: the pass ends there; nothing after that layer is computed, and the block is left.
    """
    module: nn.Module = decoder_layers(model)[layer - 1]
    caught: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        if stop:
            raise _EnoughError

    handle = module.register_forward_hook(hook)
    try:
        yield caught
    except _EnoughError:
        pass
    finally:
        handle.remove()


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a causal language model, text part of a vision-language model included.

    Raises:
        IncompatibleModelError: an architecture that keeps them elsewhere.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise IncompatibleModelError(
            f"experts on a {model.config.model_type} model",
            "a base with decoder layers of linear maps: the Llama, Qwen, Gemma, Mistral or Phi families",
            "take a base of one of these families",
        )
    return layers
