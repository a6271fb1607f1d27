"""The rules of a data profile in a real model's tokens, and that they steer its generation."""

from __future__ import annotations

import torch

from scaler_wizard.data.profiles import PROFILES
from scaler_wizard.data.profiles.emoji_think import STOP_EMOJIS, THINK_EMOJIS
from scaler_wizard.evals.guided import processor_of
from scaler_wizard.inference.generate import generate, stop_token_ids
from scaler_wizard.inference.logits import EmojiProcessor
from scaler_wizard.inference.requests import Request
from scaler_wizard.models.load import load_model


def test_only_emoji_think_has_rules() -> None:
    loaded = load_model("seedling", dtype=torch.float32, device="cpu")
    assert processor_of(PROFILES["none"], loaded.model, loaded.tokenizer) is None
    assert processor_of(PROFILES["regime3"], loaded.model, loaded.tokenizer) is None


def test_a_model_that_has_stopped_twice_ends_its_turn() -> None:
    loaded = load_model("seedling", dtype=torch.float32, device="cpu")
    end = stop_token_ids(loaded.model, loaded.tokenizer)
    processor = processor_of(PROFILES["emoji_think"], loaded.model, loaded.tokenizer)
    assert isinstance(processor, EmojiProcessor)
    assert len(processor.think) == len(THINK_EMOJIS)
    assert len(processor.stop) == len(STOP_EMOJIS)
    strong = EmojiProcessor(processor.think, processor.stop, processor.end, end_strength=1000.0)
    stops = loaded.tokenizer.encode("".join(STOP_EMOJIS[:2]), add_special_tokens=False)

    class AfterStops:
        """The rules, with two stop emojis already said."""

        def __call__(self, logits_BV, generated):  # type: ignore[no-untyped-def]
            return strong(logits_BV, [[*stops, *row] for row in generated])

    prompt = tuple(loaded.tokenizer.encode("copy [ a b c ] ="))
    free = generate(loaded.model, [Request(prompt, 8, end)])[0]
    guided = generate(loaded.model, [Request(prompt, 8, end, processor=AfterStops())])[0]
    assert free.tokens
    assert guided.tokens == ()
    assert guided.finish == "stop"
