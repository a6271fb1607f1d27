"""Many experts on one base: the base reads a content once, the router decides from that, an expert answers.

Continuous batching on the slots of `inference.admission`. A request's content is read into its slot by the
base; the router sees that reading (`routing`); an activated expert then goes on in the same slot, where the
content's keys and values are what its own would be. A plain LoRA expert's are not: its adapter acts on the
content too, so the whole prompt is read a second time with the adapter on. All that belongs to a request is
in its row; the model keeps nothing. Knows tokens; knows no tokenizer, no chat template and no transport.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.inference.admission import Admission, copy_prefixes
from scaler_wizard.inference.attention import DecodeStep, slots_attached
from scaler_wizard.inference.continuations import Continuations
from scaler_wizard.inference.experts.bank import Bank, Expert
from scaler_wizard.inference.experts.counters import Counters
from scaler_wizard.inference.experts.forward import decoder_layers
from scaler_wizard.inference.experts.layers import adapters_attached
from scaler_wizard.inference.experts.prompt import BASE, RoutedAnswer, RoutedRequest
from scaler_wizard.inference.experts.reading import Reader
from scaler_wizard.inference.experts.routing import Router, choose
from scaler_wizard.inference.experts.rows import RoutedRow, content_row
from scaler_wizard.inference.modes import DEFAULT_LIMITS, InferenceLimits, cache_positions, measuring
from scaler_wizard.inference.requests import Request
from scaler_wizard.inference.slab import Row


class RoutedEngine:
    """Answers requests that may be submitted at any time; use it inside `routed_serving`."""

    def __init__(
        self,
        bank: Bank,
        router: Router | None = None,
        *,
        answer_start: Sequence[int] = (),
        fallback: str | None = None,
        limits: InferenceLimits = DEFAULT_LIMITS,
    ) -> None:
        """
        Args:
            router: None: requests that name no expert go to the base.
            answer_start: tokens between content and answer when the base answers.
            fallback: label of the expert that answers when the router abstains; None: the base.

        Raises:
            UnknownExpertError: the router or the fallback names an expert that the bank lacks.
            IncompatibleModelError: the router reads a layer that the base does not have.
        """
        self._bank, self._router = bank, router
        self._answer_start = tuple(answer_start)
        self._fallback = None if fallback is None else bank.expert(fallback)
        self._reader = Reader(bank, limits.chunk_for(bank.model.device))
        self._admission = Admission(cache_positions(bank.model, limits), limits.max_rows)
        self._continuations = Continuations()
        self._submitted = 0
        self.counters = Counters()
        """Work done so far for all requests."""
        if router is not None:
            _check(router, bank)

    @property
    def unfinished(self) -> int:
        """Requests waiting or generating."""
        return self._admission.unfinished

    @property
    def reserved_tokens(self) -> int:
        """KV positions held now."""
        return self._admission.reserved_tokens

    def submit(self, request: RoutedRequest) -> int:
        """Queue a request; returns its number, counted from 0 in the order of submission.

        Raises:
            UnknownExpertError: it names an expert that is not there.
        """
        decided = self._router is None or request.expert is not None
        expert = None if request.expert in (None, BASE) else self._bank.expert(str(request.expert))
        inner = Request(
            request.prompt.tokens, request.max_new_tokens, request.stop_ids, request.temperature, request.seed
        )
        row = content_row(
            self._submitted, request.prompt, inner, self._cache_length(request, expert, decided)
        )
        row.expert, row.decided = expert, decided
        if expert is not None and expert.mode == "lora":
            # Nothing of the base's is of use to it: one reading of the whole prompt, with the adapter on.
            row.start_answer(expert.start, adapted_from=0)
        self._submitted += 1
        self._admission.push(row)
        return row.index

    def step(self) -> list[tuple[int, RoutedAnswer]]:
        """Admit what fits, route it, generate a token for each active request; returns those that ended."""
        entered: list[RoutedRow] = []
        for entries in self._admission.admit():
            copy_prefixes(entries)
            rows = [_routed(entry.row) for entry in entries]
            self._read_contents(rows)
            entered += rows
        self._route([row for row in entered if not row.decided])
        self._start_answers([row for row in entered if row.adapted_from > 0])
        self._admission.settle()
        return self._decode()

    def _read_contents(self, rows: Sequence[RoutedRow]) -> None:
        """What stands in the slots already is another request's, with the same tokens."""
        for row in rows:
            n_read, embedded = row.read_to - row.cached, row.prompt.embedded
            self._count(row, Counters(
                vision_encodes=0 if embedded is None else embedded.vision_encodes,
                shared_tokens=row.cached,
            ))  # fmt: skip
            if row.adapted_from == 0:
                self._count(row, Counters(expert_prefills=1, expert_tokens=n_read))
            else:
                self._count(row, Counters(prefills=1, prefilled_tokens=n_read))
        router = self._router
        if router is not None and router.kind == "suffix":
            asked = [row for row in rows if not row.decided]
            for row, (values, work) in zip(asked, self._reader.read_with_suffix(router, asked), strict=True):
                self._decide(router, row, values, work)
            rows = [row for row in rows if row not in asked]
        self._reader.read(rows, hidden_after=router.layer if router and router.kind == "features" else None)

    def _route(self, rows: Sequence[RoutedRow]) -> None:
        """Decide who answers, from what the base has read; a suffix router has decided already."""
        router = self._router
        if not rows or router is None:
            return
        for row, (values, work) in zip(rows, self._reader.observe(router, rows), strict=True):
            self._decide(router, row, values, work)

    def _decide(self, router: Router, row: RoutedRow, values: Tensor, work: Counters) -> None:
        self._count(row, work)
        row.scores = router.decide(values)
        row.choice = choose(row.scores, router.labels, router.threshold)
        label = row.choice.label
        row.expert = self._fallback if label is None else self._bank.expert(label)
        row.decided = True

    def _start_answers(self, rows: Sequence[RoutedRow]) -> None:
        """Put the start of an answer behind each content, and read it up to its last token."""
        for row in rows:
            if row.expert is None:
                row.start_answer(self._answer_start, adapted_from=row.n_content)
            elif row.expert.mode == "alora":
                row.start_answer(row.expert.start, adapted_from=row.n_content)
                self._count(row, Counters(expert_tokens=row.read_to - row.cached))
            else:
                row.start_answer(row.expert.start, adapted_from=0)
                row.cached = 0
                self._count(row, Counters(expert_prefills=1, expert_tokens=row.read_to))
        self._reader.read(rows)

    def _decode(self) -> list[tuple[int, RoutedAnswer]]:
        step = DecodeStep(self._admission.slabs, self._reader.device)
        rows = [_routed(row) for row in step.rows]
        if not rows:
            return []
        for row in rows:
            self._count(row, Counters(decode_steps=1, router_decode_steps=int(not row.decided)))
        logits_BV = self._reader.decode(rows, step)
        ended = self._continuations.advance(rows, logits_BV)
        return [(row.index, _routed(row).answer(found)) for row, found in ended]

    def _cache_length(self, request: RoutedRequest, expert: Expert | None, decided: bool) -> int:
        """KV positions for whoever may answer, and for the router's suffix."""
        experts: list[Expert | None] = [expert]
        suffix = 0
        if self._router is not None and not decided:
            experts = [*map(self._bank.expert, self._router.labels), self._fallback]
            suffix = len(self._router.suffix)
        starts = [self._answer_start if one is None else one.start for one in experts]
        answer = max(len(start) for start in starts) + request.max_new_tokens - 1
        return len(request.prompt.tokens) + max(answer, suffix)

    def _count(self, row: RoutedRow, work: Counters) -> None:
        row.counters += work
        self.counters += work


def _routed(row: Row) -> RoutedRow:
    assert isinstance(row, RoutedRow)
    return row


def _check(router: Router, bank: Bank) -> None:
    for label in router.labels:
        bank.expert(label)
    if router.adapter is not None:
        bank.adapter(router.adapter)
    n_layers = len(decoder_layers(bank.model))
    if router.kind != "suffix" and not 1 <= router.layer <= n_layers:
        raise IncompatibleModelError(
            f"a router that reads the hidden states after layer {router.layer}",
            f"a layer of this base: 1 to {n_layers}",
            "train the router on this base",
        )


@contextmanager
def routed_serving(
    bank: Bank,
    router: Router | None = None,
    *,
    answer_start: Sequence[int] = (),
    fallback: str | None = None,
    limits: InferenceLimits = DEFAULT_LIMITS,
) -> Iterator[RoutedEngine]:
    """An engine for as long as the block lasts; the model is as before at the end. See `RoutedEngine`.

    The bank's model must not be used for anything else inside, but the bank may get more experts.
    """
    with measuring(bank.model), slots_attached(bank.model), adapters_attached(bank.linears):
        yield RoutedEngine(bank, router, answer_start=answer_start, fallback=fallback, limits=limits)


def answer_all(engine: RoutedEngine, requests: Sequence[RoutedRequest]) -> list[RoutedAnswer]:
    """Answers in the order of the requests; the engine must be idle."""
    assert engine.unfinished == 0
    first = [engine.submit(request) for request in requests]
    found: dict[int, RoutedAnswer] = {}
    while engine.unfinished:
        found.update(engine.step())
    return [found[index] for index in first]
