import math

import pytest

from scaler_wizard.errors import RunError
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.snapshots import Snapshot, changelog, read_snapshots, write_snapshot


def words(before, after):
    return changelog(Snapshot("P1", 0.0, before), Snapshot("P2", 1.0, after))


def test_changelog_in_words():
    before = {"perplexity": 3.10, "accuracy": 0.87, "context_tokens": 8192}
    after = {"perplexity": 3.12, "accuracy": 0.84, "context_tokens": 16384}
    assert words(before, after) == "context doubled, accuracy -3%, perplexity +0.02"
    assert words(after, before) == "context halved, accuracy +3%, perplexity -0.02"
    assert words(before, before) == "no measured change"
    assert words({}, after) == "no measured change"


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("context_tokens", 1000, 4000, "context x4"),
        ("context_tokens", 3000, 1000, "context down to 1,000"),
        ("tokens_per_sec", 100.0, 150.0, "speed +50%"),
        ("vocabulary_size", 1000, 3000, "vocabulary +2,000"),
        ("vibe", 0.5, 0.75, "vibe +0.25"),
        ("reward_margin", 1.0, 0.5, "reward margin -0.50"),
        ("perplexity", 3.0, 3.001, "no measured change"),
        ("accuracy", 0.5, math.nan, "no measured change"),
        ("tokens_per_sec", 0.0, 5.0, "no measured change"),
    ],
)
def test_each_kind_of_metric(name, old, new, said):
    assert words({name: old}, {name: new}) == said


def test_snapshots_round_trip_and_a_damaged_one_is_named(tmp_path):
    run = RunDir.create(tmp_path / "r-0001", "r")
    later = Snapshot("P1", 2.0, {"perplexity": 3.0})
    first = Snapshot("P3.1", 1.0, {"perplexity": 4.0})
    write_snapshot(run, Snapshot("P1", 0.5, {"perplexity": math.nan}))
    write_snapshot(run, later)
    write_snapshot(run, first)
    assert read_snapshots(run) == [first, later]
    (run.snapshots / "P1.json").write_text('{"phase": "P1", "time": 0, "metrics": 3}')
    with pytest.raises(RunError, match=r"P1\.json"):
        read_snapshots(run)
