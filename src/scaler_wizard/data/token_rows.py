"""Token rows: ids and the marks of what is trained, in flat arrays; no tokenizer, no batch."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """One row, or one piece of a row that was longer than the context."""

    number: int
    """Number of the data row it comes from."""
    ids: npt.NDArray[np.int32]
    """Token ids [n]."""
    trained: npt.NDArray[np.bool_]
    """Which tokens are targets [n]; the first never counts, since nothing comes before it."""

    @property
    def n_labels(self) -> int:
        """Tokens that are predicted and trained."""
        return int(self.trained[1:].sum())


class TokenRows(Sequence[TokenRow]):
    """Token rows in three flat arrays: 5 bytes a token and 12 a row, instead of an object each."""

    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        trained: npt.NDArray[np.bool_],
        ends: npt.NDArray[np.int64],
        numbers: npt.NDArray[np.int64],
    ) -> None:
        self._ids, self._trained, self._numbers = ids, trained, numbers
        self._bounds = np.concatenate([np.zeros(1, np.int64), ends])

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> TokenRows:
        """Copy rows into flat arrays."""
        return flat_rows([(row.number, row.ids, row.trained) for row in rows])

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
        return TokenRow(int(self._numbers[position]), self._ids[start:end], self._trained[start:end])

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[position] for position in range(len(self)))


def flat_rows(rows: Iterable[tuple[int, Iterable[int], Iterable[bool]]]) -> TokenRows:
    """Collect (row number, token ids, trained marks) into flat arrays."""
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
    )
