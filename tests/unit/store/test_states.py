import re
from pathlib import Path

import pytest

from scaler_wizard.errors import WrongStateError
from scaler_wizard.store.states import (
    ACTIVE,
    COMMANDS,
    FINISHED,
    TRANSITIONS,
    Command,
    RunStatus,
    check_command,
    check_transition,
)


def test_tables_are_complete():
    assert set(TRANSITIONS) == set(COMMANDS) == set(RunStatus)
    assert not ACTIVE & FINISHED


def test_every_pair_is_allowed_or_refused_as_the_table_says():
    for current in RunStatus:
        for new in RunStatus:
            if new == current or new in TRANSITIONS[current]:
                check_transition("r", current, new)
            else:
                with pytest.raises(WrongStateError, match=f"run r is {current}"):
                    check_transition("r", current, new)


def test_the_document_shows_the_same_table():
    text = (Path(__file__).parents[3] / "docs" / "states.md").read_text()
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE)
    shown = {row[0]: row[1:] for row in rows if row[0] != "state"}
    assert set(shown) == set(RunStatus)
    words = {Command.STOP: "abort", Command.ABORT: "abort"}
    for state, (following, commands) in shown.items():
        assert set(following.split(", ")) == TRANSITIONS[RunStatus(state)], state
        assert set(commands.split(", ")) == {words.get(c, c) for c in COMMANDS[RunStatus(state)]}, state


def test_refusal_says_what_is_possible():
    with pytest.raises(WrongStateError, match="possible now: resume, stop, rollback, skip"):
        check_command("r", RunStatus.PAUSED, Command.APPROVE)
    check_command("r", RunStatus.WAITING, Command.APPROVE)
    check_command("r", RunStatus.STOPPING, Command.STOP)


def test_every_state_can_be_left_and_a_run_can_reach_each():
    reached, todo = {RunStatus.QUEUED}, [RunStatus.QUEUED]
    while todo:
        for new in TRANSITIONS[todo.pop()] - reached:
            reached.add(new)
            todo.append(new)
    assert reached == set(RunStatus)
    assert all(TRANSITIONS.values())
    # nothing that ended starts again without passing the queue or a person's look
    for status in FINISHED:
        assert TRANSITIONS[status] <= {RunStatus.QUEUED, RunStatus.PAUSED}
