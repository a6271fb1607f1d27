"""The loop: gradients by hand, guards, accumulation, exact resume in a fresh process."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from scaler_wizard.data.batches import Batches
from scaler_wizard.data.token_rows import TokenRow, TokenRows
from scaler_wizard.errors import BreakerTrippedError, CheckpointError, IncompatibleModelError
from scaler_wizard.training.forward import head_of, make_objective
from scaler_wizard.training.loop import StepResult, TrainSettings, new_state, train
from scaler_wizard.training.schedule import learning_rate_at
from scaler_wizard.training.state import FACTS_FILE, TENSORS_FILE, load_state, save_state

# PEFT 0.21.2 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SFT = make_objective("sft")
SETTINGS = TrainSettings(total_steps=6, learning_rate=3e-3, seed=5)


def lora_model(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=53, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.2,
        )
    ).to(dtype)  # fmt: skip
    return get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear")
    ).eval()


def batches(micro_batch_tokens: int = 200, **options: Any) -> Batches:
    rng = np.random.RandomState(0)
    rows = TokenRows.of(
        TokenRow(n, rng.randint(0, 53, length).astype(np.int32), rng.rand(length) < 0.6)
        for n, length in enumerate(rng.randint(4, 30, 24))
    )
    return Batches(
        rows, context=32, batch_tokens=120, micro_batch_tokens=micro_batch_tokens, seed=3, **options
    )


def adapter(model: Any) -> dict[str, torch.Tensor]:
    return {name: item.detach().clone() for name, item in model.named_parameters() if item.requires_grad}


def digest(model: Any) -> str:
    hashed = hashlib.sha256()
    for name, value in sorted(adapter(model).items()):
        hashed.update(name.encode() + value.float().numpy().tobytes())
    return hashed.hexdigest()


def test_one_step_is_adamw_on_the_mean_over_targets() -> None:
    """Against torch's own cross-entropy and a hand-written AdamW with clipping."""
    ours, reference = lora_model(), lora_model()
    settings = TrainSettings(
        total_steps=1, learning_rate=1e-2, warmup_fraction=0, max_grad_norm=0.05, weight_decay=0.1
    )
    (result,) = list(train(ours, batches(), SFT, settings))
    loss_sum, n_labels = torch.zeros(()), 0
    for row in batches().rows_of(0):
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        targets = torch.where(torch.from_numpy(row.trained)[None], ids, -100)[0, 1:]
        logits = reference(input_ids=ids).logits[0, :-1]
        loss_sum = loss_sum + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        n_labels += int((targets != -100).sum())
    (loss_sum / n_labels).backward()
    parameters = [item for item in reference.parameters() if item.requires_grad]
    norm = torch.sqrt(sum((item.grad.square().sum() for item in parameters), torch.zeros(())))
    assert result.loss == pytest.approx(loss_sum.item() / n_labels, rel=1e-6)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    assert norm > 0.05, "clipping is part of this test"
    assert (result.step, result.label_tokens, result.learning_rate) == (1, n_labels, 1e-2)
    compared = 0
    for mine, item in zip(adapter(ours).values(), parameters, strict=True):
        gradient = item.grad * (0.05 / norm)
        # First AdamW step: both moments are unbiased to g and g^2.
        expected = item * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (gradient.abs() + 1e-8)
        # Where the gradient is all rounding, its sign is too, and the step is the whole learning rate.
        clear = gradient.abs() > 1e-6
        torch.testing.assert_close(mine[clear], expected.detach()[clear], rtol=1e-4, atol=1e-6)
        compared += int(clear.sum())
    assert compared > 1000


def test_accumulation_changes_nothing_but_rounding() -> None:
    results, adapters = [], []
    for micro_batch_tokens in (1000, 30):
        model = lora_model()
        results.append(list(train(model, batches(micro_batch_tokens), SFT, SETTINGS)))
        adapters.append(adapter(model))
    assert len(batches(30).step(0).micro_batches) > 3 * len(batches(1000).step(0).micro_batches)
    for one, many in zip(*results, strict=True):
        assert many.loss == pytest.approx(one.loss, rel=1e-5)
        assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
        assert (many.tokens, many.label_tokens) == (one.tokens, one.label_tokens)


def test_training_learns_leaves_the_base_alone_and_ends_in_eval_mode() -> None:
    model = lora_model()
    base = {name: item.detach().clone() for name, item in model.named_parameters() if not item.requires_grad}
    results = []
    for result in train(model, batches(), SFT, TrainSettings(total_steps=30, learning_rate=1e-2)):
        assert not model.training, "between steps the caller may evaluate"
        assert model.config._attn_implementation == "sdpa"
        results.append(result)
    assert results[-1].loss < 0.8 * results[0].loss
    assert [result.step for result in results] == list(range(1, 31))
    assert 0 <= results[0].metrics["correct"] <= 1
    assert results[0].memory_bytes > 1 << 20
    for name, item in model.named_parameters():
        if not item.requires_grad:
            assert torch.equal(item, base[name])
            assert item.grad is None


def test_guard_stops_before_the_optimiser_moves() -> None:
    model, reference = lora_model(), lora_model()
    seen: list[StepResult] = []

    def guard(result: StepResult) -> bool:
        seen.append(result)
        return result.step < 3

    state = new_state(model, SETTINGS)
    yielded = list(train(model, batches(), SFT, SETTINGS, guard=guard, state=state))
    training = train(reference, batches(), SFT, SETTINGS)
    expected = [next(training), next(training)]
    assert [result.step for result in seen] == [1, 2, 3]
    assert [result.loss for result in yielded] == [result.loss for result in expected]
    assert state.step == 2
    assert digest(model) == digest(reference), "the refused third step changed nothing"
    assert all(item.grad is None for item in model.parameters())


@pytest.mark.parametrize("where", ["weights", "hidden gradient"])
@pytest.mark.parametrize("verdict", [True, False])
def test_not_a_number_never_steps(where: str, verdict: bool) -> None:
    model = lora_model()
    if where == "weights":
        with torch.no_grad():
            model.get_base_model().model.norm.weight[0] = float("nan")
    else:
        # A finite loss with a gradient that is not: only the norm shows it.
        layer = model.get_base_model().model.layers[0]
        layer.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * float("inf"),))
        model.get_base_model().enable_input_require_grads()
        next(item for item in model.parameters() if item.requires_grad).register_hook(
            lambda g: g * float("nan")
        )
    before = digest(model)
    state = new_state(model, SETTINGS)
    training = train(model, batches(), SFT, SETTINGS, guard=lambda result: verdict, state=state)
    if verdict:
        with pytest.raises(BreakerTrippedError, match=r"at step 1: .*nan"):
            list(training)
    else:
        assert list(training) == []
    assert digest(model) == before
    assert state.step == 0


def run_until(model: Any, stop: int, state: Any) -> None:
    for result in train(model, batches(60), SFT, SETTINGS, state=state):
        if result.step == stop:
            return


RESUME = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_loop
from scaler_wizard.training.loop import new_state
from scaler_wizard.training.state import load_state
model = test_loop.lora_model(dropout=0.3)
state = new_state(model, test_loop.SETTINGS)
torch.rand(7)
load_state(state, Path(sys.argv[2]))
assert state.step == 3
test_loop.run_until(model, 6, state)
print(test_loop.digest(model))
"""


def test_resume_in_a_fresh_process_is_byte_identical(tmp_path: Path) -> None:
    straight = lora_model(dropout=0.3)
    run_until(straight, 6, new_state(straight, SETTINGS))
    halfway = lora_model(dropout=0.3)
    state = new_state(halfway, SETTINGS)
    run_until(halfway, 3, state)
    save_state(state, tmp_path)
    assert digest(halfway) != digest(straight)
    output = subprocess.run(
        [sys.executable, "-c", RESUME, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert output.stdout.strip() == digest(straight), output.stderr


def test_draws_between_steps_change_nothing_and_are_not_disturbed() -> None:
    quiet, noisy = lora_model(dropout=0.3), lora_model(dropout=0.3)
    list(train(quiet, batches(), SFT, SETTINGS))
    torch.manual_seed(11)
    expected = torch.rand(SETTINGS.total_steps)
    torch.manual_seed(11)
    drawn = [torch.rand(1) for _ in train(noisy, batches(), SFT, SETTINGS)]
    assert digest(quiet) == digest(noisy)
    assert torch.equal(torch.cat(drawn), expected)
    other = lora_model(dropout=0.3)
    list(train(other, batches(), SFT, TrainSettings(total_steps=6, learning_rate=3e-3, seed=6)))
    assert digest(other) != digest(quiet), "the seed reaches dropout"


def test_bfloat16_weights_train_through_fp32_masters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=53, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        )
    ).to(torch.bfloat16)
    settings = TrainSettings(total_steps=8, learning_rate=1e-5, schedule="constant", warmup_fraction=0)
    state = new_state(model, settings)
    name = "model.layers.0.mlp.up_proj.weight"
    before = state.masters[name].detach().clone()
    list(train(model, batches(), SFT, settings, state=state))
    moved = (state.masters[name] - before).abs()
    assert (moved > 2e-5).any(), "8 steps of 1e-5 add up in the masters, below what bfloat16 resolves"
    assert torch.equal(model.get_parameter(name), state.masters[name].to(torch.bfloat16))
    save_state(state, tmp_path)
    fresh = new_state(model, settings)
    load_state(fresh, tmp_path)
    assert torch.equal(fresh.masters[name], state.masters[name])


def test_prefix_tuning_trains_through_pefts_own_forward() -> None:
    torch.manual_seed(0)
    base = lora_model().unload()
    model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    settings = TrainSettings(total_steps=20, learning_rate=5e-2)
    losses = [result.loss for result in train(model, batches(packed=False), SFT, settings)]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "nan", "other model", "negative step", "not json"]
)
def test_damaged_state_is_refused_and_changes_nothing(tmp_path: Path, damage: str) -> None:
    model = lora_model()
    state = new_state(model, SETTINGS)
    run_until(model, 2, state)
    if damage == "nan":
        with torch.no_grad():
            next(iter(state.masters.values()))[0, 0] = float("nan")
    save_state(state, tmp_path)
    tensors, facts = tmp_path / TENSORS_FILE, tmp_path / FACTS_FILE
    fresh = lora_model()
    if damage == "missing":
        tensors.unlink()
    elif damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "not json":
        facts.write_text("{")
    elif damage == "negative step":
        facts.write_text(facts.read_text().replace('"step": 2', '"step": -2'))
    elif damage == "other model":
        fresh = get_peft_model(lora_model().unload(), LoraConfig(r=2, target_modules=["q_proj"]))
    before = digest(fresh)
    target = new_state(fresh, SETTINGS)
    with pytest.raises(CheckpointError, match=r"training state in .* cannot be used"):
        load_state(target, tmp_path)
    assert digest(fresh) == before
    assert target.step == 0


def test_state_holds_no_pickle(tmp_path: Path) -> None:
    model = lora_model()
    state = new_state(model, SETTINGS)
    run_until(model, 1, state)
    save_state(state, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FACTS_FILE, TENSORS_FILE]


def test_adapter_on_the_head_is_refused() -> None:
    model = get_peft_model(lora_model().unload(), LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(IncompatibleModelError, match="LM head"):
        head_of(model)


def test_schedule() -> None:
    rates = [learning_rate_at(step, 100, 2.0, 0.1, "cosine") for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert 0 < rates[99] < 0.001
    assert learning_rate_at(55, 100, 2.0, 0.1, "linear") == pytest.approx(1.0)
    assert learning_rate_at(99, 100, 2.0, 0.1, "constant") == 2.0
    assert learning_rate_at(0, 1, 2.0, 0.05) == 2.0
    assert learning_rate_at(3, 4, 2.0, 1.0) == 2.0
