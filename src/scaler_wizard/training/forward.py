"""One micro-batch through a model to a loss: the only place that knows how models and losses meet.

The loop calls an `Objective`; a faster forward pass, attention or loss replaces what is here, not the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from scaler_wizard.data.batches import MicroBatch
from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.losses.registry import LOSSES, ObjectiveName
from scaler_wizard.losses.sft import Head, LossResult, head_logits
from scaler_wizard.models.alora import activated, is_activated, repeated_activation
from scaler_wizard.training.attention import packed_attention
from scaler_wizard.training.fast_path import fast_path

Objective = Callable[[Any, MicroBatch], LossResult]
"""(model, micro-batch) -> loss sum, targets, metrics."""


def make_objective(name: ObjectiveName) -> Objective:
    """The objective of a name: final hidden states, then its loss from the registry."""
    loss = LOSSES[name]

    def objective(model: Any, micro: MicroBatch) -> LossResult:
        return loss(hidden_states(model, micro), head_of(model), micro.labels)

    return objective


def base_of(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: Any, micro: MicroBatch) -> Tensor:
    """Final hidden states [1, T, H] of a packed micro-batch, before the LM head."""
    base = base_of(model)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return _prompted_hidden_states(model, base, micro)
    with _activation(model, micro):
        output = base.get_decoder()(
            **_inputs(base, micro), use_cache=False, segment_lengths=micro.segment_lengths
        )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _inputs(base: Any, micro: MicroBatch) -> dict[str, Any]:
    """What the decoder reads: token ids, or where there are pictures the embeddings with these in place."""
    if micro.visual is None:
        return {"input_ids": micro.input_ids, "position_ids": micro.position_ids}
    seen = micro.visual
    embeds = base.get_input_embeddings()(micro.input_ids)
    return {
        "inputs_embeds": embeds.masked_scatter(seen.mask[..., None], seen.embeds.to(embeds.dtype)),
        "position_ids": seen.positions,
        "visual_pos_masks": seen.mask,
        "deepstack_visual_embeds": list(seen.deepstack),
    }


def _activation(model: Any, micro: MicroBatch) -> AbstractContextManager[None]:
    """Tells an activated adapter its tokens, for this forward pass only.

    Raises:
        IncompatibleModelError: no row of the micro-batch says where the adapter begins.
    """
    if not is_activated(model):
        return nullcontext()
    if micro.active is None:
        raise IncompatibleModelError(
            "rows that never invoke the activated adapter that is being trained",
            "the adapter's invocation tokens in the rows",
            "mark the rows with data.activation.activate, or train a plain lora",
        )
    return activated(micro.active)


def _prompted_hidden_states(model: Any, base: Any, micro: MicroBatch) -> Tensor:
    """Hidden states behind a learned prefix, which only PEFT's own forward pass puts in front."""
    assert len(micro.segment_lengths) == 1, "a prefix belongs to one row; use Batches(packed=False)"
    caught: list[Tensor] = []
    hook = base.get_decoder().register_forward_hook(lambda *call: caught.append(call[-1].last_hidden_state))
    try:
        model(
            input_ids=micro.input_ids,
            attention_mask=torch.ones_like(micro.input_ids),
            use_cache=True,
            logits_to_keep=1,
        )
    finally:
        hook.remove()
    return caught[0][:, -micro.n_tokens :]


def head_of(model: Any) -> Head:
    """The LM head as `losses.sft` takes it.

    Raises:
        IncompatibleModelError: a head that is not one linear layer (an adapter on it, say).
    """
    base = base_of(model)
    layer = base.get_output_embeddings()
    # PEFT keeps a wholly trained head (modules_to_save) as a copy beside the frozen one.
    copies = getattr(layer, "modules_to_save", None)
    if copies is not None:
        layer = copies[layer.active_adapters[0]]
    if type(layer) is not nn.Linear:
        raise IncompatibleModelError(
            f"the LM head is a {type(layer).__name__}",
            "one linear layer",
            "take lm_head out of target_modules",
        )
    config = base.config
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer.weight, layer.bias, float(scale), getattr(config, "final_logit_softcapping", None))


@torch.no_grad()
def check_head(model: Any, *, tolerance: float = 1e-3) -> None:
    """Compare the model's own logits on 8 tokens with ours from its hidden states, once, before training.

    Raises:
        IncompatibleModelError: they differ by more than `tolerance` of the largest logit: the model does
            something to its logits that this training does not know.
    """
    base = base_of(model)
    ids = torch.arange(8, device=base.device)[None] % base.config.get_text_config().vocab_size
    caught: list[Tensor] = []
    hook = base.get_decoder().register_forward_hook(lambda *call: caught.append(call[-1].last_hidden_state))
    try:
        theirs = base(input_ids=ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    ours = head_logits(caught[0], head_of(model)).float()
    worst = (ours - theirs).abs().max().item() / max(theirs.abs().max().item(), 1e-12)
    if not worst <= tolerance:
        raise IncompatibleModelError(
            f"{type(base).__name__} changes its logits after the LM head (ours differ by {worst:.1%})",
            "logits = softcap(scale * head(hidden))",
            "use a model of the Llama, Qwen, Gemma, Mistral or Phi families",
        )


@contextmanager
def training_mode(
    model: Any, *, activation_checkpointing: bool = False, fused: bool = True
) -> Iterator[None]:
    """Train mode, packed attention, fused layers and (if asked) activation checkpointing.

    All undone, and eval mode, after. Weights must not change inside.
    """
    base = base_of(model)
    prompted = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    if activation_checkpointing:
        # The backward pass repeats a layer's forward, perhaps in another thread: with the same active tokens.
        base.activation_checkpointing_enable({"use_reentrant": False, "context_fn": repeated_activation})
    try:
        model.train()
        with ExitStack() as stack:
            if not prompted:
                stack.enter_context(packed_attention(base))
            if fused:
                stack.enter_context(fast_path(model))
            yield
    finally:
        model.eval()
        if activation_checkpointing:
            base.activation_checkpointing_disable()
