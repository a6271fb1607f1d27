"""The same batch and weights give the loss and adapter gradients that TRL's SFTTrainer gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scaler_wizard.data.batches import collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.training.forward import make_objective, training_mode

# TRL, accelerate and PEFT warn about each other; none of it is ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def lora_model() -> Any:
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.2, pad_token_id=0,
        )
    )  # fmt: skip
    # Random B as well, so that the gradient of A is not zero.
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: item.grad for name, item in model.named_parameters() if item.requires_grad}


def test_loss_and_adapter_gradients_agree_with_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="the optional extra `bench` is not installed")
    datasets = pytest.importorskip("datasets", reason="the optional extra `bench` is not installed")
    rng = np.random.RandomState(3)
    rows = [
        TokenRow(n, rng.randint(1, 61, length).astype(np.int32), rng.rand(length) < 0.6)
        for n, length in enumerate((7, 19, 12, 30))
    ]
    table = {
        "input_ids": [row.ids.tolist() for row in rows],
        "labels": [np.where(row.trained, row.ids, -100).tolist() for row in rows],
    }
    theirs = lora_model()
    trainer = trl.SFTTrainer(
        model=theirs,
        args=trl.SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None,
            per_device_train_batch_size=len(rows), report_to="none",
        ),
        train_dataset=datasets.Dataset.from_dict(table),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
            pad_token="<pad>", eos_token="<eos>",
        ),
    )  # fmt: skip
    (batch,) = list(trainer.get_train_dataloader())
    assert batch["attention_mask"].shape == (4, 30)
    assert not batch["attention_mask"].all(), "TRL pads here, we pack"
    theirs.train()
    their_loss = trainer.compute_loss(theirs, dict(batch))
    their_loss.backward()

    ours = lora_model()
    micro = collate(rows)
    with training_mode(ours):
        result = make_objective("sft")(ours, micro)
        (result.loss_sum / micro.n_labels).backward()

    assert result.loss_sum.item() / micro.n_labels == pytest.approx(their_loss.item(), rel=1e-5)
    mine, reference = gradients(ours), gradients(theirs)
    assert mine.keys() == reference.keys()
    for name, gradient in reference.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(mine[name], gradient, rtol=1e-5, atol=1e-6)
