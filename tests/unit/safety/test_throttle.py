import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.safety.throttle import (
    MAX_VOICE_QUEUE,
    PRIORITY,
    Item,
    Throttle,
    finish,
    offer,
    set_sentence,
    set_voice,
)

VECTORS = json.loads(Path(__file__).with_name("throttle_vectors.json").read_text(encoding="utf-8"))


def apply(state: Throttle, step: dict[str, Any]) -> Throttle:
    match step["op"]:
        case "offer":
            return offer(state, Item(step["id"], step["severity"], step["text"]))
        case "finish":
            return finish(state, step["id"])
        case "sentence":
            return set_sentence(state, step["text"])
        case "voice":
            return set_voice(state, step["available"])
    raise AssertionError(step)


def view(state: Throttle) -> dict[str, Any]:
    def name(item: Item | None) -> str | None:
        return item.id if item else None

    return {
        "current": name(state.current),
        "modality": state.modality,
        "subtitle": state.subtitle,
        "voice": [item.id for item in state.voice],
        "visual": name(state.visual),
        "telegram": name(state.telegram),
    }


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    state = Throttle()
    for number, step in enumerate(vector["steps"]):
        state = apply(state, step)
        seen = view(state)
        assert {key: seen[key] for key in step["expect"]} == step["expect"], f"step {number}"


ITEMS = st.builds(
    lambda number, severity: Item(f"{severity}{number}", severity, f"text {number}"),
    st.integers(0, 9),
    st.sampled_from(["critical", "warn", "info"]),
)


@given(st.lists(st.one_of(ITEMS, st.just(None)), max_size=40))
def test_nothing_waits_that_should_be_told(events: list[Item | None]) -> None:
    state = set_sentence(Throttle(), "sentence")
    for event in events:
        if event is not None:
            state = offer(state, event)
        elif state.current is not None:
            state = finish(state, state.current.id)
        waiting = [item for item in (*state.voice, state.visual, state.telegram) if item]
        assert len(state.voice) <= MAX_VOICE_QUEUE
        assert state.subtitle == "sentence"
        if state.current is None:
            assert not waiting
        else:
            assert all(PRIORITY[item.severity] <= PRIORITY[state.current.severity] for item in waiting)
