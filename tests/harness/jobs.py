"""Jobs of recipes that several rooms of tests run whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaler_wizard.cli.demo_screens import write_screens

SCREEN_SKILLS = ("colour", "biggest")


def experts_value(**changes: Any) -> dict[str, Any]:
    """Two experts of a few steps on generated texts; `changes` replace sections."""
    return {
        "recipe": "experts", "name": "tiny", "model": {"base_model": "seedling", "runtime": "cpu"},
        "experts": [{"label": "crew", "generator": "crew"}, {"label": "sorting", "generator": "sort"}],
        "dataset": {"rows": 20, "test_rows": 8}, "lora": {"rank": 4, "alpha": 8},
        "training": {"max_steps": 4, "rows": 40, "batch_tokens": 256, "micro_batch_tokens": 256},
        "router": {"ladder": ["probe", "alora"], "max_steps": 3},
        "evaluation": {"rows": 8, "answers": 8, "seeds": 2, "max_new_tokens": 4}, "deploy": {"twins": False},
        **changes,
    }  # fmt: skip


def screens_value(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two experts, each with its own number of steps, on screens that are drawn into `folder`."""
    write_screens(folder, seed=3, rows=30)
    return {
        "recipe": "experts", "name": "screens", "model": {"base_model": "seedling-vision", "runtime": "cpu"},
        "experts": [
            {"label": skill, "data": str(folder / f"{skill}.jsonl"), "max_steps": 2 + number}
            for number, skill in enumerate(SCREEN_SKILLS)
        ],
        "dataset": {"rows": 20, "test_rows": 8, "image_format": "reference"},
        "lora": {"rank": 4, "alpha": 8},
        "training": {"max_steps": 9, "batch_tokens": 256, "micro_batch_tokens": 256},
        "router": {"ladder": ["probe", "alora"], "max_steps": 2},
        "evaluation": {"rows": 8, "answers": 8, "seeds": 2, "max_new_tokens": 4},
        "deploy": {"twins": False},
        **changes,
    }  # fmt: skip


def six_stages_value() -> dict[str, Any]:
    """A bootstrap in which the seedling goes through all six stages: the demo's tasks and stages 1 to 3.

    Less than those, and the tasks that it makes differ too little for the gate on made data. The later stages
    are short, and the gates ask for what fifty questions can show.
    """

    def stage(prompts: int, steps: int, share: float, replay: float, **more: float) -> dict[str, Any]:
        return {"prompts": prompts, "steps": steps, "share": share, "replay": replay, **more}

    return {
        "recipe": "bootstrap", "name": "six", "model": {"base_model": "seedling", "runtime": "cpu"},
        "world": {"types": ["copy", "reverse", "rotate", "swap", "double"], "levels": [1, 2]},
        "stages": {
            "last": 6,
            "explicit": stage(800, 180, 0.5, 0.4),
            "implicit": stage(1000, 340, 0.5, 0.35),
            "make": stage(800, 220, 0.3, 0.5, learning_rate=0.003),
            "evaluate": stage(300, 200, 0.02, 0.45, learning_rate=0.0025),
            "revise": stage(240, 100, 0.05, 0.6, learning_rate=0.0025),
        },
        "constitution": {
            "prompts": 300, "requests": 40, "share": 0.02, "preference": {"steps": 120},
        },
        "sampling": {
            "samples": 3, "base_texts": 60, "max_new_tokens": 28, "confidence": 0.5, "agreement": 0.6,
        },
        "evaluation": {"questions": 50, "least": 30},
        "scaling": {"lora": {"rank": 32, "alpha": 64}},
        "training": {"batch_tokens": 512, "micro_batch_tokens": 512, "learning_rate": 0.005},
        "safety": {
            "circuit_breaker": {"loss_spike": 10.0, "min_accuracy": 0.0}, "gates": {"ask": "auto_approve"},
            "checkpoint_every_sec": 0.2,
        },
    }  # fmt: skip
