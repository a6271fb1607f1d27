"""The activated-LoRA router: a few suffix tokens ask for the label, one pass over label tokens answers.

The content stays the base's, so that the pass starts from the keys and values that are there already; nothing
is generated. It sees what a mean over tokens cannot: which word stands in which relation to which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from scaler_wizard.data.batches import MicroBatch
from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.routers.packed import last_hidden
from scaler_wizard.inference.experts.routers.probe import nll_and_accuracy
from scaler_wizard.inference.experts.routers.rows import (
    RouterBatch,
    RouterRow,
    RouterSteps,
    batched,
    router_batch,
)
from scaler_wizard.inference.experts.routers.trained import TrainedRouter
from scaler_wizard.inference.experts.routers.training import (
    EVALUATED_ROWS,
    CpuClock,
    RouterTraining,
    adapted,
    keep_adapter,
    logits_of,
    train_with_looks,
)
from scaler_wizard.losses.sft import Head, LossResult, head_logits
from scaler_wizard.planning.router import RouterSettings
from scaler_wizard.training.forward import head_of, training_mode

SUFFIX_TEXT: Final = "\nWho answers this? Label:"
SUFFIX_TOKENS: Final = 6


@dataclass(frozen=True, slots=True)
class RouterTokens:
    """The question to the router and its possible answers."""

    suffix: tuple[int, ...]
    label_tokens: tuple[int, ...]


def router_tokens(tokenizer: Any, n_labels: int) -> RouterTokens:
    """The last six tokens of a fixed question, and one ordinary token for each label.

    Raises:
        IncompatibleModelError: the vocabulary has fewer ordinary tokens than labels.
    """
    suffix = tokenizer(SUFFIX_TEXT, add_special_tokens=False, verbose=False).input_ids[-SUFFIX_TOKENS:]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    letters = [f" {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"]
    encoded = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in letters]
    # Whatever the vocabulary: letters that are one token first, then any others in order.
    order = [ids[0] for ids in encoded if len(ids) == 1] + list(range(len(tokenizer)))
    usable = list(dict.fromkeys(token for token in order if token not in special))
    if len(usable) < n_labels or not suffix:
        raise IncompatibleModelError(
            f"a vocabulary with {len(usable)} ordinary tokens", f"one for each of {n_labels} labels"
        )
    return RouterTokens(tuple(suffix), tuple(usable[:n_labels]))


def train_suffix_router(
    bank: Bank,
    labels: Sequence[str],
    rows: Sequence[RouterRow],
    val: Sequence[RouterRow],
    *,
    tokens: RouterTokens,
    settings: RouterSettings,
    directory: Path,
    seed: int = 0,
) -> RouterTraining:
    """Train an activated adapter on the suffix to say the label's token; it is written under `directory`."""
    clock = CpuClock()
    chosen = torch.tensor(tokens.label_tokens)

    def logits(model: Any, batch: RouterBatch) -> Tensor:
        return head_logits(last_hidden(model, batch), _restricted(head_of(model), chosen))

    def objective(model: Any, micro: MicroBatch) -> LossResult:
        assert isinstance(micro, RouterBatch)
        found = logits(model, micro)
        targets = micro.targets.to(found.device)
        correct = (found.detach().argmax(1) == targets).sum()
        return LossResult(
            F.cross_entropy(found, targets, reduction="sum"), len(targets), {"correct": correct}
        )

    steps = RouterSteps(
        rows, tokens.suffix, batch_rows=settings.batch_rows, step_rows=settings.step_rows, seed=seed
    )
    truth = torch.tensor([row.label for row in val])
    with adapted(bank, settings, seed, invocation=tokens.suffix, layers=None) as model:

        def look() -> tuple[float, float]:
            with torch.no_grad(), training_mode(model):
                parts = [logits(model, router_batch(p, tokens.suffix)) for p in batched(val, EVALUATED_ROWS)]
            return nll_and_accuracy(torch.cat(parts).double().cpu(), truth)

        n_steps, looks = train_with_looks(model, steps, objective, settings, look, seed)
        keep_adapter(model, directory)
    router = TrainedRouter(
        tuple(labels), "suffix", torch.eye(len(labels)), torch.zeros(len(labels)), suffix=tokens.suffix,
        label_tokens=tokens.label_tokens, adapter=bank.load(directory / "adapter").hash,
    )  # fmt: skip
    return RouterTraining(
        router, logits_of(bank, router, val), n_steps, looks, clock.seconds, {"settings": settings.as_dict()}
    )


def _restricted(head: Head, tokens: Tensor) -> Head:
    """The head's rows of some tokens only."""
    tokens = tokens.to(head.weight.device)
    return Head(
        head.weight[tokens], None if head.bias is None else head.bias[tokens], head.scale, head.softcap
    )
