"""The image processor of a model directory: read as plain numbers, checked, never as code or class names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from scaler_wizard.errors import ModelError, ModelNotFoundError
from scaler_wizard.models.tensor_files import write_files
from scaler_wizard.models.tiny_vision import VisionProcessor
from scaler_wizard.planning.safetensors_header import parse_json

FILE: Final = "preprocessor_config.json"
MAX_BYTES: Final = 1 << 20
MAX_SIDE: Final = 4096
MAX_PIXELS: Final = 2**24
"""Qwen3-VL's own `longest_edge`: 16,384 image tokens."""


def load_vision_processor(path: Path, model: Any, tokenizer: Any) -> VisionProcessor:
    """The processor that goes with a loaded vision model and its tokenizer.

    Args:
        path: the model's directory.
        model: a loaded model of the Qwen3-VL architecture, whose patches must be the processor's.

    Raises:
        ModelNotFoundError: no such file. ModelError: values that are not a processor's, or another model's.
    """
    file = path / FILE
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ModelError(f"{file} is larger than {MAX_BYTES:,} bytes", "an image processor's few numbers")
        values = parse_json(file.read_bytes(), file)
    except OSError as error:
        raise ModelNotFoundError(
            f"{file} cannot be read ({error.strerror})", "the vision model's image processor",
            "download the whole model",
        ) from None  # fmt: skip
    vision = model.config.vision_config
    sizes = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for key, wanted in sizes.items():
        if values.get(key) != wanted:
            raise ModelError(
                f"{key} in {file} is {str(values.get(key))[:40]!r}",
                f"{wanted}, as in the model's config.json",
                "use the files of one model",
            )
    edges = values.get("size")
    edges = edges if isinstance(edges, dict) else {}
    shortest, longest = (_whole(file, edges, key) for key in ("shortest_edge", "longest_edge"))
    if shortest > longest:
        raise ModelError(f"size in {file} goes from {shortest:,} to {longest:,} pixels", "a range of pixels")
    return VisionProcessor(
        tokenizer,
        Qwen2VLImageProcessorPil(
            **sizes,
            size={"shortest_edge": shortest, "longest_edge": longest},
            image_mean=_three(file, values, "image_mean"),
            image_std=_three(file, values, "image_std"),
        ),
    )


def save_vision_processor(processor: VisionProcessor, directory: Path) -> None:
    """Write the image processor's numbers beside a model; `load_vision_processor` reads them."""
    images = processor.images
    values = {
        "patch_size": images.patch_size,
        "merge_size": images.merge_size,
        "temporal_patch_size": images.temporal_patch_size,
        "size": {"shortest_edge": images.size["shortest_edge"], "longest_edge": images.size["longest_edge"]},
        "image_mean": list(images.image_mean),
        "image_std": list(images.image_std),
        "image_processor_type": "Qwen2VLImageProcessorPil",
    }
    write_files({FILE: (json.dumps(values, indent=2) + "\n").encode()}, directory)


def _whole(file: Path, values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if type(value) is not int or not 0 < value <= MAX_PIXELS:
        raise ModelError(f"{key} in {file} is {str(value)[:40]!r}", f"pixels, 1 to {MAX_PIXELS:,}")
    return value


def _three(file: Path, values: dict[str, Any], key: str) -> list[float]:
    value = values.get(key)
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(isinstance(x, int | float) and 0 < x <= 1 for x in numbers):
        raise ModelError(f"{key} in {file} is {str(value)[:40]!r}", "three numbers above 0, at most 1")
    return [float(x) for x in numbers]
