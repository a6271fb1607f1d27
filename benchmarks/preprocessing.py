"""What preparing inputs costs: tokens of questions, one by one and in parallel, and features of pictures.

    python benchmarks/preprocessing.py [--json] [--rows N ...] [--pictures N] [--workers N]

`tokens`: the questions of the embedded skills through the chat template and the tokenizer, as a routing set's
inputs are: one after the other, in threads, and in processes that are started for it (their start counts).
Wall seconds: parallel work is the question. `pictures`: drawn screens read from PNG bytes and encoded by the
embedded vision tower; the first process encodes, a second one (another encoder, the same folder) finds them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scaler_wizard.data.chat import prepare_chat_template
from scaler_wizard.data.control_tokens import chat_ids
from scaler_wizard.data.generators import LEXICAL_SKILLS, sample_example
from scaler_wizard.data.generators.screens import sample_screen, screen_png
from scaler_wizard.data.images import read_image
from scaler_wizard.models.feature_files import FeatureFiles
from scaler_wizard.models.load import load_model
from scaler_wizard.models.vision import ImageEncoder
from scaler_wizard.models.vision_files import load_vision_processor

PIECE = 256
"""Rows that a worker takes at a time."""


def questions(count: int) -> list[str]:
    """Different questions of several skills."""
    return [
        sample_example(LEXICAL_SKILLS[n % len(LEXICAL_SKILLS)], str(n), 1 + n % 3, split="train").instruction
        for n in range(count)
    ]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each question."""
    return [chat_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts]


_TOKENIZER: Any = None


def begin(tokenizer: Any) -> None:
    """A worker process keeps its tokenizer."""
    global _TOKENIZER
    _TOKENIZER = tokenizer


def encode_there(texts: Sequence[str]) -> list[list[int]]:
    """`encode` in a worker process."""
    return encode(_TOKENIZER, texts)


def joined(parts: Sequence[list[list[int]]]) -> list[list[int]]:
    """One list."""
    return [row for part in parts for row in part]


def in_threads(tokenizer: Any, texts: Sequence[str], workers: int) -> list[list[int]]:
    """Pieces in threads of this process."""
    pieces = [texts[first : first + PIECE] for first in range(0, len(texts), PIECE)]
    with ThreadPoolExecutor(workers) as pool:
        return joined(list(pool.map(partial(encode, tokenizer), pieces)))


def in_processes(tokenizer: Any, texts: Sequence[str], workers: int) -> list[list[int]]:
    """Pieces in new processes."""
    pieces = [texts[first : first + PIECE] for first in range(0, len(texts), PIECE)]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, begin, (tokenizer,)) as pool:
        return joined(list(pool.map(encode_there, pieces)))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds, and what came of it."""
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def measure_tokens(counts: Sequence[int], workers: int) -> list[dict[str, Any]]:
    """Each way on the same questions."""
    tokenizer = load_model("seedling", dtype=torch.float32, device="cpu").tokenizer
    prepare_chat_template(tokenizer)
    found = []
    for count in counts:
        texts = questions(count)
        encode(tokenizer, texts[:50])
        serial, expected = timed(partial(encode, tokenizer, texts))
        threads, first = timed(partial(in_threads, tokenizer, texts, workers))
        processes, second = timed(partial(in_processes, tokenizer, texts, workers))
        assert first == second == expected
        seconds = {"serial": serial, "threads": threads, "processes": processes}
        found.append({"rows": count, **{name: round(value, 3) for name, value in seconds.items()}})
    return found


def measure_pictures(count: int) -> dict[str, Any]:
    """Milliseconds a picture: reading its file's bytes, encoding it and keeping it, finding it again."""
    loaded = load_model("seedling-vision", dtype=torch.float32, device="cpu")
    processor = load_vision_processor(loaded.path, loaded.model, loaded.tokenizer)
    files = [screen_png(sample_screen(seed, split="train")) for seed in range(count)]
    read, pictures = timed(lambda: [read_image(data) for data in files])
    plain, _ = timed(lambda: [*map(ImageEncoder(loaded.model, processor).encode, pictures)])
    found: dict[str, Any] = {"pictures": count, "read_ms": read, "encode_ms": plain}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("encode_and_keep_ms", "find_ms"):
            encoder = ImageEncoder(loaded.model, processor, files=FeatureFiles(Path(folder)))
            seconds, _ = timed(lambda encoder=encoder: [*map(encoder.encode, pictures)])  # type: ignore[misc]
            found[name] = seconds
            found[name.replace("_ms", "_counts")] = {"encoded": encoder.encodes, "found": encoder.from_disk}
        held = sum(path.stat().st_size for path in Path(folder).glob("*/*"))
    per_picture = {name: round(1000 * value / count, 3) for name, value in found.items() if "_ms" in name}
    return found | per_picture | {"bytes_a_picture": held // count}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "workers": arguments.workers,
        "tokens": measure_tokens(arguments.rows, arguments.workers),
        "pictures": measure_pictures(arguments.pictures),
    }
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
