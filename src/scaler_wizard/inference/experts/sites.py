"""Which tensor of an adapter's file belongs to which layer of the base: all of them, exactly, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from scaler_wizard.errors import ExpertError
from scaler_wizard.inference.experts.forward import decoder_layers

PREFIX: Final = "base_model.model."
_MATRICES: Final = {".lora_A.weight": 0, ".lora_B.weight": 1}


def adaptable_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers of the decoder by qualified name: not the LM head, not a vision tower."""
    inside = {id(module) for module in decoder_layers(model).modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear)
    }


def adapter_pairs(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    config: Any,
    tensors: Mapping[str, Tensor],
    directory: Path,
) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer A [r, in] and s B^T [r, out], in the base's format and on its device.

    config: a `LoraConfig` as `models.adapter_io` reads it. Ranks are those of the configuration.

    Raises:
        ExpertError: a tensor that is not a LoRA matrix of a decoder's linear layer, a targeted layer without
            one, or another shape.
    """
    found = _by_layer(linears, tensors, directory)
    wanted = _targeted(model, config.target_modules)
    if found.keys() != wanted:
        missing, extra = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
        what = [f"{len(names)} {word} ({names[0]})" for word, names in (("without tensors", missing),
                ("not among its target modules", extra)) if names]  # fmt: skip
        raise ExpertError(
            f"the adapter in {directory} has layers of this base {' and '.join(what)}",
            f"tensors for exactly the {len(wanted)} layers that its target_modules name",
            "use the base model the adapter was trained on",
        )
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    reference = next(iter(linears.values())).weight
    dtype: Any = reference.dtype if reference.is_floating_point() else model.dtype
    pairs = {}
    for site, (a, b) in found.items():
        layer = linears[site]
        expected = ((config.r, layer.in_features), (layer.out_features, config.r))
        if (tuple(a.shape), tuple(b.shape)) != expected:
            raise ExpertError(
                f"the adapter in {directory} has A {list(a.shape)} and B {list(b.shape)} for {site}",
                f"A {list(expected[0])} and B {list(expected[1])}",
                "use the base model the adapter was trained on",
            )
        # Scaled in float32 and rounded once.
        scaled = (b.float() * scale).T.contiguous()
        pairs[site] = (a.to(reference.device, dtype), scaled.to(reference.device, dtype))
    return pairs


def _by_layer(
    linears: Mapping[str, nn.Linear], tensors: Mapping[str, Tensor], directory: Path
) -> dict[str, tuple[Tensor, Tensor]]:
    halves: dict[str, dict[int, Tensor]] = {}
    for name, value in tensors.items():
        suffix = next((suffix for suffix in _MATRICES if name.endswith(suffix)), None)
        site = name.removeprefix(PREFIX).removesuffix(suffix or "")
        if suffix is None or not name.startswith(PREFIX) or site not in linears:
            example = next(iter(linears))
            raise ExpertError(
                f'the adapter in {directory} has a tensor "{name[:160]}", of no linear layer of this decoder',
                f'names such as "{PREFIX}{example}.lora_A.weight"',
                "use the base model the adapter was trained on; a wrong prefix can be renamed in the file",
            )
        halves.setdefault(site, {})[_MATRICES[suffix]] = value
    for site, pair in halves.items():
        if len(pair) != 2:
            raise ExpertError(
                f"the adapter in {directory} has only one of the two matrices of {site}", "lora_A and lora_B"
            )
    if not halves:
        raise ExpertError(f"the adapter in {directory} has no tensors", "the matrices of a LoRA adapter")
    return {site: (pair[0], pair[1]) for site, pair in halves.items()}


def _targeted(model: Any, targets: Any) -> set[str]:
    """Names of the base's linear layers that a configuration's target modules mean, as PEFT reads them."""
    head = model.get_output_embeddings()
    names = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if targets == "all-linear":
        return names
    return {name for name in names if any(name == t or name.endswith(f".{t}") for t in targets)}
