import json
from typing import get_args

import pytest
from pydantic import ValidationError

from scaler_wizard.specs import events
from scaler_wizard.specs.events import EVENT, Event

SAMPLES: list[Event] = [
    events.RunStarted(run="r", attempt=1, phases=["P0", "P1"], facts={"a": 1}),
    events.Note(phase="P0", text="4 threads"),
    events.PhaseStarted(phase="P0", title="Measure the base"),
    events.Progress(phase="P0", activity="needles", done=1, total=5, eta_sec=2.5),
    events.StepDone(
        phase="P1",
        step=3,
        total_steps=10,
        loss=1.5,
        grad_norm=0.3,
        learning_rate=1e-3,
        tokens=256,
        seconds=0.1,
    ),
    events.ProbeDone(phase="P0", probe="needle", result={"value": 0.5, "n": 120}),
    events.Telegram(phase="P1", action="stop", reason="loss spike", step=7, slope=0.2),
    events.StepSaved(
        phase="P1", step=9, checkpoint="P1-0002", bytes=10, snapshot_seconds=0.01, write_seconds=0.2
    ),
    events.PhaseDone(phase="P0", checkpoint="P0-1", seconds=3.0, metrics={"perplexity": 4.0}),
    events.GateOpened(gate="g1", sentence="Ready?", deadline=12.5),
    events.GateClosed(gate="g1", action="approve", by="Ada"),
    events.RolledBack(phase="P1", checkpoint="P1-1", seconds=0.01),
    events.RunEnded(status="completed", result={"accuracy": 0.9}),
]


def test_every_event_has_a_sample() -> None:
    union = get_args(get_args(Event)[0])
    assert {type(sample) for sample in SAMPLES} == set(union)


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.type)
def test_round_trip_through_one_line(event: Event) -> None:
    stamped = event.model_copy(update={"time": 1.5, "seq": 7})
    line = stamped.model_dump_json()
    assert "\n" not in line
    assert EVENT.validate_json(line) == stamped
    assert json.loads(line)["type"] == event.type


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "unknown"}',
        '{"phase": "P0", "text": "no type"}',
        '{"type": "note", "text": "x", "extra": 1}',
        '{"type": "gate_opened", "gate": "g", "deadline": 1, "sentence": "' + "x" * 121 + '"}',
        '{"type": "telegram", "phase": "P1", "action": "continue", "reason": "", "step": 1}',
        '{"type": "note", "text": "torn li',
    ],
)
def test_wrong_lines_are_refused(line: str) -> None:
    with pytest.raises(ValidationError):
        EVENT.validate_json(line)
