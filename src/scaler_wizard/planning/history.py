"""What this workspace's finished runs say about the next one. Proposes, never applies.

Few runs: stated rules with their counts. From `TREE_MINIMUM` runs on: a decision tree (scikit-learn),
used only while its cross-validated error is below that of always guessing the mean. Pure: runs are an
argument, and the same runs in the same order give the same proposals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, Literal

from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import GIB, Hardware
from scaler_wizard.specs.yaml_io import dump_yaml

Outcome = Literal["completed", "breaker", "out_of_memory", "context_gate_failed", "rolled_back", "failed"]

TREE_MINIMUM = 30
RULE_MINIMUM = 2
SIMILAR_SIZE = 4.0
FEATURES = ("log_parameters", "on_gpu", "memory_gib", "rank", "log_learning_rate", "context_multiplier")


@dataclass(frozen=True)
class RunRecord:
    """One finished run, as far as the next one can learn from it."""

    run: str
    template: str
    parameters: int
    on_gpu: bool
    memory_gib: float
    rank: int
    learning_rate: float
    context_multiplier: float
    outcome: Outcome
    quality_gain: float
    """Relative fall of the held-out loss against the base: 0.05 is 5% better, negative is worse."""


@dataclass(frozen=True)
class HistoryProposal:
    """One setting that earlier runs speak for. `runs` is how many."""

    setting: str
    value: float | str
    reason: str
    runs: int
    source: Literal["rule", "tree"]


def propose(
    history: Sequence[RunRecord], hardware: Hardware, facts: ModelFacts, learning_rate: float
) -> tuple[HistoryProposal, ...]:
    """Proposals for a new run of `facts` on `hardware` that would use `learning_rate`."""
    similar = [record for record in history if _similar(record, hardware, facts)]
    rules = [
        proposal
        for proposal in (
            _slower(similar, learning_rate),
            _smaller(similar),
            _shorter(similar),
            _template(similar),
        )
        if proposal is not None
    ]
    tree = _from_tree(history, similar, hardware, facts)
    if tree is not None:
        rules = [rule for rule in rules if rule.setting != tree.setting] + [tree]
    return tuple(rules)


def export_rules(history: Sequence[RunRecord]) -> str:
    """The rules, the counts behind them and the tree (when there is one) as YAML text."""
    counts = {outcome: sum(record.outcome == outcome for record in history) for outcome in _OUTCOMES}
    document: dict[str, Any] = {
        "format": "scaler-wizard-rules/1",
        "runs": len(history),
        "outcomes": {key: value for key, value in counts.items() if value},
        "rules": [
            {
                "when": "runs of similar size tripped the breaker at this learning rate or below",
                "then": "halve it",
            },
            {"when": "runs of similar size ran out of memory", "then": "use half of their smallest rank"},
            {
                "when": "runs of similar size failed a context gate",
                "then": "stay below their smallest multiplier",
            },
            {"when": "one template has the best median gain", "then": "start from it"},
        ],
        "templates": {
            name: {"runs": len(gains), "median_gain": round(median(gains), 4)}
            for name, gains in sorted(_gains(history).items())
        },
    }
    fitted = _fit_tree(history)
    if fitted is not None:
        from sklearn.tree import export_text  # heavy: only with enough runs

        document["tree"] = {
            "predicts": "quality_gain",
            "cross_validated_error": round(fitted.error, 5),
            "error_of_the_mean": round(fitted.baseline, 5),
            "used": fitted.useful,
            "text": export_text(fitted.tree, feature_names=list(FEATURES), decimals=3),
        }
    return dump_yaml(document)


_OUTCOMES: tuple[Outcome, ...] = (
    "completed", "breaker", "out_of_memory", "context_gate_failed", "rolled_back", "failed"
)  # fmt: skip


def _similar(record: RunRecord, hardware: Hardware, facts: ModelFacts) -> bool:
    """Same kind of device, and a model at most 4x larger or smaller."""
    ratio = max(record.parameters, 1) / max(facts.parameters, 1)
    return record.on_gpu == bool(hardware.gpus) and 1 / SIMILAR_SIZE <= ratio <= SIMILAR_SIZE


def _slower(similar: Sequence[RunRecord], learning_rate: float) -> HistoryProposal | None:
    tripped = [r for r in similar if r.outcome == "breaker" and r.learning_rate <= learning_rate * 1.001]
    if len(tripped) < RULE_MINIMUM:
        return None
    value = min(record.learning_rate for record in tripped) / 2
    text = f"{len(tripped)} runs of similar size tripped the breaker at {learning_rate:g} or below"
    return HistoryProposal("training.learning_rate", value, text, len(tripped), "rule")


def _smaller(similar: Sequence[RunRecord]) -> HistoryProposal | None:
    died = [record for record in similar if record.outcome == "out_of_memory"]
    if len(died) < RULE_MINIMUM:
        return None
    value = max(4, min(record.rank for record in died) // 2)
    text = f"{len(died)} runs of similar size ran out of memory"
    return HistoryProposal("scaling.lora.rank", value, text, len(died), "rule")


def _shorter(similar: Sequence[RunRecord]) -> HistoryProposal | None:
    failed = [record for record in similar if record.outcome == "context_gate_failed"]
    if len(failed) < RULE_MINIMUM:
        return None
    smallest = min(record.context_multiplier for record in failed)
    passed = [
        r.context_multiplier for r in similar if r.outcome == "completed" and r.context_multiplier < smallest
    ]
    value = max(passed, default=max(1.0, smallest / 2))
    text = f"{len(failed)} runs of similar size failed a context gate at {smallest:g} times the base context"
    return HistoryProposal("context_multiplier", value, text, len(failed), "rule")


def _gains(history: Sequence[RunRecord]) -> dict[str, list[float]]:
    gains: dict[str, list[float]] = {}
    for record in history:
        if record.outcome == "completed" and record.template and math.isfinite(record.quality_gain):
            gains.setdefault(record.template, []).append(record.quality_gain)
    return gains


def _template(similar: Sequence[RunRecord]) -> HistoryProposal | None:
    """The template with the best median gain, once two templates have two runs each."""
    gains = {name: values for name, values in _gains(similar).items() if len(values) >= RULE_MINIMUM}
    if len(gains) < 2:
        return None
    best = max(sorted(gains), key=lambda name: median(gains[name]))
    rest = max(median(values) for name, values in gains.items() if name != best)
    if median(gains[best]) <= max(rest, 0.0):
        return None
    text = (
        f"median gain {median(gains[best]):+.1%} over {len(gains[best])} similar runs; the next "
        f"best had {rest:+.1%}"
    )
    return HistoryProposal("scaling.template", best, text, len(gains[best]), "rule")


@dataclass(frozen=True)
class _FittedTree:
    tree: Any
    error: float
    baseline: float

    @property
    def useful(self) -> bool:
        return self.error < self.baseline


def _features(record: RunRecord) -> list[float]:
    return [
        math.log10(max(record.parameters, 1)),
        float(record.on_gpu),
        record.memory_gib,
        float(record.rank),
        math.log10(max(record.learning_rate, 1e-12)),
        record.context_multiplier,
    ]


def _fit_tree(history: Sequence[RunRecord]) -> _FittedTree | None:
    """A shallow regression tree of quality gain, with its leave-fold-out mean absolute error."""
    usable = [record for record in history if math.isfinite(record.quality_gain)]
    if len(usable) < TREE_MINIMUM:
        return None
    from sklearn.tree import DecisionTreeRegressor  # heavy: only with enough runs

    rows, gains = [_features(record) for record in usable], [record.quality_gain for record in usable]

    def fit(keep: Sequence[int]) -> Any:
        tree = DecisionTreeRegressor(max_depth=3, min_samples_leaf=5, random_state=0)
        return tree.fit([rows[i] for i in keep], [gains[i] for i in keep])

    errors, baselines = [], []
    for fold in range(5):
        keep = [i for i in range(len(rows)) if i % 5 != fold]
        held = [i for i in range(len(rows)) if i % 5 == fold]
        tree, guess = fit(keep), mean(gains[i] for i in keep)
        errors += [abs(float(tree.predict([rows[i]])[0]) - gains[i]) for i in held]
        baselines += [abs(guess - gains[i]) for i in held]
    return _FittedTree(fit(range(len(rows))), mean(errors), mean(baselines))


def _from_tree(
    history: Sequence[RunRecord], similar: Sequence[RunRecord], hardware: Hardware, facts: ModelFacts
) -> HistoryProposal | None:
    """The rank, among those tried in similar runs, for which the tree expects most."""
    fitted = _fit_tree(history)
    if fitted is None or not fitted.useful or not similar:
        return None
    rate = median(record.learning_rate for record in similar)
    multiplier = median(record.context_multiplier for record in similar)
    ranks = sorted({record.rank for record in similar})
    memory = hardware.memory_total / GIB

    def expected(rank: int) -> float:
        record = RunRecord(
            "", "", facts.parameters, bool(hardware.gpus), memory, rank, rate, multiplier, "completed", 0.0
        )
        return float(fitted.tree.predict([_features(record)])[0])

    best = max(ranks, key=lambda rank: (expected(rank), -rank))
    if len(ranks) < 2 or expected(best) <= min(expected(rank) for rank in ranks):
        return None
    text = (
        f"a decision tree over {len(history)} runs expects {expected(best):+.1%} (cross-validated error "
        f"{fitted.error:.3f}, guessing the mean {fitted.baseline:.3f})"
    )
    return HistoryProposal("scaling.lora.rank", float(best), text, len(history), "tree")
