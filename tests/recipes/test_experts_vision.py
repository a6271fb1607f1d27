"""The experts recipe on drawn screens: pictures from files to a bundle that reads them."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from harness.jobs import SCREEN_SKILLS, screens_value
from scaler_wizard.data.images import read_image
from scaler_wizard.models.feature_files import FeatureFiles
from scaler_wizard.models.load import load_model
from scaler_wizard.models.vision import ImageEncoder
from scaler_wizard.models.vision_files import load_vision_processor
from scaler_wizard.recipes.experts_data import routing_set
from scaler_wizard.specs.events import Note
from scaler_wizard.store.experts_bundle import read_bundle
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace


@pytest.fixture(scope="module")
def completed(harness: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("screens")
    workspace = Workspace.create(folder / "workspace")
    value = screens_value(folder / "data")
    run = harness.create(workspace, value)
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed", run.worker_log.read_text("utf-8")
    assert isinstance(run, RunDir)
    return run


def test_every_expert_gets_its_own_steps_and_the_one_for_all_their_sum(completed: RunDir) -> None:
    adapters = (completed.result() or {})["experts"]["adapters"]
    assert {name: made["steps"] for name, made in adapters.items()} == {
        "experts/colour": 2, "experts/biggest": 3, "multitask": 5,
    }  # fmt: skip


def test_each_picture_is_read_once(completed: RunDir) -> None:
    experts = (completed.result() or {})["experts"]
    assert experts["routing"]["accuracy"]["n"] == 16
    assert {entry["step"] for entry in experts["ladder"]} == {"probe", "alora"}
    routed = experts["work"]["routed"]
    assert routed["prefills"] == 1.0
    # Measuring where inputs go has read every picture; answering encodes none again.
    assert routed["vision_encodes"] == 0.0


def test_what_the_tower_made_of_a_picture_is_there_for_other_processes(completed: RunDir) -> None:
    workspace = Workspace(completed.path.parent.parent)
    loaded = load_model("seedling-vision", dtype=torch.float32, device="cpu")
    processor = load_vision_processor(loaded.path, loaded.model, loaded.tokenizer)
    encoder = ImageEncoder(loaded.model, processor, files=FeatureFiles(workspace.vision_features))
    rows = routing_set((completed.result() or {})["experts"]["dataset"])
    shown = [row.image for split in (rows.train, rows.val, rows.test) for row in split]
    for picture in {picture for picture in shown if picture is not None}:
        encoder.encode(read_image(picture))
    assert encoder.encodes == 0
    assert encoder.from_disk >= 40
    read = [event.text for event in completed.read_events() if isinstance(event, Note)]
    found = [text for text in read if text.startswith("pictures: ")]
    assert len(found) == 3
    assert found[-1].startswith("pictures: 0 read"), "the one adapter for all learns from the same pictures"


def test_the_bundle_is_of_a_base_that_sees(completed: RunDir) -> None:
    bundle = read_bundle(completed.export / "experts")
    assert bundle.labels == SCREEN_SKILLS
    assert [expert.mode for expert in bundle.experts] == ["alora", "alora"]
    assert bundle.base == "seedling-vision"
