"""The states of a run and what leads from one to the next: one table, and two pure checks on it."""

from __future__ import annotations

from enum import StrEnum

from scaler_wizard.errors import WrongStateError


class RunStatus(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    INITIALIZING = "initializing"
    RUNNING = "running"
    WAITING = "waiting"  # at an open gate
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SKIPPED = "skipped"  # taken out of the queue by a person before it ended
    COMPLETED = "completed"
    FAILED = "failed"


class Command(StrEnum):
    """What a person may ask of a run."""

    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    ROLLBACK = "rollback"
    APPROVE = "approve"
    ABORT = "abort"
    SKIP = "skip"


_S = RunStatus

TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    _S.QUEUED: frozenset({_S.INITIALIZING, _S.PAUSED, _S.STOPPED, _S.SKIPPED, _S.FAILED}),
    # Back to queued: the worker died and the run is tried again from its newest checkpoint.
    _S.INITIALIZING: frozenset(
        {_S.RUNNING, _S.QUEUED, _S.PAUSED, _S.STOPPING, _S.STOPPED, _S.SKIPPED, _S.FAILED}
    ),
    _S.RUNNING: frozenset(
        {_S.WAITING, _S.QUEUED, _S.PAUSED, _S.STOPPING, _S.STOPPED, _S.SKIPPED, _S.COMPLETED, _S.FAILED}
    ),
    _S.WAITING: frozenset({_S.RUNNING, _S.QUEUED, _S.PAUSED, _S.STOPPING, _S.STOPPED, _S.SKIPPED, _S.FAILED}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.STOPPED, _S.SKIPPED}),
    # It may finish, fail, or end paused (a rollback stops the worker first) before it sees the request.
    _S.STOPPING: frozenset({_S.STOPPED, _S.PAUSED, _S.SKIPPED, _S.COMPLETED, _S.FAILED}),
    # A rollback leaves a finished run paused at the earlier phase.
    _S.STOPPED: frozenset({_S.QUEUED, _S.PAUSED}),
    _S.SKIPPED: frozenset({_S.QUEUED, _S.PAUSED}),
    _S.COMPLETED: frozenset({_S.PAUSED}),
    _S.FAILED: frozenset({_S.QUEUED, _S.PAUSED}),
}

COMMANDS: dict[RunStatus, frozenset[Command]] = {
    _S.QUEUED: frozenset({Command.PAUSE, Command.STOP, Command.SKIP}),
    _S.INITIALIZING: frozenset({Command.PAUSE, Command.STOP, Command.SKIP}),
    _S.RUNNING: frozenset({Command.PAUSE, Command.STOP, Command.ROLLBACK, Command.SKIP}),
    _S.WAITING: frozenset(
        {Command.APPROVE, Command.ABORT, Command.ROLLBACK, Command.PAUSE, Command.STOP, Command.SKIP}
    ),
    _S.PAUSED: frozenset({Command.RESUME, Command.STOP, Command.ROLLBACK, Command.SKIP}),
    _S.STOPPING: frozenset({Command.STOP, Command.SKIP}),  # asking twice is harmless
    _S.STOPPED: frozenset({Command.RESUME, Command.ROLLBACK}),
    _S.SKIPPED: frozenset({Command.RESUME, Command.ROLLBACK}),
    _S.COMPLETED: frozenset({Command.ROLLBACK}),
    _S.FAILED: frozenset({Command.RESUME, Command.ROLLBACK}),
}

FINISHED = frozenset({_S.STOPPED, _S.SKIPPED, _S.COMPLETED, _S.FAILED})
"""Nothing happens to the run unless a person asks."""
ACTIVE = frozenset({_S.INITIALIZING, _S.RUNNING, _S.WAITING, _S.STOPPING})
"""A worker process belongs to the run."""
UNFINISHED = ACTIVE | {_S.QUEUED, _S.PAUSED}
"""Something is still to happen: what such a run needs may not be deleted."""


def check_transition(run_id: str, current: RunStatus, new: RunStatus) -> None:
    """Raise unless a run may go from `current` to `new`; staying is always allowed.

    Raises:
        WrongStateError: says which commands are possible now.
    """
    if new != current and new not in TRANSITIONS[current]:
        raise _wrong(run_id, current, f"it cannot become {new}")


def check_command(run_id: str, current: RunStatus, command: Command) -> None:
    """Raise unless `command` is possible in state `current`.

    Raises:
        WrongStateError: says which commands are possible now.
    """
    if command not in COMMANDS[current]:
        raise _wrong(run_id, current, f"it cannot {command}")


def _wrong(run_id: str, current: RunStatus, refused: str) -> WrongStateError:
    possible = ", ".join(command for command in Command if command in COMMANDS[current])
    return WrongStateError(f"run {run_id} is {current}; {refused}", "", f"possible now: {possible}")
