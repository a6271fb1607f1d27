"""A trained router: a linear map, a temperature and a threshold over what the engine lets it see."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scaler_wizard.inference.experts.routing import RouterKind, RouteScores


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRouter:
    """softmax((W x + b) / temperature): a `Router`; the attributes are described there."""

    labels: tuple[str, ...]
    kind: RouterKind
    weight: Tensor
    """W [labels, h], float32; [labels, labels] for "suffix", whose x are logits already."""
    bias: Tensor
    """b [labels], float32."""
    layer: int = 1
    text_only: bool = False
    suffix: tuple[int, ...] = ()
    label_tokens: tuple[int, ...] = ()
    adapter: str | None = None
    temperature: float = 1.0
    threshold: float = 0.0

    def logits(self, values: Tensor) -> Tensor:
        """W x + b [..., labels] in float64, before the temperature; values [..., h] or [..., labels]."""
        return values.double() @ self.weight.double().T + self.bias.double()

    def decide(self, values: Tensor) -> RouteScores:
        """See `Router.decide`."""
        return RouteScores(tuple((self.logits(values) / self.temperature).softmax(-1).tolist()))
