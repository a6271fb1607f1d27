"""What a run hands over: an adapter in PEFT's format, or a whole model with adapters merged.

An export is written to a staging directory beside its target, read back from disk, compared with the
model in memory, and only then renamed into place: a target that exists is a target that was checked.
Does not know runs; the provenance on the model card is the caller's.
"""

from __future__ import annotations

import copy
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from scaler_wizard.errors import IncompatibleModelError, ModelError
from scaler_wizard.models.adapter_fold import base_of, folded
from scaler_wizard.models.adapter_io import (
    load_adapter_state,
    read_adapter_config,
    read_adapter_tensors,
    save_adapter,
)
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.models.load import load_model
from scaler_wizard.models.merge import (
    COARSEST,
    TOLERANCE,
    LogitComparison,
    compare_logits,
    refuse_prefix,
    sampled_logits,
)
from scaler_wizard.models.model_card import model_card
from scaler_wizard.models.rope import RopeSetting, applied_rope
from scaler_wizard.store.durable import fsync_dir, fsync_tree

ROPE_FILE = "rope_setting.json"
SHORT_CHECK = 64
# The same weights on the same device: only the order of sums may differ.
STORED_SHARE = 0.1


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from the trained model. Empty fields were not applicable.

    `short` and `long` compare the trained model (adapters live) with the files read back, at a short
    length and at the longest context; `stored` compares the files with the same merged weights in
    memory, at both lengths: what is beyond rounding shows there.
    """

    directory: Path
    weights_sha256: str
    short: LogitComparison
    long: LogitComparison | None = None
    stored: LogitComparison | None = None
    long_context: int = 0

    def sentences(self) -> list[str]:
        """One sentence per comparison, for terminal and model card."""
        told = [f"Exported against trained model, short inputs: {self.short}"]
        if self.long is not None:
            told.append(f"Exported against trained model, {self.long_context:,} tokens: {self.long}")
        if self.stored is not None:
            told.append(f"Files against the same weights in memory: {self.stored}")
        return told


def export_adapter(
    model: PeftModel,
    directory: Path,
    *,
    title: str = "Adapter",
    provenance: Mapping[str, str] | None = None,
    input_ids: Tensor | None = None,
) -> ExportReport:
    """Write the adapter alone (PEFT's files, the RoPE setting it was trained with, a card).

    The files are read back into the live model and its logits on `input_ids` [T] (seeded random ids
    when None) must not change.

    Raises:
        ModelError: the directory has content, or what was read back differs.
        IncompatibleModelError: the model has no adapter.
    """
    if not isinstance(model, PeftModel):
        raise IncompatibleModelError(
            "an adapter export of a model without an adapter",
            "lora, qlora or prefix_tuning",
            "export it merged",
        )
    ids = probe_ids(model, SHORT_CHECK) if input_ids is None else input_ids
    with _staged(directory) as stage:
        save_adapter(model, stage)
        setting = applied_rope(model)
        if setting is not None:
            (stage / ROPE_FILE).write_text(json.dumps(setting.as_dict(), indent=1) + "\n", encoding="utf-8")
        trained = sampled_logits(model, ids)
        _same_settings(read_adapter_config(stage), model.peft_config["default"])
        load_adapter_state(model, read_adapter_tensors(stage))
        short = compare_logits([(trained, sampled_logits(model, ids))], _stored_tolerance(model))
        report = ExportReport(directory, weights_sha256(stage), short)
        _refuse_mismatch(report)
        _write_card(stage, title, provenance, report)
    return report


def export_merged(
    model: Any,
    tokenizer: Any,
    directory: Path,
    rope: RopeSetting | None = None,
    *,
    title: str = "Model",
    provenance: Mapping[str, str] | None = None,
    input_ids: Tensor | None = None,
) -> ExportReport:
    """Write a whole model that any transformers user can load: weights, config, tokenizer, card.

    Adapters are merged for the files only; `model` is left bit for bit as it was. The config carries the
    RoPE parameters, the tokenizer its chat template and `model_max_length` = the longest context.

    Args:
        rope: the setting the caller believes the model has; refused when another one is applied.
        input_ids: token ids [T] for the comparison, T at least the longest context; seeded random ids
            when None. Memory and time are those of two forward passes at that length.

    Raises:
        IncompatibleModelError: a prefix or 4-bit weights, which cannot be merged.
        ModelError: the directory has content; another RoPE setting; the files do not give the trained
            model's logits (then nothing is left behind).
    """
    refuse_prefix(model)
    base = base_of(model)
    if getattr(base, "is_quantized", False):
        raise IncompatibleModelError(
            "a merged export from 4-bit weights",
            "16 or 32-bit weights",
            "load the base without quantize_4bit, load the adapter on it, and export that",
        )
    setting = applied_rope(model)
    if rope is not None and rope != setting:
        raise ModelError(
            f"a model with RoPE setting {setting}", str(rope), "apply the setting before exporting"
        )
    longest = _longest_context(base, setting)
    ids = probe_ids(model, longest) if input_ids is None else input_ids
    lengths = [ids[: min(SHORT_CHECK, longest, len(ids) // 2 or 1)], ids[:longest]]
    with _staged(directory) as stage:
        trained = [sampled_logits(model, part) for part in lengths]
        with folded(model):
            merged = [sampled_logits(model, part) for part in lengths]
            write_model(base, stage)
        write_tokenizer(tokenizer, stage, longest)
        read_back = _read_back(stage, tokenizer, base, lengths)
        tolerance = TOLERANCE.get(base.dtype, COARSEST)
        report = ExportReport(
            directory,
            weights_sha256(stage),
            short=compare_logits([(trained[0], read_back[0])], tolerance),
            long=compare_logits([(trained[1], read_back[1])], tolerance),
            stored=compare_logits(list(zip(merged, read_back, strict=True)), _stored_tolerance(base)),
            long_context=len(lengths[1]),
        )
        _refuse_mismatch(report)
        _write_card(stage, title, provenance, report)
    return report


def probe_ids(model: Any, length: int, seed: int = 0) -> Tensor:
    """Seeded random token ids [length] of the model's vocabulary."""
    rows = base_of(model).get_input_embeddings().weight.shape[0]
    return torch.randint(0, rows, (length,), generator=torch.Generator().manual_seed(seed))


@contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """A fresh directory beside `directory`; takes its name if the block succeeds, and goes if it does not."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ModelError(
            f"{directory} exists and is not empty", "a new directory", "name another export directory"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    stage = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.staging")
    stage.mkdir()
    try:
        yield stage
        fsync_tree(stage)
        stage.rename(directory)  # replaces an empty directory of that name
        fsync_dir(directory.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _longest_context(base: Any, setting: RopeSetting | None) -> int:
    if setting is not None:
        return setting.target_context
    return int(base.config.get_text_config().max_position_embeddings)


def write_model(base: Any, stage: Path) -> None:
    """Weights under their base names (no adapter tensors), config and generation config."""
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in base.state_dict().items()
        if ".lora_" not in name
    }
    original = base.generation_config
    base.generation_config = _sampling_stated(original)
    try:
        base.save_pretrained(stage, state_dict=state)
    finally:
        base.generation_config = original


def _sampling_stated(config: Any) -> Any:
    """Published models give a temperature without `do_sample`; transformers refuses to save those."""
    try:
        config.validate(strict=True)
    except ValueError:
        config = copy.deepcopy(config)
        config.do_sample = True
    return config


def write_tokenizer(tokenizer: Any, stage: Path, longest: int) -> None:
    """The tokenizer with `model_max_length` = `longest`; the one in memory keeps its own."""
    own = tokenizer.model_max_length
    tokenizer.model_max_length = longest
    try:
        tokenizer.save_pretrained(stage)
    finally:
        tokenizer.model_max_length = own


def _read_back(stage: Path, tokenizer: Any, base: Any, lengths: Sequence[Tensor]) -> list[Tensor]:
    loaded = load_model(stage, dtype=base.dtype, device=str(base.device))
    if loaded.tokenizer.chat_template != tokenizer.chat_template or len(loaded.tokenizer) != len(tokenizer):
        raise ModelError(
            "the exported tokenizer has another chat template or vocabulary than the one in memory",
            "the same tokenizer",
            "report this with the tokenizer's class",
        )
    return [sampled_logits(loaded.model, part) for part in lengths]


def _same_settings(stored: Any, live: Any) -> None:
    keys = ("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "num_virtual_tokens")
    differing = [key for key in keys if getattr(stored, key, None) != getattr(live, key, None)]
    if differing:
        raise ModelError(f"an adapter file whose {', '.join(differing)} differ from the trained adapter's")


def _stored_tolerance(model: Any) -> float:
    return TOLERANCE.get(model.dtype, COARSEST) * STORED_SHARE


def _refuse_mismatch(report: ExportReport) -> None:
    compared = [part for part in (report.short, report.long, report.stored) if part is not None]
    if not all(part.ok for part in compared):
        raise ModelError(
            f"an export whose files do not give the trained model's outputs: {'; '.join(report.sentences())}",
            "mean differences within "
            + ", ".join(f"{part.tolerance:g} standard deviations" for part in compared[:1]),
            "the files were removed; the trained model and its checkpoints are untouched",
        )


def _write_card(stage: Path, title: str, provenance: Mapping[str, str] | None, report: ExportReport) -> None:
    facts = {**(provenance or {}), "weights_sha256": report.weights_sha256}
    (stage / "README.md").write_text(model_card(title, facts, report.sentences()), encoding="utf-8")
