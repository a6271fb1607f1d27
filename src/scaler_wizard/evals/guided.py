"""The rules of generation that belong to a data profile, spelled in a model's own tokens."""

from __future__ import annotations

from torch import nn

from scaler_wizard.data.profiles import Profile
from scaler_wizard.data.profiles.emoji_think import (
    EMOJI_THINK,
    LEAST_STOP,
    MOST_THINK,
    STOP_EMOJIS,
    THINK_EMOJIS,
)
from scaler_wizard.evals.documents import text_ids
from scaler_wizard.evals.tokenizing import Tokenizer
from scaler_wizard.inference.generate import stop_token_ids
from scaler_wizard.inference.logits import EmojiProcessor, LogitProcessor, token_sequences


def processor_of(profile: Profile, model: nn.Module, tokenizer: Tokenizer) -> LogitProcessor | None:
    """What changes the logits while a model answers in this profile; None where nothing does.

    An emoji that the vocabulary cannot spell has no rule.
    """
    if profile is not EMOJI_THINK:
        return None

    def encode(text: str) -> list[int]:
        ids = text_ids(tokenizer, text)
        return ids if tokenizer.decode(ids).strip() == text else []

    return EmojiProcessor(
        token_sequences(THINK_EMOJIS, encode), token_sequences(STOP_EMOJIS, encode),
        stop_token_ids(model, tokenizer), think_free=MOST_THINK, least_stops=LEAST_STOP,
    )  # fmt: skip
