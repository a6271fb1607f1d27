"""What probes use of a tokenizer. Torch-free; knows no particular tokenizer."""

from __future__ import annotations

from typing import Any, Protocol


class Tokenizer(Protocol):
    """What probes use of a Hugging Face tokenizer."""

    eos_token_id: int | None
    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> list[int]:
        """Text to token ids."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        """Token ids to text."""

    def apply_chat_template(
        self, conversation: Any, *, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> Any:
        """Messages to the text that the model was trained on."""

    def __len__(self) -> int:
        """Size of the vocabulary with added tokens."""
