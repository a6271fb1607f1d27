import pytest

from scaler_wizard.errors import CheckpointError, ModelNotFoundError, WorkspaceError
from scaler_wizard.store import registry
from scaler_wizard.store.database import Database


@pytest.fixture
def connection(tmp_path):
    with Database.open(tmp_path / "state.db") as database, database.session() as connection:
        yield connection


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_text("weights")
    return path


def test_register_list_and_lineage(connection, model, tmp_path):
    base = registry.register(connection, "base", "base", model, 1.0)
    (tmp_path / "adapter.safetensors").write_text("a")
    adapter = registry.register(
        connection,
        "grown",
        "adapter",
        tmp_path / "adapter.safetensors",
        2.0,
        parent="base",
        metrics={"ppl": 3.0},
    )
    merged = registry.register(connection, "merged", "merged", model, 3.0, parent="grown")
    assert registry.lineage(connection, "merged") == (merged, adapter, base)
    assert registry.list_models(connection) == (merged, adapter, base)
    assert registry.list_models(connection, "adapter") == (adapter,)
    assert registry.get_model(connection, "grown").metrics == {"ppl": 3.0}
    assert base.sha256 == registry.content_hash(model)


def test_same_content_again_is_the_same_record_and_other_content_is_refused(connection, model):
    first = registry.register(connection, "base", "base", model, 1.0)
    assert registry.register(connection, "base", "base", model, 9.0) == first
    (model / "model.safetensors").write_text("Weights")
    with pytest.raises(WorkspaceError, match="belongs to another model"):
        registry.register(connection, "base", "base", model, 9.0)


def test_hash_depends_on_names_and_content(model):
    before = registry.content_hash(model)
    (model / "config.json").rename(model / "other.json")
    renamed = registry.content_hash(model)
    (model / "other.json").write_text("{ }")
    assert len({before, renamed, registry.content_hash(model)}) == 3


def test_refusals(connection, model, tmp_path):
    for call, error in [
        (lambda: registry.register(connection, "../x", "base", model, 1.0), WorkspaceError),
        (lambda: registry.register(connection, "x", "base", tmp_path / "none", 1.0), ModelNotFoundError),
        (lambda: registry.register(connection, "x", "base", model, 1.0, parent="none"), ModelNotFoundError),
        (lambda: registry.register(connection, "x", "base", model, 1.0, run_id="none"), WorkspaceError),
        (lambda: registry.get_model(connection, "none"), ModelNotFoundError),
        (lambda: registry.lineage(connection, "none"), ModelNotFoundError),
    ]:
        with pytest.raises(error):
            call()
    assert registry.list_models(connection) == ()
    (model / "link").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="link"):
        registry.content_hash(model)
