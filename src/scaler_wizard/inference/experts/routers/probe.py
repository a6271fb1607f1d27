"""A linear probe on the mean hidden state of the content: routing at no cost, where words decide.

Multinomial logistic regression on standardised features, by L-BFGS in float64: no step size, no seed, the
same result every time. Layer and ridge are those with the lowest validation loss. The tokens of a picture are
left out of the mean: what is on a screen is noise to a question about it, and what the question's own words
have taken from the picture is in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.forward import decoder_layers
from scaler_wizard.inference.experts.reading import observe
from scaler_wizard.inference.experts.routers.rows import RouterRow
from scaler_wizard.inference.experts.routers.trained import TrainedRouter
from scaler_wizard.inference.experts.routers.training import CpuClock, RouterTraining

RIDGES: Final = (1e-4, 1e-3, 1e-2)
MAX_ITERATIONS: Final = 100


@dataclass(frozen=True, slots=True)
class Setting:
    """What a probe's fit is told."""

    layer: int
    ridge: float
    """Weight of the squared norm."""


class ContentStates:
    """Mean hidden states of contents after a layer, each read once however many probes are fitted to them."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self._known: dict[int, dict[tuple[int, ...], Tensor]] = {}

    def after(self, layer: int, rows: Sequence[RouterRow]) -> Tensor:
        """[rows, h] float32."""
        known = self._known.setdefault(layer, {})
        unread = {row.prompt.tokens: row.prompt for row in rows if row.prompt.tokens not in known}
        seen = TrainedRouter((), "features", torch.empty(0), torch.empty(0), layer=layer, text_only=True)
        known.update(zip(unread, observe(self.bank, seen, list(unread.values())), strict=True))
        return torch.stack([known[row.prompt.tokens] for row in rows])


def train_probe(
    states: ContentStates,
    labels: Sequence[str],
    rows: Sequence[RouterRow],
    val: Sequence[RouterRow],
    *,
    candidates: Sequence[Setting] | None = None,
) -> RouterTraining:
    """Fit a probe on training rows and choose its layer and ridge on validation rows.

    candidates: every ridge after a quarter, half, three quarters and all of the decoder when None.
    """
    clock = CpuClock()
    truth, val_truth = (torch.tensor([row.label for row in part]) for part in (rows, val))
    tried: list[dict[str, Any]] = []
    fits: list[tuple[TrainedRouter, Tensor]] = []
    for setting in candidates or _candidates(states.bank):
        x, val_x = (states.after(setting.layer, part) for part in (rows, val))
        weight, bias = fit_linear(x, truth, len(labels), setting.ridge)
        router = TrainedRouter(tuple(labels), "features", weight, bias, layer=setting.layer, text_only=True)
        logits = router.logits(val_x)
        nll, accuracy = nll_and_accuracy(logits, val_truth)
        tried.append({**asdict(setting), "nll": nll, "accuracy": accuracy})
        fits.append((router, logits))
    best = min(range(len(fits)), key=lambda i: tried[i]["nll"])
    details = {"chosen": tried[best], "tried": tried}
    return RouterTraining(*fits[best], 0, (), clock.seconds, details)


def chosen_setting(details: Mapping[str, Any]) -> Setting:
    """What `train_probe` chose, from a training's details."""
    return Setting(int(details["chosen"]["layer"]), float(details["chosen"]["ridge"]))


def _candidates(bank: Bank) -> list[Setting]:
    layers = candidate_layers(len(decoder_layers(bank.model)))
    return [Setting(layer, ridge) for layer in layers for ridge in RIDGES]


def candidate_layers(n_layers: int) -> tuple[int, ...]:
    """A quarter, half, three quarters and all of the layers."""
    return tuple(sorted({math.ceil(n_layers * quarter / 4) for quarter in (1, 2, 3, 4)}))


def fit_linear(x: Tensor, truth: Tensor, n_labels: int, ridge: float) -> tuple[Tensor, Tensor]:
    """W [labels, h] and b [labels], float32, for features x [n, h] as they are.

    Minimises mean cross-entropy + ridge / 2 |W|^2 over standardised features.
    """
    x = x.double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    z = (x - mean) / scale
    weight = torch.zeros(n_labels, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_labels, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(z @ weight.T + bias, truth) + 0.5 * ridge * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        folded = weight / scale
        return folded.float(), (bias - folded @ mean).float()


def nll_and_accuracy(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean negative log-likelihood, and the share of rows whose first label is right."""
    right = (logits.argmax(1) == truth).double().mean()
    return float(F.cross_entropy(logits, truth)), float(right)
