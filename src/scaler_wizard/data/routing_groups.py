"""Which rows of a routing set must stay on one side of a split: those that say the same, or nearly, or that
share an image.

Pure, in memory: a routing set has thousands of rows, not millions. Knows nothing of files or labels.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from scaler_wizard.data.fingerprints import SIMILAR, band_keys, fingerprint, signature

TEMPLATE_SHARE = 0.1
TEMPLATE_ROWS = 5
_WORD = re.compile(r"\S+")


def group_rows(
    texts: Sequence[str], images: Sequence[str | None], sources: Sequence[Hashable] | None = None
) -> list[int]:
    """For each row the number of the first row of its group; rows of different groups share nothing.

    Two rows are in one group when their texts are equal, when what distinguishes their texts from the rest of
    their source is nearly equal (Jaccard similarity of 8-byte shingles 0.8 or more, estimated), when they
    show the same image, or when a third row connects them. With an image, a question that many images are
    asked says nothing about likeness: texts then count only together with the image.

    Args:
        images: content hash of each row's image, None without one.
        sources: where each row comes from; a word in more than a tenth of a source's rows (and more than
            five) is that source's template. "What is the plural of ..." does not make two questions alike.
    """
    assert len(texts) == len(images)
    groups = _Groups(len(texts))
    _join_equal(groups, images)
    plain = [index for index, image in enumerate(images) if image is None]
    _join_equal(
        groups, [None if image else fingerprint(text) for text, image in zip(texts, images, strict=True)]
    )
    told = distinguishing([texts[index] for index in plain], sources and [sources[index] for index in plain])
    _join_near(groups, plain, told)
    return [groups.first(index) for index in range(len(texts))]


def distinguishing(texts: Sequence[str], sources: Sequence[Hashable] | None = None) -> list[str]:
    """Each text without its source's template words; the empty text where nothing else is left."""
    owners = sources or [None] * len(texts)
    rows: Counter[Hashable] = Counter(owners)
    counts: Counter[tuple[Hashable, str]] = Counter()
    split = [_WORD.findall(text.casefold()) for text in texts]
    for owner, words in zip(owners, split, strict=True):
        counts.update((owner, word) for word in set(words))
    most = {owner: max(TEMPLATE_ROWS, TEMPLATE_SHARE * count) for owner, count in rows.items()}
    return [
        " ".join(word for word in words if counts[owner, word] <= most[owner])
        for owner, words in zip(owners, split, strict=True)
    ]


class _Groups:
    """Union by the smallest number, with path halving (Tarjan and van Leeuwen 1984)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def first(self, index: int) -> int:
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.first(one), self.first(other)))
        self._parent[high] = low


def _join_equal(groups: _Groups, keys: Iterable[Hashable | None]) -> None:
    seen: dict[Hashable, int] = {}
    for index, key in enumerate(keys):
        if key is not None:
            groups.join(seen.setdefault(key, index), index)


def _join_near(groups: _Groups, rows: Sequence[int], told: Sequence[str]) -> None:
    """Join the `rows` whose distinguishing texts are alike.

    Words in another order are nearly equal as shingles but may be another question ("a before b"): texts
    shorter than two shingles are compared exactly, which their whole texts have been already.
    """
    alike = [(row, text) for row, text in zip(rows, told, strict=True) if len(text.encode()) >= 16]
    if not alike:
        return
    signatures = np.stack([signature(text) for _, text in alike])
    buckets: dict[int, list[int]] = defaultdict(list)
    for place, found in enumerate(signatures):
        for key in band_keys(found):
            buckets[key].append(place)
    for members in buckets.values():
        if len(members) < 2:
            continue
        block = signatures[members]
        for at, place in enumerate(members[:-1]):
            near = (block[at + 1 :] == signatures[place]).mean(axis=1) >= SIMILAR
            for other in np.flatnonzero(near):
                groups.join(alike[place][0], alike[members[at + 1 + int(other)]][0])
