"""The hand-over to vLLM at the level of files: names by content, the command, what it cannot serve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scaler_wizard.errors import IncompatibleModelError, ModelError
from scaler_wizard.inference.experts.fakes import write_random_adapter
from scaler_wizard.inference.experts.sites import adaptable_linears
from scaler_wizard.models.load import load_model
from scaler_wizard.planning.safetensors_header import read_header
from scaler_wizard.serving.vllm import VISION_PREFIX, base_sees, check_keys, twin_name, vllm_command
from scaler_wizard.store.experts_bundle import Bundle, BundledLora
from scaler_wizard.store.registry import content_hash

WHEN = "2026-01-31T12:00:00+00:00"
LANGUAGE = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


def adapter(folder: Path, *names: str, rank: int = 4) -> str:
    folder.mkdir(parents=True)
    save_file(
        {name: torch.ones(rank, 2) for name in names or (LANGUAGE,)}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(f'{{"r": {rank}}}', encoding="utf-8")
    return content_hash(folder)


def test_the_command_serves_every_plain_twin_under_its_content(tmp_path: Path) -> None:
    main, twin = adapter(tmp_path / "experts/a"), adapter(tmp_path / "twins/a", rank=8)
    plain = adapter(tmp_path / "experts/b", rank=16)
    loras = (
        BundledLora("a", "experts/a", "alora", main, WHEN, twin="twins/a", twin_sha256=twin),
        BundledLora("b", "experts/b", "lora", plain, WHEN),
    )
    command = vllm_command(Bundle(tmp_path, "base-model", None, loras, None, None), tmp_path / "out")
    assert command[:4] == ["vllm", "serve", "base-model", "--enable-lora"]
    assert command[command.index("--max-lora-rank") + 1] == "16"
    names = [f"a@{twin[:12]}", f"b@{plain[:12]}"]
    assert command[-2:] == [f"{name}={tmp_path / 'out' / name}" for name in names]
    assert [twin_name(lora) for lora in loras] == names
    assert content_hash(tmp_path / "out" / names[0]) == twin


def test_an_activated_expert_without_a_twin_cannot_go(tmp_path: Path) -> None:
    lora = BundledLora("a", "experts/a", "alora", adapter(tmp_path / "experts/a"), WHEN)
    with pytest.raises(IncompatibleModelError, match="without a plain twin"):
        vllm_command(Bundle(tmp_path, "base", None, (lora,), None, None), tmp_path / "out")


def test_a_vision_tower_or_mixed_names_are_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "tower", "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight")
    with pytest.raises(IncompatibleModelError, match="vision tower"):
        check_keys("a", tmp_path / "tower")
    adapter(tmp_path / "mixed", LANGUAGE, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    with pytest.raises(ModelError, match="two kinds"):
        check_keys("a", tmp_path / "mixed")
    adapter(tmp_path / "right", LANGUAGE)
    check_keys("a", tmp_path / "right")


@pytest.mark.parametrize(
    ("base", "other"), [("seedling", "seedling-vision"), ("seedling-vision", "seedling")]
)
def test_a_real_adapter_has_the_names_of_its_base_and_no_others(
    tmp_path: Path, base: str, other: str
) -> None:
    model = load_model(base, dtype=torch.float32, device="cpu").model
    linears = [name for name in adaptable_linears(model) if name.endswith("q_proj")]
    write_random_adapter(model, tmp_path / "a", seed=0, invocation=None, targets=linears)
    check_keys("a", tmp_path / "a", base_sees(base))
    names = [tensor.name for tensor in read_header(tmp_path / "a" / "adapter_model.safetensors")]
    assert all(name.startswith(VISION_PREFIX) for name in names) == (base == "seedling-vision")
    with pytest.raises(IncompatibleModelError, match="tensor names of a base that"):
        check_keys("a", tmp_path / "a", base_sees(other))
    assert base_sees("nobody/has-this") is None
