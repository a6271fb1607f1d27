"""The engine with a recipe that has no model: everything around it is real."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from scaler_wizard.jobs.host import Host
from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.runs.context import PhaseContext, perplexity
from scaler_wizard.runs.link import HostLink
from scaler_wizard.runs.telemetry import Telemetry
from scaler_wizard.specs.events import GateOpened, Note, Progress
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir

SCHEMA = Path(__file__).resolve().parents[3] / "specs" / "cockpit_schema.json"
Answers = dict[str, Any]


class Desk:
    """A host's socket with a person's answers behind it: what a worker would meet, without a database."""

    def __init__(self, address: Path) -> None:
        self.asked: list[Answers] = []
        self.gate: Answers = {}
        self.command: Answers = {}
        self.fenced = False
        self.host = Host(self, address)  # type: ignore[arg-type]

    def reap(self) -> None:
        """No workers here."""

    def handle(self, request: Answers) -> Answers:
        self.asked.append(request)
        if self.fenced:
            return {"fenced": True}
        if request["op"] == "gate_poll" and self.gate:
            answer = {"decision_id": "d", "gate": request["gate_id"], "at": time.time(), "by": "a person"}
            return {"answer": {**answer, **self.gate}}
        if request["op"] == "beat" and self.command:
            command, self.command = self.command, {}
            return {"command": command}
        return {}

    def ops(self) -> list[str]:
        silent = ("beat", "gate_poll", "activity")
        return [request["op"] for request in self.asked if request["op"] not in silent]


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    desk = Desk(tmp_path / "host.sock")
    desk.host.start()
    yield desk
    desk.host.close()


def link_to(desk: Desk, run_dir: RunDir, token: int = 1) -> HostLink:
    return HostLink(desk.host.address, run_dir.id, token)


# Phases


def test_phases_run_in_order_and_end_in_checkpoints(bench: Any, counting: Any) -> None:
    recipe = counting()
    outcome = bench.execute(recipe)
    assert outcome.status == "completed"
    assert (outcome.result["weight"], outcome.result["phases"]) == (4, ["P0", "P1", "P2", "P3"])
    assert recipe.ran == ["P0", "P1", "P2", "P3"]
    chain = CheckpointStore(bench.run_dir).chain()
    assert [checkpoint.phase for checkpoint in chain] == ["P0", "P1", "P2", "P3"]
    assert chain[1].metrics["steps"] == 4
    assert bench.run_dir.result() == outcome.result
    assert [event.phase for event in bench.events("phase_done")] == ["P0", "P1", "P2", "P3"]
    assert [event.loss for event in bench.events("step")] == [2.0, 1.9, 1.8, 1.7]
    assert any("since P0" in event.text for event in bench.events("note"))


def test_resume_skips_what_is_committed(bench: Any, counting: Any) -> None:
    first = counting(before_step=lambda step: (_ for _ in ()).throw(KeyError("killed here")))
    with pytest.raises(KeyError):
        bench.execute(first)
    assert first.ran == ["P0", "P1"]
    second = counting()
    outcome = bench.execute(second, attempt=2)
    assert outcome.status == "completed"
    assert second.ran == ["P1", "P2", "P3"]
    assert bench.events("run_started")[1].resumed_at == "P0-0001"
    third = counting()
    assert bench.execute(third, attempt=3).status == "completed"
    assert third.ran == [], "killed between the last checkpoint and the result: only the result is made again"


def test_a_damaged_checkpoint_is_set_aside_and_the_phase_repeated(bench: Any, counting: Any) -> None:
    bench.execute(counting())
    last = bench.run_dir.checkpoints / CheckpointStore(bench.run_dir).head().chain[-1]
    (last / "weights.json").write_text("{}")
    recipe = counting()
    assert bench.execute(recipe, attempt=2).status == "completed"
    assert recipe.ran == ["P3"]
    assert any("was damaged and set aside" in event.text for event in bench.events("note"))


# Gates


@pytest.mark.parametrize(
    ("answer", "status", "rollback_to", "ran"),
    [
        ({"action": "approve"}, "completed", None, ["P0", "P1", "P2", "P3"]),
        ({"action": "abort"}, "stopped", None, ["P0", "P1"]),
        ({"action": "pause"}, "paused", None, ["P0", "P1"]),
        # Between phases "back" is the phase before the one that stands.
        ({"action": "rollback"}, "paused", "P0", ["P0", "P1"]),
        ({"action": "rollback", "target_phase": "P0"}, "paused", "P0", ["P0", "P1"]),
    ],
)
def test_a_gate_does_what_the_person_said(
    bench: Any,
    counting: Any,
    desk: Desk,
    answer: Answers,
    status: str,
    rollback_to: str | None,
    ran: list[str],
) -> None:
    bench.ask, desk.gate = "human", answer
    recipe = counting()
    outcome = bench.execute(recipe, link=link_to(desk, bench.run_dir))
    assert (outcome.status, outcome.rollback_to, recipe.ran) == (status, rollback_to, ran)
    closed = bench.events("gate_closed")[0]
    assert (closed.gate, closed.action, closed.by) == ("P2", answer["action"], "a person")
    assert desk.ops()[:7] == [
        "phase_started", "phase_done", "phase_started", "phase_done", "gate_opened", "gate_closed",
        *(["phase_started"] if status == "completed" else []),
    ]  # fmt: skip


def test_an_answer_from_before_the_gate_or_after_its_window_does_not_approve(
    bench: Any, counting: Any, desk: Desk
) -> None:
    bench.ask = "human"
    desk.gate = {"action": "approve", "at": time.time() + 3600}
    outcome = bench.execute(counting(), link=link_to(desk, bench.run_dir))
    assert outcome.status == "paused"
    assert "after the window" in outcome.reason
    desk.gate = {"action": "approve", "at": 1.0}
    threading.Timer(0.6, lambda: desk.gate.update(action="pause", at=time.time() + 5)).start()
    assert bench.execute(counting(), link=link_to(desk, bench.run_dir, 2), attempt=2).status == "paused"


def test_every_poll_carries_the_question_for_a_host_that_came_late(
    bench: Any, counting: Any, desk: Desk
) -> None:
    bench.ask, desk.gate = "human", {"action": "abort"}
    bench.execute(counting(), link=link_to(desk, bench.run_dir))
    poll = next(request for request in desk.asked if request["op"] == "gate_poll")
    assert poll["sentence"].startswith("Expand context?")
    assert poll["deadline"] - poll["opened"] == pytest.approx(30)


def test_the_run_goes_on_without_a_host(bench: Any, counting: Any, tmp_path: Path) -> None:
    link = HostLink(tmp_path / "nobody.sock", bench.run_dir.id, 1)
    assert bench.execute(counting(), link=link).status == "completed"


def test_a_fenced_worker_leaves(bench: Any, counting: Any, desk: Desk) -> None:
    desk.fenced = True
    outcome = bench.execute(counting(), link=link_to(desk, bench.run_dir))
    assert outcome.status == "failed"
    assert "no longer the current one" in outcome.reason


# Breaker and limits


def test_the_breaker_stops_before_the_step_and_names_the_way_back(bench: Any, counting: Any) -> None:
    recipe = counting(losses=[2.0, 2.0, math.nan, 2.0])
    outcome = bench.execute(recipe)
    assert (outcome.status, outcome.rollback_to) == ("failed", "P0")
    assert "step 3" in outcome.reason
    assert "not a number" in outcome.reason
    assert recipe.weight == 2, "the bad step was not applied"
    store = CheckpointStore(bench.run_dir)
    assert store.head().chain == ("P0-0001",)
    store.verify("P0-0001")
    assert [(event.action, event.step) for event in bench.events("telegram")] == [("stop", 3)]
    assert bench.events("run_ended")[-1].status == "failed"


@pytest.mark.parametrize(
    ("action", "status"), [("pause", "paused"), ("abort", "stopped"), ("rollback", "failed")]
)
def test_a_person_decides_after_the_breaker(
    bench: Any, counting: Any, desk: Desk, action: str, status: str
) -> None:
    bench.ask, desk.gate = "human", {"action": action}
    outcome = bench.execute(counting(losses=[2.0, math.inf]), link=link_to(desk, bench.run_dir))
    assert outcome.status == status
    assert outcome.rollback_to == ("P0" if action == "rollback" else None)
    assert len(bench.events("gate_opened")[0].sentence) <= 120


def test_a_gradient_explosion_only_warns_in_mode_warn(bench: Any, counting: Any) -> None:
    bench.breaker = {"mode": "warn", "max_grad_norm": 0.5}
    assert bench.execute(counting()).status == "completed"
    assert {event.action for event in bench.events("telegram")} == {"warn"}


def test_memory_above_the_limit_ends_the_run_with_advice(bench: Any, counting: Any) -> None:
    bench.memory = lambda: 901
    outcome = bench.execute(counting())
    assert outcome.status == "failed"
    assert "memory in use" in outcome.reason
    assert "90%" in outcome.reason
    assert "micro_batch_tokens" in outcome.advice
    bench.memory = lambda: 900
    assert bench.execute(counting(), attempt=2).status == "completed", "90% itself is within the contract"


# Being interrupted, and remembering


def test_a_pause_keeps_the_step_and_resume_continues_at_the_next(
    bench: Any, counting: Any, desk: Desk
) -> None:
    recipe = counting(losses=[2.0] * 6, pace=0.25)
    recipe.before_step = lambda step: (
        desk.command.update(action="pause", reason="lunch") if step == 3 else None
    )
    outcome = bench.execute(recipe, link=link_to(desk, bench.run_dir))
    assert (outcome.status, outcome.reason) == ("paused", "lunch")
    steps = CheckpointStore(bench.run_dir).head().steps
    assert len(steps) == 1
    assert recipe.step == 3
    again = counting(losses=[2.0] * 6)
    assert bench.execute(again, attempt=2).result["weight"] == 6
    numbers = [event.step for event in bench.events("step")]
    assert numbers == [1, 2, 3, 4, 5, 6], "no step twice, none left out"
    assert bench.events("run_started")[1].resumed_at == steps[0]


@pytest.mark.parametrize(
    ("action", "status", "back"), [("abort", "stopped", None), ("rollback", "paused", "P0")]
)
def test_abort_and_rollback_act_in_the_middle_of_a_phase(
    bench: Any, counting: Any, desk: Desk, action: str, status: str, back: str | None
) -> None:
    recipe = counting(pace=0.25)
    recipe.before_step = lambda step: desk.command.update(action=action) if step == 2 else None
    outcome = bench.execute(recipe, link=link_to(desk, bench.run_dir))
    assert (outcome.status, outcome.rollback_to) == (status, back)


def test_once_is_remembered_by_the_next_engine(bench: Any, counting: Any, desk: Desk) -> None:
    bench.ask, desk.gate = "human", {"action": "pause"}
    first = counting()
    bench.execute(first, link=link_to(desk, bench.run_dir))
    bench.ask = "auto_approve"
    second = counting()
    assert bench.execute(second, attempt=2).status == "completed"
    assert (first.candidates_made, second.candidates_made) == (1, 0)
    assert not (bench.run_dir.path / "phase_memo.json").exists(), "forgotten with the phase"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"phase": "P2"}', '{"phase": "P2", "memo": 3}', "\x00"])
def test_a_damaged_memory_is_made_again(bench: Any, counting: Any, text: str) -> None:
    context: PhaseContext = bench.engine(counting())._context("P2")
    context.once("a", lambda: 1)
    (bench.run_dir.path / "phase_memo.json").write_text(text)
    assert context.once("a", lambda: (2, 3)) == [2, 3], "as it will be read back"
    assert context.once("a", lambda: 4) == [2, 3]
    context.telemetry.close()


def test_what_one_phase_remembers_is_not_the_nexts(bench: Any, counting: Any) -> None:
    engine = bench.engine(counting())
    engine._context("P2").once("a", lambda: 1)
    assert engine._context("P3").once("a", lambda: 2) == 2
    engine.telemetry.close()


# Telemetry


def test_every_payload_of_a_run_follows_the_published_schema(
    bench: Any, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    seen: list[dict[str, Any]] = []
    write = RunDir.write_cockpit_payload

    def look(self: RunDir, payload: Any) -> None:
        write(self, payload)
        value = json.loads((self.path / "cockpit_payload.json").read_text())
        check.validate(value)
        seen.append(value)

    monkeypatch.setattr(RunDir, "write_cockpit_payload", look)
    monkeypatch.setattr("scaler_wizard.runs.telemetry.PAYLOAD_SEC", 0.0)
    bench.execute(counting())
    assert len(seen) >= len(list(bench.run_dir.read_events()))
    assert {"running", "paused", "completed"} <= {value["status"] for value in seen}
    assert seen[-1]["audit"]["contract"] == "x"
    assert len(seen[-1]["audit"]["flight_log"]) == 64
    bench.execute(counting(losses=[2.0, math.nan]), attempt=2)


def test_a_stopped_run_shows_its_alert_under_the_schema(bench: Any, counting: Any) -> None:
    bench.execute(counting(losses=[2.0, math.nan]))
    value = json.loads((bench.run_dir.path / "cockpit_payload.json").read_text())
    jsonschema.validate(value, json.loads(SCHEMA.read_text()))
    assert value["status"] == "failed"
    assert "critical" in {alert["severity"] for alert in value["alerts"]}


def test_an_invalid_payload_is_dropped_and_the_run_goes_on(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    state = CockpitState(bench.run_dir.identity().uuid, total_memory=1)
    telemetry = Telemetry(bench.run_dir, state)
    telemetry.emit(GateOpened(gate="P2", sentence="Expand?", deadline=time.time()))
    before = bench.run_dir.cockpit_payload()
    state.sentence = "x" * 500  # longer than a sentence may be
    telemetry.emit(GateOpened(gate="P3", sentence="Finish?", deadline=time.time()))
    state.sentence = "x" * 500
    telemetry.close()
    assert "payload dropped" in caplog.text
    assert before is not None
    assert len(list(bench.run_dir.read_events())) == 2


def test_progress_is_written_at_most_five_times_a_second_but_its_end_always(bench: Any) -> None:
    telemetry = Telemetry(bench.run_dir, CockpitState(bench.run_dir.identity().uuid, total_memory=1))
    telemetry.emit(Note(text="start"))
    for done in range(1, 1001):
        telemetry.emit_progress(Progress(phase="P0", activity="probe", done=done, total=1000))
    telemetry.close()
    written = [event.done for event in bench.events("progress")]
    assert written[0] == 1
    assert written[-1] == 1000
    assert len(written) < 30


def test_perplexity_of_a_loss() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e9) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_a_run_pauses_after_the_phase_a_person_named_and_goes_on_later(bench: Any, counting: Any) -> None:
    recipe = counting()
    bench.run_dir.write_until("P1")
    outcome = bench.execute(recipe)
    assert (outcome.status, outcome.reason) == ("paused", "paused after P1, as asked")
    assert recipe.ran == ["P0", "P1"]
    bench.run_dir.write_until(None)
    assert bench.execute(recipe).status == "completed"
    assert recipe.ran == ["P0", "P1", "P2", "P3"]
