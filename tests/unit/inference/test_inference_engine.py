from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM

from scaler_wizard.inference.attention import split_lengths, supports_slots
from scaler_wizard.inference.engine import serving
from scaler_wizard.inference.generate import generate
from scaler_wizard.inference.modes import InferenceLimits
from scaler_wizard.inference.requests import Generation, Request, sample_seed
from scaler_wizard.inference.slab import common_length
from scaler_wizard.models.adapters import folded
from scaler_wizard.models.rope import RopeSetting, apply_rope
from scaler_wizard.models.tiny import tiny_model

torch.set_num_threads(1)
RNG = random.Random(3)
LONG = InferenceLimits(chunk_tokens=7, cache_tokens=120, max_rows=4)


def prompt(length: int) -> tuple[int, ...]:
    return tuple(RNG.randrange(6, 262) for _ in range(length))


REQUESTS = [
    Request(prompt(n), new) for n, new in ((3, 12), (14, 5), (9, 20), (14, 1), (1, 9), (26, 14), (20, 3))
]


def untied(kind: str, **changes: Any) -> Any:
    # Tied embeddings of a random model repeat the last token for ever.
    return tiny_model(kind, tie_word_embeddings=False, max_position_embeddings=128, **changes)


def alone(model: Any, request: Request) -> tuple[int, ...]:
    """What transformers generates for this prompt, up to the first stop token."""
    tokens = torch.tensor([request.prompt])
    model.generation_config.eos_token_id = None
    output = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    found = output[0, len(request.prompt) :].tolist()
    ends = [i for i, token in enumerate(found) if token in request.stop_ids]
    return tuple(found[: ends[0]] if ends else found)


def check(model: Any, requests: list[Request] = REQUESTS) -> None:
    expected = [alone(model, request) for request in requests]
    for limits in (InferenceLimits(), LONG, InferenceLimits(cache_tokens=1)):
        assert [found.tokens for found in generate(model, requests, limits=limits)] == expected


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gemma", "gemma3", "mistral", "gpt2", "gpt_neox"])
def test_equals_transformers_one_by_one(kind: str) -> None:
    extra = {"n_positions": 128} if kind == "gpt2" else {}
    if kind == "phi3":
        # The tiny Phi-3 has LongRoPE's field at 32 tokens; both must agree.
        extra = {"original_max_position_embeddings": 128}
    model = untied(kind, **extra)
    assert supports_slots(model)
    check(model)


# With a window of 1, transformers' sliding cache keeps all tokens and is not its own uncached forward.
@pytest.mark.parametrize("window", [2, 4, 16])
def test_sliding_windows(window: int) -> None:
    check(untied("mistral", sliding_window=window))


def test_soft_capped_scores() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 262, "sliding_window": 8}
    config = Gemma2Config(
        **shape,
        **heads,
        initializer_range=0.3,
        attn_logit_softcapping=2.0,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config).eval()
    assert supports_slots(model)
    check(model)


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn", "llama3"])
def test_applied_rope_methods(method: Any) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    apply_rope(model, RopeSetting(method, 32, 128))
    assert supports_slots(model)
    check(model)


def test_dynamic_rope_and_prefix_tuning_run_whole_rows() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    apply_rope(model, RopeSetting("dynamic", 32, 128))
    assert not supports_slots(model)
    check(model)
    prefixed = get_peft_model(tiny_model(), PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    assert not supports_slots(prefixed)


def test_adapters_attached_and_folded() -> None:
    base = untied("llama")
    plain = generate(base, REQUESTS)
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, lora).eval()
    check(model)
    attached = generate(model, REQUESTS)
    assert attached != plain
    with folded(model):
        assert generate(model, REQUESTS) == attached
    with model.disable_adapter():
        assert generate(model, REQUESTS) == plain


def test_real_stop_tokens_end_rows_at_different_times() -> None:
    model = untied("llama")
    free = generate(model, REQUESTS)
    stops = frozenset({free[0].tokens[4], free[2].tokens[7], free[4].tokens[0]})
    requests = [Request(request.prompt, request.max_new_tokens, stops) for request in REQUESTS]
    check(model, requests)
    found = generate(model, requests)
    assert {generation.finish for generation in found} == {"stop", "length"}
    assert found[4] == Generation((), "stop")


def test_requests_may_come_while_others_run() -> None:
    model = untied("llama")
    expected = [alone(model, request) for request in REQUESTS]
    results: dict[int, Generation] = {}
    with serving(model, LONG) as engine:
        for request in REQUESTS:
            assert engine.submit(request) == len(results) + engine.unfinished - 1
            results.update(engine.step())
            assert engine.reserved_tokens <= LONG.cache_tokens
        while engine.unfinished:
            results.update(engine.step())
            assert engine.reserved_tokens <= LONG.cache_tokens
        assert engine.step() == []
    assert [results[i].tokens for i in range(len(REQUESTS))] == expected


def test_a_common_prefix_is_read_once() -> None:
    model = untied("qwen3")
    common, twin = prompt(30), prompt(9)
    requests = [Request((*common, *prompt(n)), 6) for n in (2, 5, 9)]
    requests += [Request((*common, *twin), 6, temperature=1.0, seed=i) for i in range(4)]
    with serving(model) as engine:
        for request in requests:
            engine.submit(request)
        results: dict[int, Generation] = {}
        while engine.unfinished:
            results.update(engine.step())
        # The last token of every prompt goes through the decode step.
        assert engine.prefilled_tokens == 30 + (1 + 4 + 8) + 8
        # A continuation of what stands in the cache reads only what is new.
    for i, request in enumerate(requests):
        assert generate(model, [request]) == [results[i]]
    assert len({results[i].tokens for i in range(3, 7)}) == 4


def test_samples_depend_on_their_seed_alone() -> None:
    model = untied("llama")
    requests = [
        Request(base.prompt, 10, temperature=0.8, seed=sample_seed(1, p, s))
        for p, base in enumerate(REQUESTS)
        for s in range(3)
    ]
    together = generate(model, requests)
    assert len(set(together)) == len(together)
    backwards = generate(model, requests[::-1], limits=LONG)[::-1]
    assert backwards == together
    assert [generate(model, [request])[0] for request in requests[:5]] == together[:5]
    # The part that an interrupted run had not done.
    assert generate(model, requests[8:]) == together[8:]


def test_results_are_handed_over_as_they_end() -> None:
    seen: dict[int, Generation] = {}
    calls: list[tuple[int, int]] = []
    found = generate(
        untied("llama"),
        REQUESTS,
        limits=LONG,
        on_finished=lambda index, generation: seen.update({index: generation}),
        on_progress=lambda *call: calls.append(call),
    )
    assert [seen[i] for i in range(len(REQUESTS))] == found
    assert list(seen) != sorted(seen)
    assert calls == [(i + 1, len(REQUESTS)) for i in range(len(REQUESTS))]


def test_the_model_comes_back_as_it_was() -> None:
    model = untied("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = set(vars(model.model.layers[0].self_attn))
    implementation = model.config._attn_implementation
    generate(model, REQUESTS)
    assert model.training
    assert model.config._attn_implementation == implementation
    assert set(vars(model.model.layers[0].self_attn)) == attributes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(input_ids=torch.tensor([REQUESTS[1].prompt])).logits.sum().backward()


def test_no_requests_are_no_work() -> None:
    assert generate(untied("llama"), []) == []


@settings(max_examples=50)
@given(st.lists(st.integers(1, 300), max_size=20), st.integers(0, 200))
def test_runs_cover_all_slots_in_order_and_pay_for_themselves(lengths: list[int], call: int) -> None:
    runs = split_lengths(lengths, call)
    assert [i for start, end in runs for i in range(start, end)] == list(range(len(lengths)))
    cost = sum((end - start) * max(lengths[start:end]) + call for start, end in runs)
    assert cost <= sum(length + call for length in lengths)


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12))
def test_common_length(a: list[int], b: list[int]) -> None:
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_length(a, b) == expected
