"""Chores under a frozen clock and a disk that says what the test says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest

from scaler_wizard.jobs.consolidation import adapters_in_a_row
from scaler_wizard.jobs.disk import disk_verdict
from scaler_wizard.jobs.housekeeping import Housekeeping, snapshot_due
from scaler_wizard.jobs.notify import Notifier
from scaler_wizard.specs.continual import ContinualConfig, DiskSection
from scaler_wizard.store import backup, flightlog
from scaler_wizard.store.database import Database
from scaler_wizard.store.records import Version
from scaler_wizard.store.workspace import Workspace

GB = 1e9


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("newest", "now", "due"),
    [
        (None, "2026-03-05T12:00", True),
        ("2026-03-05T03:00", "2026-03-05T12:00", False),
        ("2026-03-05T02:59", "2026-03-05T03:00", True),
        ("2026-03-04T03:10", "2026-03-05T02:59", False),
        ("2026-03-01T03:10", "2026-03-05T02:59", True),  # asleep for days
    ],
)
def test_a_snapshot_is_due_once_after_its_time(newest: str | None, now: str, due: bool) -> None:
    assert snapshot_due(at(newest) if newest else None, at(now), "03:00") is due


def test_the_disk_verdict() -> None:
    section = DiskSection(refuse_below_gb=10, warn_below_gb=50)
    free = [9.9, 10, 49.9, 50]
    assert [disk_verdict(int(n * GB), section) for n in free] == ["refuse", "warn", "warn", "ok"]


def version(
    number: int, parent: int | None, status: str = "superseded", consolidated: bool = False
) -> Version:
    metrics = {"consolidated": consolidated}
    return Version(number, "a", number, status, "", "", parent, None, "", 0.0, metrics)  # type: ignore[arg-type]


def test_adapters_are_counted_from_the_last_merged_base() -> None:
    rows = (
        version(1, None),
        version(2, 1),
        version(3, 2, consolidated=True),
        version(4, 3),
        version(5, 4, "current"),
    )
    assert adapters_in_a_row(rows) == 2
    assert adapters_in_a_row(rows[:2]) == 0
    assert adapters_in_a_row((version(1, None), version(2, 1, "current"), version(3, 1, "held"))) == 2


@pytest.fixture
def database(workspace: Workspace) -> Iterator[Database]:
    with Database.open(workspace.database) as database:
        yield database


def test_a_day_of_ticks(workspace: Workspace, database: Database) -> None:
    config = ContinualConfig.parse(
        {"model": {"base_model": "seedling"}, "disk": {"ballast_mb": 0.1}, "retention": {"backups": 3}}
    )
    free = [100 * GB]
    keeper = Housekeeping(workspace, database, config, Notifier(config.notify), lambda: int(free[0]))
    noon = at("2026-03-05T12:00")
    first = keeper.tick(noon, idle=True)
    assert first[0].startswith("reserved")
    assert first[1].startswith("daily snapshot")
    assert keeper.ballast.is_held()
    assert keeper.tick(noon + 30, idle=True) == []
    free[0] = 5 * GB
    (said,) = keeper.tick(noon + 60, idle=False)
    assert "no job starts" in said
    assert keeper.verdict == "refuse"
    assert keeper.tick(noon + 90, idle=False) == []  # told once
    free[0] = 100 * GB
    assert keeper.tick(noon + 120, idle=False) == ["disk: 100.0 GB are free, enough again"]
    assert flightlog.read_entries(workspace.flight_log)[-1]["data"]["verdict"] == "refuse"
    # A daemon started anew the same day makes no second snapshot; the next night it does.
    again = Housekeeping(workspace, database, config, Notifier(config.notify), lambda: int(free[0]))
    assert again.tick(noon + 3600, idle=True) == []
    assert again.tick(at("2026-03-06T03:00"), idle=True)[0].startswith("daily snapshot")
    assert [item.why for item in backup.list_backups(workspace)] == ["daily", "daily"]
