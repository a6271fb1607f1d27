"""A tiny model of the Qwen3-VL architecture, its tokenizer and its image processor, all made here.

The real classes of transformers at toy sizes. `Qwen3VLProcessor` itself needs torchvision, which has no build
that goes with every torch; `VisionProcessor` does what of it a still picture needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

VISION_START: Final = "<|vision_start|>"
VISION_END: Final = "<|vision_end|>"
IMAGE_PAD: Final = "<|image_pad|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIAL_TOKENS: Final = (
    "<|endoftext|>", TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_PAD, "<|video_pad|>",
)  # fmt: skip
"""The control tokens of Qwen3-VL, in its order."""
CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\\n' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- else -%}
        {{- part['text'] -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PATCH: Final = 16
MERGE: Final = 2
MIN_PIXELS: Final = (PATCH * MERGE) ** 2
MAX_PIXELS: Final = 256 * 256
TINY_CONTEXT: Final = 256
TINY_VOCABULARY: Final = len(SPECIAL_TOKENS) + 256


def vision_tokenizer(words: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose single tokens are bytes, the seven control tokens, and `words`.

    Words are learned with a space before them and without; any UTF-8 text encodes.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([form for word in words for form in (word, " " + word)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token="<|endoftext|>",  # noqa: S106 (a token's text, not a secret)
        additional_special_tokens=[token for token in SPECIAL_TOKENS[1:] if token != TURN_END],
        model_max_length=TINY_CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def image_processor() -> Qwen2VLImageProcessorPil:
    """Qwen3-VL's image processor without torchvision: 16-pixel patches, merged two by two."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    )


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pictures as the vision tower takes them."""

    values: Tensor
    """[patches of all images, 3 * temporal patch * 16 * 16]."""
    grids: Tensor
    """Patches of each image along time, height and width [images, 3], int64."""


@dataclass(frozen=True, slots=True)
class VisionProcessor:
    """Tokenizer and image processor of one vision-language model."""

    tokenizer: Any
    images: Any

    def pixels(self, images: Sequence[Image.Image]) -> Pixels:
        """Resize, scale and cut pictures (RGB) into patches."""
        batch = self.images(images=list(images), return_tensors="pt")
        return Pixels(batch["pixel_values"], batch["image_grid_thw"])


def tiny_vision_config(
    vocab_size: int = TINY_VOCABULARY, *, tied: bool = True, **changes: Any
) -> Qwen3VLConfig:
    """Two text layers of width 32 and a vision tower of two blocks.

    tied: whether the LM head is the embedding, which makes a random model repeat its last token for ever.
    changes: fields of the text configuration.
    """
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    text: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        **heads,
        "max_position_embeddings": TINY_CONTEXT,
        "initializer_range": 0.2,
        "rope_parameters": mrope([4, 2, 2]),
        "pad_token_id": 0,
        "eos_token_id": SPECIAL_TOKENS.index(TURN_END),
        **changes,
    }  # fmt: skip
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
        "initializer_range": text["initializer_range"],
    }
    return vision_config(text, vision, tied=tied)


def mrope(sections: Sequence[int]) -> dict[str, Any]:
    """Rotary parameters with so many frequencies for time, height and width; they sum to half a head."""
    base = {"rope_type": "default", "rope_theta": 10_000.0}
    return {**base, "mrope_section": list(sections), "mrope_interleaved": True}


def vision_config(text: dict[str, Any], vision: dict[str, Any], *, tied: bool = True) -> Qwen3VLConfig:
    """A configuration whose control tokens are those of `vision_tokenizer`."""
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=SPECIAL_TOKENS.index(IMAGE_PAD),
        video_token_id=SPECIAL_TOKENS.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL_TOKENS.index(VISION_START),
        vision_end_token_id=SPECIAL_TOKENS.index(VISION_END),
        eos_token_id=SPECIAL_TOKENS.index(TURN_END),
        pad_token_id=0,
        tie_word_embeddings=tied,
    )


def tiny_vision_model(
    *, seed: int = 0, config: Qwen3VLConfig | None = None, dtype: torch.dtype = torch.float32, **changes: Any
) -> Qwen3VLForConditionalGeneration:
    """A random Qwen3-VL model in evaluation mode. Equal seeds give equal weights; global randomness is left
    alone. `changes` are arguments of `tiny_vision_config`."""
    chosen = config if config is not None else tiny_vision_config(**changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration._from_config(chosen, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    return model


def tiny_vision_processor(words: Iterable[str] = ()) -> VisionProcessor:
    """Tokenizer and image processor that go with `tiny_vision_model`."""
    return VisionProcessor(vision_tokenizer(words), image_processor())
