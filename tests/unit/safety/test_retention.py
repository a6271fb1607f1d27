"""What may be deleted, decided on tables: whatever the limit, what is needed stays."""

from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.safety.retention import Entry, plan_retention
from scaler_wizard.specs.continual import RetentionSection

NOW = 1_000_000_000.0
HOUR = 3600.0
KINDS = ("phase checkpoint", "step checkpoint", "quarantined checkpoint", "export", "input")


def entry(number, kind="step checkpoint", run="r", age_h=100.0, n_bytes=10, loss=None):
    return Entry(f"runs/{run}/{number}", kind, run, n_bytes, NOW - age_h * HOUR, loss)


def names(plan):
    return [item.entry.name for item in plan.deletions]


def decide(entries, protected=None, max_gb=1e-9, used=None):
    section = RetentionSection(max_gb=max_gb)
    total = sum(item.n_bytes for item in entries) if used is None else used
    return plan_retention(entries, protected or {}, section, NOW, total)


def test_oldest_first_and_only_until_under_the_limit():
    found = [entry(number, age_h=200 - number) for number in range(10)]
    plan = decide(found, max_gb=75e-9)
    assert names(plan) == ["runs/r/0", "runs/r/1", "runs/r/2"]
    assert (plan.used_bytes, plan.after_bytes) == (100, 70)
    assert decide(found, max_gb=100e-9).deletions == ()
    assert "3 things go" in plan.words()


def test_the_rules():
    found = [
        entry("phase", "phase checkpoint", age_h=500),
        entry("best", age_h=400, loss=0.1),
        entry("worse", age_h=300, loss=0.9),
        entry("young", "export", age_h=35.9),
        entry("newest but one", age_h=120, loss=0.5),
        entry("newest", age_h=110, loss=0.6),
        entry("pinned", "export", age_h=999),
    ]
    plan = decide(found, {"runs/r/pinned": "registered"})
    assert names(plan) == ["runs/r/worse"]
    assert plan.kept["runs/r/pinned"] == "registered"
    assert plan.kept["runs/r/best"] == "the best of its run"
    assert "still over" in plan.words()


def test_an_hour_is_young_whatever_the_config_says():
    found = [entry(number, "export", age_h=0.9) for number in range(5)]
    section = RetentionSection(max_gb=1e-9, min_age_hours=1)
    assert plan_retention(found, {}, section, NOW, 50).deletions == ()


ENTRIES = st.lists(
    st.builds(
        entry,
        st.integers(0, 30),
        st.sampled_from(KINDS),
        st.sampled_from("ab"),
        st.floats(-5, 500),
        st.integers(0, 10**10),
        st.none() | st.floats(0, 5),
    ),
    unique_by=lambda item: item.name,
    max_size=25,
)


@given(ENTRIES, st.sets(st.integers(0, 30)), st.floats(1e-6, 50), st.floats(1, 400))
def test_what_is_protected_is_never_deleted(found, pinned, max_gb, min_age):
    protected = {f"runs/{run}/{number}": "needed" for run in "ab" for number in pinned}
    section = RetentionSection(max_gb=max_gb, min_age_hours=min_age)
    used = sum(item.n_bytes for item in found)
    plan = plan_retention(found, protected, section, NOW, used)
    gone = {item.entry.name: item.entry for item in plan.deletions}
    assert not gone.keys() & protected.keys()
    assert not gone.keys() & plan.kept.keys()
    for item in gone.values():
        assert item.kind != "phase checkpoint"
        assert NOW - item.created >= min_age * HOUR
    for run in "ab":
        checkpoints = sorted(
            (i for i in found if i.run == run and "checkpoint" in i.kind and "quar" not in i.kind),
            key=lambda i: (i.created, i.name),
        )
        assert not gone.keys() & {item.name for item in checkpoints[-2:]}
        losses = [item for item in checkpoints if item.loss is not None]
        if losses:
            assert min(item.loss for item in losses) in [i.loss for i in losses if i.name not in gone]
    assert plan.after_bytes == used - sum(item.n_bytes for item in gone.values())
    if plan.deletions:  # it stopped as soon as it could
        assert plan.after_bytes + plan.deletions[-1].entry.n_bytes > plan.limit_bytes
