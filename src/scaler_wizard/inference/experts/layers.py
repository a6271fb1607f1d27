"""LoRA on a packed row of tokens: the right adapter on the right tokens, at the cost of few matrix products.

`adapters_attached` makes the linear layers of a model ask, in every call, which adapters the forward pass at
hand wants (`applying`); nothing about a request is kept on the model. Tokens of one adapter that stand
together are taken as slices. Where many adapters are mixed, as in a decode step, their matrices are stacked:
tokens are gathered by adapter, and one batched product serves all adapters. Knows tensors and module names;
knows no files, no requests and no cache.

A decode step's linear layers, 32 rows with rank-8 adapters at h = 256 on one core, cost 1.2 times the base's
with one adapter and 1.4 times with 8 mixed ones; products with all matrices side by side and a mask cost 2.0,
a slice for each adapter 2.9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

# Layers that read the same input: one product with all their A's.
SHARED_INPUT: Final = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"}))
# More slices than this are stacked, unless each is long enough to keep a core busy.
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
    """One adapter's matrices of layers that read the same input; C columns, of one layer after the other."""

    a: Tensor
    """[C, in]."""
    sites: Mapping[str, tuple[int, int, Tensor]]
    """By layer: first and last column, and s B^T [columns, out]."""


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
    groups: dict[str, GroupWeights] = {}
    names = sorted({group_of(site) for site in pairs})
    for name in names:
        own = {site: pair for site, pair in sorted(pairs.items()) if group_of(site) == name}
        places, first = {}, 0
        for site, (a, b) in own.items():
            places[site] = (first, first + a.shape[0], b)
            first += a.shape[0]
        groups[name] = GroupWeights(torch.cat([a for a, _ in own.values()]), places)
    return AdapterWeights(groups)


@dataclass(frozen=True, slots=True)
class StackedGroup:
    """The matrices of E adapters for layers that read the same input; columns that one lacks are 0."""

    a: Tensor
    """[E, in, C]."""
    sites: Mapping[str, tuple[int, int, Tensor]]
    """By layer: first and last column, and s B^T [E, columns, out]."""


class StackedAdapters:
    """Several adapters for batched products; a group is stacked where it is first asked for."""

    def __init__(self, adapters: Sequence[AdapterWeights]) -> None:
        self.adapters = tuple(adapters)
        self._groups: dict[str, StackedGroup | None] = {}

    def group(self, name: str) -> StackedGroup | None:
        """A group's stacked matrices; None where none of the adapters has it."""
        if name not in self._groups:
            self._groups[name] = self._stack(name)
        return self._groups[name]

    def _stack(self, name: str) -> StackedGroup | None:
        held = {i: one.groups[name] for i, one in enumerate(self.adapters) if name in one.groups}
        if not held:
            return None
        width: dict[str, int] = {}
        outputs: dict[str, int] = {}
        for weights in held.values():
            for site, (start, end, b) in weights.sites.items():
                width[site] = max(width.get(site, 0), end - start)
                outputs[site] = b.shape[1]
        like = next(iter(held.values())).a
        n_adapters, sites, first = len(self.adapters), {}, 0
        a = like.new_zeros(n_adapters, sum(width.values()), like.shape[1])
        for site in sorted(width):
            b = like.new_zeros(n_adapters, width[site], outputs[site])
            for i, weights in held.items():
                if site in weights.sites:
                    start, end, own = weights.sites[site]
                    a[i, first : first + end - start] = weights.a[start:end]
                    b[i, : end - start] = own
            sites[site] = (first, first + width[site], b)
            first += width[site]
        return StackedGroup(a.transpose(1, 2).contiguous(), sites)


@dataclass(slots=True)
class StackCache:
    """The stack of the steps before, kept while they need no other adapters and at least half of its own."""

    _stack: StackedAdapters | None = None

    def of(self, adapters: Sequence[AdapterWeights]) -> StackedAdapters:
        """A stack that holds at least these adapters, all different."""
        held = self._stack
        if held is None or 2 * len(adapters) < len(held.adapters) or not set(adapters) <= set(held.adapters):
            self._stack = held = StackedAdapters(adapters)
        return held


class AdapterPass(Protocol):
    """Which tokens of one forward pass have which adapter."""

    def add(self, group: str, site: str, x: Tensor, y: Tensor) -> None:
        """Add the adapters' share to y [1, N, out], in place, for the layer's input x [1, N, in].

        Layers of a group follow each other with the very same tensor x, whose products with A are made once.
        """


class SlicedPass:
    """Adapters on slices of the packed row."""

    def __init__(self, slices: Sequence[tuple[int, int, AdapterWeights]]) -> None:
        self._slices = slices
        self._made: tuple[str, Tensor | None] = ("", None)
        self._lows: list[Tensor | None] = []

    def add(self, group: str, site: str, x: Tensor, y: Tensor) -> None:
        """See `AdapterPass.add`."""
        held = [adapter.groups.get(group) for _, _, adapter in self._slices]
        if self._made[0] != group or self._made[1] is not x:
            self._made = (group, x)
            self._lows = [
                None if one is None else x[0, start:end] @ one.a.T
                for (start, end, _), one in zip(self._slices, held, strict=True)
            ]
        for (start, end, _), one, low in zip(self._slices, held, self._lows, strict=True):
            if one is not None and low is not None and site in one.sites:
                first, last, b = one.sites[site]
                y[0, start:end].addmm_(low[:, first:last], b)


class StackedPass:
    """Adapters on single tokens: gathered by adapter, n places for each of E, and put back."""

    def __init__(
        self, stack: StackedAdapters, tokens: Sequence[AdapterWeights | None], device: torch.device
    ) -> None:
        self._stack = stack
        by_adapter: dict[AdapterWeights, list[int]] = {adapter: [] for adapter in stack.adapters}
        for at, adapter in enumerate(tokens):
            if adapter is not None:
                by_adapter[adapter].append(at)
        self._n_places = max(map(len, by_adapter.values()))
        # Places that no token needs read token 0, and are not put back.
        gather: list[int] = []
        adapted: list[int] = []
        back: list[int] = []
        for i, own in enumerate(by_adapter.values()):
            gather += own + [0] * (self._n_places - len(own))
            adapted += own
            back += range(i * self._n_places, i * self._n_places + len(own))
        self._gather = torch.tensor(gather, device=device)
        self._adapted = torch.tensor(adapted, device=device)
        self._back = torch.tensor(back, device=device)
        self._made: tuple[str, Tensor | None] = ("", None)
        self._low: Tensor | None = None

    def add(self, group: str, site: str, x: Tensor, y: Tensor) -> None:
        """See `AdapterPass.add`."""
        held = self._stack.group(group)
        if held is None or site not in held.sites:
            return
        if self._low is None or self._made[0] != group or self._made[1] is not x:
            self._made = (group, x)
            gathered = x[0].index_select(0, self._gather).view(len(held.a), self._n_places, -1)
            self._low = gathered @ held.a
        first, last, b = held.sites[site]
        shares = (self._low[:, :, first:last] @ b).view(len(self._gather), -1)
        y[0].index_add_(0, self._adapted, shares.index_select(0, self._back))


def plan_pass(
    tokens: Sequence[AdapterWeights | None], stacks: StackCache, device: torch.device
) -> AdapterPass | None:
    """How a pass over packed tokens applies the adapter of each; None where all are the base's."""
    slices: list[tuple[int, int, AdapterWeights]] = []
    end = 0
    for adapter, run in groupby(tokens):
        start, end = end, end + len(list(run))
        if adapter is not None:
            slices.append((start, end, adapter))
    if not slices:
        return None
    if len(slices) <= MAX_SLICES or sum(b - a for a, b, _ in slices) >= LONG_SLICE * len(slices):
        return SlicedPass(slices)
    stack = stacks.of(list(dict.fromkeys(adapter for _, _, adapter in slices)))
    return StackedPass(stack, tokens, device)


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
