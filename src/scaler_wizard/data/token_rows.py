"""Token rows: ids and the marks of what is trained, in flat arrays; no tokenizer, no batch."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

NEVER = -1
"""In the flat array of `active_from`: no invocation in this row."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """One row, or one piece of a row that was longer than the context."""

    number: int
    """Number of the data row it comes from."""
    ids: npt.NDArray[np.int32]
    """Token ids [n]."""
    trained: npt.NDArray[np.bool_]
    """Which tokens are targets [n]; the first never counts, since nothing comes before it."""
    active_from: int | None = None
    """The token from which on an activated adapter acts (`activation.py`); None where it is never invoked."""

    @property
    def n_labels(self) -> int:
        """Tokens that are predicted and trained."""
        return int(self.trained[1:].sum())


class TokenRows(Sequence[TokenRow]):
    """Token rows in flat arrays: 5 bytes a token and 24 a row, instead of an object each."""

    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        trained: npt.NDArray[np.bool_],
        ends: npt.NDArray[np.int64],
        numbers: npt.NDArray[np.int64],
        active_from: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._ids, self._trained, self._numbers = ids, trained, numbers
        self._active_from = active_from
        self._bounds = np.concatenate([np.zeros(1, np.int64), ends])

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> TokenRows:
        """Copy rows into flat arrays."""
        starts = array("q")

        def parts() -> Iterator[tuple[int, Iterable[int], Iterable[bool]]]:
            for row in rows:
                starts.append(NEVER if row.active_from is None else row.active_from)
                yield row.number, row.ids, row.trained

        return flat_rows(parts(), starts)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row [rows]."""
        return np.diff(self._bounds)

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Number of the data row that each row comes from [rows]."""
        return self._numbers

    def at(self, indices: npt.NDArray[np.int64]) -> TokenRows:
        """The rows at some indices, copied."""
        return TokenRows.of(self[int(index)] for index in indices)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenRow]: ...
    def __getitem__(self, index: int | slice) -> TokenRow | Sequence[TokenRow]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        start, end = self._bounds[position], self._bounds[position + 1]
        active_from = NEVER if self._active_from is None else int(self._active_from[position])
        return TokenRow(
            int(self._numbers[position]),
            self._ids[start:end],
            self._trained[start:end],
            None if active_from == NEVER else active_from,
        )

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[position] for position in range(len(self)))


def flat_rows(
    rows: Iterable[tuple[int, Iterable[int], Iterable[bool]]], active_from: array[int] | None = None
) -> TokenRows:
    """Collect (row number, token ids, trained marks) into flat arrays.

    Args:
        active_from: of each row, `NEVER` where there is none; read after `rows` is exhausted.
    """
    ids, trained, ends, numbers = array("i"), array("b"), array("q"), array("q")
    for number, row_ids, row_trained in rows:
        ids.extend(row_ids)
        trained.extend(int(flag) for flag in row_trained)
        ends.append(len(ids))
        numbers.append(number)
    return TokenRows(
        np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32),
        np.frombuffer(trained, np.bool_) if trained else np.zeros(0, np.bool_),
        np.frombuffer(ends, np.int64) if ends else np.zeros(0, np.int64),
        np.frombuffer(numbers, np.int64) if numbers else np.zeros(0, np.int64),
        None if active_from is None or set(active_from) <= {NEVER} else np.frombuffer(active_from, np.int64),
    )
