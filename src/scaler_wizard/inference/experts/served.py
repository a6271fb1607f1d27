"""A base, its experts and their tokenizer as one thing that is asked in words.

Texts to contents and answers back; control tokens in a text are characters, never tokens. Used to measure a
router and to serve one, so that what is measured is what answers. Knows no transport.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scaler_wizard.data.activation import chat_invocation
from scaler_wizard.data.chat import prepare_chat_template
from scaler_wizard.data.control_tokens import chat_ids
from scaler_wizard.data.formats import Message
from scaler_wizard.data.images import CheckedImage
from scaler_wizard.errors import IncompatibleModelError, RowError
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.images import chat_prompt
from scaler_wizard.inference.experts.prompt import Prompt, RoutedAnswer, RoutedRequest
from scaler_wizard.inference.generate import stop_token_ids
from scaler_wizard.models.adapter_io import read_adapter_config
from scaler_wizard.models.feature_files import FeatureFiles
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.models.load import load_model
from scaler_wizard.models.vision import ImageEncoder, is_vision_model
from scaler_wizard.models.vision_files import load_vision_processor
from scaler_wizard.models.vision_rows import picture_messages
from scaler_wizard.store.experts_bundle import MULTITASK, Bundle

VERY_LONG = 1 << 40


@dataclass(frozen=True, eq=False)
class Served:
    """A base in evaluation mode with the experts of its bank."""

    bank: Bank
    tokenizer: Any
    context: int
    """Most tokens of content and answer together."""
    answer_start: tuple[int, ...]
    """Tokens that open an answer: the invocation of activated experts, and what a plain one goes on from."""
    stop_ids: frozenset[int]
    system_prompt: str | None = None
    encoder: ImageEncoder | None = None
    """Reads pictures, each once while it is in its cache; None for a base that reads text only."""

    def content(self, messages: Sequence[Message], image: CheckedImage | None = None) -> Prompt:
        """The tokens of a conversation, its last turn the person's.

        Raises:
            RowError: an unknown role, no message.
            IncompatibleModelError: an image for a model without eyes.
        """
        turns = list(messages)
        if self.system_prompt and turns and turns[0].role != "system":
            turns.insert(0, Message("system", self.system_prompt))
        if image is None:
            return Prompt(tuple(chat_ids(self.tokenizer, [turn.as_dict() for turn in turns])))
        if self.encoder is None:
            raise IncompatibleModelError(
                "an image for a base that reads text only", "a vision-language base", "leave the image out"
            )
        return chat_prompt(self.encoder, picture_messages(turns, 1), [image])

    def request(self, prompt: Prompt, max_new_tokens: int, expert: str | None = None) -> RoutedRequest:
        """A greedy request.

        Raises:
            RowError: content and answer are longer than the base reads.
        """
        needed = len(prompt.tokens) + len(self.answer_start) + max_new_tokens
        if needed > self.context:
            raise RowError(
                f"an input of {len(prompt.tokens):,} tokens with an answer of up to {max_new_tokens:,}",
                f"at most {self.context:,} tokens together", "shorten the input, or ask for a shorter answer",
            )  # fmt: skip
        return RoutedRequest(prompt, max_new_tokens, self.stop_ids, expert)

    def text(self, answer: RoutedAnswer) -> str:
        """What was answered."""
        text: str = self.tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
        return text.strip()


def serve_base(
    base: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32,
    tokenizer: str | None = None, system_prompt: str | None = None, expected_sha256: str | None = None,
    features: FeatureFiles | None = None,
) -> Served:  # fmt: skip
    """Load a base with an empty bank.

    Args:
        expected_sha256: `weights_sha256` of the base that the experts were trained on.
        features: what its vision tower made of pictures before.

    Raises:
        IncompatibleModelError: another base than expected.
        ModelError: see `models.load.load_model`.
    """
    loaded = load_model(base, tokenizer=tokenizer, dtype=dtype, device=device)
    if expected_sha256 is not None and weights_sha256(loaded.path) != expected_sha256:
        raise IncompatibleModelError(
            f"{loaded.path} has other weights than the base of these experts",
            f"weights with the hash {expected_sha256[:12]}...",
            "name the base that they were trained on",
        )
    loaded.tokenizer.model_max_length = VERY_LONG
    prepare_chat_template(loaded.tokenizer)
    encoder = None
    if is_vision_model(loaded.model):
        processor = load_vision_processor(loaded.path, loaded.model, loaded.tokenizer)
        encoder = ImageEncoder(loaded.model, processor, files=features)
    return Served(
        Bank(loaded.model), loaded.tokenizer, loaded.base_context, chat_invocation(loaded.tokenizer),
        stop_token_ids(loaded.model, loaded.tokenizer), system_prompt, encoder,
    )  # fmt: skip


def add_expert(served: Served, label: str, folder: Path) -> None:
    """Load an adapter under a label; a plain LoRA starts its answers where an activated one is switched on.

    Raises:
        ExpertError: the label or the adapter is there already, or it changes nothing.
        ModelError: it does not fit this base.
    """
    activated = getattr(read_adapter_config(folder), "alora_invocation_tokens", None) is not None
    served.bank.add(label, folder, start=() if activated else served.answer_start)


def add_bundle(served: Served, bundle: Bundle) -> None:
    """Load every adapter of a bundle. Raises as `add_expert`."""
    for lora in bundle.experts:
        add_expert(served, lora.label, bundle.folder_of(lora))
    if bundle.multitask is not None:
        add_expert(served, MULTITASK, bundle.folder_of(bundle.multitask))
