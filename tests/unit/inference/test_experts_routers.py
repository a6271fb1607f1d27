"""Routers: trained on the tiny base, read by the engine as they were trained, kept as checked files."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scaler_wizard.data.images import read_image
from scaler_wizard.errors import ModelError, ScalerError
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.images import chat_prompt
from scaler_wizard.inference.experts.prompt import Prompt
from scaler_wizard.inference.experts.reading import observe
from scaler_wizard.inference.experts.routers import (
    ContentStates,
    RouterRow,
    RouterTokens,
    RouterTraining,
    TrainedRouter,
    load_router,
    logits_of,
    save_router,
    train_early_router,
    train_probe,
    train_suffix_router,
)
from scaler_wizard.inference.experts.routers.rows import RouterSteps
from scaler_wizard.models.hashing import state_hash
from scaler_wizard.models.tiny import tiny_model
from scaler_wizard.models.tiny_vision import tiny_vision_model, tiny_vision_processor
from scaler_wizard.models.vision import ImageEncoder
from scaler_wizard.planning.router import suggest_router

LABELS = ("left", "right", "up")
TOKENS = RouterTokens((7, 8, 9, 7), (20, 21, 22))


def rows(n: int, seed: int) -> list[RouterRow]:
    """Each label has tokens of its own."""
    rng = random.Random(seed)
    found = []
    for number in range(n):
        label = number % len(LABELS)
        tokens = [rng.randrange(30 + 10 * label, 36 + 10 * label) for _ in range(rng.randint(4, 9))]
        found.append(RouterRow(Prompt(tuple(tokens)), label))
    return found


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bank() -> Bank:
    return Bank(tiny_model().eval())


def trained(kind: str, bank: Bank, directory: Path, seed: int = 0) -> RouterTraining:
    train, val = rows(90, 1), rows(30, 2)
    if kind == "features":
        return train_probe(ContentStates(bank), LABELS, train, val)
    settings = suggest_router(90, parameters=1, learning_rate=2e-2, max_steps=30)
    if kind == "early":
        return train_early_router(
            bank, LABELS, train, val, settings=settings, directory=directory, layer=1, seed=seed
        )
    return train_suffix_router(
        bank, LABELS, train, val, tokens=TOKENS, settings=settings, directory=directory, seed=seed
    )


def test_probes_on_parts_of_the_rows_share_one_reading(bank: Bank) -> None:
    train, val = rows(90, 1), rows(30, 2)
    states = ContentStates(bank)
    assert torch.equal(states.after(1, train), states.after(1, train[::-1]).flip(0))
    shared = train_probe(states, LABELS, train[:60], val)
    alone = train_probe(ContentStates(bank), LABELS, train[:60], val)
    torch.testing.assert_close(shared.router.weight, alone.router.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["features", "suffix", "early"])
def test_a_router_learns_and_the_engine_reads_what_it_was_trained_on(
    kind: str, bank: Bank, tmp_path: Path
) -> None:
    before = state_hash(bank.model.state_dict())
    found = trained(kind, bank, tmp_path)
    val = rows(30, 2)
    assert sum(found.right(val)) >= 29
    assert state_hash(bank.model.state_dict()) == before, "the base is as it was"
    torch.testing.assert_close(logits_of(bank, found.router, val), found.val_logits)
    # The training's own forward pass saw the same: its best look is the loss of the engine's readings.
    nll = float(torch.nn.functional.cross_entropy(found.val_logits, torch.tensor([r.label for r in val])))
    seen = [look.nll for look in found.looks] or [fit["nll"] for fit in found.details["tried"]]
    assert min(seen) == pytest.approx(nll, abs=1e-4)
    json.dumps(found.as_dict())


@pytest.mark.parametrize("kind", ["suffix", "early"])
def test_equal_seeds_give_equal_routers_and_other_seeds_do_not(kind: str, bank: Bank, tmp_path: Path) -> None:
    logits = [trained(kind, bank, tmp_path / str(n), seed).val_logits for n, seed in enumerate((0, 0, 1))]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("kind", ["features", "suffix", "early"])
def test_saved_and_read_back_it_decides_the_same(kind: str, bank: Bank, tmp_path: Path) -> None:
    router = trained(kind, bank, tmp_path).router
    save_router(router, tmp_path)
    again = load_router(tmp_path, Bank(tiny_model().eval()))
    assert (again.labels, again.kind, again.layer, again.adapter, again.suffix, again.label_tokens) == (
        router.labels, router.kind, router.layer, router.adapter, router.suffix, router.label_tokens
    )  # fmt: skip
    assert again.text_only == router.text_only == (kind == "features")
    values = torch.randn(router.weight.shape[1])
    assert again.decide(values) == router.decide(values)
    assert sum(again.decide(values).probabilities) == pytest.approx(1.0)


def test_the_temperature_flattens_and_never_reorders() -> None:
    router = TrainedRouter(LABELS, "features", torch.eye(3), torch.zeros(3))
    hot = TrainedRouter(LABELS, "features", torch.eye(3), torch.zeros(3), temperature=4.0)
    values = torch.tensor([0.0, 2.0, 1.0])
    sharp, flat = router.decide(values).probabilities, hot.decide(values).probabilities
    assert sharp[1] > flat[1] > flat[2] > flat[0] > sharp[0]


def test_every_row_is_taken_once_an_epoch_in_an_order_of_the_epochs_own() -> None:
    held = rows(10, 3)
    steps = RouterSteps(held, TOKENS.suffix, batch_rows=2, step_rows=5, seed=0)
    taken: list[list[tuple[int, ...]]] = []
    for epoch in range(2):
        batches = [m for index in (0, 1) for m in steps.step(2 * epoch + index).micro_batches]
        parts = [part for m in batches for part in m.input_ids[0].split(list(m.segment_lengths))]
        taken.append([tuple(part.tolist()) for part in parts])
    whole = sorted((*r.prompt.tokens, *TOKENS.suffix) for r in held)
    assert [sorted(epoch) for epoch in taken] == [whole, whole]
    assert taken[0] != taken[1]
    assert [m.n_labels for m in steps.step(0).micro_batches] == [2, 2, 1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2), ("text_only", 1), ("kind", "oracle"), ("kind", ["suffix"]),
        ("labels", ["left", "left", "up"]),
        ("labels", "left"), ("labels", ["left"]), ("layer", 0), ("layer", True), ("layer", 10**9),
        ("suffix", [-1]),
        ("suffix", [7] * 65), ("suffix", []), ("label_tokens", [20, 20, 22]), ("label_tokens", [20]),
        ("adapter", None), ("adapter", "../../etc"), ("temperature", 0), ("temperature", float("nan")),
        ("temperature", "1"), ("threshold", -0.1), ("threshold", 1.5), ("adapter", "0" * 64),
    ],
)  # fmt: skip
def test_hostile_fields_are_refused(key: str, value: object, bank: Bank, tmp_path: Path) -> None:
    save_router(trained("suffix", bank, tmp_path).router, tmp_path)
    path = tmp_path / "router.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ScalerError):
        load_router(tmp_path, bank)


def test_hostile_weights_are_refused(bank: Bank, tmp_path: Path) -> None:
    router = trained("features", bank, tmp_path).router
    for weight, bias in (
        (router.weight[:2], router.bias),
        (router.weight, router.bias[:2]),
        (router.weight * float("nan"), router.bias),
        (router.weight[0], router.bias),
    ):
        save_router(TrainedRouter(LABELS, "features", weight, bias, layer=1), tmp_path)
        with pytest.raises(ModelError, match="does not fit"):
            load_router(tmp_path, bank)
    (tmp_path / "router.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match="cannot be read"):
        load_router(tmp_path, bank)


def pictured(encoder: ImageEncoder, number: int, text: str) -> Prompt:
    """A picture of its own and a question."""
    image = Image.new("RGB", (64, 32 + 32 * (number % 2)), (200 * (number % 2), 20 * number, 90))
    file = io.BytesIO()
    image.save(file, format="PNG")
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return chat_prompt(encoder, [{"role": "user", "content": content}], [read_image(file.getvalue())])


def test_a_router_file_of_before_text_only_means_all_tokens(bank: Bank, tmp_path: Path) -> None:
    save_router(trained("features", bank, tmp_path).router, tmp_path)
    path = tmp_path / "router.json"
    fields = json.loads(path.read_text())
    del fields["text_only"]
    path.write_text(json.dumps(fields))
    assert not load_router(tmp_path, bank).text_only


def test_a_probe_reads_the_words_and_not_the_picture(tmp_path: Path) -> None:
    model = tiny_vision_model(tied=False).eval()
    bank = Bank(model)
    prompt = pictured(ImageEncoder(model, tiny_vision_processor()), 3, "ab")
    blank = TrainedRouter((), "features", torch.empty(0), torch.empty(0), layer=1)
    every, words = (
        observe(bank, replace(blank, text_only=only), [prompt, Prompt((5, 6, 7))]) for only in (False, True)
    )
    assert not torch.allclose(every[0], words[0])
    assert torch.equal(every[1], words[1])
    # All tokens are the words and the picture's: their means add up.
    assert prompt.embedded is not None
    n_visual, n_all = int(prompt.embedded.visual.sum()), len(prompt.tokens)
    seen = ContentStates(bank).after(1, [RouterRow(prompt, 0)])[0]
    torch.testing.assert_close(seen, words[0])
    picture = (every[0] * n_all - words[0] * (n_all - n_visual)) / n_visual
    swapped = prompt.embedded.embeds.clone()
    swapped[prompt.embedded.visual] *= -1
    other = replace(prompt, embedded=replace(prompt.embedded, embeds=swapped))
    (changed,) = observe(bank, replace(blank, text_only=True), [other])
    # Words look at the picture, so that it is not lost on them; its own tokens change far more.
    (all_changed,) = observe(bank, blank, [other])
    other_picture = (all_changed * n_all - changed * (n_all - n_visual)) / n_visual
    assert 0 < (changed - words[0]).norm() < (other_picture - picture).norm()


@pytest.mark.parametrize("kind", ["suffix", "early"])
def test_pictures_are_trained_as_the_engine_reads_them(kind: str, tmp_path: Path) -> None:
    model = tiny_vision_model(tied=False).eval()
    encoder = ImageEncoder(model, tiny_vision_processor())
    held = [RouterRow(pictured(encoder, number, "ab"[number % 2]), number % 2) for number in range(12)]
    held.append(RouterRow(Prompt((5, 6, 7)), 0))
    bank = Bank(model)
    settings = suggest_router(13, parameters=1, vision=True, learning_rate=1e-2, max_steps=8)
    if kind == "early":
        found = train_early_router(
            bank, LABELS[:2], held, held, settings=settings, directory=tmp_path, layer=2
        )
    else:
        tokens = RouterTokens(TOKENS.suffix, TOKENS.label_tokens[:2])
        found = train_suffix_router(
            bank, LABELS[:2], held, held, tokens=tokens, settings=settings, directory=tmp_path
        )
    nll = float(torch.nn.functional.cross_entropy(found.val_logits, torch.tensor([r.label for r in held])))
    assert min(look.nll for look in found.looks) == pytest.approx(nll, abs=1e-4)
