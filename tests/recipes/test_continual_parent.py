"""parent.json as the recipe reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.errors import RunError
from scaler_wizard.recipes.continual_parent import read_parent
from scaler_wizard.specs.continual import ContinualConfig, ContinualJob, FileSection

FIRST: dict[str, Any] = {
    "lineage": "assistant", "version": None, "base": "seedling", "base_version": None, "base_sha256": None,
    "adapter": None, "sha256": None, "replay": [], "replay_missing": [], "lineage_runs": 0,
}  # fmt: skip


def job() -> ContinualJob:
    config = ContinualConfig.parse({"model": {"base_model": "seedling"}})
    return config.job("a", FileSection(path="/a.jsonl", name="a.jsonl", sha256="0" * 64))


def test_before_the_first_version() -> None:
    for value in (None, FIRST):
        parent = read_parent(value, job())
        assert (parent.version, parent.base, parent.adapter, parent.directory) == (None, None, None, None)
        assert parent.words == "the base model"


def test_an_adapter_on_the_jobs_own_base() -> None:
    value = FIRST | {"version": 3, "adapter": "/w/models/a/v003/adapter", "replay": ["/r/a", "/r/b"]}
    parent = read_parent(value, job())
    assert parent.base is None
    assert parent.directory == Path("/w/models/a/v003/adapter")
    assert parent.words == "assistant v003"
    assert parent.replay == ("/r/a", "/r/b")


def test_a_whole_version_and_an_adapter_on_one() -> None:
    whole = FIRST | {"version": 2, "base": "/w/models/a/v002/model", "base_version": 2}
    assert read_parent(whole, job()).directory == Path("/w/models/a/v002/model")
    adapted = whole | {"version": 5, "adapter": "/w/models/a/v005/adapter"}
    parent = read_parent(adapted, job())
    assert parent.base == Path("/w/models/a/v002/model")
    assert parent.directory == Path("/w/models/a/v005/adapter")


@pytest.mark.parametrize(
    "value",
    [{}, {"lineage": "a", "version": "x"}, FIRST | {"replay": 3}, {"lineage": "a", "base_version": 1}],
)
def test_anything_else_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"parent\.json"):
        read_parent(value, job())
