"""Which request gets which slot, and when: a bounded KV cache of slabs, longest requests first.

A row that enters takes what another row's slot already holds of its tokens, so that a common prefix is read
once. Knows lengths and tokens; reads nothing itself, and knows no model.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scaler_wizard.inference.slab import Row, Slab, share_prefix, shareable_length

# A shorter common prefix is read again: copying it would make its reader wait for its source.
MIN_SHARED: Final = 16
# Requests that need at least this share of the longest get slots as long as that one's.
MIN_FILL: Final = 0.7


@dataclass(frozen=True, slots=True)
class Entry:
    """A row that has just got its slot."""

    row: Row
    source: Row | None
    """Whose first `shared` positions are to be copied once its prompt was read; None: nothing to copy."""
    shared: int


class Admission:
    """The waiting requests and the slots; `admit`, read what it returns, then `settle`."""

    def __init__(self, cache_positions: int, max_rows: int) -> None:
        self._cache_positions = cache_positions
        self._max_rows = max_rows
        self._waiting: list[tuple[int, tuple[int, ...], int, Row]] = []
        self.slabs: list[Slab] = []

    @property
    def unfinished(self) -> int:
        """Requests waiting or generating."""
        return len(self._waiting) + self._n_active()

    @property
    def reserved_tokens(self) -> int:
        """KV positions held now."""
        return sum(slab.tokens for slab in self.slabs)

    def push(self, row: Row) -> None:
        """Queue a row."""
        # Longest first: what does not fit in memory shows at once, and rows of like length run together.
        # Equal lengths by their tokens, so that samples of one prompt stand together and share it.
        insort(self._waiting, (-row.cache_length, tuple(row.tokens), row.index, row))

    def admit(self) -> list[list[Entry]]:
        """Move waiting rows into slots while there is room; returns them by the round they are read in.

        A row whose prefix another one is about to read comes a round after it.
        """
        active = self._n_active()
        rounds: list[list[Entry]] = []
        entered: dict[Row, int] = {}
        while self._waiting and active < self._max_rows:
            row = self._waiting[0][-1]
            slab = self._slab_for(row.cache_length)
            if slab is None:
                break
            del self._waiting[0]
            active += 1
            source, shared = self._source(row)
            entered[row] = entered[source] + 1 if source in entered else 0
            free = slab.free_slots()
            row.slab = slab
            row.slot = source.slot if source and source.slab is slab and source.slot in free else free[0]
            if source is not None and source not in entered:
                # Now, while it stands where it stands: its slot may be the next to be taken.
                share_prefix(source, row, shared)
                source = None
            slab.rows[row.slot] = row
            if len(rounds) == entered[row]:
                rounds.append([])
            rounds[entered[row]].append(Entry(row, source, shared))
        return rounds

    def settle(self) -> None:
        """Give back slabs without active rows, and move active rows to the first slots, for `DecodeStep`."""
        self.slabs = [slab for slab in self.slabs if slab.active_rows()]
        for slab in self.slabs:
            slab.compact()

    def _n_active(self) -> int:
        return sum(len(slab.active_rows()) for slab in self.slabs)

    def _source(self, row: Row) -> tuple[Row | None, int]:
        """The row in the cache with the longest common prefix, and its length; (None, 0) if too short."""
        start = row.tokens[:MIN_SHARED]
        best: Row | None = None
        longest = MIN_SHARED - 1
        for slab in self.slabs:
            for held in slab.rows:
                if held is None or held.tokens[:MIN_SHARED] != start:
                    continue
                shared = shareable_length(held, row)
                if shared > longest:
                    best, longest = held, shared
        return (None, 0) if best is None else (best, longest)

    def _slab_for(self, needed: int) -> Slab | None:
        """The smallest slab with a free slot for `needed` tokens, a new one, or None: full."""
        close = self._fitting(needed)
        if close is not None and close.capacity * MIN_FILL <= needed:
            return close
        if self._cache_positions - self.reserved_tokens < needed:
            self._give_back()
        n_slots = (self._cache_positions - self.reserved_tokens) // needed
        if n_slots < 1 and self.slabs:
            return self._fitting(needed)
        alike = 0
        for length, *_ in self._waiting:
            if -length < needed * MIN_FILL or alike == self._max_rows:
                break
            alike += 1
        self.slabs.append(Slab(needed, [None] * max(1, min(n_slots, alike))))
        return self.slabs[-1]

    def _fitting(self, needed: int) -> Slab | None:
        slabs = [slab for slab in self.slabs if slab.capacity >= needed and slab.free_slots()]
        return min(slabs, key=lambda slab: slab.capacity, default=None)

    def _give_back(self) -> None:
        """Free slabs without active rows, and the empty slots of those that are at most half full."""
        self.slabs = [slab for slab in self.slabs if slab.active_rows()]
        for slab in self.slabs:
            n_active = len(slab.active_rows())
            if 2 * n_active <= len(slab.rows):
                slab.compact()
                slab.shrink(n_active)


def copy_prefixes(entries: Sequence[Entry]) -> None:
    """Copy what the round before has read into the slots of this one."""
    for entry in entries:
        if entry.source is not None:
            share_prefix(entry.source, entry.row, entry.shared)
