"""Many experts on one base: the routed engine beside pipelines that do the same work, on one CPU thread.

    python benchmarks/routing.py [--json] [--model seedling|llama] [--repeats N] [--threads N]

32 contents of 60 to 180 tokens, 8 experts of rank 8 on all linear layers, answers of 16 tokens, greedy in
fp32, on the embedded seedling and on a random Llama with h = 256 and 6 layers. Adapters and routers are
random: what they cost does not depend on what they learned. All ways answer all requests, in turns within one
process; times are CPU seconds of the process, medians of the repeats, ratios within a repeat.

- `labels`: the usual pipeline, on our engine. A router LoRA generates a label of 4 tokens, then every expert
  generates for its contents, which it reads itself. All ratios named `cost` are relative to it.
- `labels_peft`: the same with transformers' generate on PEFT's adapters, left-padded.
- `routed`: content read once by the base, a linear router on its hidden states, activated experts.
- `routed_suffix`: the same with a router of 6 suffix tokens behind each content, its own activated adapter.
- `routed_plain`: the router as in `routed`, but plain LoRA experts, each with a reading of its own.
- `oracle`: activated experts named by the request. `single`: one expert for all. `base`: no adapter at all.
- `peft_mixed`, `peft_single`: the same two with PEFT's `adapter_names` and `set_adapter`, left-padded.

`many`: 64 contents over 1, 4, 16 and 64 different experts, of as many loaded: seconds and time relative to 1,
bytes held, and `switch`: one request at a time, another expert each time, relative to the same one each time.
Answers of `oracle` and `peft_mixed` must be equal, except where two logits are closer than rounding.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, logging

from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.counters import Counters
from scaler_wizard.inference.experts.engine import answer_all, routed_serving
from scaler_wizard.inference.experts.fakes import LinearRouter, random_router, write_random_adapter
from scaler_wizard.inference.experts.prompt import Prompt, RoutedRequest
from scaler_wizard.inference.experts.reading import observe

N_INPUTS, N_EXPERTS, N_ANSWER, N_LABEL = 32, 8, 16, 4
RANK = 8
START = (5, 6, 7)
SUFFIX = (5, 8, 9, 10, 11, 6)
MANY = (1, 4, 16, 64)
# Two logits this close are a tie that the order of a sum decides.
TIE = 1e-3


def seedling() -> Any:
    """The embedded model."""
    path = str(files("scaler_wizard").joinpath("assets/seedling"))
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def llama() -> Any:
    """A random Llama; its output layer is scaled so that logits stay apart."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=6, intermediate_size=704, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=2048, max_position_embeddings=512, initializer_range=0.08,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


MODELS: dict[str, Callable[[], Any]] = {"seedling": seedling, "llama": llama}


@dataclass(frozen=True)
class Bench:
    """One model with its experts in both formats."""

    bank: Bank
    router: LinearRouter
    suffix_router: LinearRouter
    plain_router: LinearRouter
    peft: PeftModel
    requests: list[RoutedRequest]
    """Each with the expert that `router` sends it to."""


def contents(model: Any, n: int) -> list[Prompt]:
    """Random contents of evenly spread lengths, shuffled."""
    rng = random.Random(0)
    lengths = [60 + round(120 * i / (n - 1)) for i in range(n)]
    rng.shuffle(lengths)
    return [Prompt(tuple(rng.choices(range(16, model.config.vocab_size), k=length))) for length in lengths]


def even_router(
    bank: Bank, labels: Sequence[str], prompts: Sequence[Prompt], **settings: Any
) -> LinearRouter:
    """A random router whose scores are centred on these contents, so that experts are chosen about evenly."""
    width = bank.model.config.hidden_size if settings.get("kind") != "suffix" else len(labels)
    router = random_router(labels, width, **settings)
    values = torch.stack(observe(bank, router, prompts))
    spread = values - values.mean(0)
    weight = router.weight / spread.std().clamp_min(1e-6)
    return replace(router, weight=weight, bias=-(weight @ values.mean(0)))


def prepare(model_name: str, folder: Path) -> Bench:
    """Write the adapters, load them into a bank and into PEFT, route the contents once."""
    model = MODELS[model_name]()
    names = [f"e{i}" for i in range(N_EXPERTS)]
    bank = Bank(model)
    for i, name in enumerate(names):
        for twin, invocation in ((name, START), (f"{name}-plain", None)):
            path = write_random_adapter(model, folder / twin, seed=i, invocation=invocation, rank=RANK)
            bank.add(twin, path, start=() if invocation else START)
    asked = write_random_adapter(model, folder / "asked", seed=99, invocation=SUFFIX, rank=RANK)
    bank.add("labels", write_random_adapter(model, folder / "labels", seed=98, invocation=None, rank=RANK),
             start=SUFFIX)  # fmt: skip
    prompts = contents(model, N_INPUTS)
    layer = model.config.num_hidden_layers // 2
    router = even_router(bank, names, prompts, layer=layer)
    suffix_router = even_router(
        bank, names, prompts, kind="suffix", suffix=SUFFIX, label_tokens=tuple(range(16, 16 + N_EXPERTS)),
        adapter=bank.load(asked).hash,
    )  # fmt: skip
    plain_router = replace(router, labels=tuple(f"{name}-plain" for name in names))
    requests = [RoutedRequest(prompt, N_ANSWER) for prompt in prompts]
    with routed_serving(bank, router) as engine:
        chosen = [answer.expert for answer in answer_all(engine, requests)]
    return Bench(
        bank, router, suffix_router, plain_router, with_peft(MODELS[model_name](), folder, names),
        [replace(request, expert=expert) for request, expert in zip(requests, chosen, strict=True)],
    )  # fmt: skip


def with_peft(model: Any, folder: Path, names: Sequence[str]) -> PeftModel:
    """PEFT's model with the activated experts, the plain ones and the router that generates labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(model, str(folder / "labels"), adapter_name="labels")
        for name in (*names, *(f"{name}-plain" for name in names)):
            wrapped.load_adapter(str(folder / name), adapter_name=name)
    return wrapped.eval()


Answers = list[tuple[int, ...]]


def serve(bench: Bench, requests: Sequence[RoutedRequest], router: LinearRouter | None = None) -> Answers:
    """On our engine."""
    with routed_serving(bench.bank, router, answer_start=START) as engine:
        return [answer.tokens for answer in answer_all(engine, requests)]


def labels(bench: Bench) -> Answers:
    """Generate labels, then answer expert by expert."""
    serve(bench, [replace(r, expert="labels", max_new_tokens=N_LABEL) for r in bench.requests])
    found: dict[int, tuple[int, ...]] = {}
    for name in bench.router.labels:
        own = [i for i, request in enumerate(bench.requests) if request.expert == name]
        answers = serve(bench, [replace(bench.requests[i], expert=f"{name}-plain") for i in own])
        found.update(zip(own, answers, strict=True))
    return [found[i] for i in range(len(bench.requests))]


def peft_generate(
    bench: Bench, prompts: Sequence[Sequence[int]], n_new: int, names: Sequence[str] | None = None
) -> Answers:
    """transformers' generate on a left-padded batch with the active adapter, or one a row."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(max_new_tokens=n_new, do_sample=False, eos_token_id=None, pad_token_id=0)
    bench.peft.generation_config.eos_token_id = None
    with torch.inference_mode():
        output = bench.peft.generate(
            input_ids=tokens, attention_mask=mask, generation_config=config,
            **({} if names is None else {"adapter_names": list(names)}),
        )  # fmt: skip
    return [tuple(row) for row in output[:, width:].tolist()]


def labels_peft(bench: Bench) -> Answers:
    """`labels` with PEFT and transformers."""
    bench.peft.set_adapter("labels")
    peft_generate(bench, [(*r.prompt.tokens, *SUFFIX) for r in bench.requests], N_LABEL)
    found: dict[int, tuple[int, ...]] = {}
    for name in bench.router.labels:
        own = [i for i, request in enumerate(bench.requests) if request.expert == name]
        if own:
            bench.peft.set_adapter(f"{name}-plain")
            prompts = [(*bench.requests[i].prompt.tokens, *START) for i in own]
            found.update(zip(own, peft_generate(bench, prompts, N_ANSWER), strict=True))
    return [found[i] for i in range(len(bench.requests))]


def peft_mixed(bench: Bench) -> Answers:
    """PEFT's mixed batch, experts known."""
    prompts = [(*r.prompt.tokens, *START) for r in bench.requests]
    return peft_generate(bench, prompts, N_ANSWER, [str(r.expert) for r in bench.requests])


def peft_single(bench: Bench) -> Answers:
    """PEFT with one activated adapter for all."""
    bench.peft.set_adapter("e0")
    return peft_generate(bench, [(*r.prompt.tokens, *START) for r in bench.requests], N_ANSWER)


def unnamed(bench: Bench, expert: str | None = None) -> list[RoutedRequest]:
    """The requests without their expert, or all with another."""
    return [replace(request, expert=expert) for request in bench.requests]


WAYS: dict[str, Callable[[Bench], Answers]] = {
    "labels": labels,
    "routed": lambda bench: serve(bench, unnamed(bench), bench.router),
    "routed_suffix": lambda bench: serve(bench, unnamed(bench), bench.suffix_router),
    "routed_plain": lambda bench: serve(bench, unnamed(bench), bench.plain_router),
    "oracle": lambda bench: serve(bench, bench.requests),
    "single": lambda bench: serve(bench, unnamed(bench, "e0")),
    "base": lambda bench: serve(bench, unnamed(bench, "base")),
    "peft_mixed": peft_mixed,
    "peft_single": peft_single,
    "labels_peft": labels_peft,
}


def seconds_of(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of the process: another process's work does not count."""
    started = time.process_time()
    found = run()
    return time.process_time() - started, found


def count_ties(bench: Bench, expected: Answers, found: Answers) -> int:
    """Rows that differ at a tie; any other difference fails the benchmark."""
    ties = 0
    for request, right, got in zip(bench.requests, expected, found, strict=True):
        if right == got:
            continue
        at = next(i for i, (a, b) in enumerate(zip(right, got, strict=True)) if a != b)
        tokens = torch.tensor([[*request.prompt.tokens, *START, *right[:at]]])
        bench.peft.set_adapter(str(request.expert))
        with torch.no_grad():
            logits = bench.peft(input_ids=tokens, alora_offsets=[len(START) + at]).logits[0, -1]
        gap = float(abs(logits[right[at]] - logits[got[at]]))
        assert gap < TIE, f"token {at} for {request.expert} differs, logits {gap} apart"
        ties += 1
    return ties


def compare(bench: Bench, repeats: int) -> dict[str, Any]:
    """All ways in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    answers: dict[str, Answers] = {}
    for _ in range(repeats):
        for name, way in WAYS.items():
            taken, answers[name] = seconds_of(lambda way=way: way(bench))  # type: ignore[misc]
            seconds[name].append(taken)
            print(f"{name}: {taken:.2f} s", file=sys.stderr, flush=True)
    assert answers["routed"] == answers["oracle"], "a router does not change its expert's answers"

    def ratio(way: str, to: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[way], seconds[to], strict=True)), 3)

    with routed_serving(bench.bank, bench.router, answer_start=START) as engine:
        answer_all(engine, unnamed(bench))
        work = engine.counters
    return {
        "seconds": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "cost": {name: ratio(name, "labels") for name in WAYS},
        "routed_over_single": ratio("routed", "single"),
        "routed_suffix_over_single": ratio("routed_suffix", "single"),
        "routed_over_oracle": ratio("routed", "oracle"),
        "single_over_base": ratio("single", "base"),
        "peft_mixed_over_oracle": ratio("peft_mixed", "oracle"),
        "peft_mixed_over_peft_single": ratio("peft_mixed", "peft_single"),
        "ties_with_peft": count_ties(bench, answers["peft_mixed"], answers["oracle"]),
        "experts_used": len({request.expert for request in bench.requests}),
        "work_per_input": {name: round(value / N_INPUTS, 3) for name, value in per_field(work).items()},
    }  # fmt: skip


def per_field(work: Counters) -> dict[str, int]:
    """Counters by name."""
    return {name: getattr(work, name) for name in Counters.__dataclass_fields__}


def many(model_name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """From 1 to 64 experts, in turns."""
    model = MODELS[model_name]()
    banks = {n: Bank(model) for n in MANY}
    for i in range(max(MANY)):
        path = write_random_adapter(model, folder / f"many{i}", seed=i, invocation=START, rank=RANK)
        for n_experts, bank in banks.items():
            if i < n_experts:
                bank.add(str(i), path)
    prompts = contents(model, 64)
    one = RoutedRequest(Prompt(prompts[0].tokens[:8]), 4, expert="0")
    mixed: dict[int, list[float]] = {n: [] for n in MANY}
    switches: dict[int, list[float]] = {n: [] for n in MANY}
    for _ in range(repeats):
        for n_experts, bank in banks.items():
            together = [RoutedRequest(p, N_ANSWER, expert=str(i % n_experts)) for i, p in enumerate(prompts)]
            others = [replace(one, expert=str(i % n_experts)) for i in range(64)]
            mixed[n_experts].append(seconds_of(partial(in_turn, bank, [together]))[0])
            same = seconds_of(partial(in_turn, bank, [[one]] * 64))[0]
            switches[n_experts].append(seconds_of(partial(in_turn, bank, [[r] for r in others]))[0] / same)
    return {
        "bytes": {n: bank.nbytes for n, bank in banks.items()},
        "seconds": {n: round(statistics.median(times), 3) for n, times in mixed.items()},
        "cost": {
            n: round(statistics.median(a / b for a, b in zip(times, mixed[1], strict=True)), 3)
            for n, times in mixed.items()
        },
        "switch": {n: round(statistics.median(ratios), 3) for n, ratios in switches.items()},
    }


def in_turn(bank: Bank, groups: Sequence[Sequence[RoutedRequest]]) -> None:
    """Answer one group after the other."""
    with routed_serving(bank) as engine:
        for group in groups:
            answer_all(engine, group)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
    results: dict[str, Any] = {}
    for name in arguments.model or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            bench = prepare(name, Path(folder))
            compare(bench, 1)
            results[name] = compare(bench, arguments.repeats)
            results[name]["many"] = many(name, Path(folder), arguments.repeats)
        if not arguments.json:
            print(name, json.dumps(results[name], indent=2))
    worst = max(results, key=lambda name: float(results[name]["routed_over_single"]))
    print(
        json.dumps({
            "routed_over_single": results[worst]["routed_over_single"],
            "routed_suffix_over_single": max(f["routed_suffix_over_single"] for f in results.values()),
            "switch_between_most": max(f["many"]["switch"][max(MANY)] for f in results.values()),
            "routed_cost": max(found["cost"]["routed"] for found in results.values()),
            "worst_model": worst,
            "threads": arguments.threads,
            "models": results,
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
