"""Which split each row of a routing set goes to: whole groups only, exact numbers per expert. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from scaler_wizard.errors import EmptyDataError

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")


@dataclass(frozen=True)
class SplitSizes:
    """Wanted rows of one expert."""

    rows: int | None
    """Rows of train and val together; all that are left when None."""
    test: int
    val_share: float


def split_groups(
    groups: Sequence[int],
    labels: Sequence[str],
    keys: Sequence[int],
    sizes: Mapping[str, SplitSizes],
    seed: int,
) -> list[Split | None]:
    """The split of each row; None for a row beyond the wanted numbers.

    Groups are taken in the order of a hash of (seed, key of their first row). A group goes to test while one
    of its experts lacks test rows, then to val, then to train, so a row's side never depends on the order of
    files. Rows of a group beyond a number are left out, never put elsewhere.

    Args:
        groups: group of each row, from `routing_groups.group_rows`.
        keys: a hash of each row's content.
        sizes: for every label that occurs.

    Raises:
        EmptyDataError: an expert's rows are too few, or too alike, for its splits.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    order = sorted(
        members, key=lambda group: (_position(min(keys[row] for row in members[group]), seed), group)
    )
    wanted = _wanted(Counter(labels), sizes)
    given: Counter[tuple[str, Split]] = Counter()
    placed: list[Split | None] = [None] * len(groups)
    for group in order:
        split = _place(members[group], labels, wanted, given)
        if split is None:
            continue
        for row in sorted(members[group], key=lambda row: (keys[row], row)):
            if given[labels[row], split] < wanted[labels[row], split]:
                placed[row] = split
                given[labels[row], split] += 1
    _check(wanted, given)
    return placed


def _wanted(counts: Mapping[str, int], sizes: Mapping[str, SplitSizes]) -> dict[tuple[str, Split], int]:
    wanted: dict[tuple[str, Split], int] = {}
    for label, count in counts.items():
        size = sizes[label]
        left = max(0, count - size.test)
        rows = left if size.rows is None else min(size.rows, left)
        val = max(1, round(rows * size.val_share)) if size.val_share > 0 else 0
        wanted |= {(label, "test"): size.test, (label, "val"): val, (label, "train"): rows - val}
    return wanted


def _place(
    rows: Sequence[int], labels: Sequence[str], wanted: Mapping[tuple[str, Split], int],
    given: Mapping[tuple[str, Split], int],
) -> Split | None:  # fmt: skip
    for split in ("test", "val", "train"):
        here: Split = split
        if any(given[labels[row], here] < wanted[labels[row], here] for row in rows):
            return here
    return None


def _check(wanted: Mapping[tuple[str, Split], int], given: Mapping[tuple[str, Split], int]) -> None:
    """Groups are whole, so an expert whose rows are all alike may leave a split empty or short."""
    for (label, split), count in wanted.items():
        # Rows that only repeat others make train shorter, which is no harm; the rest is what is measured on.
        least = count if split == "test" else 1 if count or split == "train" else 0
        if given[label, split] < least:
            raise EmptyDataError(
                f'expert "{label}" has {given[label, split]} of {max(count, least)} rows for {split}: those '
                "that say nearly the same or show one image are kept together",
                "more rows that differ from each other",
                "add rows, or lower test_rows",
            )


def _position(key: int, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
