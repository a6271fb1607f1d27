from __future__ import annotations

from pathlib import Path

import pytest

from scaler_wizard.errors import ModelNotFoundError
from scaler_wizard.planning.locate import hub_cache, resolve_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "hub" / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc123\n")
    return snapshot


def test_local_directory(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path.resolve()


def test_cached_hub_model_by_name_and_commit(cache: Path) -> None:
    assert resolve_model("org/name") == cache
    assert resolve_model("org/name", "abc123") == cache


@pytest.mark.parametrize("revision", ["v2", "../../x", "/etc"])
def test_other_revisions_are_not_there(cache: Path, revision: str) -> None:
    with pytest.raises(ModelNotFoundError, match="hf download org/name"):
        resolve_model("org/name", revision)


@pytest.mark.parametrize("ref", ["a/b/c", "../up", "no such thing", "org/..name/.."])
def test_what_is_not_a_name_is_not_looked_up(cache: Path, ref: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no model directory"):
        resolve_model(ref)


def test_a_ref_that_points_outside_is_not_followed(cache: Path) -> None:
    (cache.parent.parent / "refs" / "main").write_text("../../../..")
    with pytest.raises(ModelNotFoundError):
        resolve_model("org/name")


def test_cache_folder_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/data/hub")
    assert hub_cache() == Path("/data/hub")
