"""The preprocess and train stages of `experts`: inputs as tokens once, then routers from them.

Every kind on the ladder is trained and written before the next, so that a kill repeats at most one. The best
is trained again with seeds of its own, each on nine tenths of the rows that its seed draws: what a router is
worth must not hang on a lucky draw. A probe's layer and ridge are chosen once.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file

from scaler_wizard.data.images import read_image
from scaler_wizard.data.routing import RoutingRow, RoutingSet
from scaler_wizard.data.routing_split import SPLITS, Split
from scaler_wizard.evals.calibration import choose_threshold, fit_temperature, softmax
from scaler_wizard.evals.router_choice import choose_router
from scaler_wizard.inference.experts.prompt import Prompt
from scaler_wizard.inference.experts.routers import (
    ContentStates,
    RouterRow,
    RouterTraining,
    router_tokens,
    save_router,
    train_early_router,
    train_probe,
    train_suffix_router,
)
from scaler_wizard.inference.experts.routers.probe import Setting, chosen_setting
from scaler_wizard.inference.experts.served import Served
from scaler_wizard.models.tensor_files import TensorFile, write_files
from scaler_wizard.planning.router import RouterSettings, suggest_router
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.experts import FAST_STEPS, ExpertsJob, LadderStep
from scaler_wizard.store.registry import content_hash
from scaler_wizard.store.rundir import RunDir

COSTS: Final[tuple[LadderStep, ...]] = ("probe", "alora", "early")
"""The ladder's steps, the cheapest first."""
ANSWERED_RIGHT: Final = 0.99
"""Share of the routed val rows that must be right: below the confidence where that begins, it abstains."""
SEED_SHARE = 0.9
CONTENTS = "contents.safetensors"


def encode(context: PhaseContext, served: Served, rows: RoutingSet, cache: Path) -> Metrics:
    """Every input as tokens, in a file named by the hash of what it was made from; made once.

    Args:
        cache: the workspace's folder for such files.

    Raises:
        RowError: an input that is longer than the base reads.
        ImageError: a picture that is none.
    """
    key = _key(served, rows)
    folder = cache / key
    known = (folder / CONTENTS).is_file()
    if not known:
        every = [row for split in SPLITS for row in rows.split(split)]
        report = context.progress("inputs read")
        contents = []
        for number, row in enumerate(every, start=1):
            contents.append(served.request(content_of(served, row), 1).prompt.tokens)
            report(number, len(every))
        _write(folder, contents)
    found = read_contents(folder)
    lengths = [len(content) for content in found]
    context.note(
        f"{len(found):,} inputs, {sum(lengths):,} tokens, the longest {max(lengths):,}"
        + (": read before, taken from the cache" if known else "")
    )
    return {"folder": str(folder), "inputs": len(found), "tokens": sum(lengths), "longest": max(lengths),
            "cached": known}  # fmt: skip


def content_of(served: Served, row: RoutingRow) -> Prompt:
    """The content of a row, its picture decoded and checked."""
    return served.content(row.messages, read_image(row.image) if row.image is not None else None)


def prompts_of(served: Served, rows: RoutingSet, split: Split, folder: Path) -> list[Prompt]:
    """The contents of a split as `encode` left them; a row with a picture is read again."""
    first = sum(len(rows.split(name)) for name in SPLITS[: SPLITS.index(split)])
    kept = read_contents(folder)[first : first + len(rows.split(split))]
    return [
        Prompt(tokens) if row.image is None else content_of(served, row)
        for tokens, row in zip(kept, rows.split(split), strict=True)
    ]


def read_contents(folder: Path) -> list[tuple[int, ...]]:
    """Token ids of every input: train, val, test, in their order."""
    stored = load_file(folder / CONTENTS)
    ids, ends = stored["ids"].tolist(), stored["ends"].tolist()
    return [tuple(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _write(folder: Path, contents: Sequence[Sequence[int]]) -> None:
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    flat = torch.tensor([token for content in contents for token in content], dtype=torch.int64)
    ends = torch.tensor([len(content) for content in contents]).cumsum(0)
    write_files({CONTENTS: TensorFile({"ids": flat, "ends": ends})}, staging)
    staging.rename(folder)


def _key(served: Served, rows: RoutingSet) -> str:
    """Changes with the rows, with the tokenizer and with how it writes a conversation."""
    tokenizer: Any = served.tokenizer
    backend = tokenizer.backend_tokenizer.to_str()
    parts = (rows.digest, backend, tokenizer.chat_template, served.system_prompt or "")
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(str(part).encode()).digest())
    return digest.hexdigest()[:32]


def train_routers(
    context: PhaseContext, job: ExpertsJob, served: Served, rows: RoutingSet, run_dir: RunDir,
    encoded: Metrics,
) -> Metrics:  # fmt: skip
    """{ladder: [one record a kind], chosen: the best one's, seeds: [folder of each seed's router]}."""
    folder = run_dir.path / "routers"
    trainer = _Trainer(context, job, served, rows, folder, encoded)
    steps = [step for step in COSTS if step in job.router.ladder]
    ladder = [trainer.once(step, 0) for step in steps]
    choice = choose_router([found["right"] for found in ladder], steps)
    chosen = ladder[choice.index]
    context.note(f"router: {choice.reason}")
    if chosen["step"] == "probe":
        trainer.probes = [chosen_setting(chosen)]
    seeds = [chosen, *(trainer.once(chosen["step"], seed) for seed in range(1, job.evaluation.seeds))]
    for found in (*ladder, *seeds):
        found.pop("right", None)
    return {"ladder": ladder, "chosen": chosen, "choice": choice.as_dict(),
            "seeds": [found["folder"] for found in seeds]}  # fmt: skip


class _Trainer:
    """Trains, calibrates and writes one router at a time."""

    def __init__(
        self,
        context: PhaseContext,
        job: ExpertsJob,
        served: Served,
        rows: RoutingSet,
        folder: Path,
        encoded: Metrics,
    ) -> None:
        self.context, self.job, self.served, self.folder = context, job, served, folder
        self.longest = int(encoded["longest"])
        self.labels = rows.labels
        self.vision = any(row.image is not None for row in rows.train)
        self.states = ContentStates(served.bank)
        self.probes: Sequence[Setting] | None = None
        """What a probe's layer and ridge are chosen among; all there are until they were chosen."""
        self.train, self.val = (
            [
                RouterRow(prompt, self.labels.index(row.label))
                for prompt, row in zip(
                    prompts_of(served, rows, split, Path(encoded["folder"])), rows.split(split), strict=True
                )
            ]
            for split in SPLITS[:2]
        )

    def once(self, step: LadderStep, seed: int) -> Metrics:
        """The record of one router; trained unless it was before a kill."""
        found: Metrics = self.context.once(f"router {step} {seed}", lambda: self._train(step, seed))
        return dict(found)

    def _train(self, step: LadderStep, seed: int) -> Metrics:
        place = self.folder / f"{step}-{seed}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        rows = self.train if seed == 0 else _drawn(self.train, seed)
        trained = self._trained(step, rows, place, seed)
        truths = [row.label for row in self.val]
        right, logits = trained.right(self.val), trained.val_logits.tolist()
        temperature = fit_temperature(logits, truths)
        confidence = [max(softmax(row, temperature)) for row in logits]
        abstaining = choose_threshold(confidence, right, ANSWERED_RIGHT)
        given = self.job.router.threshold
        threshold = abstaining.threshold if given is None else given
        router = replace(trained.router, temperature=temperature, threshold=threshold)
        save_router(router, place)
        self.context.note(f"router {step}, seed {seed}: {sum(right)} of {len(right)} val rows")
        return {
            "step": step, "seed": seed, "folder": str(place), "sha256": content_hash(place),
            "val_accuracy": sum(right) / len(right), "val_rows": len(right), "right": list(right),
            **trained.as_dict(), "temperature": temperature, "threshold": threshold,
            "threshold_reason": abstaining.reason if given is None else "set in the job",
        }  # fmt: skip

    def _trained(self, step: LadderStep, rows: Sequence[RouterRow], place: Path, seed: int) -> RouterTraining:
        bank = self.served.bank
        if step == "probe":
            return train_probe(self.states, self.labels, rows, self.val, candidates=self.probes)
        settings = self._settings(len(rows))
        if seed == 0:
            chosen = ((name, getattr(settings, name), why) for name, why in settings.reasons.items())
            said = "; ".join(f"{name} {value:g} ({why})" for name, value, why in chosen)
            self.context.note(f"router {step}: {said}")
        if step == "early":
            return train_early_router(
                bank, self.labels, rows, self.val, settings=settings, directory=place, seed=seed
            )
        tokens = router_tokens(self.served.tokenizer, len(self.labels))
        return train_suffix_router(
            bank, self.labels, rows, self.val, tokens=tokens, settings=settings, directory=place, seed=seed
        )

    def _settings(self, n_rows: int) -> RouterSettings:
        section = self.job.router
        parameters = sum(parameter.numel() for parameter in self.served.bank.model.parameters())
        most = (
            section.max_steps if self.job.pace == "full" else min(section.max_steps or FAST_STEPS, FAST_STEPS)
        )
        return suggest_router(
            n_rows, parameters=parameters, vision=self.vision, longest_row=self.longest, rank=section.rank,
            learning_rate=section.learning_rate, max_steps=most, patience=section.patience,
        )  # fmt: skip


def _drawn(rows: Sequence[RouterRow], seed: int) -> list[RouterRow]:
    """Nine tenths of the rows, in order."""
    count = max(1, round(SEED_SHARE * len(rows)))
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), count))]
