from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.errors import (
    DoesNotFitError,
    IncompatibleModelError,
    LimitError,
    NotExtendableError,
    SpecError,
)
from scaler_wizard.planning.context import context_schedule, doublings
from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import FAKES
from scaler_wizard.planning.memory import calibrate
from scaler_wizard.planning.plan import DataSummary, Plan, make_plan, phase_names, replace_memory
from scaler_wizard.planning.render import WIDTH, duration, render_plan, size
from scaler_wizard.specs.grow import GrowJob

DATA = DataSummary(rows=1000, tokens_estimate=200_000, longest=100, format="messages")


def job(**sections: Any) -> GrowJob:
    value: dict[str, Any] = {"model": {"base_model": "m"}, "dataset": {"identifier": "rows.jsonl"}}
    return GrowJob.parse(value | sections)


def test_phases_of_three_doublings(tiny: ModelFacts) -> None:
    plan = make_plan(job(scaling={"target_context": 1024}), FAKES["two_cores"], tiny, data=DATA)
    assert [(phase.name, phase.context, phase.factor) for phase in plan.phases] == [
        ("P0", 128, 1), ("P1", 128, 1), ("P2", 256, 2), ("P3", 512, 4), ("P3.2", 1024, 8), ("P4", 1024, 8),
    ]  # fmt: skip
    assert [phase.gate for phase in plan.phases] == ["none", "adapt", "expand", "expand", "expand", "finish"]
    assert plan.phase("P1").batch_tokens == 8 * 100
    assert plan.phase("P2").batch_tokens == 8 * 256
    assert plan.seconds == sum(phase.seconds for phase in plan.phases)


def test_names() -> None:
    assert phase_names(0) == ("P0", "P1", "P4")
    assert phase_names(4) == ("P0", "P1", "P2", "P3", "P3.2", "P3.3", "P4")


@given(st.integers(16, 10_000), st.integers(16, 2_000_000))
def test_doublings_never_step_more_than_twice(base: int, target: int) -> None:
    lengths = (base, *doublings(base, target))
    assert lengths[-1] == max(base, target)
    assert all(before < after <= 2 * before for before, after in itertools.pairwise(lengths))


def test_a_step_of_more_than_twice_is_refused_with_a_schedule_that_works(tiny: ModelFacts) -> None:
    with pytest.raises(LimitError, match=r"from 256 to 1,024.*\[256, 512, 1024\]"):
        make_plan(job(scaling={"context_schedule": [256, 1024]}), FAKES["two_cores"], tiny)
    assert context_schedule(tiny, 1024, [256, 512, 1024]) == (256, 512, 1024)


def test_schedules(tiny: ModelFacts) -> None:
    assert context_schedule(tiny, None, [128, 192, 300]) == (192, 300)
    assert context_schedule(tiny, None, None) == ()
    assert context_schedule(tiny, 300, None) == (256, 300)
    with pytest.raises(SpecError, match="below the model's base context of 128"):
        context_schedule(tiny, 64, None)
    with pytest.raises(SpecError, match="ends at 256"):
        context_schedule(tiny, 512, [256])
    with pytest.raises(SpecError, match="starts at 64"):
        context_schedule(tiny, None, [64, 128])


def test_alibi_model_is_refused_with_the_reason(bloom: ModelFacts) -> None:
    with pytest.raises(NotExtendableError, match="ALiBi"):
        make_plan(job(scaling={"target_context": 4096}), FAKES["a100_80gb"], bloom)
    assert len(make_plan(job(), FAKES["a100_80gb"], bloom).phases) == 3


def test_does_not_fit_and_here_is_what_would(llama_3b: ModelFacts) -> None:
    asked = job(scaling={"strategy": "full", "target_context": 8192})
    with pytest.raises(DoesNotFitError, match=r"here is what would fit: .*qlora.*\d GiB"):
        make_plan(asked, FAKES["laptop_8gb_gpu"], llama_3b)


def test_disk_counts_too(llama_3b: ModelFacts) -> None:
    full = dataclasses.replace(FAKES["a100_80gb"], disk_free=1 << 30)
    with pytest.raises(DoesNotFitError, match="disk"):
        make_plan(job(), full, llama_3b)


def test_unknown_template_names_the_nearest(tiny: ModelFacts) -> None:
    with pytest.raises(SpecError, match="max_context"):
        make_plan(job(scaling={"template": "max_contxt"}), FAKES["two_cores"], tiny)


def test_template_fills_what_the_job_leaves_open(llama_1b: ModelFacts) -> None:
    plan = make_plan(job(scaling={"template": "max_context"}), FAKES["a100_80gb"], llama_1b, data=DATA)
    assert (plan.lora.rank, plan.lora.alpha, plan.target_context) == (12, 32, 16 * 2048)
    assert plan.telemetry == "high_resolution"
    own = {"template": "max_context", "lora": {"rank": 24, "dropout": 0.1}, "target_context": 4096}
    plan = make_plan(
        job(scaling=own, safety={"telemetry": "standard"}), FAKES["a100_80gb"], llama_1b, data=DATA
    )  # fmt: skip
    assert (plan.lora.rank, plan.lora.alpha, plan.lora.dropout, plan.target_context) == (24, 64, 0.1, 4096)
    assert plan.telemetry == "standard"


def test_explicit_training_values_win(tiny: ModelFacts) -> None:
    training = {"batch_tokens": 640, "micro_batch_tokens": 320, "learning_rate": 0.01, "max_steps": 7}
    plan = make_plan(job(training=training), FAKES["two_cores"], tiny, data=DATA)
    phase = plan.phase("P1")
    assert (phase.batch_tokens, phase.micro_batch_tokens, phase.steps) == (640, 320, 7)
    assert (plan.learning_rate, plan.learning_rate_reason) == (0.01, "set in the job")


@pytest.mark.parametrize(
    ("strategy", "small", "rate"),
    [("lora", False, 2e-4), ("lora", True, 2e-3), ("full", False, 2e-5), ("full", True, 3e-4)],
)
def test_learning_rates(
    tiny: ModelFacts, llama_1b: ModelFacts, strategy: str, small: bool, rate: float
) -> None:  # fmt: skip
    facts = tiny if small else llama_1b
    plan = make_plan(job(scaling={"strategy": strategy}), FAKES["a100_80gb"], facts, data=DATA)
    assert plan.learning_rate == rate


def test_qlora_on_a_cpu_is_refused_with_an_alternative(tiny: ModelFacts) -> None:
    with pytest.raises(SpecError, match=r"need one here.*strategy: lora"):
        make_plan(job(scaling={"strategy": "qlora"}), FAKES["two_cores"], tiny)


def test_qlora_chosen_only_where_the_job_is_silent(llama_3b: ModelFacts) -> None:
    laptop = FAKES["laptop_8gb_gpu"]
    assert make_plan(job(), laptop, llama_3b, data=DATA).strategy == "qlora"
    with pytest.raises(DoesNotFitError):
        make_plan(job(scaling={"strategy": "lora", "lora": {"rank": 64}}), laptop, llama_3b, data=DATA)


def test_runtime_and_target_modules(tiny: ModelFacts) -> None:
    with pytest.raises(SpecError, match="single_gpu"):
        make_plan(job(model={"base_model": "m", "runtime": "single_gpu"}), FAKES["two_cores"], tiny)
    plan = make_plan(job(model={"base_model": "m", "runtime": "cpu"}), FAKES["rtx_3090"], tiny)
    assert plan.device == "cpu"
    plan = make_plan(job(scaling={"lora": {"target_modules": "attention"}}), FAKES["two_cores"], tiny)
    assert plan.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    with pytest.raises(IncompatibleModelError):
        make_plan(job(scaling={"lora": {"target_modules": ["nope"]}}), FAKES["two_cores"], tiny)


def test_checkpointing_only_when_needed_or_asked(llama_1b: ModelFacts) -> None:
    laptop, big = FAKES["laptop_8gb_gpu"], FAKES["a100_80gb"]
    assert not make_plan(job(), big, llama_1b).phase("P1").activation_checkpointing
    assert not make_plan(job(), laptop, llama_1b).phase("P1").activation_checkpointing
    needed = make_plan(job(training={"micro_batch_tokens": 8192}), laptop, llama_1b)
    assert needed.phase("P1").activation_checkpointing
    said = next(note for note in needed.notes if note.startswith("P1 recomputes activations"))
    assert "does not" in said
    assert not any("recomputes" in note for note in make_plan(job(), big, llama_1b).notes)
    asked = job(training={"activation_checkpointing": "on"})
    plan = make_plan(asked, big, llama_1b)
    assert plan.phase("P1").activation_checkpointing
    assert not any("recomputes" in note for note in plan.notes), "a person's own choice needs no reason"


def test_teacher_counts_in_the_last_phase(tiny: ModelFacts, llama_1b: ModelFacts) -> None:
    asked = job(scaling={"distillation": {"teacher": "t"}}, training={"final_steps": 10})
    plan = make_plan(asked, FAKES["a100_80gb"], tiny, teacher=llama_1b)
    assert plan.phase("P4").memory.line("teacher").bytes == 4 * llama_1b.parameters
    assert "teacher" not in [line.name for line in plan.phase("P1").memory.lines]


@given(
    st.sampled_from(sorted(FAKES)),
    st.sampled_from(["lora", "full", "prefix_tuning"]),
    st.sampled_from([None, 200, 1024]),
    st.sampled_from([None, "max_context", "budget_context", "creative_fusion"]),
)
@settings(deadline=None, max_examples=25)
def test_json_round_trip_and_width(
    tiny: ModelFacts, name: str, strategy: str, target: int | None, template: str | None
) -> None:
    if strategy == "prefix_tuning":  # refused for a longer context
        target, template = None, None
    scaling = {"strategy": strategy, "target_context": target, "template": template}
    plan = make_plan(job(scaling=scaling), FAKES[name], tiny)
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    lines = render_plan(plan)
    assert max(len(line) for line in lines) <= WIDTH
    text = "\n".join(lines)
    for phase in plan.phases:
        assert f"{phase.name} " in text
    assert all(phase.memory.total <= plan.memory_limit for phase in plan.phases)


def test_a_prefix_cannot_go_with_a_longer_context(tiny: ModelFacts) -> None:
    asked = job(scaling={"strategy": "prefix_tuning", "target_context": 256})
    with pytest.raises(SpecError, match="prefix_tuning"):
        make_plan(asked, FAKES["two_cores"], tiny)


def test_a_teacher_without_steps_is_refused(tiny: ModelFacts) -> None:
    with pytest.raises(SpecError, match="final_steps is 0"):
        make_plan(job(scaling={"distillation": {"teacher": "t"}}), FAKES["two_cores"], tiny)


def test_a_broken_plan_file_is_refused() -> None:
    with pytest.raises(SpecError, match="stored plan"):
        Plan.from_dict({"recipe": "grow"})


def test_calibration_replaces_one_phase(tiny: ModelFacts) -> None:
    plan = make_plan(job(), FAKES["two_cores"], tiny)
    measured = calibrate(plan.phase("P1").memory, 600_000_000)
    after = replace_memory(plan, "P1", measured)
    assert after.phase("P1").memory.total == 600_000_000
    assert after.phase("P4") == plan.phase("P4")


def test_words_for_numbers() -> None:
    assert (size(999), size(1_500), size(146_800_000), size(3e9)) == ("999 B", "1.5 KB", "147 MB", "3.00 GB")
    assert (duration(5), duration(90), duration(3_700), duration(90_000)) == (
        "5 s",
        "1 min 30 s",
        "1 h 1 min",
        "1 d 1 h",
    )


def test_planning_imports_neither_torch_nor_sklearn() -> None:
    modules = "facts hardware memory fit lora templates recommend history plan render locate context cost"
    code = (
        "import sys\n"
        + "".join(f"import scaler_wizard.planning.{name}\n" for name in modules.split())
        + "print([name for name in ('torch', 'transformers', 'sklearn', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
