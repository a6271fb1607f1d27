"""A real byte-level BPE tokenizer that knows the needle words as single tokens, and held-out texts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scaler_wizard.data.generators.needles import filler_line
from scaler_wizard.data.generators.words import single_token_words
from scaler_wizard.evals.common_words import COMMON_WORDS
from scaler_wizard.models.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [*single_token_words(), *COMMON_WORDS, "The", "special", "word", "for", "is", "mark", "recall"]
    backend.train_from_iterator([" ".join(["", *words, ""])] * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def texts() -> list[str]:
    rng = random.Random(7)
    return ["".join(filler_line(rng) for _ in range(60)) for _ in range(24)]
