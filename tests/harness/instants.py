"""Instants to kill a run at, chosen by what the run says of itself rather than by a clock.

A place is what an event tells of: a phase with its step, activity or probe. The places of an undisturbed run,
in their order, are its course; a killed run goes over the same course, some of it more than once. So a
kill hits the same work on a fast machine and on a busy one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain, cycle, islice
from typing import Any

from scaler_wizard.store.events_file import EventReader
from scaler_wizard.store.rundir import RunDir

Place = tuple[str, str, str]
"""(kind, phase, which)."""
WORK = ("step", "progress")
"""Kinds that every phase which has them is killed in, before any other kind has its turn."""
END = "phase_done"


def place_of(event: Any) -> Place | None:
    """Where an event says the run is; None where it does not."""
    which = {"step": "step", "progress": "activity", "probe": "probe", "phase_started": "title",
             "phase_done": "phase", "step_saved": "phase"}  # fmt: skip
    if event.type not in which:
        return None
    return event.type, event.phase, str(getattr(event, which[event.type]))


def course_of(events: Iterable[Any]) -> dict[Place, int]:
    """Every place of an undisturbed run with its number in their order."""
    places = dict.fromkeys(place for event in events if (place := place_of(event)) is not None)
    return {place: number for number, place in enumerate(places)}


def choose(course: dict[Place, int], kills: int, rng: random.Random) -> list[int]:
    """Numbers of places to kill at, in order: each phase's work first, then two ends, then any others."""
    groups: dict[tuple[str, str], list[int]] = {}
    for (kind, phase, _), number in course.items():
        groups.setdefault((kind, phase), []).append(number)
    mixed = rng.sample(list(groups.items()), len(groups))
    work = [numbers for (kind, _), numbers in mixed if kind in WORK]
    ends = [numbers for (kind, _), numbers in mixed if kind == END]
    others = [numbers for (kind, _), numbers in mixed if kind not in (*WORK, END)]
    turns = islice(chain(work, ends[:2], cycle([*others, *work, *ends[2:]])), kills)
    return sorted(rng.choice(numbers) for numbers in turns)


class Follower:
    """How far along its course a run is, read as it is written."""

    def __init__(self, run: RunDir, course: dict[Place, int]) -> None:
        self._run = run
        self._course = course
        self._read = 0
        self._at = -1

    def begin(self) -> None:
        """An attempt is about to begin: what earlier ones said no longer counts."""
        self.at()
        self._at = -1

    def at(self) -> int:
        """Number of the farthest place that the attempt has said it is at; -1 before the first."""
        if not self._run.events.exists():
            return -1
        with self._run.events.open("rb") as file:
            file.seek(self._read)
            for event in EventReader(self._run.events).read(file):
                place = place_of(event)
                self._at = max(self._at, -1 if place is None else self._course.get(place, -1))
            self._read = file.tell()
        return self._at
