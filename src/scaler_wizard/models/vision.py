"""Pictures for a model of the Qwen3-VL architecture: encoded once, and put among the tokens of a prompt.

Everything that a prompt with pictures needs is computed here and belongs to that prompt. transformers keeps
the distance between tokens and rotary positions on the model (`rope_deltas`), where one request corrupts
another; nothing here reads or writes it. Knows no cache of keys and values, no adapter and no expert.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from scaler_wizard.data.images import CheckedImage
from scaler_wizard.errors import IncompatibleModelError, RowError
from scaler_wizard.models.feature_files import FeatureFiles, tower_key
from scaler_wizard.models.rope import base_model
from scaler_wizard.models.tiny_vision import VisionProcessor

Grid = tuple[int, int, int]
"""Visual tokens of an image along time, height and width."""
DEFAULT_CACHE_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """What the vision tower makes of one image of V visual tokens; on the model's device, in its format."""

    sha256: str
    """Of the image, see `CheckedImage`."""
    grid: Grid
    embeds: Tensor
    """[V, h]: stand in the place of the placeholders' embeddings."""
    deepstack: tuple[Tensor, ...]
    """[V, h] each: added to the visual tokens after the first, second, ... decoder layer."""

    @property
    def n_tokens(self) -> int:
        """V."""
        return self.embeds.shape[0]

    @property
    def n_bytes(self) -> int:
        """Memory of the features."""
        return sum(part.numel() * part.element_size() for part in (self.embeds, *self.deepstack))


@dataclass(frozen=True, slots=True, eq=False)
class VisionContent:
    """A prompt of T tokens, V of them visual, as the decoder reads it."""

    ids: tuple[int, ...]
    """Token ids [T]; visual tokens have the placeholder's."""
    embeds: Tensor
    """Input embeddings [T, h], images in place."""
    positions: Tensor
    """Rotary positions [3, T], int64: time, height, width."""
    visual: Tensor
    """[T] bool."""
    deepstack: tuple[Tensor, ...]
    """[V, h] each."""
    next_position: int
    """Rotary position, on all three axes, of the first token after the prompt."""
    images: tuple[str, ...]
    """Hashes of the images, in order."""
    image_tokens: tuple[int, ...]
    """Visual tokens of each image."""
    encodes: int
    """Images that went through the vision tower for this prompt; cached ones did not."""


class FeatureCache:
    """Features by the hash of their image, the least recently used out first. For one thread.

    It belongs to the weights of a vision tower, their device and their format: encoders of a model that is
    loaded again in the same way may share one; after training the tower (nothing here does), make a new one.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._held = 0

    def get(self, sha256: str) -> ImageFeatures | None:
        """The features of an image, where they are still there."""
        if sha256 in self._kept:
            self._kept.move_to_end(sha256)
        return self._kept.get(sha256)

    def keep(self, features: ImageFeatures) -> None:
        """Keep them, unless they alone are more than fits."""
        if features.n_bytes > self._max_bytes:
            return
        self._kept[features.sha256] = features
        self._held += features.n_bytes
        while self._held > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._held -= oldest.n_bytes


class ImageEncoder:
    """The vision tower of one model behind a cache of its features. For one thread.

    Args:
        cache: in memory; one of its own when None.
        files: on disk, for other processes and later ones.
    """

    def __init__(
        self, model: Any, processor: VisionProcessor, *, cache: FeatureCache | None = None,
        files: FeatureFiles | None = None,
    ) -> None:  # fmt: skip
        base = base_model(model)
        if not is_vision_model(base):
            raise IncompatibleModelError(
                f"pictures for a {type(base).__name__}, which has no eyes",
                "a model of the Qwen3-VL architecture",
                "name a vision-language model, or leave the pictures out",
            )
        self._model: Any = base
        self.processor = processor
        self._cache = cache if cache is not None else FeatureCache()
        self._files = files
        self.encodes = 0
        """Images that went through the vision tower so far."""
        self.from_disk = 0
        """Images whose features an earlier process has left."""

    @cached_property
    def _tower_key(self) -> str:
        images = self.processor.images.to_dict()
        return tower_key(self._model.model.visual, images)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._model.config

    @torch.no_grad()
    def encode(self, image: CheckedImage) -> ImageFeatures:
        """Features of an image, from the cache where it has them."""
        if (known := self._cache.get(image.sha256)) is not None:
            return known
        features = self._kept(image)
        if features is None:
            features = self._encode(image)
            self.encodes += 1
            if self._files is not None:
                self._files.keep(self._tower_key, image.sha256, _tensors(features))
        self._cache.keep(features)
        return features

    def _kept(self, image: CheckedImage) -> ImageFeatures | None:
        """Features that lie on disk."""
        if self._files is None:
            return None
        tensors = self._files.read(self._tower_key, image.sha256)
        if tensors is None:
            return None
        self.from_disk += 1
        device = self._model.model.visual.device
        time, height, width = (int(n) for n in tensors["grid"])
        levels = tuple(tensors[f"deepstack.{level}"].to(device) for level in range(len(tensors) - 2))
        return ImageFeatures(image.sha256, (time, height, width), tensors["embeds"].to(device), levels)

    def _encode(self, image: CheckedImage) -> ImageFeatures:
        pixels = self.processor.pixels([image.image])
        tower = self._model.model.visual
        output = self._model.model.get_image_features(
            pixels.values.to(tower.device), pixels.grids.to(tower.device), return_dict=True
        )
        merge = tower.spatial_merge_size
        time, height, width = (int(n) for n in pixels.grids[0])
        return ImageFeatures(
            image.sha256,
            (time, height // merge, width // merge),
            output.pooler_output[0],
            tuple(level[0] for level in output.deepstack_features),
        )

    @torch.no_grad()
    def content(self, ids: Sequence[int], images: Sequence[CheckedImage] = ()) -> VisionContent:
        """A prompt with its images in place.

        Args:
            ids: token ids with one placeholder (`image_token_id`) for each image, as chat templates write it.
            images: in the order of their placeholders.

        Raises:
            RowError: more placeholders than images, or fewer; or a video's.
        """
        before = self.encodes
        features = [self.encode(image) for image in images]
        config = self._model.config
        expanded = expand_placeholders(ids, [f.n_tokens for f in features], config)
        token_ids = torch.tensor(expanded, device=self._model.device)
        embeds = self._model.get_input_embeddings()(token_ids)
        visual = token_ids == config.image_token_id
        if features:
            embeds[visual] = torch.cat([f.embeds for f in features]).to(embeds.dtype)
        positions, following = rotary_positions(visual.tolist(), [f.grid for f in features])
        levels = zip(*(f.deepstack for f in features), strict=True)
        return VisionContent(
            ids=tuple(expanded),
            embeds=embeds,
            positions=positions.to(token_ids.device),
            visual=visual,
            deepstack=tuple(torch.cat(level) for level in levels),
            next_position=following,
            images=tuple(f.sha256 for f in features),
            image_tokens=tuple(f.n_tokens for f in features),
            encodes=self.encodes - before,
        )


def _tensors(features: ImageFeatures) -> dict[str, Tensor]:
    """As they lie on disk."""
    levels = {f"deepstack.{level}": part for level, part in enumerate(features.deepstack)}
    return {"embeds": features.embeds, "grid": torch.tensor(features.grid), **levels}


def is_vision_model(model: Any) -> bool:
    """Whether a transformers model (not a PEFT wrapper) is of the Qwen3-VL architecture."""
    return getattr(getattr(model, "config", None), "model_type", None) == "qwen3_vl"


def expand_placeholders(ids: Sequence[int], image_tokens: Sequence[int], config: Any) -> list[int]:
    """Token ids with each image's one placeholder repeated once for each of its visual tokens.

    Raises:
        RowError: more placeholders than images, or fewer; or a video's.
    """
    found = sum(token == config.image_token_id for token in ids)
    if found != len(image_tokens) or config.video_token_id in ids:
        what = "a video's place" if config.video_token_id in ids else f"{found} places for pictures"
        raise RowError(
            f"a prompt with {what} and {len(image_tokens)} pictures",
            "one place for each picture",
            "name every picture in the conversation, and no video",
        )
    lengths = iter(image_tokens)
    expanded: list[int] = []
    for token in ids:
        expanded += [token] * (next(lengths) if token == config.image_token_id else 1)
    return expanded


def rotary_positions(visual: Sequence[bool], grids: Sequence[Grid]) -> tuple[Tensor, int]:
    """Positions [3, T] of tokens on the axes time, height and width, and the position that follows.

    Text advances all three by one a token. An image's tokens share a start and spread from it along their
    grid; text goes on behind its longer side (M-RoPE, Wang et al. 2024, Qwen2-VL, section 2.1).
    """
    parts: list[Tensor] = []
    position = at = 0
    rest = iter(grids)
    while at < len(visual):
        if visual[at]:
            time, height, width = next(rest)
            axes = torch.meshgrid(
                torch.arange(time), torch.arange(height), torch.arange(width), indexing="ij"
            )
            parts.append(torch.stack(axes).reshape(3, -1) + position)
            at += time * height * width
            position += max(height, width)
        else:
            end = next((i for i in range(at, len(visual)) if visual[i]), len(visual))
            parts.append(torch.arange(position, position + end - at).expand(3, -1))
            position += end - at
            at = end
    return torch.cat(parts, dim=1), position
