"""Experts and routers on the embedded model: what each skill and each router learns, and what that costs.

    python benchmarks/routers.py --part experts --json     base, expert, twin, twin on the base's KV
    python benchmarks/routers.py --part lexical --json     routers where words decide; the choice, five seeds
    python benchmarks/routers.py --part relational --json  routers where only a relation between words decides
    ... --every                                            every kind with every seed

Held-out rows are inputs that no training row has. An answer counts when the model's greedy choice is right at
every token of it and at its end. CPU seconds are of this process, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scaler_wizard.data.activation import activate, chat_invocation
from scaler_wizard.data.batches import Batches, collate
from scaler_wizard.data.generators import EXPERT_SKILLS, LEXICAL_SKILLS, RELATIONAL_SKILLS, sample_example
from scaler_wizard.data.rows import Row
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.tokens import tokenize_rows
from scaler_wizard.evals.calibration import choose_threshold, fit_temperature, mean_nll, softmax
from scaler_wizard.evals.router_choice import choose_router
from scaler_wizard.evals.statistics import wilson_interval
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.prompt import Prompt
from scaler_wizard.inference.experts.routers import (
    ContentStates,
    RouterRow,
    RouterTraining,
    logits_of,
    router_tokens,
    train_early_router,
    train_probe,
    train_suffix_router,
)
from scaler_wizard.losses.sft import head_logits
from scaler_wizard.models.adapters import adapter_state, adapters_off, attach_lora, load_adapter_state
from scaler_wizard.models.load import load_model
from scaler_wizard.planning.router import suggest_router
from scaler_wizard.training.forward import head_of, hidden_states, make_objective, training_mode
from scaler_wizard.training.loop import TrainSettings, train

LEVELS = (1, 2, 3)
TEST_ROWS = 300
EXPERT_ROWS, EXPERT_STEPS, STEP_TOKENS, EXPERT_RATE, EXPERT_RANK = 1200, 130, 1024, 1e-2, 8
ROUTER_ROWS, VAL_ROWS, SEEDS = 400, 100, 5
ANSWERED_TARGET = 0.99


def rows_of(skill: str, count: int, split: str, seed: int, tokenizer: Any) -> Sequence[TokenRow]:
    """Different rows of a skill as tokens, marked where the adapter begins."""
    found: dict[str, Row] = {}
    draw = 0
    while len(found) < count:
        example = sample_example(skill, f"{seed}/{draw}", LEVELS[draw % len(LEVELS)], split=split)
        draw += 1
        turns = [
            {"role": "user", "content": example.instruction},
            {"role": "assistant", "content": example.answer},
        ]
        found.setdefault(example.input, Row(draw, {"messages": turns}))
    tokens = tokenize_rows(found.values(), "messages", tokenizer, context=128).rows
    return activate(tokens, chat_invocation(tokenizer))


@torch.no_grad()
def right_rows(model: Any, rows: Sequence[TokenRow]) -> int:
    """Rows whose every trained token is the likeliest."""
    hits = 0
    for first in range(0, len(rows), 50):
        micro = collate(rows[at] for at in range(first, min(first + 50, len(rows))))
        with training_mode(model):
            chosen = head_logits(hidden_states(model, micro), head_of(model))[0].argmax(-1)
        labels = micro.labels[0]
        wrong = (labels[1:] != -100) & (labels[1:] != chosen[:-1])
        hits += sum(not bool(part.any()) for part in _segments(wrong, micro.segment_lengths))
    return hits


def _segments(marks: torch.Tensor, lengths: Sequence[int]) -> Sequence[torch.Tensor]:
    return torch.cat([torch.zeros(1, dtype=torch.bool), marks]).split_with_sizes(list(lengths))


def measure_expert(skill: str) -> dict[str, Any]:
    """Accuracy of base, activated expert, plain twin, and that twin on the base's reading of the content."""
    found: dict[str, Any] = {"skill": skill}
    for mode in ("alora", "lora"):
        loaded = load_model("seedling", dtype=torch.float32, device="cpu")
        train_rows = rows_of(skill, EXPERT_ROWS, "train", 0, loaded.tokenizer)
        test = rows_of(skill, TEST_ROWS, "held_out", 0, loaded.tokenizer)
        invocation = chat_invocation(loaded.tokenizer)
        model = attach_lora(
            loaded.model, rank=EXPERT_RANK, alpha=2 * EXPERT_RANK, seed=0,
            alora_invocation_tokens=invocation if mode == "alora" else None,
        )  # fmt: skip
        batches = Batches(
            train_rows, context=128, batch_tokens=STEP_TOKENS, micro_batch_tokens=STEP_TOKENS, seed=0
        )
        started = time.process_time()
        for _ in train(model, batches, make_objective("sft"), TrainSettings(EXPERT_STEPS, EXPERT_RATE)):
            pass
        found[f"{mode}_cpu_seconds"] = round(time.process_time() - started, 1)
        found[mode] = right_rows(model, test) / len(test)
        if mode == "alora":
            with adapters_off(model):
                found["base"] = right_rows(model, test) / len(test)
        else:
            # The same matrices, switched on at the invocation only: what reusing the base's KV would do.
            state = adapter_state(model)
            base = load_model("seedling", dtype=torch.float32, device="cpu").model
            reused = attach_lora(
                base, rank=EXPERT_RANK, alpha=2 * EXPERT_RANK, alora_invocation_tokens=invocation
            )
            load_adapter_state(reused, state)
            found["lora_on_base_kv"] = right_rows(reused, test) / len(test)
    return found


def router_rows(skills: Sequence[str], count: int, split: str, seed: int, tokenizer: Any) -> list[RouterRow]:
    """Contents of all skills in turn."""
    parts = [rows_of(skill, count, split, seed, tokenizer) for skill in skills]
    return [
        RouterRow(Prompt(tuple(parts[label][at].ids[: parts[label][at].active_from].tolist())), label)
        for at in range(count)
        for label in range(len(skills))
    ]


def measure_routers(
    skills: Sequence[str], seeds: int, *, every: bool = False, first: int = 0
) -> dict[str, Any]:
    """Every kind of router on the same rows, the choice among them, and seeds of the chosen one.

    every: seeds of the other kinds, too.
    first: number of the first seed. A seed draws training and validation rows and begins the weights;
        the held-out rows are always the same.
    """
    loaded = load_model("seedling", dtype=torch.float32, device="cpu")
    tokenizer, bank = loaded.tokenizer, Bank(loaded.model)
    test = router_rows(skills, TEST_ROWS, "held_out", 0, tokenizer)
    tokens = router_tokens(tokenizer, len(skills))
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())

    def trained(kind: str, seed: int) -> tuple[RouterTraining, dict[str, Any], tuple[bool, ...]]:
        rows = router_rows(skills, ROUTER_ROWS + VAL_ROWS, "train", seed, tokenizer)
        rows, val = rows[: ROUTER_ROWS * len(skills)], rows[ROUTER_ROWS * len(skills) :]
        settings = suggest_router(len(rows), parameters=parameters, max_steps=250)
        with tempfile.TemporaryDirectory() as folder:
            if kind == "probe":
                result = train_probe(ContentStates(bank), skills, rows, val)
            elif kind == "early":
                result = train_early_router(
                    bank, skills, rows, val, settings=settings, directory=Path(folder), seed=seed
                )
            else:
                result = train_suffix_router(
                    bank,
                    skills,
                    rows,
                    val,
                    tokens=tokens,
                    settings=settings,
                    directory=Path(folder),
                    seed=seed,
                )
        logits = logits_of(bank, result.router, test)
        return result, _scores(result, val, logits.tolist(), test), result.right(val)

    ladder = {kind: trained(kind, first) for kind in ("probe", "suffix", "early")}
    choice = choose_router([right for _, _, right in ladder.values()], list(ladder))
    over = {
        kind: _over_seeds(
            [ladder[kind][1], *(trained(kind, seed)[1] for seed in range(first + 1, first + seeds))]
        )
        for kind in (ladder if every else (choice.name,))
    }
    return {
        "skills": list(skills),
        "ladder": {kind: scores for kind, (_, scores, _) in ladder.items()},
        "choice": choice.as_dict(),
        "seeds": over,
    }


OVER_SEEDS = ("accuracy", "cpu_seconds", "coverage", "answered_accuracy")


def _over_seeds(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Values of each seed, their mean and their range."""
    found: dict[str, Any] = {}
    for name in OVER_SEEDS:
        values = [round(one[name], 4) for one in scores]
        mean = round(statistics.fmean(values), 4)
        found[name] = {"values": values, "mean": mean, "least": min(values), "most": max(values)}
    return found


def _scores(
    result: RouterTraining, val: Sequence[RouterRow], logits: list[list[float]], test: Sequence[RouterRow]
) -> dict[str, Any]:
    val_logits, val_truth = result.val_logits.tolist(), [row.label for row in val]
    temperature = fit_temperature(val_logits, val_truth)
    confidence = [max(softmax(row, temperature)) for row in val_logits]
    threshold = choose_threshold(confidence, result.right(val), ANSWERED_TARGET)
    truth = [row.label for row in test]
    right = [row.index(max(row)) == label for row, label in zip(logits, truth, strict=True)]
    answered = [
        hit
        for row, hit in zip(logits, right, strict=True)
        if max(softmax(row, temperature)) >= threshold.threshold
    ]
    return {
        "accuracy": sum(right) / len(right), "ci95": wilson_interval(sum(right), len(right)), "n": len(right),
        "val_accuracy": sum(result.right(val)) / len(val), "layer": result.router.layer,
        "steps": result.steps,
        "cpu_seconds": round(result.cpu_seconds, 1), "temperature": temperature,
        "nll": mean_nll(logits, truth), "nll_calibrated": mean_nll(logits, truth, temperature),
        "threshold": threshold.as_dict(), "coverage": len(answered) / len(right),
        "answered_accuracy": sum(answered) / max(1, len(answered)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", choices=("experts", "lexical", "relational"), required=True)
    parser.add_argument("--skills", nargs="*", default=list(EXPERT_SKILLS), choices=EXPERT_SKILLS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first-seed", type=int, default=0, help="to measure the seeds in pieces")
    parser.add_argument("--every", action="store_true", help="seeds of every kind of router")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "experts":
        result: dict[str, Any] = {"experts": [measure_expert(skill) for skill in arguments.skills]}
    else:
        skills = LEXICAL_SKILLS if arguments.part == "lexical" else RELATIONAL_SKILLS
        result = measure_routers(skills, arguments.seeds, every=arguments.every, first=arguments.first_seed)
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
