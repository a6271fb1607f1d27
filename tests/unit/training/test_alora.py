"""Activated LoRA in our loop: the same loss and gradients as PEFT's own, packed or not, fused or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from scaler_wizard.data.activation import activate
from scaler_wizard.data.batches import Batches, collate
from scaler_wizard.data.token_rows import TokenRow, TokenRows
from scaler_wizard.errors import IncompatibleModelError, ModelError
from scaler_wizard.models.adapters import adapters_off, attach_lora, folded, load_adapter, save_adapter
from scaler_wizard.models.alora import active_tokens
from scaler_wizard.models.tiny import tiny_model
from scaler_wizard.training.fast_path import plan_fast_path
from scaler_wizard.training.forward import make_objective, training_mode
from scaler_wizard.training.loop import TrainSettings, train
from scaler_wizard.training.sharing import split_micro_batch

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
INVOCATION = (7, 8)
UNFUSED_MLP = "an MLP that is not adapted as a whole"
SFT = make_objective("sft")


def row(number: int, content: int, answer: int) -> TokenRow:
    rng = np.random.RandomState(number)
    body, said = rng.randint(10, 262, content), rng.randint(10, 262, answer)
    ids = np.concatenate([body, INVOCATION, said]).astype(np.int32)
    return TokenRow(number, ids, np.arange(len(ids)) >= content + len(INVOCATION))


def rows() -> TokenRows:
    return activate([row(1, 9, 4), row(2, 17, 6), row(3, 17, 6), row(4, 0, 5)], INVOCATION)


def activated_model(kind: str = "llama", seed: int = 0, **options: Any) -> Any:
    model = attach_lora(
        tiny_model(kind), rank=4, alpha=8.0, alora_invocation_tokens=INVOCATION, seed=seed, **options
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, item in model.named_parameters():
            if "lora_B" in name:
                item.copy_(0.1 * torch.randn(item.shape, generator=generator))
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: item.grad for name, item in model.named_parameters() if item.requires_grad}


def ours(model: Any, found: TokenRows, *, fused: bool, checkpointing: bool = False) -> tuple[Tensor, Any]:
    model.zero_grad(set_to_none=True)
    with training_mode(model, fused=fused, activation_checkpointing=checkpointing):
        result = SFT(model, collate(found))
        (result.loss_sum / result.n_labels).backward()
    return result.loss_sum.detach() / result.n_labels, gradients(model)


def theirs(model: Any, found: TokenRows) -> tuple[Tensor, Any]:
    """Row by row through PEFT's own forward pass, which looks for the invocation itself."""
    model.zero_grad(set_to_none=True)
    model.train()
    total = torch.zeros(())
    for item in found:
        ids = torch.from_numpy(item.ids.astype(np.int64))
        logits = model(input_ids=ids[None]).logits[0, :-1]
        targets = torch.where(torch.from_numpy(item.trained[1:].copy()), ids[1:], -100)
        total = total + F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    loss = total / sum(item.n_labels for item in found)
    loss.backward()
    model.eval()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gemma3"])
@pytest.mark.parametrize(("fused", "checkpointing"), [(False, False), (True, False), (True, True)])
def test_loss_and_gradients_equal_pefts_own(kind: str, fused: bool, checkpointing: bool) -> None:
    model, found = activated_model(kind), rows()
    if fused:
        assert not plan_fast_path(model).plain, plan_fast_path(model).sentence()
    loss, mine = ours(model, found, fused=fused, checkpointing=checkpointing)
    expected, reference = theirs(model, found)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, gradient in reference.items():
        assert gradient.abs().max() > 1e-5, name
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-5)
    assert active_tokens() is None, "nothing outlives the step"


@pytest.mark.parametrize(("dropout", "plain"), [(0.0, set()), (0.5, {"dropout", UNFUSED_MLP})])
def test_what_stands_before_the_invocation_is_the_bases(dropout: float, plain: set[str]) -> None:
    """The base's hidden states of the content: what an engine shares between experts."""
    model, found = activated_model(dropout=dropout), rows()
    assert set(plan_fast_path(model).plain.values()) == plain
    micro = collate(found)
    assert micro.active is not None
    caught: list[Tensor] = []
    model.get_base_model().get_decoder().layers[1].register_forward_hook(
        lambda *call: caught.append(call[-1] if isinstance(call[-1], Tensor) else call[-1][0])
    )
    with torch.no_grad(), training_mode(model):
        SFT(model, micro)
    with torch.no_grad(), training_mode(model), adapters_off(model):
        SFT(model, micro)
    changed = (caught[0] != caught[1]).any(-1)
    assert torch.equal(changed, micro.active)


def test_a_plain_adapter_acts_everywhere_whatever_the_rows_say() -> None:
    model = attach_lora(tiny_model(), rank=4, alpha=8.0, seed=0)
    marked, unmarked = rows(), TokenRows.of([row(1, 9, 4), row(2, 17, 6), row(3, 17, 6), row(4, 0, 5)])
    assert collate(unmarked).active is None
    torch.testing.assert_close(ours(model, marked, fused=True)[0], ours(model, unmarked, fused=True)[0])


def test_rows_that_never_invoke_the_adapter_are_refused_and_not_trained_on_nothing() -> None:
    model = activated_model()
    batches = Batches([row(1, 9, 4)], context=64, batch_tokens=16, micro_batch_tokens=64, seed=0)
    with pytest.raises(IncompatibleModelError, match="never invoke"):
        next(train(model, batches, SFT, TrainSettings(1, 1e-3)))


def test_training_moves_the_adapter_and_steps_carry_the_marks() -> None:
    model, found = activated_model(), rows()
    batches = Batches(found, context=64, batch_tokens=64, micro_batch_tokens=64, seed=0)
    losses = [result.loss for result in train(model, batches, SFT, TrainSettings(12, 3e-2))]
    assert losses[-1] < 0.7 * losses[0]
    micro = collate(found)
    first, second = split_micro_batch(micro)
    assert first.active is not None
    assert second.active is not None
    assert torch.equal(torch.cat([first.active, second.active], dim=1), micro.active)


def test_saved_as_pefts_alora_and_read_back(tmp_path: Path) -> None:
    model = activated_model()
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["alora_invocation_tokens"] == [7, 8]
    ids = torch.tensor([row(2, 17, 6).ids.tolist()])
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        base = tiny_model()(input_ids=ids).logits
        read = load_adapter(tiny_model(), tmp_path)(input_ids=ids).logits
        peft = PeftModel.from_pretrained(tiny_model(), str(tmp_path))(input_ids=ids).logits
    assert torch.equal(read, expected)
    torch.testing.assert_close(peft, expected)
    assert not torch.equal(expected, base)
    assert torch.equal(expected[:, :17], base[:, :17])


@pytest.mark.parametrize("tokens", [[], ["7"], [True], [-1], [2**31], 7, [1] * 257, {"0": 7}])
def test_a_hostile_invocation_is_refused(tmp_path: Path, tokens: object) -> None:
    save_adapter(activated_model(), tmp_path)
    path = tmp_path / "adapter_config.json"
    config = {**json.loads(path.read_text()), "alora_invocation_tokens": tokens}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="alora_invocation_tokens"):
        load_adapter(tiny_model(), tmp_path)


def test_an_activated_adapter_cannot_be_folded_into_the_weights() -> None:
    model = activated_model()
    with pytest.raises(IncompatibleModelError, match="aLoRA"), folded(model):
        pass
