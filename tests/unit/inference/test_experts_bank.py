from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from scaler_wizard.errors import (
    ExpertError,
    IncompatibleModelError,
    ModelError,
    UnknownExpertError,
    UnsafeWeightsError,
)
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.engine import answer_all, routed_serving
from scaler_wizard.inference.experts.fakes import write_random_adapter
from scaler_wizard.inference.experts.prompt import Prompt, RoutedRequest
from scaler_wizard.models.adapter_io import CONFIG_FILE, WEIGHTS_FILE, save_adapter, wrap
from scaler_wizard.models.rope import RopeSetting, apply_rope
from scaler_wizard.models.tiny import tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama", tie_word_embeddings=False)


@pytest.fixture
def good(model: Any, tmp_path: Path) -> Path:
    return write_random_adapter(model, tmp_path / "good", seed=0, invocation=(3, 5))


def rename(directory: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(directory / WEIGHTS_FILE)
    save_file({change(name): value for name, value in tensors.items()}, directory / WEIGHTS_FILE)


def scale(directory: Path, half: str, factor: float) -> None:
    tensors = load_file(directory / WEIGHTS_FILE)
    save_file({n: v * factor if half in n else v for n, v in tensors.items()}, directory / WEIGHTS_FILE)


def set_config(directory: Path, **values: Any) -> None:
    path = directory / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(model: Any, directory: Path, match: str, kind: type[Exception] = ExpertError) -> None:
    bank = Bank(model)
    with pytest.raises(kind, match=match) as caught:
        bank.add("x", directory)
    error = caught.value
    assert isinstance(error, ModelError)
    assert error.expected
    assert bank.labels == ()
    assert bank.nbytes == 0


def test_an_expert_is_known_by_label_and_content(model: Any, good: Path, tmp_path: Path) -> None:
    bank = Bank(model)
    expert = bank.add("a", good)
    assert bank.expert("a") is expert
    assert bank.adapter(expert.adapter.hash) is expert.adapter
    assert (expert.mode, expert.start) == ("alora", (3, 5))
    # The hash is of content, not of place or of the file's own metadata.
    moved = shutil.copytree(good, tmp_path / "moved")
    save_file(load_file(moved / WEIGHTS_FILE), moved / WEIGHTS_FILE, metadata={"saved": "elsewhere"})
    assert Bank(model).load(moved).hash == expert.adapter.hash
    set_config(moved, lora_alpha=9)
    assert Bank(model).load(moved).hash != expert.adapter.hash
    with pytest.raises(UnknownExpertError, match='no expert "b"'):
        bank.expert("b")
    with pytest.raises(UnknownExpertError, match="no adapter"):
        bank.adapter("0" * 64)


def test_labels_and_contents_are_taken_once(model: Any, good: Path, tmp_path: Path) -> None:
    bank = Bank(model)
    bank.add("a", good)
    other = write_random_adapter(model, tmp_path / "other", seed=1, invocation=(3, 5))
    with pytest.raises(ExpertError, match=r'label "a".*taken'):
        bank.add("a", other)
    with pytest.raises(ExpertError, match=r'label "base".*taken'):
        bank.add("base", other)
    with pytest.raises(ExpertError, match='"a" and "b" are one adapter'):
        bank.add("b", shutil.copytree(good, tmp_path / "copy"))
    with pytest.raises(ExpertError, match="start tokens"):
        bank.add("b", other, start=(9,))
    assert bank.labels == ("a",)
    assert bank.add("b", other).label == "b"
    assert len(bank.labels) == 2


@pytest.mark.parametrize("prefix", ["", "base_model.", "base_model.model.model.", "diffusion_model."])
def test_a_wrong_key_prefix_is_refused_not_served_as_the_base(model: Any, good: Path, prefix: str) -> None:
    rename(good, lambda name: prefix + name.removeprefix("base_model.model."))
    refused(model, good, rf'has a tensor "{prefix}model.layers.*names such as "base_model.model.model.layers')


def test_an_adapter_for_another_base_is_refused(model: Any, tmp_path: Path) -> None:
    kinds: dict[str, tuple[dict[str, Any], str]] = {
        "wider": ({"hidden_size": 64}, r"B \[64, 4\].*B \[32, 4\]"),
        "deeper": ({"num_hidden_layers": 3}, "layers.2.*no linear layer of this decoder"),
        "flatter": ({"num_hidden_layers": 1}, "7 without tensors"),
    }
    for name, (changes, match) in kinds.items():
        other = tiny_model("llama", tie_word_embeddings=False, **changes)
        refused(model, write_random_adapter(other, tmp_path / name, seed=0, invocation=None), match)
    other = tiny_model("phi3", tie_word_embeddings=False)
    fused = write_random_adapter(other, tmp_path / "fused", seed=0, invocation=None, targets=("qkv_proj",))
    refused(model, fused, "qkv_proj.*no linear layer of this decoder")


def test_an_adapter_that_does_nothing_is_refused(model: Any, good: Path, tmp_path: Path) -> None:
    fresh = wrap(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]), 0)
    save_adapter(fresh, tmp_path / "fresh")
    fresh.unload()
    refused(model, tmp_path / "fresh", "changes nothing")
    scale(good, "lora_B", 1e-9)
    refused(model, good, "changes nothing")


def test_numbers_that_cannot_be_served_are_refused(model: Any, good: Path) -> None:
    scale(good, "lora_A", 1e38)
    refused(model, good, "not finite")
    scale(good, "lora_A", float("inf"))
    refused(model, good, "not finite numbers", ModelError)


def test_half_a_pair_a_missing_layer_and_another_rank_are_refused(model: Any, good: Path) -> None:
    tensors = load_file(good / WEIGHTS_FILE)
    site = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({n: v for n, v in tensors.items() if n != f"{site}.lora_B.weight"}, good / WEIGHTS_FILE)
    refused(model, good, "only one of the two matrices")
    save_file({n: v for n, v in tensors.items() if not n.startswith(site)}, good / WEIGHTS_FILE)
    refused(model, good, "1 without tensors.*q_proj")
    save_file(tensors, good / WEIGHTS_FILE)
    set_config(good, target_modules=["q_proj"])
    refused(model, good, "12 not among its target modules")
    set_config(good, target_modules="all-linear")
    Bank(model).add("all", good)
    set_config(good, r=8)
    refused(model, good, r"B \[32, 4\].*B \[32, 8\]")
    set_config(good, r=4, alora_invocation_tokens=[3, 262])
    refused(model, good, "invoked by token 262")
    set_config(good, alora_invocation_tokens=None)
    save_file({}, good / WEIGHTS_FILE)
    refused(model, good, "no tensors")


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"modules_to_save": ["lm_head"]},
        {"alora_invocation_tokens": []},
        {"alora_invocation_tokens": [-1]},
        {"alora_invocation_tokens": [True]},
        {"alora_invocation_tokens": "ask"},
        {"alora_invocation_tokens": [3] * 1000},
        {"target_modules": "(a+)+$"},
    ],
)
def test_settings_that_change_what_the_tensors_mean_are_refused(
    model: Any, good: Path, change: dict[str, Any]
) -> None:
    set_config(good, **change)
    refused(model, good, f"{next(iter(change))}", ModelError)


def test_other_kinds_and_pickles_are_refused(model: Any, good: Path, tmp_path: Path) -> None:
    refused(model, tmp_path, "no adapter", ModelError)
    (good / WEIGHTS_FILE).rename(good / "adapter_model.bin")
    refused(model, good, "pickle", UnsafeWeightsError)
    set_config(good, peft_type="IA3")
    refused(model, good, "IA3", ModelError)
    set_config(good, peft_type="PREFIX_TUNING", num_virtual_tokens=3)
    (good / CONFIG_FILE).write_text(json.dumps({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}))
    refused(model, good, "PREFIX_TUNING")


def test_bases_that_cannot_share_a_prefill_are_refused() -> None:
    dynamic = tiny_model("llama")
    apply_rope(dynamic, RopeSetting("dynamic", 32, 128))
    with pytest.raises(IncompatibleModelError, match="depend on the whole row"):
        Bank(dynamic)
    with pytest.raises(IncompatibleModelError, match="gpt2"):
        Bank(tiny_model("gpt2"))


def test_the_bank_leaves_the_model_as_it_was(model: Any, good: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [(name, sorted(vars(module))) for name, module in model.named_modules()]
    Bank(model).add("a", good)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [(name, sorted(vars(module))) for name, module in model.named_modules()] == names
    assert not model.training


def test_64_adapters_cost_their_bytes_and_no_work(model: Any, tmp_path: Path) -> None:
    """Memory is linear, and a request's floating-point operations do not depend on how many others wait."""
    bank = Bank(model)
    directories = [
        write_random_adapter(model, tmp_path / str(i), seed=i, invocation=(3, 5), rank=2) for i in range(64)
    ]
    sizes = []
    work = []
    answers = []
    for i, directory in enumerate(directories):
        bank.add(str(i), directory)
        sizes.append(bank.nbytes)
        if i + 1 in (4, 64):
            requests = [RoutedRequest(Prompt((11 + n, 12, 13)), 4, expert=str(n % 4)) for n in range(8)]
            with routed_serving(bank) as engine, FlopCounterMode(display=False) as counter:
                answers.append(answer_all(engine, requests))
                # One after the other, a switch each time.
                answers[-1] += [answer_all(engine, [request])[0] for request in requests]
            work.append(counter.get_total_flops())
    assert sizes == [sizes[0] * (i + 1) for i in range(64)]
    assert work[0] == work[1] > 0
    assert answers[0] == answers[1]
    assert len({answer.tokens for answer in answers[0][:4]}) == 4


def test_experts_may_be_added_while_others_answer(model: Any, good: Path, tmp_path: Path) -> None:
    bank = Bank(model)
    bank.add("a", good)
    request = RoutedRequest(Prompt((11, 12, 13)), 6, expert="a")
    with routed_serving(bank) as engine:
        (alone,) = answer_all(engine, [request])
        engine.submit(request)
        found = dict(engine.step())
        bank.add("b", write_random_adapter(model, tmp_path / "b", seed=1, invocation=(3, 5)))
        later = engine.submit(RoutedRequest(request.prompt, 6, expert="b"))
        while engine.unfinished:
            found.update(engine.step())
    assert found[1].tokens == alone.tokens
    with routed_serving(bank) as engine:
        assert (
            answer_all(engine, [RoutedRequest(request.prompt, 6, expert="b")])[0].tokens
            == found[later].tokens
        )
