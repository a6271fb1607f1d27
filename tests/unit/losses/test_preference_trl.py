"""On the same batch and weights, DPO and ORPO give TRL's loss and adapter gradients (fp32, 1e-5)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scaler_wizard.data.batches import MicroBatch, collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.losses.dpo import dpo_loss
from scaler_wizard.losses.log_probs import SequenceLogProbs, pair_scores, sequence_log_probs
from scaler_wizard.losses.orpo import orpo_loss
from scaler_wizard.models.adapters import adapters_off, attach_lora
from scaler_wizard.models.tiny import tiny_model
from scaler_wizard.training.forward import head_of, hidden_states, training_mode

# TRL, accelerate and PEFT warn about each other; none of it is ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = ["<pad>", "<eos>", *(f"w{n}" for n in range(40))]
PAIRS = [
    {"prompt": "w1 w2 w3 ", "chosen": "w4 w5", "rejected": "w6"},
    {"prompt": "w7 ", "chosen": "w8 w9", "rejected": "w10 w11 w12 w13"},
    {"prompt": "w20 w21 ", "chosen": "w22 w23", "rejected": "w24 w25 w26"},
]


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def lora_model(*, trained: bool = True) -> Any:
    model = attach_lora(tiny_model(vocab_size=len(WORDS)), rank=4, alpha=8.0, seed=1)
    return move_adapter(model) if trained else model


def move_adapter(model: Any) -> Any:
    """Give B random values, so that policy and reference differ and A has a gradient."""
    generator = torch.Generator().manual_seed(2)
    for name, value in model.named_parameters():
        if "lora_B.default" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.3
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: item.grad for name, item in model.named_parameters() if item.requires_grad}


def same_gradients(ours: Any, theirs: Any) -> None:
    mine, reference = gradients(ours), gradients(theirs)
    assert mine.keys() == reference.keys()
    for name, gradient in reference.items():
        assert gradient.abs().max() > 1e-5, name
        torch.testing.assert_close(mine[name], gradient, rtol=1e-5, atol=2e-6)


def pairs_packed(ids: torch.Tensor, real: torch.Tensor, answer: torch.Tensor) -> MicroBatch:
    """TRL's padded [chosen..., rejected...] as our packed chosen, rejected, chosen, ..."""
    n = len(ids) // 2
    rows = []
    for at in (index for pair in range(n) for index in (pair, n + pair)):
        keep = real[at].bool().numpy()
        rows.append(TokenRow(at, ids[at].numpy()[keep].astype(np.int32), answer[at].bool().numpy()[keep]))
    return collate(rows)


def log_probs(model: Any, micro: MicroBatch) -> SequenceLogProbs:
    return sequence_log_probs(
        hidden_states(model, micro), head_of(model), micro.labels, micro.segment_lengths, chunk_rows=4
    )


def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "max_length": None, "per_device_train_batch_size": len(PAIRS), "report_to": "none",
    }  # fmt: skip


@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
def test_dpo_agrees_with_trl(tmp_path: Path, sft_weight: float) -> None:
    """Also with an SFT term: chosen answers are equally long, so a mean over tokens is one over pairs."""
    trl = pytest.importorskip("trl", reason="the optional extra `bench` is not installed")
    datasets = pytest.importorskip("datasets", reason="the optional extra `bench` is not installed")
    kinds = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, sft_weight]} if sft_weight else {}
    theirs = lora_model(trained=False)  # TRL freezes a copy of the adapter it is given as the reference
    trainer = trl.DPOTrainer(
        model=theirs, args=trl.DPOConfig(**settings(tmp_path), beta=0.3, **kinds),
        train_dataset=datasets.Dataset.from_list(PAIRS), processing_class=tokenizer(),
    )  # fmt: skip
    move_adapter(theirs)
    (batch,) = list(trainer.get_train_dataloader())
    trainer.model.train()
    their_loss = trainer.compute_loss(trainer.model, dict(batch))
    their_loss.backward()

    ours = lora_model()
    micro = pairs_packed(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    with training_mode(ours):
        with torch.no_grad(), adapters_off(ours):
            reference = log_probs(ours, micro).log_probs
        result = dpo_loss(pair_scores(log_probs(ours, micro), reference), beta=0.3, sft_weight=sft_weight)
        (result.loss_sum / result.n_labels).backward()

    assert result.loss_sum.item() / result.n_labels == pytest.approx(their_loss.item(), rel=1e-5)
    logged = trainer._metrics["train"]
    for name, key in (("reward_margin", "rewards/margins"), ("reward_accuracy", "rewards/accuracies")):
        assert result.metrics[name].item() / result.n_labels == pytest.approx(logged[key][0], rel=1e-4)
    same_gradients(ours, theirs)


def test_first_dpo_loss_of_a_fresh_adapter_is_ln_2() -> None:
    """Reference: the same base with adapters off; no second model."""
    model = lora_model(trained=False)
    rows = [TokenRow(n, np.arange(2, 9 + n, dtype=np.int32), np.arange(7 + n) > 3) for n in range(4)]
    micro = collate(rows)
    with training_mode(model), torch.no_grad():
        with adapters_off(model):
            reference = log_probs(model, micro).log_probs
        found = dpo_loss(pair_scores(log_probs(model, micro), reference))
    assert found.loss_sum.item() / found.n_labels == pytest.approx(math.log(2), abs=1e-7)


def test_orpo_agrees_with_trl(tmp_path: Path) -> None:
    """TRL fine-tunes on prompt and answer, averaged over tokens; prompt + chosen are equally long here."""
    orpo = pytest.importorskip("trl.experimental.orpo", reason="the optional extra `bench` is not installed")
    datasets = pytest.importorskip("datasets", reason="the optional extra `bench` is not installed")
    pairs = [
        {"prompt": "w1 w2 w3", "chosen": " w4 w5", "rejected": " w6"},
        {"prompt": "w7", "chosen": " w8 w9 w14 w15", "rejected": " w10 w11 w12"},
    ]
    arguments = settings(tmp_path) | {"max_length": 32, "per_device_train_batch_size": 2}
    theirs = lora_model()
    trainer = orpo.ORPOTrainer(
        model=theirs, args=orpo.ORPOConfig(**arguments, beta=0.4),
        train_dataset=datasets.Dataset.from_list(pairs), processing_class=tokenizer(),
    )  # fmt: skip
    (batch,) = list(trainer.get_train_dataloader())
    trainer.model.train()
    their_loss, metrics = trainer.get_batch_loss_metrics(trainer.model, dict(batch))
    their_loss.backward()

    whole = trainer.concatenated_inputs(batch, padding_value=trainer.padding_value)
    ids, real = whole["concatenated_input_ids"], whole["concatenated_attention_mask"]
    micro = pairs_packed(ids, real, whole["concatenated_labels"] != -100)
    full = pairs_packed(ids, real, real)
    ours = lora_model()
    with training_mode(ours):
        answers, everything = log_probs(ours, micro), log_probs(ours, full)
        nll = (-everything.log_probs / everything.n_targets)[0::2]
        assert len(set(everything.n_targets[0::2].tolist())) == 1
        result = orpo_loss(pair_scores(answers), beta=0.4, chosen_nll=nll)
        (result.loss_sum / result.n_labels).backward()

    assert result.loss_sum.item() / result.n_labels == pytest.approx(their_loss.item(), rel=1e-5)
    assert result.metrics["log_odds_ratio"].item() / 2 == pytest.approx(metrics["log_odds_chosen"], rel=1e-4)
    same_gradients(ours, theirs)
