"""LoRA on a packed row of tokens: the right adapter on the right tokens, at the cost of few matrix products.

`adapters_attached` makes the linear layers of a model ask, in every call, which adapters the forward pass at
hand wants (`applying`); nothing about a request is kept on the model. Rows of one adapter that stand together
are taken as slices. Where many adapters are mixed, as in a decode step, their matrices are joined: one
product with all A's, a mask that leaves each token its own adapter's columns, one product with all B's. Knows
tensors and module names; knows no files, no requests and no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor, nn

# Layers that read the same input: one product with all their A's.
SHARED_INPUT: Final = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"}))
# More slices than this are joined, unless each is long enough to keep a core busy.
MAX_SLICES: Final = 2
LONG_SLICE: Final = 32


def group_of(site: str) -> str:
    """The name under which a layer shares its product with A with its siblings."""
    parent, _, leaf = site.rpartition(".")
    for number, names in enumerate(SHARED_INPUT):
        if leaf in names:
            return f"{parent}#{number}"
    return site


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """The adapter weights of layers that read the same input, of one adapter or of several joined.

    C columns, of one layer after the other, and within a layer of one adapter after the other.
    """

    a: Tensor
    """[C, in]."""
    sites: Mapping[str, tuple[int, int, Tensor]]
    """By layer: first and last column, and s B^T [columns, out]."""
    owners: tuple[int, ...] = ()
    """Which of the joined adapters each column belongs to, by its place; empty for a single adapter."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """One adapter's matrices, in the base's format, by group."""

    groups: Mapping[str, GroupWeights]

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        tensors = [t for g in self.groups.values() for t in (g.a, *(b for _, _, b in g.sites.values()))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def group_weights(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> AdapterWeights:
    """Put an adapter's matrices side by side.

    pairs: by layer A [r, in] and s B^T [r, out]; ranks may differ between layers.
    """
    groups: dict[str, list[str]] = {}
    for site in sorted(pairs):
        groups.setdefault(group_of(site), []).append(site)
    return AdapterWeights(
        {name: _side_by_side([(s, [pairs[s]]) for s in sites]) for name, sites in groups.items()}
    )


def _side_by_side(sites: Sequence[tuple[str, Sequence[tuple[Tensor, Tensor]]]]) -> GroupWeights:
    places: dict[str, tuple[int, int, Tensor]] = {}
    first = 0
    for site, pairs in sites:
        width = sum(a.shape[0] for a, _ in pairs)
        places[site] = (first, first + width, torch.cat([b for _, b in pairs]))
        first += width
    return GroupWeights(torch.cat([a for _, pairs in sites for a, _ in pairs]), places)


class JoinedAdapters:
    """Several adapters as one, with a column for each of their ranks; joined where first asked for."""

    def __init__(self, adapters: Sequence[AdapterWeights]) -> None:
        self.adapters = tuple(adapters)
        self._groups: dict[str, GroupWeights | None] = {}

    def group(self, name: str) -> GroupWeights | None:
        """The joined weights of a group; None where none of the adapters has it."""
        if name not in self._groups:
            self._groups[name] = self._join(name)
        return self._groups[name]

    def _join(self, name: str) -> GroupWeights | None:
        held = [
            (i, adapter.groups[name]) for i, adapter in enumerate(self.adapters) if name in adapter.groups
        ]
        if not held:
            return None
        sites = sorted({site for _, weights in held for site in weights.sites})
        columns: list[tuple[str, list[tuple[Tensor, Tensor]]]] = []
        owners: list[int] = []
        for site in sites:
            pairs = []
            for i, weights in held:
                if site in weights.sites:
                    start, end, b = weights.sites[site]
                    pairs.append((weights.a[start:end], b))
                    owners += [i] * (end - start)
            columns.append((site, pairs))
        joined = _side_by_side(columns)
        return GroupWeights(joined.a, joined.sites, tuple(owners))


@dataclass(slots=True)
class JoinCache:
    """The join that decode steps use, kept while they need no other adapters and at least half of its own."""

    _joined: JoinedAdapters | None = None

    def of(self, adapters: Sequence[AdapterWeights]) -> JoinedAdapters:
        """A join that holds at least these adapters, all different."""
        held = self._joined
        if held is None or 2 * len(adapters) < len(held.adapters) or not set(adapters) <= set(held.adapters):
            self._joined = held = JoinedAdapters(adapters)
        return held


@dataclass(slots=True)
class AdapterPass:
    """Which tokens of one forward pass have which adapter; made by `plan_pass`."""

    _slices: list[tuple[int, int, AdapterWeights]]
    _joined: JoinedAdapters | None = None
    _places: Tensor | None = None
    _masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    # The input that a group's products belong to, and those products: [tokens, C] for every slice.
    _group: str = ""
    _input: Tensor | None = None
    _lows: list[Tensor] = field(default_factory=list)

    def add(self, group: str, site: str, x: Tensor, y: Tensor) -> None:
        """Add the adapters' share to y [1, N, out], in place, for the layer's input x [1, N, in]."""
        if self._input is not x or self._group != group:
            self._lows = self._products(group, x[0])
            self._group, self._input = group, x
        if self._joined is None:
            for (start, end, adapter), low in zip(self._slices, self._lows, strict=True):
                _add_product(adapter.groups.get(group), site, low, y[0, start:end])
        elif self._lows:
            _add_product(self._joined.group(group), site, self._lows[0], y[0])

    def _products(self, group: str, x: Tensor) -> list[Tensor]:
        if self._joined is None:
            none = x.new_empty(0)
            return [
                x[start:end] @ held.a.T if (held := adapter.groups.get(group)) else none
                for start, end, adapter in self._slices
            ]
        joined = self._joined.group(group)
        return [] if joined is None else [(x @ joined.a.T).mul_(self._mask(joined.owners, x))]

    def _mask(self, owners: tuple[int, ...], x: Tensor) -> Tensor:
        """[N, C]: 1 where a column is of the token's adapter."""
        if owners not in self._masks:
            assert self._places is not None
            columns = torch.tensor(owners, device=x.device)
            self._masks[owners] = (self._places[:, None] == columns).to(x.dtype)
        return self._masks[owners]


def _add_product(weights: GroupWeights | None, site: str, low: Tensor, y: Tensor) -> None:
    if weights is not None and site in weights.sites:
        start, end, b = weights.sites[site]
        y.addmm_(low[:, start:end], b)


def plan_pass(
    tokens: Sequence[AdapterWeights | None], joins: JoinCache, device: torch.device
) -> AdapterPass | None:
    """How a pass over packed tokens applies their adapters; None where all are the base's."""
    slices: list[tuple[int, int, AdapterWeights]] = []
    end = 0
    for adapter, run in groupby(tokens):
        start, end = end, end + len(list(run))
        if adapter is not None:
            slices.append((start, end, adapter))
    if not slices:
        return None
    if len(slices) <= MAX_SLICES or sum(b - a for a, b, _ in slices) >= LONG_SLICE * len(slices):
        return AdapterPass(slices)
    joined = joins.of(list(dict.fromkeys(adapter for _, _, adapter in slices)))
    place = {adapter: i for i, adapter in enumerate(joined.adapters)}
    places = torch.tensor([-1 if a is None else place[a] for a in tokens], device=device)
    return AdapterPass(slices, joined, places)


_PASS: ContextVar[AdapterPass | None] = ContextVar("adapter_pass", default=None)


@contextmanager
def applying(adapters: AdapterPass | None) -> Iterator[None]:
    """These adapters in the forward pass made inside."""
    token = _PASS.set(adapters)
    try:
        yield
    finally:
        _PASS.reset(token)


def _forward(group: str, site: str, plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        y = plain(x)
        adapters = _PASS.get()
        if adapters is not None:
            adapters.add(group, site, x, y)
        return y

    return forward


@contextmanager
def adapters_attached(linears: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let these layers, by name, take adapters from `applying`; afterwards they are as before.

    Layers that do so already are left alone, so that blocks may be nested.
    """
    changed: list[Any] = []
    try:
        for site, layer in linears.items():
            # An attribute of the instance hides the method of its class, and deleting it brings that back.
            if "forward" not in layer.__dict__:
                layer.forward = _forward(group_of(site), site, layer.forward)
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.__dict__["forward"]
