"""The engine process: `python -m scaler_wizard.inference.experts.process BUNDLE ...`, JSON lines in and out.

    in   {"id": 1, "prompt": "...", "image_b64"?: "...", "expert"?: "...", "max_new_tokens"?: 48}
    out  {"ready": {...}} once, then {"id": 1, "answer", "expert", "confidence", "abstained", "counters"} or
         {"id": 1, "error": {error, found, expected, todo}}, in the order in which answers are finished

Requests that wait are answered together (continuous batching). A line is hostile: what is wrong with it is
its own answer, and never the end of the process. It ends with the end of its input.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from transformers.utils import logging as transformers_logging

from scaler_wizard.data.formats import Message
from scaler_wizard.data.images import image_from_base64
from scaler_wizard.errors import RowError, ScalerError
from scaler_wizard.inference.experts.engine import RoutedEngine, routed_serving
from scaler_wizard.inference.experts.prompt import RoutedAnswer, RoutedRequest
from scaler_wizard.inference.experts.routers.files import load_router
from scaler_wizard.inference.experts.served import Served, add_bundle, serve_base
from scaler_wizard.models.feature_files import FeatureFiles
from scaler_wizard.store.experts_bundle import MULTITASK, Bundle, read_bundle

MAX_LINE_BYTES: Final = 32 << 20
MAX_PROMPT_CHARACTERS: Final = 1 << 20
MOST_WAITING: Final = 4096
KEYS: Final = ("id", "prompt", "image_b64", "expert", "max_new_tokens")
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Question:
    """One line, understood."""

    id: int
    request: RoutedRequest


def main(argv: list[str] | None = None) -> int:
    """Load, say so, answer until the input ends; 0, or 1 where nothing could be loaded."""
    parser = argparse.ArgumentParser(prog="scaler-experts")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--base", default=None, help="another place of the same base model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--features", type=Path, default=None, help="features of pictures read before")
    options = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    # Answers alone go to the pipe; whatever a library prints goes where errors go.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        bundle = read_bundle(options.bundle)
        served = serve_base(
            options.base or bundle.base, device=options.device, dtype=DTYPES[options.dtype],
            system_prompt=bundle.system_prompt, expected_sha256=bundle.base_sha256,
            features=FeatureFiles(options.features, write=False) if options.features else None,
        )  # fmt: skip
        add_bundle(served, bundle)
        router = load_router(bundle.router, served.bank) if bundle.router is not None else None
    except ScalerError as error:
        _write(out, {"error": error.as_dict()})
        return 1
    fallback = MULTITASK if bundle.fallback == "multitask" else None
    with routed_serving(served.bank, router, answer_start=served.answer_start, fallback=fallback) as engine:
        _write(out, {"ready": _ready(bundle, served)})
        Loop(engine, served, bundle.max_new_tokens, out).run(sys.stdin.buffer)
    return 0


def _ready(bundle: Bundle, served: Served) -> dict[str, Any]:
    return {
        "labels": list(bundle.labels), "base": bundle.base, "router": bundle.router is not None,
        "fallback": bundle.fallback, "context": served.context, "adapter_bytes": served.bank.nbytes,
        "pid": os.getpid(),
    }  # fmt: skip


class Loop:
    """Reads lines in a thread, answers them in this one."""

    def __init__(self, engine: RoutedEngine, served: Served, max_new_tokens: int, out: BinaryIO) -> None:
        self._engine, self._served, self._most, self._out = engine, served, max_new_tokens, out
        self._lines: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._asked: dict[int, int] = {}

    def run(self, source: BinaryIO) -> None:
        """Answer everything that `source` asks, until it ends."""
        threading.Thread(target=self._read, args=(source,), daemon=True).start()
        ended = False
        while not ended or self._engine.unfinished:
            for line in self._waiting(block=not self._engine.unfinished and not ended):
                ended |= line is None
                if line is not None:
                    self._submit(line)
            if self._engine.unfinished:
                for index, answer in self._engine.step():
                    self._answer(self._asked.pop(index), answer)

    def _read(self, source: BinaryIO) -> None:
        while line := source.readline(MAX_LINE_BYTES + 1):
            self._lines.put(line)
            while line and not line.endswith(b"\n"):  # the rest of a line that is too long
                line = source.readline(MAX_LINE_BYTES)
        self._lines.put(None)

    def _waiting(self, *, block: bool) -> Iterator[bytes | None]:
        """Lines that have come; waits for the first where there is nothing else to do."""
        try:
            yield self._lines.get(block)
            while True:
                yield self._lines.get_nowait()
        except queue.Empty:
            return

    def _submit(self, line: bytes) -> None:
        number: int | None = None
        try:
            value = parse_line(line)
            number = value["id"]
            question = understand(value, self._served, self._most)
            self._asked[self._engine.submit(question.request)] = question.id
        except ScalerError as error:
            _write(self._out, {"id": number, "error": error.as_dict()})

    def _answer(self, number: int, answer: RoutedAnswer) -> None:
        _write(self._out, {
            "id": number, "answer": self._served.text(answer), "expert": answer.expert,
            "confidence": answer.confidence, "abstained": answer.abstained, "finish": answer.finish,
            "counters": asdict(answer.counters),
        })  # fmt: skip


def parse_line(line: bytes) -> dict[str, Any]:
    """One request as an object with a number.

    Raises:
        RowError: too long, not JSON, not an object, an unknown key, no id.
    """
    expected = '{"id": 1, "prompt": "...", "image_b64"?: "...", "expert"?: "..."} on one line'
    if len(line) > MAX_LINE_BYTES:
        raise RowError(
            f"a request of more than {MAX_LINE_BYTES >> 20} MB", expected, "send a smaller picture"
        )
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise RowError("a request that is not JSON", expected, "write it as shown") from None
    if not isinstance(value, dict) or type(value.get("id")) is not int:
        raise RowError("a request without an id", expected, "number the requests")
    if unknown := sorted(set(value) - set(KEYS)):
        raise RowError(
            f'a request with the key "{unknown[0][:40]}"', f"only {', '.join(KEYS)}", "leave it out"
        )
    return value


def understand(value: dict[str, Any], served: Served, most: int) -> Question:
    """The request that an object asks for.

    Raises:
        RowError: no text, an answer longer than the bundle allows, or more than the base reads.
        ImageError: what is sent as an image is none.
        UnknownExpertError: an expert that is not there (raised when it is submitted).
    """
    prompt, image, expert = value.get("prompt"), value.get("image_b64"), value.get("expert")
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MAX_PROMPT_CHARACTERS:
        raise RowError(
            "a request without a usable prompt", "a text of at most a million characters", "ask something"
        )
    if not isinstance(expert, str | None):
        raise RowError(
            "expert is not a label", "a text, or nothing at all", "leave it out: the router decides"
        )
    tokens = value.get("max_new_tokens", most)
    if type(tokens) is not int or not 1 <= tokens <= most:
        raise RowError(f"max_new_tokens is {str(tokens)[:20]}", f"1 to {most}", "leave it out")
    if image is not None and not isinstance(image, str):
        raise RowError("image_b64 is not a text", "base64 of a picture file", "encode the picture")
    picture = image_from_base64(image) if image else None
    content = served.content([Message("user", _clean(prompt))], picture)
    return Question(value["id"], served.request(content, tokens, expert))


def _clean(prompt: str) -> str:
    """Half of a surrogate pair, which JSON can hold, is no text and no tokenizer takes it."""
    return prompt.encode("utf-8", "replace").decode("utf-8")


def _write(out: BinaryIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
