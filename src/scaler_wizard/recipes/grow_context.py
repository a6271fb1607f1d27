"""One longer context: the ways to stretch positions, scored untrained, and training until a length passes.

What passing means is decided by the pure gate in `evals/context_gate`; here it is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scaler_wizard.evals.context_gate import (
    Candidate,
    ContextMeasurements,
    GateVerdict,
    judge_context,
    rank_candidates,
)
from scaler_wizard.evals.retention import context_retention
from scaler_wizard.evals.suite import Reference
from scaler_wizard.models.rope import RopeSetting, is_supported
from scaler_wizard.recipes.grow_session import GrowSession
from scaler_wizard.recipes.session import Training
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics

ROUNDS = 4
"""A length that must train is looked at this many times within its budget."""


def score_candidates(session: GrowSession, target: int, context: PhaseContext) -> list[Metrics]:
    """Every way to reach `target` tokens, measured without training, best first; the first is chosen.

    All are compared with the same reference: the model as it is now, in its base window.
    """
    suite, was = session.suite(context), session.rope
    settings = [
        setting for setting in rope_settings(session, target) if is_supported(session.adapted, setting)
    ]
    candidates = []
    with session.evaluating():
        reference = suite.reference(quick=True)
        losses = suite.base_losses(target, quick=True)
        for setting in settings:
            session.set_rope(setting)
            measured = suite.context(target, reference, losses, quick=True, name=setting.method)
            verdict = judge_context(measured, session.job.evaluation)
            candidates.append(Candidate(setting.method, measured, verdict))
    session.set_rope(was)
    by_method = {str(setting.method): setting for setting in settings}
    ranked = [
        _candidate_metrics(candidate, by_method[candidate.method])
        for candidate in rank_candidates(candidates, session.job.evaluation)
    ]
    ranked[0]["chosen"] = True
    context.probe("rope_candidates", {"context": target, "ranked": ranked})
    return ranked


def rope_settings(session: GrowSession, target: int) -> list[RopeSetting]:
    """Candidate settings for a length; only the job's own method where it names one."""
    scaling = session.job.scaling
    factors = scaling.longrope_factors
    methods = ["none", "linear", "ntk", "dynamic", "yarn", "llama3"] + (["longrope"] if factors else [])
    if scaling.rope_method != "auto":
        methods = [scaling.rope_method]
    extra: dict[str, Any] = {}
    if factors:
        extra = {"short_factor": tuple(factors.short_factor), "long_factor": tuple(factors.long_factor)}
    lengths = {"original_context": session.base_context, "target_context": target}
    return [
        RopeSetting.from_dict({"method": method, **lengths, **(extra if method == "longrope" else {})})
        for method in methods
    ]


@dataclass
class LongerContext:
    """One length of one model, held against what the model was in its base window before."""

    session: GrowSession
    context: PhaseContext
    length: int
    reference: Reference

    def __post_init__(self) -> None:
        suite = self.session.suite(self.context)
        with self.session.evaluating():
            # Before anything is stretched; remembered, because a resumed phase is in the middle of it.
            self.losses = self.context.once("losses", lambda: suite.base_losses(self.length))
            self.quick = self.context.once("quick_losses", lambda: suite.base_losses(self.length, quick=True))

    def judge(self, *, quick: bool = False) -> tuple[ContextMeasurements, GateVerdict]:
        """Measure the model as it is at this length, and decide."""
        losses = self.quick if quick else self.losses
        suite = self.session.suite(self.context)
        with self.session.evaluating():
            measured = suite.context(self.length, self.reference, losses, quick=quick)
        return measured, judge_context(measured, self.session.job.evaluation)

    def train_until_passed(self, training: Training) -> tuple[ContextMeasurements, GateVerdict, int]:
        """Train in rounds within the budget; a quick look that passes is confirmed by a full one."""
        total = training.settings.total_steps
        for number in range(1, ROUNDS + 1):
            until = total * number // ROUNDS
            if training.state.step > until:
                continue  # resumed beyond this round; at its very end it is looked at (again)
            if training.state.step < until:
                self.session.run(self.context, training, until)
            if number == ROUNDS or self.judge(quick=True)[1].passed:
                measured, verdict = self.judge()
                if verdict.passed or number == ROUNDS:
                    return measured, verdict, training.state.step
        return *self.judge(), training.state.step


def context_metrics(measured: ContextMeasurements) -> Metrics:
    """What a context gate looked at, JSON-ready."""
    retention = context_retention(measured.needle_base, measured.needle)
    return {
        "nll": measured.nll.as_dict(),
        "needle": measured.needle.as_dict(),
        "recency": measured.recency.as_dict(),
        "short": measured.short_after.as_dict(),
        "perplexity": measured.short_after.perplexity,
        "context_retention": retention.value,
        "retention": retention.as_dict(),
    }


def _candidate_metrics(candidate: Candidate, setting: RopeSetting) -> Metrics:
    nll = candidate.measured.nll
    return {
        "method": candidate.method,
        "setting": setting.as_dict(),
        "passed": candidate.verdict.passed,
        "reasons": list(candidate.verdict.reasons),
        "nll_difference": nll.difference.mean,
        "se": nll.difference.standard_error,
        "needle": candidate.measured.needle.value,
        "n": nll.n,
        # Capped: a broken method's loss may be past what exp can hold.
        "perplexity_change": math.expm1(min(nll.difference.mean, 50.0)),
        "chosen": False,
    }
