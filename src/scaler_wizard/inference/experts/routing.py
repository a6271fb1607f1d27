"""What a router is to the engine, and how its scores become a choice. Knows no model and no training.

The engine reads the content once with the base. What a router sees of it depends on its kind:

- "features": the mean over the content's tokens (`text_only`: but those of pictures) of the base's hidden
  states after `layer` decoder layers, [h] float32; a by-product of the pass.
- "suffix": the `suffix` tokens are read behind the content, in the same pass, with the activated adapter
  `adapter` on them; the logits of `label_tokens` at the last suffix token, [labels] float32.
- "early": a pass of its own over the content through the first `layer` layers with `adapter` on; the mean
  hidden state as above.

No kind generates a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

RouterKind = Literal["features", "suffix", "early"]


@dataclass(frozen=True, slots=True)
class RouteScores:
    """What a router says about one input."""

    probabilities: tuple[float, ...]
    """Calibrated, in the order of the router's labels; sum 1."""


class Observed(Protocol):
    """What a router is to be given. Attributes are plain values, fixed for the router's life."""

    @property
    def kind(self) -> RouterKind:
        """What `decide` is given; see the module."""

    @property
    def layer(self) -> int:
        """Decoder layers before the hidden states it reads: 1 to all of them. Unused by "suffix"."""

    @property
    def text_only(self) -> bool:
        """Whether the mean leaves the tokens of pictures out. Unused but by "features"."""

    @property
    def suffix(self) -> tuple[int, ...]:
        """Token ids that ask for the label; empty but for "suffix"."""

    @property
    def label_tokens(self) -> tuple[int, ...]:
        """One token id a label, all different; empty but for "suffix"."""

    @property
    def adapter(self) -> str | None:
        """Content hash of the router's own adapter in the bank; None where it runs on the bare base."""


class Router(Observed, Protocol):
    """Decides which expert answers."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of experts, in the order of its probabilities."""

    @property
    def temperature(self) -> float:
        """Divides the router's logits before its softmax; `decide` has it applied."""

    @property
    def threshold(self) -> float:
        """Least probability of the first label; below it the router abstains. 0 never abstains."""

    def decide(self, values: Tensor) -> RouteScores:
        """Scores of one input from [h] features or [labels] logits, float32; a pure function."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where one input goes."""

    label: str | None
    """The most probable label; None when the router abstained."""
    confidence: float
    """Probability of the most probable label."""
    abstained: bool


def choose(scores: RouteScores, labels: tuple[str, ...], threshold: float) -> Choice:
    """The most probable label (the first of equals), or none of them below the threshold."""
    assert len(scores.probabilities) == len(labels) > 0
    confidence = max(scores.probabilities)
    # Written this way round, so that a NaN abstains.
    if not confidence >= threshold:
        return Choice(None, confidence, abstained=True)
    return Choice(labels[scores.probabilities.index(confidence)], confidence, abstained=False)
