"""Scores of the embedded model on held-out material, each with its n and Wilson 95% interval.

What `build_seedling.py` writes to evaluation.json. Knows the generated world and the shape of a causal model,
nothing of how the model came about; longer contexts are measured by `scaler_wizard.evals`, not here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from scaler_wizard.data.generators import (
    MAX_LEVEL,
    MIN_LEVEL,
    SEEDLING_TASKS,
    Example,
    needle_document,
    recency_document,
    sample_example,
)

Form: TypeAlias = Literal["document", "instruction"]

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
Z95 = 1.959963984540054


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text, nothing added."""
    return list(tokenizer.backend_tokenizer.encode(text).ids)


def token_counter(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], int]:
    """Length of a line in tokens, as the document generators ask for it."""
    return lambda text: len(encode(tokenizer, text))


def wilson(successes: int, n: int) -> dict[str, float | int]:
    """A proportion with its Wilson 95% interval (Wilson 1927)."""
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return {
        "n": n,
        "accuracy": round(p, 4),
        "low": round(max(0.0, centre - half), 4),
        "high": round(min(1.0, centre + half), 4),
    }


@torch.no_grad()
def next_tokens(model: LlamaForCausalLM, prompts: list[list[int]]) -> torch.Tensor:
    """Most likely next token [n] of each prompt; right padding reaches no earlier state of a causal model."""
    width = max(map(len, prompts))
    best = []
    for start in range(0, len(prompts), 32):
        part = prompts[start : start + 32]
        token_ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in part])
        hidden = model.get_decoder()(input_ids=token_ids).last_hidden_state
        last = hidden[torch.arange(len(part)), torch.tensor([len(prompt) - 1 for prompt in part])]
        best.append(model.get_output_embeddings()(last).argmax(-1))
    return torch.cat(best)


def needle_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, length: int, depth: float, n: int
) -> float:
    """Share of needles found at `depth` in prompts of `length` tokens."""
    rng = random.Random(f"needle/{length}/{depth}")
    count = token_counter(tokenizer)
    found = [needle_document(rng, depth=depth, n_tokens=length - 1, count_tokens=count) for _ in range(n)]
    prompts = [[tokenizer.bos_token_id, *encode(tokenizer, needle.prompt)] for needle in found]
    answers = torch.tensor([encode(tokenizer, " " + needle.answer)[0] for needle in found])
    return (next_tokens(model, prompts) == answers).float().mean().item()


@torch.no_grad()
def complete(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> list[str]:
    """Greedy continuations of at most 18 tokens, special tokens kept."""
    outputs = []
    for start in range(0, len(prompts), 130):
        part = prompts[start : start + 130]
        batch = tokenizer.pad({"input_ids": part}, padding_side="left", return_tensors="pt")
        generated = model.generate(**batch, do_sample=False, max_new_tokens=18)
        outputs.extend(tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :]))
    return outputs


@torch.no_grad()
def corpus_nll(
    model: LlamaForCausalLM, documents: list[list[int]], window: int, n_rows: int
) -> tuple[float, list[float]]:
    """Mean NLL (nats per token) over windows of the documents' tokens, and per quarter of a window."""
    tokens = [token for document in documents for token in document]
    stride = max(window, len(tokens) // n_rows)
    token_ids = torch.tensor(
        [tokens[i : i + window] for i in range(0, len(tokens) - window, stride)][:n_rows]
    )
    losses = []
    for part in token_ids.split(64):
        logits = model(input_ids=part[:, :-1]).logits
        losses.append(
            torch.nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none")
        )
    nll = torch.cat(losses)
    return nll.mean().item(), [round(part.mean().item(), 4) for part in nll.tensor_split(4, dim=1)]


def task_scores(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, form: Form, levels: range, n: int
) -> dict[str, Any]:
    """Accuracy by task over `n` held-out examples each, levels in turn, and pooled."""
    scores, right = {}, 0
    for task in SEEDLING_TASKS:
        examples = [
            sample_example(task, seed, levels[seed % len(levels)], split="held_out") for seed in range(n)
        ]
        outputs = complete(model, tokenizer, [prompt_ids(tokenizer, example, form) for example in examples])
        passed = sum(e.verify(output) for e, output in zip(examples, outputs, strict=True))
        scores[task] = wilson(passed, n)
        right += passed
    return {**scores, "mean": wilson(right, n * len(scores))}


def prompt_ids(tokenizer: PreTrainedTokenizerFast, example: Example, form: Form) -> list[int]:
    """The document form as the base has read it, or the instruction as a chat turn to answer."""
    if form == "document":
        return [tokenizer.bos_token_id, *encode(tokenizer, example.document)]
    turn = {"role": "user", "content": example.instruction}
    return list(tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=False))


def recency_score(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, length: int, n: int
) -> dict[str, float | int]:
    """How often the later of two values of one key is given; half is a reader blind to their order."""
    rng, count = random.Random("recency"), token_counter(tokenizer)
    items = [recency_document(rng, n_tokens=length - 1, count_tokens=count) for _ in range(n)]
    best = next_tokens(model, [[tokenizer.bos_token_id, *encode(tokenizer, item.prompt)] for item in items])
    return wilson(
        sum(best[i].item() == encode(tokenizer, " " + item.answer)[0] for i, item in enumerate(items)), n
    )


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    documents: list[list[int]],
    window: int,
    n: int = 100,
) -> dict[str, Any]:
    """Every score of evaluation.json.

    documents: tokens of the held-out corpus.
    n: examples of each task at all levels in turn; needles by depth and recency take twice as many.
    """
    model.eval()
    n_rows = 512
    nll, by_quarter = corpus_nll(model, documents, window, n_rows)
    needles = {
        str(depth): round(2 * n * needle_accuracy(model, tokenizer, window, depth, 2 * n)) for depth in DEPTHS
    }
    return {
        "corpus": {
            "n_tokens": n_rows * (window - 1),
            "nll": round(nll, 4),
            "perplexity": round(math.exp(nll), 3),
            "nll_by_quarter_of_window": by_quarter,
        },
        "document_form": task_scores(model, tokenizer, "document", range(MIN_LEVEL, MAX_LEVEL + 1), n),
        "document_form_levels_1_to_3": task_scores(model, tokenizer, "document", range(1, 4), n),
        "instruction_form": task_scores(model, tokenizer, "instruction", range(1, 4), n),
        "needle": {depth: wilson(found, 2 * n) for depth, found in needles.items()},
        "needle_chance": round(1 / 64, 4),
        "recency": recency_score(model, tokenizer, window, 2 * n),
    }
