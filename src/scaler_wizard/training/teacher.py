"""A teacher's next-token distributions on disk: computed once, then read as often as the student trains.

Per target position: the k likeliest tokens with their log-probabilities, the log of what all others weigh
together, the log-probability of the target itself, and (if asked) the final hidden state. They are taken at
temperature 1, so that one cache serves every temperature. Rows are found by their content, whatever step,
order or packing they come in. Arrays are .npy files read through memory maps, never pickle. Knows nothing of
recipes, nor of what is done with a distribution.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scaler_wizard.data.batches import IGNORED, MicroBatch, collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.errors import CheckpointError, DoesNotFitError, EmptyDataError
from scaler_wizard.losses.chunked import at_targets
from scaler_wizard.losses.distill import TopK, sliced, top_k
from scaler_wizard.losses.match import unit_rms
from scaler_wizard.losses.sft import head_logits
from scaler_wizard.store.durable import fsync_dir, sha256_file, write_atomic
from scaler_wizard.training.attention import packed_attention
from scaler_wizard.training.forward import base_of, check_head, head_of, hidden_states

FORMAT = 1
FACTS_FILE = "teacher.json"
PROGRESS_FILE = "progress.json"
PROGRESS_SEC = 5.0
MAX_FACTS_BYTES = 1 << 16
_CHUNK_LOGITS = 1 << 24

Progress = Callable[[int, int], None]
"""(rows done, rows in all); may raise to interrupt."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class CacheKey:
    """All that the numbers in a cache depend on."""

    teacher_sha256: str
    """Of the teacher's weights and configuration."""
    rows_sha256: str
    """`rows_digest` of the rows."""
    k: int
    """Tokens kept at each position."""
    n_tokens: int
    """Vocabulary shared with the student: the teacher's other logits are left out of its softmax."""
    precision: str
    """Number format of the teacher's weights."""
    keep_hidden: bool = False
    """Whether final hidden states are kept."""

    @property
    def digest(self) -> str:
        """Name of the cache's directory."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


class CachedTargets(NamedTuple):
    """The teacher at the N targets of a micro-batch, in reading order."""

    top: TopK
    target_log_probs: Tensor
    """Log-probability of the target itself [N], fp32."""
    hidden: Tensor | None
    """Final hidden states at unit root mean square [N, H'], fp16; None where not kept."""


def row_digest(ids: Array, trained: Array) -> bytes:
    """Content of one row: its ids [n] and which tokens are targets [n] (the first never is)."""
    marks = np.asarray(trained, dtype=np.bool_).copy()
    marks[:1] = False
    return hashlib.blake2b(
        np.asarray(ids, dtype="<i4").tobytes() + b"/" + marks.tobytes(), digest_size=16
    ).digest()


def distinct_rows(rows: Sequence[TokenRow]) -> dict[bytes, TokenRow]:
    """Rows with a target by digest, each once, in their order."""
    return {row_digest(row.ids, row.trained): row for row in rows if row.n_labels}


def rows_digest(rows: Sequence[TokenRow]) -> str:
    """SHA-256 (hex) of the distinct rows in their order."""
    return hashlib.sha256(b"".join(distinct_rows(rows))).hexdigest()


def cache_teacher(
    root: Path,
    key: CacheKey,
    rows: Sequence[TokenRow],
    load: Callable[[], Any],
    *,
    micro_batch_tokens: int,
    on_progress: Progress = lambda done, total: None,
) -> TeacherCache:
    """The cache of a key under `root`: opened and verified where it is complete, else computed.

    A computation that was interrupted goes on after the last rows known to be on disk. A complete cache whose
    bytes do not match their hashes is computed again. The model that `load` returns is let go before this
    returns (the caller must keep no reference either): teacher and training never need memory together.

    Args:
        root: directory for caches; made if missing.
        rows: training and held-out rows; the key's `rows_sha256` is of them.
        load: brings the teacher into memory in evaluation mode; not called when the cache is complete.
        micro_batch_tokens: most tokens of one forward pass, at least a row.

    Raises:
        EmptyDataError: not one row with a target. DoesNotFitError: no room on the disk.
        IncompatibleModelError: a head that `check_head` refuses.
    """
    assert key.rows_sha256 == rows_digest(rows), "the key is of other rows"
    directory = root / key.digest
    if (directory / FACTS_FILE).exists():
        try:
            return TeacherCache(directory, key, rows)
        except CheckpointError:
            shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model = load()
    try:
        check_head(model)
        _compute(directory, key, rows, model, micro_batch_tokens, on_progress)
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return TeacherCache(directory, key, rows)


class TeacherCache:
    """A complete cache, its files mapped into memory.

    Raises:
        CheckpointError: missing, of another key or shape, or bytes that do not match their hashes.
    """

    def __init__(self, directory: Path, key: CacheKey, rows: Sequence[TokenRow]) -> None:
        self.directory, self.key = directory, key
        self._bounds = _bounds(distinct_rows(rows))
        self.n_targets = max((end for _, end in self._bounds.values()), default=0)
        facts = _read_facts(directory, key)
        self._arrays: dict[str, Array] = {}
        for name, (dtype, shape) in _layout(key, self.n_targets, facts["hidden_size"]).items():
            path = directory / f"{name}.npy"
            try:
                matches = sha256_file(path) == facts["sha256"].get(name)
                array = np.load(path, mmap_mode="r", allow_pickle=False) if matches else None
            except (OSError, ValueError, EOFError, SyntaxError) as error:
                raise _damaged(directory, f"{path.name} cannot be read ({error})") from None
            if array is None or array.dtype != dtype or array.shape != shape:
                raise _damaged(directory, f"{path.name} is not what was written")
            self._arrays[name] = array

    def lookup(self, micro: MicroBatch) -> CachedTargets:
        """What the teacher says at the targets of a micro-batch made of this cache's rows, on its device."""
        ids = micro.input_ids[0].cpu().numpy()
        trained = micro.labels[0].cpu().numpy() != IGNORED
        pieces, start = [], 0
        for length in micro.segment_lengths:
            digest = row_digest(ids[start : start + length], trained[start : start + length])
            if trained[start + 1 : start + length].any():
                assert digest in self._bounds, "a row that is not in the teacher's cache"
                pieces.append(slice(*self._bounds[digest]))
            start += length
        device = micro.input_ids.device

        def take(name: str) -> Tensor:
            array = self._arrays[name]
            parts = [array[piece] for piece in pieces] or [array[:0]]
            return torch.from_numpy(np.concatenate(parts)).to(device)

        kept = TopK(take("tokens").long(), take("log_probs"), take("tail"))
        hidden = take("hidden") if self.key.keep_hidden else None
        return CachedTargets(kept, take("targets"), hidden)

    @property
    def hidden_size(self) -> int:
        """Width H' of the kept hidden states; 0 where none are kept."""
        return int(self._arrays["hidden"].shape[1]) if self.key.keep_hidden else 0

    @property
    def kept_mass(self) -> float:
        """Mean probability of the k kept tokens together: what the top-k divergence sees one by one."""
        return float(1.0 - np.exp(self._arrays["tail"].astype(np.float64)).mean())


def _compute(
    directory: Path,
    key: CacheKey,
    rows: Sequence[TokenRow],
    model: Any,
    micro_batch_tokens: int,
    on_progress: Progress,
) -> None:
    """Fill the arrays, remembering what is safely on disk, then hash and seal them."""
    distinct = distinct_rows(rows)
    ordered, bounds = list(distinct.values()), list(_bounds(distinct).values())
    if not ordered:
        raise EmptyDataError(
            "no row has a token to learn from a teacher", "rows with answers", "check the data"
        )
    base = base_of(model)
    hidden_size = int(base.get_output_embeddings().weight.shape[1])
    layout = _layout(key, bounds[-1][1], hidden_size)
    done = _rows_done(directory, key, layout)
    arrays = _open_arrays(directory, layout, fresh=done == 0)
    last_saved = time.monotonic()
    with packed_attention(base), torch.no_grad():
        for first, last in runs(ordered, done, micro_batch_tokens):
            at = slice(bounds[first][0], bounds[last - 1][1])
            micro = collate(ordered[first:last]).to(base.device)
            for name, values in _ask(model, micro, key).items():
                arrays[name][at] = values
            if time.monotonic() - last_saved > PROGRESS_SEC:
                _remember(directory, key, arrays, last)
                last_saved = time.monotonic()
            on_progress(last, len(ordered))
    _remember(directory, key, arrays, len(ordered))
    hashes = {name: sha256_file(directory / f"{name}.npy") for name in layout}
    facts = {"format": FORMAT, "key": asdict(key), "hidden_size": hidden_size, "sha256": hashes}
    write_atomic(directory / FACTS_FILE, json.dumps(facts, indent=1) + "\n")
    (directory / PROGRESS_FILE).unlink(missing_ok=True)


def _ask(model: Any, micro: MicroBatch, key: CacheKey) -> dict[str, Array]:
    """One micro-batch through the teacher; logits a chunk at a time."""
    hidden, targets = at_targets(hidden_states(model, micro), micro.labels)
    head = sliced(head_of(model), key.n_tokens)
    rows = max(1, _CHUNK_LOGITS // key.n_tokens)
    kept: list[TopK] = []
    at_target: list[Tensor] = []
    for start in range(0, max(1, len(targets)), rows):
        part, wanted = hidden[start : start + rows], targets[start : start + rows]
        logits = head_logits(part, head)
        kept.append(top_k(logits, key.k))
        at_target.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
    columns: dict[str, list[Tensor]] = {
        "tokens": [item.tokens for item in kept],
        "log_probs": [item.log_probs for item in kept],
        "tail": [item.tail for item in kept],
        "targets": at_target,
    }
    if key.keep_hidden:
        columns["hidden"] = [unit_rms(hidden)]
    # numpy has no bfloat16; token ids below 2^24 would survive fp32, larger vocabularies would not.
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    return {
        name: (values.float() if values.is_floating_point() else values).cpu().numpy()
        for name, values in joined.items()
    }


def _layout(key: CacheKey, n_targets: int, hidden_size: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every array."""
    layout: dict[str, tuple[Any, tuple[int, ...]]] = {
        "tokens": (np.dtype("<i4"), (n_targets, key.k)),
        "log_probs": (np.dtype("<f4"), (n_targets, key.k)),
        "tail": (np.dtype("<f4"), (n_targets,)),
        "targets": (np.dtype("<f4"), (n_targets,)),
    }
    if key.keep_hidden:
        layout["hidden"] = (np.dtype("<f2"), (n_targets, hidden_size))
    return layout


def _bounds(rows: dict[bytes, TokenRow]) -> dict[bytes, tuple[int, int]]:
    """Where each row's targets are in the arrays."""
    bounds, end = {}, 0
    for digest, row in rows.items():
        bounds[digest] = (end, end + row.n_labels)
        end += row.n_labels
    return bounds


def runs(rows: Sequence[TokenRow], start: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Neighbouring rows [first, last) from `start` on: at most `most_tokens` together, or one row."""
    first, tokens = start, 0
    for at in range(start, len(rows)):
        if at > first and tokens + len(rows[at].ids) > most_tokens:
            yield first, at
            first, tokens = at, 0
        tokens += len(rows[at].ids)
    if first < len(rows):
        yield first, len(rows)


def _open_arrays(directory: Path, layout: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
    """Writable maps. Blocks are reserved first: writing to a map on a full disk would kill the process."""
    arrays = {}
    for name, (dtype, shape) in layout.items():
        path = directory / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+" if fresh else "r+", dtype=dtype, shape=shape)
        try:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise DoesNotFitError(
                f"no room for {path} ({path.stat().st_size / 2**30:.2f} GiB): {error.strerror}",
                "room on the disk for the teacher's distributions",
                "free some space, or set scaling.distillation.top_k lower",
            ) from None
        arrays[name] = array
    return arrays


def _remember(directory: Path, key: CacheKey, arrays: dict[str, Any], rows_done: int) -> None:
    """Bytes first, then the number that vouches for them."""
    for array in arrays.values():
        array.flush()
    fsync_dir(directory)
    write_atomic(directory / PROGRESS_FILE, json.dumps({"key": asdict(key), "rows_done": rows_done}))


def _rows_done(directory: Path, key: CacheKey, layout: dict[str, Any]) -> int:
    """Rows that an interrupted computation left safely behind; 0 where anything looks odd."""
    try:
        progress = json.loads((directory / PROGRESS_FILE).read_bytes()[:MAX_FACTS_BYTES])
        sound = progress["key"] == asdict(key)
        for name, (dtype, shape) in layout.items():
            array = np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            sound = sound and array.dtype == dtype and array.shape == shape
        rows_done = progress["rows_done"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError):
        return 0
    return rows_done if sound and isinstance(rows_done, int) and rows_done >= 0 else 0


def _read_facts(directory: Path, key: CacheKey) -> dict[str, Any]:
    try:
        with (directory / FACTS_FILE).open("rb") as file:
            facts = json.loads(file.read(MAX_FACTS_BYTES))
        sound = facts["format"] == FORMAT and facts["key"] == asdict(key)
        sound = sound and isinstance(facts["sha256"], dict) and isinstance(facts["hidden_size"], int)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(directory, f"{FACTS_FILE} cannot be read ({error})") from None
    if not sound:
        raise _damaged(directory, f"{FACTS_FILE} is of another cache")
    return dict(facts)


def _damaged(directory: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the teacher's cache in {directory} cannot be used: {reason}",
        "the files as they were written",
        "delete the directory: it is computed again",
    )
