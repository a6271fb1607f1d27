"""What distillation is judged by: held-out rows under the start, both trained models and the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scaler_wizard.data.batches import collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.tokens import tokenize_rows
from scaler_wizard.errors import EmptyDataError
from scaler_wizard.evals.statistics import mean_estimate, paired_difference
from scaler_wizard.evals.tasks import task_probe
from scaler_wizard.losses.chunked import at_targets
from scaler_wizard.losses.distill import Divergence, divergences, sliced
from scaler_wizard.losses.log_probs import target_log_probs
from scaler_wizard.recipes.grow_session import GrowSession
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.training.attention import packed_attention
from scaler_wizard.training.forward import base_of, head_of, hidden_states
from scaler_wizard.training.teacher import TeacherCache, distinct_rows, runs

HELD_OUT_ROWS = 200
"""Most held-out rows that are measured."""
DISTANCE = Divergence("forward", 1.0)
"""What is reported, whatever is trained: KL(teacher || student) in nats per token, tail as one class."""


def held_out_rows(session: GrowSession, context: int) -> list[TokenRow]:
    """Held-out rows with targets, in pieces of at most `context` tokens, at most `HELD_OUT_ROWS`.

    Raises:
        EmptyDataError: there are none.
    """
    dataset, section = session.dataset, session.job.dataset
    rows = tokenize_rows(
        dataset.held_out, dataset.row_format, session.tokenizer, context=context, long_rows=section.long_rows,
        system_prompt=section.system_prompt, bad_rows=dataset.bad, source=dataset.source,
    ).rows  # fmt: skip
    found = list(distinct_rows(rows).values())[:HELD_OUT_ROWS]
    if not found:
        raise EmptyDataError(
            "no held-out row has a token to predict", "rows to compare with and without the teacher",
            "raise dataset.holdout_fraction",
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows, and the model of a session measured on them."""

    context: PhaseContext
    session: GrowSession
    rows: Sequence[TokenRow]
    cache: TeacherCache
    micro_batch_tokens: int

    def measure(self) -> Metrics:
        """Loss and distance from the teacher of every held-out row (means over its targets), and tasks."""
        session, model = self.session, self.session.adapted
        head = sliced(head_of(model), self.cache.key.n_tokens)
        losses: list[float] = []
        distances: list[float] = []
        progress = self.context.progress("loss and distance from the teacher")
        with session.evaluating(), torch.no_grad():
            with packed_attention(base_of(model)):
                for rows in self._runs():
                    micro = collate(rows).to(session.device)
                    hidden, targets = at_targets(hidden_states(model, micro), micro.labels)
                    losses += _row_means(-target_log_probs(hidden, head, targets), rows)
                    distances += _row_means(
                        divergences(hidden, head, self.cache.lookup(micro).top, DISTANCE), rows
                    )
                    progress(len(losses), len(self.rows))
            return {"nll": losses, "divergence": distances, "accuracy": self._accuracy()}

    def _runs(self) -> Iterator[Sequence[TokenRow]]:
        """Held-out rows in order, as many at a time as a micro-batch holds; a prefix needs each alone."""
        most = 0 if self.session.is_prefix else self.micro_batch_tokens
        for first, last in runs(self.rows, 0, most):
            yield self.rows[first:last]

    def _accuracy(self) -> Metrics | None:
        session = self.session
        rows = session.task_rows() if session.job.evaluation.task_rows else []
        if not rows:
            return None
        suite = session.suite(self.context)
        found = task_probe(
            session.adapted, session.tokenizer, rows, suite.settings(session.base_context),
            self.context.progress("tasks"),
        ).as_dict()  # fmt: skip
        return {key: found[key] for key in ("value", "n", "ci95", "baseline", "seed")}

    def teacher_losses(self) -> list[float]:
        """The teacher's own mean loss on each row, from the cache."""
        return _row_means(-self.cache.lookup(collate(self.rows)).target_log_probs, self.rows)


def comparison(held_out: HeldOut, start: Metrics, baseline: Metrics, distilled: Metrics) -> Metrics:
    """Both models beside each other, with the start and the teacher; differences are paired by row."""
    found = {"start": start, "ce_only": baseline, "distilled": distilled}
    return {
        "teacher_nll": mean_estimate(held_out.teacher_losses()).as_dict(),
        "held_out": {name: _summary(values) for name, values in found.items()},
        "distilled_minus_ce_only": {
            name: paired_difference(distilled[name], baseline[name]).as_dict()
            for name in ("nll", "divergence")
        },
        "kept": "distilled",
        "steps": distilled["steps"],
    }


def _summary(found: Metrics) -> Metrics:
    return {
        "nll": mean_estimate(found["nll"]).as_dict(),
        "divergence": mean_estimate(found["divergence"]).as_dict(),
        "accuracy": found["accuracy"],
    }


def sentence(result: Metrics) -> str:
    """The comparison in one sentence, losses first."""
    held, difference = result["held_out"], result["distilled_minus_ce_only"]
    loss, distance = difference["nll"], difference["divergence"]
    low, high = (value or 0.0 for value in loss["ci95"])
    verdict = "worse" if low > 0 else "better" if high < 0 else "no clear difference"
    return (
        f"distilled: held-out loss {held['distilled']['nll']['mean']:.4f} against "
        f"{held['ce_only']['nll']['mean']:.4f} with cross-entropy alone ({loss['mean']:+.4f}, {verdict}); "
        f"distance from the teacher {held['distilled']['divergence']['mean']:.4f} against "
        f"{held['ce_only']['divergence']['mean']:.4f} ({distance['mean']:+.4f})"
    )


def _row_means(values: Tensor, rows: Sequence[TokenRow]) -> list[float]:
    """Mean over each row's targets of values [N] that come row after row."""
    return [float(part.double().mean()) for part in values.cpu().split([row.n_labels for row in rows])]  # type: ignore[no-untyped-call]
