"""Builds "seedling-vision", the embedded vision-language base, on one core in a few minutes.

    python scripts/build_tiny_vision.py [directory]      # build/seedling-vision by default

A model of the Qwen3-VL architecture learns to read drawn screens in one document form
(`data.generators.screen_documents`). While it learns, linear heads on the vision tower name what each cell
holds; they are thrown away. It is never asked a question: that is what experts are trained for.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from scaler_wizard.data.control_tokens import chat_ids
from scaler_wizard.data.generators.screen_documents import READ_REQUEST, screen_document, screen_words
from scaler_wizard.data.generators.screens import (
    COLOURS,
    PLACES,
    SCREEN_SKILLS,
    SHAPES,
    Screen,
    draw_screen,
    sample_screen,
    sample_screen_example,
)
from scaler_wizard.models.tiny_vision import (
    Pixels,
    VisionProcessor,
    mrope,
    tiny_vision_model,
    tiny_vision_processor,
    vision_config,
)
from scaler_wizard.models.vision import expand_placeholders
from scaler_wizard.models.vision_files import save_vision_processor

# What a head says of a cell: colour, shape, size, mark (each with a class for "nothing here") and place.
CELL_CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, 2, 2, len(PLACES))


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    steps: int = 1300
    rows_per_step: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 30
    weight_decay: float = 0.05
    hidden_size: int = 128
    intermediate_size: int = 256
    n_layers: int = 4
    n_heads: int = 4
    vision_size: int = 48
    initializer_range: float = 0.06
    threads: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Rows [B, T] padded at the right, with their pictures."""

    ids: Tensor
    labels: Tensor
    """-100 but for the documents."""
    pixels: Pixels
    cells: Tensor
    """Classes of every cell [B * 6, heads]."""


def configuration(recipe: Recipe, vocab_size: int) -> Any:
    """889,392 parameters with the vocabulary of `screen_words`."""
    head = recipe.hidden_size // recipe.n_heads
    text = {
        "vocab_size": vocab_size,
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_hidden_layers": recipe.n_layers,
        "num_attention_heads": recipe.n_heads,
        "num_key_value_heads": recipe.n_heads // 2,
        "head_dim": head,
        "max_position_embeddings": 256,
        "initializer_range": recipe.initializer_range,
        "rope_parameters": mrope([6, 5, 5]),
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    vision = {
        "depth": 2,
        "hidden_size": recipe.vision_size,
        "intermediate_size": 2 * recipe.vision_size,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": recipe.hidden_size,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
        "initializer_range": recipe.initializer_range,
    }
    return vision_config(text, vision)


def cell_classes(screen: Screen) -> list[list[int]]:
    """The right class of each head for each cell."""
    nothing = [len(COLOURS), len(SHAPES), 0, 0]
    return [
        [*nothing, at] if item is None else
        [list(COLOURS).index(item.colour), SHAPES.index(item.shape), int(item.big), int(item.marked), at]
        for at, item in enumerate(screen.cells)
    ]  # fmt: skip


def make_batch(recipe: Recipe, model: Any, processor: VisionProcessor, step: int | str, split: str) -> Batch:
    """A function of (recipe.seed, step, split) alone."""
    screens = [
        sample_screen(f"{recipe.seed}/{step}/{row}", split=split) for row in range(recipe.rows_per_step)
    ]
    rng = random.Random(f"document/{split}/{recipe.seed}/{step}")
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": READ_REQUEST}]}
    prompt = chat_ids(processor.tokenizer, [user], generation_prompt=True)
    prompt = expand_placeholders(prompt, [len(PLACES)], model.config)
    end = processor.tokenizer.eos_token_id
    rows = [[*prompt, *processor.tokenizer.encode(screen_document(rng, s)), end] for s in screens]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor(
        [[-100] * len(prompt) + row[len(prompt) :] + [-100] * (width - len(row)) for row in rows]
    )
    cells = torch.tensor([cell for screen in screens for cell in cell_classes(screen)])
    return Batch(ids, labels, processor.pixels([draw_screen(screen) for screen in screens]), cells)


def forward(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [B, T, vocabulary], and the visual tokens [B * 6, h] as the tower gives them."""
    seen = model.model.get_image_features(batch.pixels.values, batch.pixels.grids, return_dict=True)
    output = model(
        input_ids=batch.ids,
        mm_encoder_outputs={"image": seen},
        image_grid_thw=batch.pixels.grids,
        mm_token_type_ids=(batch.ids == model.config.image_token_id).int(),
        use_cache=False,
    )
    return output.logits, torch.cat(seen.pooler_output)


def train(recipe: Recipe, model: Any, processor: VisionProcessor) -> None:
    """Documents and cells, one loss."""
    torch.manual_seed(recipe.seed)
    heads = nn.Linear(recipe.hidden_size, sum(CELL_CLASSES))
    weights = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    started = time.process_time()
    model.train()
    for step in range(recipe.steps):
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        shape = max(0.02, 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * warm * shape
        batch = make_batch(recipe, model, processor, step, "train")
        logits, visual = forward(model, batch)
        text_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
        named = heads(visual).split(CELL_CLASSES, dim=-1)
        losses = [F.cross_entropy(part, batch.cells[:, at]) for at, part in enumerate(named)]
        cell_loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        (text_loss + cell_loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(
                f"step {step:5,} of {recipe.steps:,}: documents {text_loss.item():.3f}, "
                f"cells {cell_loss.item():.3f}, {time.process_time() - started:.0f} CPU seconds",
                flush=True,
            )
    model.eval()


@torch.no_grad()
def evaluate(recipe: Recipe, model: Any, processor: VisionProcessor) -> dict[str, Any]:
    """Entries of held-out documents that are continued rightly, by kind; and answers to questions."""
    signs = {processor.tokenizer.encode(f"x {sign}")[1]: sign for sign in ("at", "=", "x")}
    right = dict.fromkeys(signs.values(), 0)
    asked = dict.fromkeys(signs.values(), 0)
    for number in range(20):
        batch = make_batch(recipe, model, processor, f"evaluation {number}", "held_out")
        chosen, labels = forward(model, batch)[0][:, :-1].argmax(-1), batch.labels[:, 1:]
        for row, said in zip(labels.tolist(), chosen.tolist(), strict=True):
            # No sign is the word of an entry.
            for at in (at for at, token in enumerate(row) if token in signs):
                sign = signs[row[at]]
                length = 1 if sign == "x" else 2
                asked[sign] += 1
                right[sign] += row[at + 1 : at + 1 + length] == said[at + 1 : at + 1 + length]
    documents = {sign: {"right": right[sign], "of": asked[sign]} for sign in asked}
    return {
        "documents": documents,
        "questions": {s: question_accuracy(model, processor, s) for s in SCREEN_SKILLS},
    }


@torch.no_grad()
def question_accuracy(model: Any, processor: VisionProcessor, skill: str, n: int = 100) -> dict[str, int]:
    """Right answers to a skill's questions, by transformers' own generation."""
    right = 0
    for seed in range(n):
        example = sample_screen_example(skill, f"question {seed}", split="held_out")
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}
        ids = chat_ids(processor.tokenizer, [user], generation_prompt=True)
        ids_1T = torch.tensor([expand_placeholders(ids, [len(PLACES)], model.config)])
        pixels = processor.pixels([draw_screen(example.screen)])
        output = model.generate(
            input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), pixel_values=pixels.values,
            image_grid_thw=pixels.grids, mm_token_type_ids=(ids_1T == model.config.image_token_id).int(),
            max_new_tokens=6, do_sample=False, pad_token_id=0,
        )  # fmt: skip
        right += example.verify(processor.tokenizer.decode(output[0, ids_1T.shape[1] :]))
    model.model.rope_deltas = None
    return {"right": right, "of": n}


def main() -> None:
    """Build, measure, write."""
    parser = argparse.ArgumentParser(description="Build the embedded vision-language base.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path("build/seedling-vision"))
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="training steps")
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps)
    torch.set_num_threads(recipe.threads)
    started = time.process_time()
    processor = tiny_vision_processor(screen_words())
    vocabulary = math.ceil(len(processor.tokenizer) / 16) * 16
    model: Any = tiny_vision_model(seed=recipe.seed, config=configuration(recipe, vocabulary))
    train(recipe, model, processor)
    # What is shipped is what is measured: rounded to 16 bits.
    model.to(torch.bfloat16).to(torch.float32)
    found = evaluate(recipe, model, processor)
    seconds = round(time.process_time() - started)
    folder: Path = arguments.directory
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    save_vision_processor(processor, folder)
    (folder / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
    files = ("model.safetensors", "tokenizer.json", "config.json", "preprocessor_config.json")
    build = {
        "command": "python scripts/build_tiny_vision.py",
        "recipe": dataclasses.asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": seconds,
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": platform.machine(),
    }
    (folder / "build.json").write_text(json.dumps(build, indent=2) + "\n")
    print(json.dumps({**found, "cpu_seconds": seconds}, indent=2))


if __name__ == "__main__":
    main()
