"""The interface of Llama Guard, with a tiny classifier and a server that are made here."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from scaler_wizard.data.batches import Batches
from scaler_wizard.data.rows import Row
from scaler_wizard.data.tokens import tokenize_rows
from scaler_wizard.errors import SafetyFilterError
from scaler_wizard.inference.safety_filter import EndpointFilter, ModelFilter, conversation, read_verdict
from scaler_wizard.models.tiny import tiny_model, tiny_tokenizer
from scaler_wizard.training.forward import make_objective
from scaler_wizard.training.loop import TrainSettings, train


@pytest.mark.parametrize(
    ("reply", "safe", "categories"),
    [
        ("safe", True, ()),
        ("\n\nsafe", True, ()),
        ("unsafe\nS1,S9", False, ("S1", "S9")),
        ("Unsafe", False, ()),
        ("", None, ()),
        ("safely said, it is unsafe", None, ()),
        ("I cannot judge this.", None, ()),
    ],
)
def test_replies_are_read_and_what_is_no_verdict_is_never_safe(
    reply: str, safe: bool | None, categories: tuple[str, ...]
) -> None:
    found = read_verdict(reply)
    assert (found.safe, found.categories) == (safe, categories)


def exchange(rng: random.Random, unsafe: bool) -> tuple[str, str]:
    letters = rng.sample("abcdefgh", 3)
    return "go", "".join(["q", *letters[1:]] if unsafe else letters)


def classifier() -> ModelFilter:
    """A tiny model that learns, from generated rows, that answers beginning with q are unsafe."""
    model, tokenizer = tiny_model(max_position_embeddings=64), tiny_tokenizer()
    rng = random.Random(0)
    rows = []
    for number in range(400):
        unsafe = number % 2 == 0
        turns = conversation(exchange(rng, unsafe))
        reply = {"role": "assistant", "content": "unsafe\nS1" if unsafe else "safe"}
        rows.append(Row(number + 1, {"messages": [*turns, reply]}))
    data = tokenize_rows(rows, "messages", tokenizer, context=64).rows
    made = Batches(data, context=64, batch_tokens=600, micro_batch_tokens=600, seed=0)
    model.requires_grad_(True)
    for _ in train(model, made, make_objective("sft"), TrainSettings(total_steps=60, learning_rate=2e-2)):
        pass
    return ModelFilter(model, tokenizer)


def test_a_tiny_local_classifier_tells_safe_from_unsafe() -> None:
    rng = random.Random(1)
    asked = [exchange(rng, number % 2 == 0) for number in range(60)]
    found = classifier().judge(asked)
    right = [one.safe is not None and one.safe != answer.startswith("q") for one, (_, answer) in
             zip(found, asked, strict=True)]  # fmt: skip
    assert sum(right) >= 57
    assert all(one.categories == ("S1",) for one in found if one.safe is False)


@contextmanager
def serving(reply: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible server with one reply; its address and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_endpoint_is_asked_as_openai_has_it() -> None:
    with serving({"choices": [{"message": {"content": "unsafe\nS2"}}]}) as (address, asked):
        (found,) = EndpointFilter(address, "guard", 5.0).judge([("how?", "so")])
    assert (found.safe, found.categories) == (False, ("S2",))
    assert asked[0]["model"] == "guard"
    assert asked[0]["messages"] == conversation(("how?", "so"))


@pytest.mark.parametrize("reply", [b"<html>", {"error": "no such model"}, {"choices": []}])
def test_an_endpoint_that_does_not_answer_stops_with_words(reply: Any) -> None:
    with serving(reply) as (address, _), pytest.raises(SafetyFilterError, match="gave no answer"):
        EndpointFilter(address, "guard", 5.0).judge([("how?", "so")])


def test_nobody_at_the_address() -> None:
    with serving({}) as (address, _):
        pass
    with pytest.raises(SafetyFilterError, match="gave no answer"):
        EndpointFilter(address, "guard", 2.0).judge([("how?", "so")])
