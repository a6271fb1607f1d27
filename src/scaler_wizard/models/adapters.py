"""What is trained on top of a base model: LoRA, QLoRA, a prefix, or all weights.

Adapters are PEFT's. Their initial values depend on the seed alone, they are kept in float32 on a base of
any format, and no training loop is known here. Files of adapters are `adapter_io`'s work; merged views
(`folded`) and the reference without adapters (`adapters_off`) are `adapter_fold`'s. All three are
reached through this module.

New vocabulary (`vocabulary.grow_vocabulary`) is grown before an adapter is attached. Its embedding rows
then stay at their mean-of-parts values while the adapters learn around them; strategy "full" trains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from peft import LoraConfig, PeftModel, PrefixTuningConfig, TaskType
from torch import Tensor, nn

from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.models.adapter_fold import adapters_off, folded, lora_layers
from scaler_wizard.models.adapter_io import (
    adapter_state,
    load_adapter,
    load_adapter_state,
    save_adapter,
    wrap,
)
from scaler_wizard.models.vision import is_vision_model

__all__ = [
    "ATTENTION_LINEARS",
    "adapter_state",
    "adapters_off",
    "attach",
    "attach_lora",
    "attach_prefix",
    "folded",
    "load_adapter",
    "load_adapter_state",
    "lora_layers",
    "prepare_full",
    "prepare_qlora",
    "save_adapter",
    "trainable_parameters",
]

Strategy = Literal["lora", "qlora", "full", "prefix_tuning"]
TargetModules = Sequence[str] | Literal["all-linear", "attention"]

# Names of attention projections across the architectures of transformers, separate and fused.
ATTENTION_LINEARS = frozenset({
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "dense", "c_attn",
    "Wqkv", "W_pack", "wq", "wk", "wv", "wo",
})  # fmt: skip


def attach(
    model: Any,
    strategy: Strategy,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    target_modules: TargetModules = "all-linear",
    use_rslora: bool = False,
    alora_invocation_tokens: Sequence[int] | None = None,
    virtual_tokens: int = 16,
    seed: int = 0,
) -> Any:
    """Make a loaded model ready for one strategy; returns the model to train.

    Raises:
        IncompatibleModelError: see the function of each strategy.
    """
    if strategy == "full":
        return prepare_full(model)
    if strategy == "prefix_tuning":
        return attach_prefix(model, virtual_tokens, seed)
    if strategy == "qlora":
        prepare_qlora(model)
    return attach_lora(
        model, rank=rank, alpha=alpha, dropout=dropout, target_modules=target_modules,
        use_rslora=use_rslora, alora_invocation_tokens=alora_invocation_tokens, seed=seed,
    )  # fmt: skip


def attach_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: TargetModules = "all-linear",
    use_rslora: bool = False,
    alora_invocation_tokens: Sequence[int] | None = None,
    seed: int = 0,
) -> PeftModel:
    """LoRA (Hu et al. 2021): W x + (alpha / rank) B A x, B zero at first; alpha / sqrt(rank) with rsLoRA.

    Adapter weights are float32 whatever the base is. "all-linear" is every linear layer but the LM
    head, "attention" those of `ATTENTION_LINEARS`; names are the last part of a layer's, or
    the whole; the base is frozen.

    With `alora_invocation_tokens` it is an activated LoRA (arXiv:2504.12397): it acts from those tokens on,
    and everything before is the base's. Rows say where that is (`data.activation`), forward passes are told
    (`alora.activated`).

    Raises:
        IncompatibleModelError: no linear layer of those names, or an adapter is attached already.
    """
    _refuse_wrapped(model)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,  # a float is fine: PEFT only divides it
        lora_dropout=dropout,
        target_modules=_targets(model, target_modules),
        use_rslora=use_rslora,
        bias="none",
        alora_invocation_tokens=None if alora_invocation_tokens is None else list(alora_invocation_tokens),
    )
    return wrap(model, config, seed)


def attach_prefix(model: Any, virtual_tokens: int, seed: int = 0) -> PeftModel:
    """Prefix tuning (Li and Liang 2021): trained keys and values before every sequence, base frozen.

    Raises:
        IncompatibleModelError: an adapter is attached already.
    """
    _refuse_wrapped(model)
    config = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=virtual_tokens)
    return wrap(model, config, seed)


def prepare_full(model: Any) -> Any:
    """Train every weight. With weights below float32 the optimiser must keep float32 masters.

    Raises:
        IncompatibleModelError: the weights are quantised, or an adapter is attached.
    """
    _refuse_wrapped(model)
    if getattr(model, "is_quantized", False):
        raise IncompatibleModelError(
            "full training of 4-bit weights", "16 or 32-bit weights", "set scaling.strategy to qlora or lora"
        )
    return model.requires_grad_(True)


def prepare_qlora(model: Any) -> Any:
    """Freeze a 4-bit base for adapters. Norms and embeddings stay in their 16-bit format.

    Raises:
        IncompatibleModelError: the model was not loaded in 4 bit.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        raise IncompatibleModelError(
            "qlora on a model that is not loaded in 4 bit",
            "a base loaded with quantize_4bit on a CUDA GPU",
            "set scaling.strategy to lora where there is no GPU",
        )
    return model.requires_grad_(False)


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that take gradients by name, in the model's own order; tied ones once."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _refuse_wrapped(model: Any) -> None:
    if isinstance(model, PeftModel):
        raise IncompatibleModelError(
            "an adapter on a model that has one already",
            "a base model",
            "merge the first adapter (models.merge), then attach the next one",
        )


def _targets(model: Any, wanted: TargetModules) -> str | list[str]:
    """PEFT's target_modules: names that occur in the model, or its own "all-linear".

    Of a vision-language model those of the decoder alone: with its tower as it is, a picture is encoded once
    for all adapters.
    """
    sees = is_vision_model(model)
    if wanted == "all-linear" and not sees:
        return "all-linear"
    head = model.get_output_embeddings()
    present = {
        name.rpartition(".")[2]
        for name, module in (model.get_decoder() if sees else model).named_modules()
        if module is not head and _is_linear(module)
    }
    if wanted == "all-linear":
        return sorted(present)
    names = sorted(ATTENTION_LINEARS & present) if wanted == "attention" else sorted(set(wanted))
    whole = {name for name, module in model.named_modules() if module is not head and _is_linear(module)}
    unknown = sorted(set(names) - present - whole)
    if unknown or not names:
        raise IncompatibleModelError(
            f"target_modules {', '.join(unknown) or wanted!r} in a {model.config.model_type} model",
            f"linear layers of this model: {', '.join(sorted(present))}",
            'correct lora.target_modules, or use "all-linear"',
        )
    return names


def _is_linear(module: nn.Module) -> bool:
    # GPT-2's Conv1D is a linear layer with a transposed weight; bitsandbytes' layers derive from Linear.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
