"""The hand-over to vLLM: plain LoRA twins under names that carry their content, and the command for them.

vLLM knows no activated LoRA. Who uses it routes here and asks there for `model=<expert>@<hash>`: a name that
changes with the content, so that a cache never answers with an older adapter. Torch-free, files only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from scaler_wizard.errors import IncompatibleModelError, ModelError, ModelNotFoundError
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.safetensors_header import read_header
from scaler_wizard.store.experts_bundle import Bundle, BundledLora

HASH_CHARACTERS = 12
VISION_PREFIX = "base_model.model.model.language_model."
TOWER = ".visual."


def twin_name(lora: BundledLora) -> str:
    """`<expert>@<hash>` of the adapter that vLLM serves."""
    digest = lora.twin_sha256 if lora.twin else lora.sha256
    assert digest is not None
    return f"{lora.label}@{digest[:HASH_CHARACTERS]}"


def vllm_command(bundle: Bundle, folder: Path) -> list[str]:
    """Copy each expert's plain twin to folder/NAME and return the command that serves them all.

    Raises:
        IncompatibleModelError: an activated expert without a plain twin, or LoRA on a vision tower, which
            vLLM would have to run once for each adapter.
        ModelError: a file that is no adapter.
    """
    sees = base_sees(bundle.base)
    folder.mkdir(parents=True)
    modules, ranks = [], []
    for lora in bundle.experts:
        source = bundle.folder_of_twin(lora) or bundle.folder_of(lora)
        if lora.mode == "alora" and lora.twin is None:
            raise IncompatibleModelError(
                f"{lora.label} is an activated LoRA without a plain twin", "a plain twin, which vLLM knows",
                "run the job with deploy.twins: true",
            )  # fmt: skip
        check_keys(lora.label, source, sees)
        target = folder / twin_name(lora)
        shutil.copytree(source, target)
        modules.append(f"{twin_name(lora)}={target}")
        ranks.append(_rank(source))
    return [
        "vllm", "serve", bundle.base, "--enable-lora", "--max-lora-rank", str(max(ranks)), "--max-loras",
        str(len(modules)), "--lora-modules", *modules,
    ]  # fmt: skip


def base_sees(base: str) -> bool | None:
    """Whether a base model has a vision tower; None where it is not on this machine."""
    try:
        names = [tensor.name for file in sorted(resolve_model(base).glob("*.safetensors"))
                 for tensor in read_header(file)]  # fmt: skip
    except ModelNotFoundError:
        return None
    return any(TOWER in f".{name}" for name in names)


def check_keys(label: str, folder: Path, sees: bool | None = None) -> None:
    """The adapter's tensor names are those that vLLM looks for.

    Of a vision-language base they start with `model.language_model.`; a wrong prefix would serve the base.

    Args:
        sees: whether the base has a vision tower; None: not known.

    Raises:
        IncompatibleModelError: LoRA on the vision tower, or names of another kind of base.
        ModelError: names of two kinds of base.
    """
    names = [tensor.name for tensor in read_header(folder / "adapter_model.safetensors")]
    if any(TOWER in name for name in names):
        raise IncompatibleModelError(
            f"{label} adapts the vision tower", "the language model's layers only",
            "train it with lora.target_modules that leave the tower out",
        )  # fmt: skip
    vision = [name for name in names if name.startswith(VISION_PREFIX)]
    if vision and len(vision) != len(names):
        raise ModelError(f"{label} mixes tensor names of two kinds of model", "one prefix", "train it again")
    if sees is not None and sees != bool(vision):
        kinds = ("reads text only", "sees")
        raise IncompatibleModelError(
            f"{label} has tensor names of a base that {kinds[bool(vision)]}",
            f"names of one that {kinds[sees]}",
            "use the base that it was trained on; vLLM would serve the base in its place",
        )  # fmt: skip


def _rank(folder: Path) -> int:
    try:
        rank = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} is no adapter ({error})", "adapter_config.json with its rank") from None
    if type(rank) is not int or not 0 < rank <= 4096:
        raise ModelError(f"{folder} has the rank {str(rank)[:40]}", "a whole number", "train it again")
    return rank
