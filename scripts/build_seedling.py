"""Pretrain the embedded model (`seedling`) from text every Python has and from generated tasks.

A Llama-architecture *base* model of about a million parameters with a window of 128 tokens: it continues
documents, finds needles in its window, and knows nothing of chat. One flat file, read top to bottom:
tokenizer, rows, pretraining loop, evaluation, files. Every random draw is named by (seed, step, row), so on
one machine the same command gives the same bytes. It does not extend the context or follow instructions:
those are what the recipes demonstrate on it; `--context` only measures how far rotary scaling alone goes.

    python scripts/build_seedling.py --out src/scaler_wizard/assets/seedling
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import random
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scaler_wizard.data import corpus
from scaler_wizard.data.generators import (
    GENERATORS,
    needle_document,
    recency_document,
    retrieval_text,
    sample_example,
)
from scaler_wizard.data.generators.words import single_token_words

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
# The space before the content makes an answer the same tokens here as after a document prompt.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
    {{- raise_exception("role is " + message['role'] + ", expected system, user or assistant") -}}
  {%- endif -%}
  {{- '<|' + message['role'] + '|>' -}}
  {%- if message['role'] == 'assistant' -%}
    {%- generation -%}{{- ' ' + message['content'] + '<|end|>' -}}{%- endgeneration -%}
  {%- else -%}
    {{- ' ' + message['content'] + '<|end|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
Z95 = 1.959963984540054


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    steps: int = 320
    rows_per_step: int = 32
    window: int = 128
    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 384
    n_layers: int = 4
    # One wide head matches content better than several narrow ones: needles 0.99 at step 120, with two 0.82.
    n_heads: int = 1
    rope_theta: float = 10_000.0
    # 0.02 blocks induction at this width.
    initializer_range: float = 0.06
    learning_rate: float = 2e-3
    warmup_steps: int = 10
    weight_decay: float = 0.1
    corpus_chars: int = 3_000_000
    threads: int = 1


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose word list, letters and digits are single tokens; any UTF-8 text encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # A weight of 4,000 puts every merge of a listed word before the least frequent corpus merges.
    forced = [*(" " + word for word in single_token_words()), "mark", "recall"] * 4000
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *forced], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",  # noqa: S106
        eos_token="<|eos|>",  # noqa: S106
        pad_token="<|pad|>",  # noqa: S106
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    missing = [word for word in single_token_words() if len(fast.encode(" " + word)) != 1]
    assert not missing, f"not single tokens: {missing}"
    return fast


class Rows:
    """Pretraining rows of exactly `window` tokens, each a function of (seed, step, row) alone."""

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, corpus_tokens: list[list[int]]
    ) -> None:
        self.recipe, self.tokenizer, self.corpus_tokens = recipe, tokenizer, corpus_tokens
        self.offsets = [0]
        for tokens in corpus_tokens:
            self.offsets.append(self.offsets[-1] + len(tokens))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text).ids

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def excerpt(self, rng: random.Random, length: int) -> list[int]:
        """`length` contiguous tokens of one corpus document, or all of it and an end-of-text token."""
        (tokens,) = rng.choices(self.corpus_tokens, cum_weights=self.offsets[1:])
        start = rng.randrange(max(1, len(tokens) - length // 2))
        return [*tokens[start:], self.tokenizer.eos_token_id][:length]

    def document(self, rng: random.Random) -> list[int]:
        """A generated task of the train split, or a short retrieval text; half of them open with <|bos|>."""
        if rng.random() < 0.2:
            text = retrieval_text(
                rng, n_queries=rng.randint(1, 3), n_lines=rng.randint(2, 8), update_share=0.2
            )
        else:
            task = rng.choice(list(GENERATORS))
            text = sample_example(task, rng.getrandbits(64), rng.randint(1, 10), split="train").document_text
        opening = [self.tokenizer.bos_token_id] if rng.random() < 0.5 else []
        return [*opening, *self.encode(text), self.tokenizer.eos_token_id]

    def row(self, step: int, index: int) -> list[int]:
        """Mixture by rows: 30% corpus, 35% packed tasks, 30% whole-window needles, 5% repeated passages."""
        recipe = self.recipe
        rng = random.Random(f"{recipe.seed}/{step}/{index}")
        draw = rng.random()
        if draw < 0.30:
            row = self.excerpt(rng, recipe.window)
        elif draw < 0.65:
            # A random cut into the first document spreads every kind of line evenly over the positions.
            first = self.document(rng)
            row = first[rng.randrange(len(first)) :]
        elif draw < 0.95:
            n_tokens = recipe.window - rng.randint(2, 20)
            text = retrieval_text(
                rng,
                n_queries=rng.randint(1, 13),
                n_tokens=n_tokens,
                count_tokens=self.count,
                update_share=0.2,
            )
            row = [self.tokenizer.bos_token_id, *self.encode(text), self.tokenizer.eos_token_id]
        else:
            passage = self.excerpt(rng, rng.randint(16, 48))
            row = [*passage, *self.excerpt(rng, rng.randint(4, recipe.window - 2 * len(passage))), *passage]
        while len(row) < recipe.window:
            row.extend(self.document(rng))
        return row[: recipe.window]

    def batch(self, step: int) -> torch.Tensor:
        """Token ids [rows, window]."""
        return torch.tensor([self.row(step, index) for index in range(self.recipe.rows_per_step)])


@torch.no_grad()
def start_with_induction(model: LlamaForCausalLM) -> None:
    """Initialise layers 0 and 1 as an induction circuit (arXiv:2209.11895), in the way of arXiv:2305.09828.

    Layer 0 attends one position back and writes that token, turned by an orthogonal matrix, beside the
    current one; layer 1 looks for the place whose written predecessor is the current token and copies what
    stands there. All of it is trained on like any other weight. Measured with one head, needle rows only:
    0.42 at step 30 and 0.99 at step 120 of 2k tokens; from a random start still chance at step 300 of 8k.
    """
    size = model.config.hidden_size
    head_size = size // model.config.num_attention_heads
    embedding = model.model.embed_tokens.weight
    scale = embedding.std().item()
    before, copying = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    model.lm_head.weight.copy_(embedding)
    # A direction that all tokens share gives queries and keys a constant for the rotary phase to act on.
    shared = torch.nn.functional.normalize(torch.randn(size), dim=0)
    embedding.add_(0.35 * shared * scale * size**0.5)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.mul_(0.3)
        layer.self_attn.o_proj.weight.mul_(0.3)

    # Keys ahead of queries by one rotary step: cos(theta * (distance - 1)) summed over four fast pairs.
    turn = torch.nn.init.orthogonal_(torch.empty(size, size))
    fast = model.model.rotary_emb.inv_freq[:4, None]
    for first in range(0, size, head_size):
        real, imaginary = slice(first, first + 4), slice(first + head_size // 2, first + head_size // 2 + 4)
        before.q_proj.weight[real] += 2.5 * shared
        before.k_proj.weight[real] += 2.5 * torch.cos(fast) * shared
        before.k_proj.weight[imaginary] += 2.5 * torch.sin(fast) * shared
    torch.nn.init.orthogonal_(before.v_proj.weight, gain=scale**0.5)
    before.o_proj.weight.copy_(turn @ before.v_proj.weight.T)

    # Matching by content uses the slow pairs, which a window of this length hardly turns, and leaves out what
    # all tokens share, because that matches everywhere.
    slow = torch.tensor([row for row in range(size) if row % (head_size // 2) >= 8])
    matching = torch.nn.init.orthogonal_(torch.empty(len(slow), size), gain=3.0)
    for direction in (shared, turn @ shared):
        matching -= (matching @ direction)[:, None] * direction
    copying.q_proj.weight[slow] = matching
    copying.k_proj.weight[slow] = matching @ turn.T
    torch.nn.init.orthogonal_(copying.v_proj.weight, gain=0.6**0.5)
    copying.o_proj.weight.copy_(copying.v_proj.weight.T)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=recipe.window,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        initializer_range=recipe.initializer_range,
        # Untied: the chat tokens never occur, and through a tied matrix the softmax would push all their
        # input embeddings the same way; untied, these stay as initialised, and the vocabulary can grow.
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    start_with_induction(model)
    # The generation defaults stop on the end of a text and, once a recipe has taught turns, of a turn.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def pretrain(model: LlamaForCausalLM, rows: Rows) -> None:
    """AdamW, linear warm-up, cosine to 5% of the peak; prints loss, needle accuracy and time left."""
    recipe = rows.recipe
    decayed = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    started = time.monotonic()
    for step in range(recipe.steps):
        progress = step / recipe.steps
        scale = min(1.0, (step + 1) / recipe.warmup_steps) * (
            0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        )
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * scale
        token_ids = rows.batch(step)
        logits = model(input_ids=token_ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0 or step + 1 == recipe.steps:
            seconds = time.monotonic() - started
            left = seconds / (step + 1) * (recipe.steps - step - 1)
            needles = needle_accuracy(model, rows, recipe.window, 0.5, 100)
            print(
                f"step {step + 1}/{recipe.steps}  loss {loss.item():.3f}  needle {needles:.2f}  "
                f"{left:.0f} s left",
                flush=True,
            )


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
    model: LlamaForCausalLM, rows: Rows, length: int, depth: float, n: int, keep: int | None = None
) -> float:
    """Share of needles found at `depth` in prompts of `length` tokens, cut to their last `keep`."""
    rng = random.Random(f"needle/{length}/{depth}")
    found = [
        needle_document(rng, depth=depth, n_tokens=length - 1, count_tokens=rows.count) for _ in range(n)
    ]
    prompts = [
        [rows.tokenizer.bos_token_id, *rows.encode(needle.prompt)][-(keep or length) :] for needle in found
    ]
    answers = torch.tensor([rows.encode(" " + needle.answer)[0] for needle in found])
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
def corpus_nll(model: LlamaForCausalLM, rows: Rows, n_rows: int) -> tuple[float, list[float]]:
    """Mean NLL (nats per token) over held-out windows, and its mean per quarter of the window."""
    window, tokens = rows.recipe.window, [token for document in rows.corpus_tokens for token in document]
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


def evaluate(model: LlamaForCausalLM, rows: Rows, n: int = 100) -> dict[str, Any]:
    """Held-out scores; `rows` holds the held-out corpus."""
    model.eval()
    tokenizer, n_rows = rows.tokenizer, 512
    nll, by_quarter = corpus_nll(model, rows, n_rows)
    document_form, instruction_form = {}, {}
    for task in GENERATORS:
        examples = [sample_example(task, seed, 1 + seed % 10, split="held_out") for seed in range(n)]
        prompts = [[tokenizer.bos_token_id, *rows.encode(example.document)] for example in examples]
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": example.instruction}],
                add_generation_prompt=True,
                return_dict=False,
            )
            for example in examples
        ]
        for scores, inputs in ((document_form, prompts), (instruction_form, chats)):
            outputs = complete(model, tokenizer, inputs)
            scores[task] = wilson(sum(e.verify(o) for e, o in zip(examples, outputs, strict=True)), n)
    rng = random.Random("recency")
    updates = [
        recency_document(rng, n_tokens=rows.recipe.window - 1, count_tokens=rows.count) for _ in range(2 * n)
    ]
    best = next_tokens(model, [[tokenizer.bos_token_id, *rows.encode(item.prompt)] for item in updates])
    latest = sum(best[i].item() == rows.encode(" " + item.answer)[0] for i, item in enumerate(updates))
    return {
        "corpus": {
            "n_tokens": n_rows * (rows.recipe.window - 1),
            "nll": round(nll, 4),
            "perplexity": round(math.exp(nll), 3),
            "nll_by_quarter_of_window": by_quarter,
        },
        "document_form": document_form,
        "document_form_mean": wilson(
            sum(round(s["accuracy"] * n) for s in document_form.values()), n * len(document_form)
        ),
        "instruction_form": instruction_form,
        "instruction_form_mean": wilson(
            sum(round(s["accuracy"] * n) for s in instruction_form.values()), n * len(instruction_form)
        ),
        "needle": {
            str(depth): wilson(
                round(2 * n * needle_accuracy(model, rows, rows.recipe.window, depth, 2 * n)), 2 * n
            )
            for depth in DEPTHS
        },
        "needle_chance": round(1 / 64, 4),
        "recency": wilson(latest, 2 * n),
    }


def extended(model: LlamaForCausalLM, method: str, length: int) -> LlamaForCausalLM:
    """A copy with other rotary scaling: set before construction, because later nothing reads the config."""
    config = LlamaConfig.from_dict(model.config.to_dict())
    base, factor = config.max_position_embeddings, length / config.max_position_embeddings
    head_size = config.hidden_size // config.num_attention_heads
    theta = model.config.rope_parameters["rope_theta"]
    scaling: dict[str, Any] = {"rope_type": method, "rope_theta": theta, "factor": factor}
    if method == "none":
        scaling = {"rope_type": "default", "rope_theta": theta}
    elif method == "ntk":
        scaling = {"rope_type": "default", "rope_theta": theta * factor ** (head_size / (head_size - 2))}
    elif method == "yarn":
        scaling["original_max_position_embeddings"] = base
    elif method == "llama3":
        scaling |= {"original_max_position_embeddings": base, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config.rope_parameters, config.max_position_embeddings = scaling, length
    copy = LlamaForCausalLM(config)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


@torch.no_grad()
def last_target_nll(
    model: LlamaForCausalLM, windows: torch.Tensor, length: int, n_targets: int = 64
) -> torch.Tensor:
    """NLL [n] of each window's last `n_targets` tokens given only its last `length` tokens."""
    nlls = []
    for part in windows[:, -length:].split(16):
        logits = model(input_ids=part[:, :-1], logits_to_keep=n_targets).logits
        nlls.append(
            torch.nn.functional.cross_entropy(logits.transpose(1, 2), part[:, -n_targets:], reduction="none")
        )
    return torch.cat(nlls).mean(1)


def adapt(
    model: LlamaForCausalLM, rows: Rows, length: int, checkpoints: tuple[int, ...]
) -> Iterator[tuple[int, Any]]:
    """LoRA of rank 16 on all linear layers, half needles, half corpus; yields at `checkpoints` steps."""
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-3)
    for step in range(checkpoints[-1]):
        rng, batch = random.Random(f"adapt/{step}"), []
        for index in range(16):
            row = rows.excerpt(rng, length)
            if index % 2:
                text = retrieval_text(
                    rng, n_queries=8, n_tokens=length - 1, count_tokens=rows.count, update_share=0.2
                )
                row = [rows.tokenizer.bos_token_id, *rows.encode(text)]
            while len(row) < length:
                row.extend(rows.document(rng))
            batch.append(row[:length])
        token_ids = torch.tensor(batch)
        logits = adapted(input_ids=token_ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in checkpoints:
            yield step + 1, adapted.base_model.model


def measure_context(
    model: LlamaForCausalLM, train: Rows, held_out: Rows, n: int = 50
) -> list[dict[str, Any]]:
    """Needles by depth and paired same-target NLL at 2x and 4x: untrained, then after LoRA steps."""
    documents = [d for d in held_out.corpus_tokens if len(d) >= 512]
    windows = torch.tensor([d[i : i + 512] for d in documents for i in range(0, len(d) - 511, 512)][:256])
    base_nll = last_target_nll(model, windows, 128)
    lines = []

    def score(scored: Any, method: str, length: int, steps: int) -> None:
        difference = last_target_nll(scored, windows, length) - base_nll
        short = last_target_nll(scored, windows, 128) - base_nll
        line = {
            "length": length,
            "method": method,
            "lora_steps": steps,
            "needle": [round(needle_accuracy(scored, held_out, length, depth, n), 3) for depth in DEPTHS],
            "nll_minus_truncated": round(difference.mean().item(), 4),
            "standard_error": round((difference.std() / len(difference) ** 0.5).item(), 4),
            "short_nll_change": round(short.mean().item(), 4),
        }
        print(json.dumps(line), flush=True)
        lines.append(line)

    print(f"truncated to 128: NLL {base_nll.mean():.4f}, n {len(windows)} x 64 targets")
    for length in (256, 512):
        cut = [round(needle_accuracy(model, held_out, length, depth, n, keep=128), 3) for depth in DEPTHS]
        print(f"length {length}: needles with the input truncated to 128: {cut}")
        for method in ("none", "linear", "ntk", "yarn", "llama3"):
            score(extended(model, method, length), method, length, 0)
    for length in (256, 512):
        for method in ("linear", "yarn", "llama3"):
            for steps, adapted in adapt(extended(model, method, length), train, length, (5, 10, 20, 40)):
                score(adapted, method, length, steps)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument(
        "--json", action="store_true", help="print the evaluation as one JSON object on the last line"
    )
    parser.add_argument("--context", action="store_true", help="also measure context extension (minutes)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="override other recipe fields"
    )
    arguments = parser.parse_args()
    overrides = {
        key: type(getattr(Recipe(), key))(value) for key, value in (item.split("=") for item in arguments.set)
    }
    recipe = Recipe(seed=arguments.seed, steps=arguments.steps, **overrides)
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)

    documents = [document.text for document in corpus.documents("train", max_chars=recipe.corpus_chars)]
    generated = [
        sample_example(task, f"tokenizer/{i}", 1 + i % 10, split="train").document_text
        for task in GENERATORS
        for i in range(500)
    ]
    tokenizer = train_tokenizer([*documents, *generated], recipe.vocab_size)
    encoded = {
        "train": [e.ids for e in tokenizer.backend_tokenizer.encode_batch(documents)],
        "held_out": [
            e.ids
            for e in tokenizer.backend_tokenizer.encode_batch([d.text for d in corpus.documents("held_out")])
        ],
    }
    train, held_out = (Rows(recipe, tokenizer, encoded[split]) for split in ("train", "held_out"))
    model = new_model(recipe, tokenizer)
    print(
        f"{model.num_parameters():,} parameters, {train.offsets[-1]:,} corpus tokens, "
        f"vocabulary {len(tokenizer)}",
        flush=True,
    )
    cpu, wall = time.process_time(), time.monotonic()
    pretrain(model, train)
    evaluation: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "training_tokens": recipe.steps * recipe.rows_per_step * recipe.window,
        "steps": recipe.steps,
        "seconds": round(time.monotonic() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **evaluate(model, held_out),
    }

    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    build = {
        "command": shlex.join(["python", *sys.argv]),
        "recipe": dataclasses.asdict(recipe),
        "sha256": {
            name: hashlib.sha256((arguments.out / name).read_bytes()).hexdigest()
            for name in ("model.safetensors", "tokenizer.json", "config.json")
        },
        "corpus_sha256": hashlib.sha256("\0".join(documents).encode()).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "machine": platform.machine(),
    }
    for name, content in (("evaluation.json", evaluation), ("build.json", build)):
        (arguments.out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if arguments.context:
        evaluation["context"] = measure_context(model, train, held_out)
    if arguments.json:
        print(json.dumps(evaluation))


if __name__ == "__main__":
    main()
