"""Drawn screens as data files for `scaler demo experts --screens`: pictures, questions and their answers."""

from __future__ import annotations

import json
from pathlib import Path

from scaler_wizard.data.generators.screens import SCREEN_SKILLS, sample_screen_example, screen_png

ROWS = 1400
"""Screens of each skill, all different: a picture that two skills shared would tie their rows together."""


def write_screens(folder: Path, seed: int, rows: int = ROWS) -> Path:
    """folder/SKILL.jsonl and the pictures beside them; the folder. Drawn again where it is there already."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for skill in SCREEN_SKILLS:
        lines = []
        for number in range(rows):
            example = sample_screen_example(skill, f"{seed}/{skill}/{number}", split="train")
            name = f"{skill}-{number:05d}.png"
            (images / name).write_bytes(screen_png(example.screen))
            row = {"prompt": example.question, "completion": example.answer, "image": f"images/{name}"}
            lines.append(json.dumps(row))
        (folder / f"{skill}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
