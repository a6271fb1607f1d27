from __future__ import annotations

import random
import warnings
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from scaler_wizard.errors import IncompatibleModelError, UnknownExpertError
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.counters import Counters
from scaler_wizard.inference.experts.engine import RoutedEngine, answer_all, routed_serving
from scaler_wizard.inference.experts.fakes import (
    ALL_LINEARS,
    LinearRouter,
    random_router,
    write_random_adapter,
)
from scaler_wizard.inference.experts.prompt import BASE, EmbeddedPrompt, Prompt, RoutedAnswer, RoutedRequest
from scaler_wizard.inference.experts.reading import observe
from scaler_wizard.inference.modes import InferenceLimits
from scaler_wizard.models.tiny import tiny_model

torch.set_num_threads(1)
# One expert is a plain LoRA; the others are activated by tokens that differ in number.
STARTS = {"plain": (3, 9, 5), "a": (3, 7, 5), "b": (3, 8), "c": (4,)}
EXPERTS = tuple(STARTS)
SOME_LINEARS = ("q_proj", "v_proj", "down_proj")
ANSWER_START = (3, 5)
TIGHT = InferenceLimits(chunk_tokens=7, cache_tokens=150, max_rows=4)


def untied(kind: str) -> Any:
    # Tied embeddings of a random model repeat the last token for ever.
    return tiny_model(kind, tie_word_embeddings=False, max_position_embeddings=256)


def make_experts(model: Any, folder: Path) -> dict[str, Path]:
    return {
        label: write_random_adapter(
            model, folder / label, seed=i, invocation=None if label == "plain" else start, rank=2 + 2 * i,
            use_rslora=label == "b", targets=SOME_LINEARS if label == "c" else ALL_LINEARS,
        )
        for i, (label, start) in enumerate(STARTS.items())
    }  # fmt: skip


def make_bank(model: Any, directories: dict[str, Path]) -> Bank:
    bank = Bank(model)
    for label, directory in directories.items():
        bank.add(label, directory, start=STARTS[label] if label == "plain" else ())
    return bank


def peft_model(model: Any, directories: dict[str, Path]) -> PeftModel:
    first, *others = directories
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(model, str(directories[first]), adapter_name=first)
        for label in others:
            wrapped.load_adapter(str(directories[label]), adapter_name=label)
    return wrapped.eval()


def peft_answers(wrapped: PeftModel, requests: list[RoutedRequest]) -> list[tuple[int, ...]]:
    """PEFT's own mixed batch: prompts padded on the left, one adapter name a row."""
    prompts = [
        (*r.prompt.tokens, *(ANSWER_START if r.expert == BASE else STARTS[str(r.expert)])) for r in requests
    ]
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    names = ["__base__" if r.expert == BASE else str(r.expert) for r in requests]
    wrapped.generation_config.eos_token_id = None
    longest = max(r.max_new_tokens for r in requests)
    output = wrapped.generate(
        input_ids=tokens, attention_mask=mask, adapter_names=names, max_new_tokens=longest, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    return [
        tuple(row[width : width + r.max_new_tokens].tolist()) for row, r in zip(output, requests, strict=True)
    ]


def content(rng: random.Random, length: int, vocabulary: int = 262) -> Prompt:
    return Prompt(tuple(rng.randrange(10, vocabulary) for _ in range(length)))


def requests_for(vocabulary: int = 262, labels: tuple[str, ...] = (*EXPERTS, BASE)) -> list[RoutedRequest]:
    rng = random.Random(5)
    return [
        RoutedRequest(content(rng, rng.randrange(4, 50), vocabulary), rng.randrange(1, 16), expert=label)
        for label in labels * 3
    ]


Tiny = tuple[Any, Bank, dict[str, Path]]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    model = untied(request.param)
    directories = make_experts(model, tmp_path_factory.mktemp("experts"))
    return model, make_bank(model, directories), directories


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    model = untied("llama")
    return make_bank(model, make_experts(model, tmp_path_factory.mktemp("experts")))


def run(bank: Bank, requests: list[RoutedRequest], **settings: Any) -> list[RoutedAnswer]:
    with routed_serving(bank, answer_start=ANSWER_START, **settings) as engine:
        return answer_all(engine, requests)


def test_a_mixed_batch_equals_pefts_token_for_token(tiny: Tiny) -> None:
    model, bank, directories = tiny
    requests = requests_for()
    found = run(bank, requests)
    assert [answer.expert for answer in found] == [request.expert for request in requests]
    tight = run(bank, requests, limits=TIGHT)
    wrapped = peft_model(untied(model.config.model_type), directories)
    expected = peft_answers(wrapped, requests)
    assert [answer.tokens for answer in found] == expected
    assert [answer.tokens for answer in tight] == expected
    # Adapters alone, not only in a batch with others; and they matter.
    assert [peft_answers(wrapped, [request])[0] for request in requests[:5]] == expected[:5]
    assert len({run(bank, [replace(requests[2], expert=e)])[0].tokens for e in (*EXPERTS, BASE)}) == 5


def test_what_was_shared_equals_peft_recomputing_everything(tiny: Tiny) -> None:
    model, bank, directories = tiny
    requests = requests_for(labels=EXPERTS)
    wrapped = peft_model(untied(model.config.model_type), directories)
    for request, answer in zip(requests, run(bank, requests), strict=True):
        label = str(request.expert)
        prompt = [*request.prompt.tokens, *STARTS[label]]
        wrapped.set_adapter(label)
        offset = len(STARTS[label]) + len(answer.tokens)
        # No cache: every position from the beginning, in one pass.
        with torch.no_grad():
            logits = wrapped(
                input_ids=torch.tensor([[*prompt, *answer.tokens]]), use_cache=False,
                **({} if label == "plain" else {"alora_offsets": [offset]}),
            ).logits[0]  # fmt: skip
        assert tuple(logits[len(prompt) - 1 : -1].argmax(-1).tolist()) == answer.tokens


def test_a_forged_invocation_in_the_content_switches_nothing_on(tiny: Tiny) -> None:
    model, bank, directories = tiny
    rng = random.Random(9)
    contents = [(*content(rng, 9).tokens, *start, *content(rng, 7).tokens) for start in STARTS.values()]
    # The last one ends as if the invocation had begun already.
    contents += [(*content(rng, 9).tokens, 3, 7, 5), (*content(rng, 9).tokens, 3, 3, 7)]
    requests = [RoutedRequest(Prompt(c), 8, expert=e) for c in contents for e in (*EXPERTS, BASE)]
    found = run(bank, requests)
    wrapped = peft_model(untied(model.config.model_type), directories)
    assert [answer.tokens for answer in found] == peft_answers(wrapped, requests)


def test_the_seedling_with_experts_equals_peft(tmp_path: Path) -> None:
    path = str(files("scaler_wizard").joinpath("assets/seedling"))
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    directories = make_experts(model, tmp_path)
    requests = requests_for(model.config.vocab_size)[:10]
    found = run(make_bank(model, directories), requests)
    wrapped = peft_model(LlamaForCausalLM.from_pretrained(path, dtype=torch.float32), directories)
    assert [answer.tokens for answer in found] == peft_answers(wrapped, requests)


def routed(requests: list[RoutedRequest]) -> list[RoutedRequest]:
    return [replace(request, expert=None) for request in requests]


def routers(bank: Bank) -> list[LinearRouter]:
    adapters = {label: bank.expert(label).adapter.hash for label in EXPERTS}
    suffix: Any = {"kind": "suffix", "suffix": (3, 200, 201, 5), "label_tokens": (40, 41, 42, 43)}
    return [
        random_router(EXPERTS, 32, layer=1),
        random_router(EXPERTS, 32, layer=2, seed=1),
        random_router(EXPERTS, 4, adapter=adapters["a"], **suffix),
        random_router(EXPERTS, 4, **suffix),
        random_router(EXPERTS, 32, kind="early", layer=1, adapter=adapters["plain"]),
    ]


@pytest.mark.parametrize("which", range(5))
def test_a_routed_answer_is_that_of_its_expert(llama: Bank, which: int) -> None:
    requests = requests_for()
    router = routers(llama)[which]
    found = run(llama, routed(requests), router=router)
    assert len({answer.expert for answer in found}) > 1
    forced = [replace(request, expert=answer.expert) for request, answer in zip(requests, found, strict=True)]
    assert [a.tokens for a in run(llama, forced)] == [a.tokens for a in found]
    for answer in found:
        assert sum(answer.probabilities) == pytest.approx(1)
        assert answer.confidence == max(answer.probabilities)
        assert answer.expert == EXPERTS[answer.probabilities.index(answer.confidence)]
    # What runs beside a request, and how its content is cut into passes, does not change where it goes.
    tight = run(llama, routed(requests), router=router, limits=TIGHT)
    assert [(a.expert, a.tokens) for a in tight] == [(a.expert, a.tokens) for a in found]
    for a, b in zip(tight, found, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-4)


def layer_outputs(wrapped: PeftModel, ids: torch.Tensor) -> list[torch.Tensor]:
    caught: list[torch.Tensor] = []
    layers: Any = wrapped.get_base_model().model.layers
    hooks = [layer.register_forward_hook(lambda *call: caught.append(call[-1])) for layer in layers]
    wrapped(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return caught


def test_routers_are_given_what_transformers_and_peft_compute(
    tiny: Tiny,
) -> None:
    model, bank, directories = tiny
    prompts = [request.prompt for request in requests_for()[:6]]
    wrapped = peft_model(untied(model.config.model_type), directories)
    features, last, activated, _, early = (observe(bank, router, prompts) for router in routers(bank))
    suffix = [3, 200, 201, 5]
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt.tokens])
        with torch.no_grad():
            with wrapped.disable_adapter():
                first_states, last_states = layer_outputs(wrapped, ids)
            wrapped.set_adapter("plain")
            early_states, _ = layer_outputs(wrapped, ids)
            wrapped.set_adapter("a")
            asked = torch.tensor([[*prompt.tokens, *suffix]])
            logits = wrapped(input_ids=asked, alora_offsets=[len(suffix)]).logits
        torch.testing.assert_close(features[i], first_states[0].mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last[i], last_states[0].mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(early[i], early_states[0].mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(activated[i], logits[0, -1, [40, 41, 42, 43]], atol=1e-4, rtol=1e-4)


def test_work_is_counted_not_timed(llama: Bank) -> None:
    requests = routed(requests_for())
    for router in routers(llama):
        with routed_serving(llama, router, answer_start=ANSWER_START) as engine:
            found = answer_all(engine, requests)
            assert engine.counters == sum((answer.counters for answer in found), Counters())
        for request, answer in zip(requests, found, strict=True):
            work, length = answer.counters, len(request.prompt.tokens)
            start = len(STARTS[answer.expert])
            plain = answer.expert == "plain"
            assert work == Counters(
                prefills=1,
                prefilled_tokens=length,
                router_forwards=int(router.kind == "early"),
                router_tokens={"features": 0, "suffix": 4, "early": length}[router.kind],
                router_decode_steps=0,
                expert_prefills=int(plain),
                # The start's last token goes through the decode step.
                expert_tokens=start - 1 + (length if plain else 0),
                decode_steps=request.max_new_tokens,
            )


def test_a_forced_plain_expert_reads_once_and_a_forced_activated_one_shares(llama: Bank) -> None:
    rng = random.Random(2)
    prompt = content(rng, 30)
    plain, activated, base = run(llama, [RoutedRequest(prompt, 4, expert=e) for e in ("plain", "a", BASE)])
    assert plain.counters == Counters(expert_prefills=1, expert_tokens=32, decode_steps=4)
    # The base's keys and values of one content serve both of the others, and never the plain LoRA.
    assert {activated.counters.prefilled_tokens, base.counters.prefilled_tokens} == {30, 0}
    assert {activated.counters.shared_tokens, base.counters.shared_tokens} == {30, 0}


def test_equal_beginnings_are_read_once_and_change_nothing(llama: Bank) -> None:
    rng = random.Random(1)
    common = content(rng, 40).tokens
    requests = [RoutedRequest(Prompt((*common, *content(rng, n).tokens)), 9) for n in (1, 4, 7, 9)] * 2
    # One of them is already in its own plain adapter's hands when the next ones come.
    for router in routers(llama):
        with routed_serving(llama, router, answer_start=ANSWER_START) as engine:
            ids = [engine.submit(request) for request in requests[:3]]
            found = dict(engine.step())
            ids += [engine.submit(request) for request in requests[3:]]
            while engine.unfinished:
                found.update(engine.step())
            assert engine.counters.shared_tokens > 200
        for i, request in zip(ids, requests, strict=True):
            (alone,) = run(llama, [request], router=router)
            assert (found[i].tokens, found[i].expert) == (alone.tokens, alone.expert)


def test_a_later_turn_of_a_conversation_takes_over_what_was_read_as_content_only(llama: Bank) -> None:
    rng = random.Random(4)
    first = content(rng, 30)
    for router in routers(llama):
        with routed_serving(llama, router, answer_start=ANSWER_START) as engine:
            # Keeps the slab, and with it the slot of the first turn, in place.
            engine.submit(RoutedRequest(content(rng, 30), 40, expert=BASE))
            opening = engine.submit(RoutedRequest(first, 40 - 20, expert=BASE))
            found: dict[int, RoutedAnswer] = {}
            while opening not in found:
                found.update(engine.step())
            spoken = (*first.tokens, *ANSWER_START, *found[opening].tokens)
            later = RoutedRequest(Prompt((*spoken, 11, 12)), 5)
            number = engine.submit(later)
            while engine.unfinished:
                found.update(engine.step())
        (alone,) = run(llama, [later], router=router)
        assert found[number].probabilities == pytest.approx(alone.probabilities, abs=1e-4)
        assert found[number].tokens == alone.tokens
        assert found[number].counters.shared_tokens == 30


def test_a_suffix_longer_than_the_answer_has_room(llama: Bank) -> None:
    long = random_router(
        EXPERTS, 4, kind="suffix", suffix=tuple(range(20, 32)), label_tokens=(40, 41, 42, 43)
    )
    requests = [RoutedRequest(content(random.Random(i), 12), 1) for i in range(6)]
    for router in (
        long,
        replace(long, labels=("c",), weight=torch.ones(1, 1), bias=torch.zeros(1), label_tokens=(40,)),
    ):
        found = run(llama, requests, router=router)
        forced = [replace(r, expert=answer.expert) for r, answer in zip(requests, found, strict=True)]
        assert [a.tokens for a in run(llama, forced)] == [a.tokens for a in found]
        assert all(answer.counters.router_tokens == 12 for answer in found)


def test_interleaved_requests_are_each_as_alone(llama: Bank) -> None:
    """All routes, samples and stop tokens, coming while others run; and nothing stays on the model."""
    router = replace(routers(llama)[0], threshold=0.9)
    rng = random.Random(7)
    requests = [
        replace(request, expert=None if i % 2 else request.expert) for i, request in enumerate(requests_for())
    ]
    requests += [replace(request, temperature=0.9, seed=i) for i, request in enumerate(requests)]
    free = run(llama, requests[:4], router=router, fallback="b")
    requests = [
        replace(request, stop_ids=frozenset({free[2].tokens[1], free[3].tokens[0]})) for request in requests
    ]
    alone = [run(llama, [request], router=router, fallback="b")[0] for request in requests]
    before = [(name, sorted(vars(module))) for name, module in llama.model.named_modules()]
    for limits in (InferenceLimits(), TIGHT):
        found: dict[int, RoutedAnswer] = {}
        with routed_serving(llama, router, answer_start=ANSWER_START, fallback="b", limits=limits) as engine:
            for request in requests:
                engine.submit(request)
                for _ in range(rng.randrange(3)):
                    found.update(engine.step())
                assert engine.reserved_tokens <= limits.cache_tokens
            while engine.unfinished:
                found.update(engine.step())
            assert engine.step() == []
        assert [(found[i].tokens, found[i].finish, found[i].expert) for i in range(len(requests))] == [
            (answer.tokens, answer.finish, answer.expert) for answer in alone
        ]
    assert {answer.finish for answer in alone} == {"stop", "length"}
    assert {answer.abstained for answer in alone} == {True, False}
    assert [(name, sorted(vars(module))) for name, module in llama.model.named_modules()] == before


def test_an_unsure_router_leaves_it_to_the_fallback(llama: Bank) -> None:
    requests = routed(requests_for())[:5]
    unsure = replace(routers(llama)[0], threshold=1.1)
    for fallback, expected in ((None, BASE), ("a", "a"), ("plain", "plain")):
        found = run(llama, requests, router=unsure, fallback=fallback)
        assert {answer.expert for answer in found} == {expected}
        assert all(answer.abstained and answer.confidence is not None for answer in found)
        forced = run(llama, [replace(request, expert=expected) for request in requests])
        assert [a.tokens for a in forced] == [a.tokens for a in found]
    broken = replace(unsure, bias=torch.full((4,), float("nan")), threshold=0.0)
    assert all(answer.abstained for answer in run(llama, requests, router=broken))


def test_without_start_tokens_the_base_goes_on_from_the_content(llama: Bank) -> None:
    request = RoutedRequest(content(random.Random(3), 20), 6)
    with routed_serving(llama) as engine:
        (found,) = answer_all(engine, [request])
    llama.model.generation_config.eos_token_id = None
    ids = torch.tensor([request.prompt.tokens])
    expected = llama.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert found.tokens == tuple(expected[0, 20:].tolist())


def test_embedded_contents_equal_their_tokens(llama: Bank) -> None:
    """The seam for images: embeddings and positions in place of token ids."""
    router = routers(llama)[0]
    plain = routed(requests_for())
    embedded = []
    for i, request in enumerate(plain):
        tokens = request.prompt.tokens
        n_visual = len(tokens) // 2
        with torch.no_grad():
            embeds = llama.model.get_input_embeddings()(torch.tensor(tokens))
        # An id of its own for every visual token: it is compared, never embedded.
        ids = tuple(-1 - 1000 * i - at for at in range(n_visual)) + tokens[n_visual:]
        positions = torch.arange(len(tokens)).expand(3, -1)
        visual = torch.arange(len(tokens)) < n_visual
        prompt = Prompt(ids, EmbeddedPrompt(embeds, positions, visual, vision_encodes=1))
        embedded.append(replace(request, prompt=prompt))
    expected = run(llama, plain, router=router)
    for limits in (InferenceLimits(), TIGHT):
        mixed = [a if i % 3 else b for i, (a, b) in enumerate(zip(embedded, plain, strict=True))]
        found = run(llama, mixed, router=router, limits=limits)
        assert [(a.tokens, a.expert) for a in found] == [(a.tokens, a.expert) for a in expected]
        assert [a.counters.vision_encodes for a in found] == [int(i % 3 > 0) for i in range(len(found))]


def test_a_base_in_bfloat16_has_its_adapters_in_bfloat16(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=False, dtype=torch.bfloat16)
    bank = make_bank(model, make_experts(model, tmp_path))
    single = make_bank(untied("llama"), make_experts(untied("llama"), tmp_path / "single"))
    assert 2 * bank.nbytes == single.nbytes
    requests = requests_for()
    found = run(bank, routed(requests), router=random_router(EXPERTS, 32))
    assert len({answer.expert for answer in found}) > 1
    forced = [replace(r, expert=a.expert) for r, a in zip(requests, found, strict=True)]
    alone = [run(bank, [request])[0].tokens[:1] for request in forced]
    # Sums in another order round otherwise; most first tokens survive that.
    assert sum(a == b.tokens[:1] for a, b in zip(alone, found, strict=True)) >= len(found) - 2


def test_what_the_bank_lacks_is_refused_before_anything_runs(llama: Bank) -> None:
    good = routers(llama)[0]
    with pytest.raises(UnknownExpertError, match=r'no expert "d".*plain, a, b, c'):
        RoutedEngine(llama, replace(good, labels=("a", "b", "c", "d")))
    with pytest.raises(UnknownExpertError, match="no expert"):
        RoutedEngine(llama, fallback="d")
    with pytest.raises(UnknownExpertError, match="no adapter"):
        RoutedEngine(llama, replace(good, adapter="0" * 64))
    with pytest.raises(IncompatibleModelError, match="layer 3"):
        RoutedEngine(llama, replace(good, layer=3))
    with routed_serving(llama, good, answer_start=ANSWER_START) as engine:
        with pytest.raises(UnknownExpertError, match="no expert"):
            engine.submit(RoutedRequest(Prompt((11, 12)), 3, expert="d"))
        assert engine.unfinished == 0
        assert answer_all(engine, [RoutedRequest(Prompt((11, 12)), 3)])[0].finish == "length"
