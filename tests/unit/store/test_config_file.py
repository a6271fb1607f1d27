"""config.yaml: comments stay, nothing is half-written, wrong keys and values leave the file alone."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.errors import SpecError, UnknownKeyError, WorkspaceError
from scaler_wizard.specs.continual import LOCKED, ContinualConfig
from scaler_wizard.specs.yaml_io import dump_yaml, parse_yaml
from scaler_wizard.store import config
from scaler_wizard.store.faulty import FaultyFileSystem, SimulatedCrash
from scaler_wizard.store.workspace import Workspace
from scaler_wizard.store.yaml_edit import set_key, with_key

TEXT = """\
# mine
model:
  base_model: seedling  # small

training:
  learning_rate: 0.001 # tried 0.01
"""


@pytest.fixture
def workspace(tmp_path):
    space = Workspace.create(tmp_path / "w")
    config.config_path(space).write_text(TEXT)
    return space


def test_a_change_keeps_the_comments(workspace):
    config.change(workspace, "training.learning_rate", 0.002)
    config.change(workspace, "training.seed", 7)
    config.change(workspace, "replay.fraction", 0.5)
    text = config.config_path(workspace).read_text()
    for comment in ("# mine", "# small", "# tried 0.01"):
        assert comment in text
    loaded = config.load(workspace)
    assert (loaded.training.learning_rate, loaded.training.seed, loaded.replay.fraction) == (0.002, 7, 0.5)


def test_flow_style_is_written_anew(workspace):
    config.config_path(workspace).write_text("{model: {base_model: seedling}}")
    config.change(workspace, "queue.retries", 5)
    assert "retries: 5" in config.config_path(workspace).read_text()
    assert config.load(workspace).queue.retries == 5


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("training.learning_rat", 1, UnknownKeyError),
        ("replay.fraction", 1.5, SpecError),
        ("queue.retries", "many", SpecError),
        ("nothing", 1, UnknownKeyError),
    ],
)
def test_a_refused_change_leaves_the_file(workspace, key, value, error):
    with pytest.raises(error):
        config.change(workspace, key, value)
    assert config.config_path(workspace).read_text() == TEXT


def test_command_line_over_file_over_defaults(workspace):
    loaded = config.load(workspace, {"training.learning_rate": 0.5, "queue.retries": None})
    assert (loaded.training.learning_rate, loaded.queue.retries, loaded.model.base_model) == (
        0.5,
        2,
        "seedling",
    )


@pytest.mark.parametrize("fault", ["crash", "torn_crash", "ENOSPC"])
def test_a_killed_change_leaves_the_old_or_the_new(workspace, fault):
    for call in range(4):
        fs = FaultyFileSystem(workspace.root, call, fault)
        with contextlib.suppress(WorkspaceError, SimulatedCrash):
            config.change(workspace, "queue.retries", call, fs)
        fs.close()
        assert config.load(workspace).queue.retries in (2, *range(call + 1))


def test_missing_and_broken_files_say_what_to_do(workspace):
    config.config_path(workspace).write_text("model: [")
    with pytest.raises(SpecError, match="not plain YAML"):
        config.load(workspace)
    config.config_path(workspace).unlink()
    with pytest.raises(SpecError, match="scaler daemon init"):
        config.load(workspace)


def test_a_saved_config_explains_itself_and_reads_back(workspace):
    made = ContinualConfig.parse({"model": {"base_model": "x"}, "replay": {"fraction": 0.1}})
    config.save(workspace, made)
    assert config.load(workspace) == made
    assert "# Share of a file's training tokens" in config.config_path(workspace).read_text()


def test_every_locked_key_exists():
    assert set(LOCKED) <= set(config.known_keys())


def test_locked_changes_are_found():
    before = ContinualConfig.parse({"model": {"base_model": "a"}})
    after = ContinualConfig.parse({"model": {"base_model": "b"}, "replay": {"fraction": 0.0}})
    (found,) = config.locked_changes(before.model_dump(mode="json", by_alias=True), after)
    assert (found.key, found.before, found.after) == ("model.base_model", "a", "b")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(max_size=12)
    | st.lists(st.text(max_size=5), max_size=3)
)
KEYS = st.sampled_from(["a", "b", "c"])
MAPPINGS = st.dictionaries(KEYS, SCALARS | st.dictionaries(KEYS, SCALARS, min_size=1), min_size=1)


@given(MAPPINGS, st.lists(KEYS, min_size=1, max_size=2), SCALARS)
def test_an_edit_is_right_or_is_not_made(mapping, path, value):
    text = dump_yaml(mapping)
    edited = set_key(text, ".".join(path), value)
    if edited is not None:
        assert parse_yaml(edited) == with_key(mapping, ".".join(path), value)
