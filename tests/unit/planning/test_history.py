from __future__ import annotations

import random

import yaml

from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import FAKES
from scaler_wizard.planning.history import TREE_MINIMUM, Outcome, RunRecord, export_rules, propose

HARDWARE = FAKES["rtx_3090"]


def record(
    facts: ModelFacts, *, outcome: Outcome = "completed", gain: float = 0.0, rank: int = 16,
    rate: float = 2e-4,
    template: str = "", multiplier: float = 2.0, on_gpu: bool = True, scale: float = 1.0,
) -> RunRecord:  # fmt: skip
    return RunRecord(
        "run", template, int(facts.parameters * scale), on_gpu, 24.0, rank, rate, multiplier, outcome, gain
    )


def test_no_history_no_proposals(llama_1b: ModelFacts) -> None:
    assert propose((), HARDWARE, llama_1b, 2e-4) == ()


def test_two_breaker_stops_halve_the_learning_rate(llama_1b: ModelFacts) -> None:
    runs = [record(llama_1b, outcome="breaker", rate=rate) for rate in (2e-4, 1e-4)]
    (found,) = propose(runs, HARDWARE, llama_1b, 2e-4)
    assert (found.setting, found.value, found.runs, found.source) == (
        "training.learning_rate",
        5e-5,
        2,
        "rule",
    )
    assert propose(runs[:1], HARDWARE, llama_1b, 2e-4) == ()
    assert propose(runs, HARDWARE, llama_1b, 1e-5) == ()


def test_runs_of_other_sizes_and_devices_do_not_count(llama_1b: ModelFacts) -> None:
    runs = [record(llama_1b, outcome="breaker", scale=5)] * 3 + [
        record(llama_1b, outcome="breaker", on_gpu=False)
    ] * 3
    assert propose(runs, HARDWARE, llama_1b, 2e-4) == ()


def test_memory_and_context_rules(llama_1b: ModelFacts) -> None:
    runs = [record(llama_1b, outcome="out_of_memory", rank=rank) for rank in (64, 32)]
    runs += [record(llama_1b, outcome="context_gate_failed", multiplier=8) for _ in range(2)]
    runs += [record(llama_1b, multiplier=4)]
    found = {item.setting: item.value for item in propose(runs, HARDWARE, llama_1b, 2e-4)}
    assert found == {"scaling.lora.rank": 16, "context_multiplier": 4}


def test_best_template_needs_two_templates_with_two_runs(llama_1b: ModelFacts) -> None:
    good = [record(llama_1b, template="max_context", gain=0.1)] * 2
    assert propose(good, HARDWARE, llama_1b, 2e-4) == ()
    poor = [record(llama_1b, template="budget_context", gain=0.02)] * 2
    (found,) = propose(good + poor, HARDWARE, llama_1b, 2e-4)
    assert (found.setting, found.value) == ("scaling.template", "max_context")


def test_tree_is_used_when_it_beats_the_mean_and_not_otherwise(llama_1b: ModelFacts) -> None:
    generator = random.Random(1)
    ranks = [8, 32] * (TREE_MINIMUM // 2 + 5)
    learnable = [
        record(llama_1b, rank=rank, gain=(0.1 if rank == 32 else 0.0) + generator.gauss(0, 0.01))
        for rank in ranks
    ]
    (found,) = propose(learnable, HARDWARE, llama_1b, 2e-4)
    assert (found.setting, found.value, found.source) == ("scaling.lora.rank", 32.0, "tree")
    noise = [record(llama_1b, gain=generator.gauss(0, 0.1)) for _ in ranks]
    assert propose(noise, HARDWARE, llama_1b, 2e-4) == ()
    assert propose(learnable[: TREE_MINIMUM - 1], HARDWARE, llama_1b, 2e-4) == ()


def test_rules_as_yaml(llama_1b: ModelFacts) -> None:
    few = [record(llama_1b, template="max_context", gain=0.1)]
    document = yaml.safe_load(export_rules(few))
    assert document["templates"]["max_context"] == {"runs": 1, "median_gain": 0.1}
    assert "tree" not in document
    many = [record(llama_1b, rank=rank, gain=rank / 100) for rank in [8, 32] * TREE_MINIMUM]
    document = yaml.safe_load(export_rules(many))
    assert "rank" in document["tree"]["text"]
    assert document["tree"]["used"] is True
