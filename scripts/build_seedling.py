"""Pretrain the embedded model (`seedling`) from text every Python has and from generated tasks.

A Llama-architecture *base* model of about a million parameters with a window of 128 tokens: it continues
documents, finds needles in its window, and knows nothing of chat. Read top to bottom: tokenizer, model, two
stages of pretraining, files; settings and rows stand in `seedling_rows.py`, the scores in
`seedling_evaluation.py`. Every random draw is named by (seed, step, row), so on one machine the same command
gives the same bytes. It neither extends the context nor teaches instructions: those are what the recipes
demonstrate on it.

    python scripts/build_seedling.py
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scaler_wizard.data import corpus
from scaler_wizard.data.generators import SEEDLING_TASKS, sample_example
from scaler_wizard.data.generators.words import single_token_words
from seedling_evaluation import evaluate, needle_accuracy
from seedling_rows import Recipe, Rows

SHIPPED = Path(__file__).parents[1] / "src/scaler_wizard/assets/seedling"
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


def first_stage(recipe: Recipe, rows: Rows) -> Iterator[tuple[torch.Tensor, float]]:
    """Token ids [rows, window] and learning rate of each step: linear warm-up, cosine to 5% of the peak."""
    for step in range(recipe.steps):
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step / recipe.steps)))
        scale = min(1.0, (step + 1) / recipe.warmup_steps) * cosine
        token_ids = torch.tensor([rows.row(step, index) for index in range(recipe.rows_per_step)])
        yield token_ids, recipe.learning_rate * scale


def second_stage(recipe: Recipe, rows: Rows) -> Iterator[tuple[torch.Tensor, float]]:
    """As `first_stage`: warm-up, constant, linear decay to 2% of the peak."""
    for step in range(recipe.task_steps):
        decay = max(0.02, min(1.0, (recipe.task_steps - step) / recipe.task_decay_steps))
        scale = min(1, (step + 1) / recipe.warmup_steps) * decay
        token_ids = torch.tensor([rows.task_row(step, index) for index in range(recipe.task_rows_per_step)])
        yield token_ids, recipe.learning_rate * scale


def pretrain(
    model: LlamaForCausalLM, rows: Rows, name: str, stage: Iterator[tuple[torch.Tensor, float]], n_steps: int
) -> None:
    """AdamW from a fresh state over one stage; prints loss, needle accuracy and time left."""
    recipe = rows.recipe
    decayed = [p for key, p in model.named_parameters() if p.dim() == 2 and "embed" not in key]
    others = [p for key, p in model.named_parameters() if p.dim() != 2 or "embed" in key]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    started = time.monotonic()
    model.train()
    for done, (token_ids, learning_rate) in enumerate(stage, start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        logits = model(input_ids=token_ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if done % 25 == 0 or done == n_steps:
            left = (time.monotonic() - started) / done * (n_steps - done)
            needles = needle_accuracy(model, rows.tokenizer, recipe.window, 0.5, 100)
            print(
                f"{name} step {done}/{n_steps}  loss {loss.item():.3f}  "
                f"needle {needles:.2f}  {left:.0f} s left",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=SHIPPED, help="directory to write, else the shipped one")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument(
        "--json", action="store_true", help="print the evaluation as one JSON object on the last line"
    )
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
        for task in SEEDLING_TASKS
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
    train = Rows(recipe, tokenizer, encoded["train"])
    model = new_model(recipe, tokenizer)
    print(
        f"{model.num_parameters():,} parameters, {train.offsets[-1]:,} corpus tokens, "
        f"vocabulary {len(tokenizer)}",
        flush=True,
    )
    cpu, wall = time.process_time(), time.monotonic()
    pretrain(model, train, "first", first_stage(recipe, train), recipe.steps)
    pretrain(model, train, "second", second_stage(recipe, train), recipe.task_steps)
    evaluation: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "training_tokens": recipe.window
        * (recipe.steps * recipe.rows_per_step + recipe.task_steps * recipe.task_rows_per_step),
        "steps": [recipe.steps, recipe.task_steps],
        "seconds": round(time.monotonic() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **evaluate(model, tokenizer, encoded["held_out"], recipe.window),
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
    if arguments.json:
        print(json.dumps(evaluation))


if __name__ == "__main__":
    main()
