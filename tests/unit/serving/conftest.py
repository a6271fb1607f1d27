"""Experts that were never trained, in a bundle and in a real engine process: real in every other part."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from scaler_wizard.data.activation import chat_invocation
from scaler_wizard.data.chat import prepare_chat_template
from scaler_wizard.inference.experts.fakes import write_random_adapter
from scaler_wizard.inference.experts.routers import TrainedRouter, save_router
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.models.load import load_model
from scaler_wizard.serving.engine_process import EngineProcess
from scaler_wizard.store.experts_bundle import MULTITASK, ROUTER, Bundle, BundledLora, write_bundle
from scaler_wizard.store.registry import content_hash

EXPERTS = {"north": "alora", "south": "alora", "plain": "lora"}


def make_bundle(folder: Path) -> Path:
    loaded = load_model("seedling", dtype=torch.float32, device="cpu")
    prepare_chat_template(loaded.tokenizer)
    invocation = chat_invocation(loaded.tokenizer)
    now = datetime.now(UTC).isoformat(timespec="seconds")

    def lora(label: str, place: str, mode: str, seed: int) -> BundledLora:
        tokens = invocation if mode == "alora" else None
        write_random_adapter(loaded.model, folder / place, seed=seed, invocation=tokens)
        assert mode in ("alora", "lora")
        return BundledLora(label, place, mode, content_hash(folder / place), now)

    experts = tuple(
        lora(label, f"experts/{label}", mode, seed) for seed, (label, mode) in enumerate(EXPERTS.items())
    )
    width = loaded.model.config.hidden_size
    weight = torch.randn(len(EXPERTS), width, generator=torch.Generator().manual_seed(3))
    router = TrainedRouter(tuple(EXPERTS), "features", weight, torch.zeros(len(EXPERTS)), layer=2)
    save_router(router, folder / ROUTER)
    write_bundle(
        Bundle(
            folder, "seedling", weights_sha256(loaded.path), experts, lora(MULTITASK, MULTITASK, "alora", 9),
            content_hash(folder / ROUTER), "multitask", 12,
        )
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def engine(bundle_folder: Path) -> Iterator[EngineProcess]:
    with EngineProcess(bundle_folder, threads=1) as process:
        yield process
