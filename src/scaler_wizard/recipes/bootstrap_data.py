"""Rows that a model makes for its own training: what they are, which are kept, how they are written down.

Kept is what the model's own samples agree on and what it is confident of. The world's verifier never chooses:
it only counts how many of the kept rows are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scaler_wizard.data.diversity import MOST_OF_A_KIND, MadeTasks
from scaler_wizard.data.generation_gates import Generated
from scaler_wizard.data.generators.example import first_answer
from scaler_wizard.data.records import read_records
from scaler_wizard.data.world_forms import RIGHT
from scaler_wizard.recipes.bootstrap_lab import Lab, Pair
from scaler_wizard.recipes.bootstrap_sampling import Ask, Sampled
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics

CHANCE_SEED_OFFSET = 3_000_017
"""Keeps the draw of what chance gives apart from the draws that data is made from."""
CHANCE_DRAWS = 4


@dataclass(frozen=True, slots=True)
class MadeRow:
    """One row that was made, kept or not."""

    id: str
    skill: str
    type: str
    prompt: str
    """What training asks."""
    answer: str
    """What training answers."""
    text: str
    """The model's whole continuation, which the answer was taken from."""
    ended: bool
    agreement: float | None = None
    """Share of the samples that equal the likeliest answer."""
    confidence: float | None = None
    """Mean probability of the answer's tokens."""
    kept: bool = True
    reason: str = ""
    """Why it was rejected."""
    right: bool | None = None
    """What the verifier says, where it knows. Only counted."""
    kind: str = ""
    """Where a draft is judged or mended: what was done to it; "right" where nothing."""
    verdict: str = ""
    """Where a draft is mended: what the judge of stage 4 said of it."""
    task: str = ""
    """The task that the model made and that the row is about, as an instruction; "" where it made none."""

    @property
    def pair(self) -> Pair:
        """As training reads it."""
        return self.prompt, self.answer

    def rejected(self, reason: str) -> MadeRow:
        """The row, not kept; the first reason stays."""
        return self if not self.kept else replace(self, kept=False, reason=reason)

    def generated(self) -> Generated:
        """As the data gates read it."""
        return Generated(self.prompt, self.text, self.answer, self.ended, self.kept, self.reason)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What several samples of one answer say together."""

    text: str
    """The likeliest answer, cut to what counts."""
    raw: str
    ended: bool
    agreement: float
    confidence: float
    reason: str
    """Why it is not used; "" where it is."""
    samples: tuple[str, ...]
    """The other samples' answers."""


def agreed_answers(
    lab: Lab, context: PhaseContext, where: str, key: str, prompts: Sequence[tuple[str, tuple[int, ...]]],
    *, lines: bool = False,
) -> list[Agreed]:  # fmt: skip
    """The likeliest answer to each prompt (id, token ids), and whether samples and confidence bear it out."""
    section = lab.job.sampling
    asks = [
        Ask(name, ids, section.max_new_tokens, samples=section.samples, temperature=section.temperature)
        for name, ids in prompts
    ]
    found = lab.answers(context, where, key, asks, lines=lines)
    scores = lab.confidence(
        context, [(ids, row[0].text) for (_, ids), row in zip(prompts, found, strict=True)]
    )
    return [
        _agreed(row, score, section.agreement, section.confidence)
        for row, score in zip(found, scores, strict=True)
    ]


def _agreed(row: Sequence[Sampled], confidence: float, least: float, sure: float) -> Agreed:
    likeliest, others = row[0], row[1:]
    text = first_answer(likeliest.text)
    samples = tuple(first_answer(item.text) for item in others)
    agreement = sum(sample == text for sample in samples) / len(samples) if samples else 1.0
    reason = ""
    if not text:
        reason = "empty"
    elif not likeliest.ended:
        reason = "token limit"
    elif agreement < least:
        reason = "samples disagree"
    elif confidence < sure:
        reason = "not confident"
    return Agreed(text, likeliest.text, likeliest.ended, agreement, confidence, reason, samples)


def judge_agreement(rows: Sequence[MadeRow]) -> Metrics | None:
    """How often the judge's verdict is that of the plain comparison; None where nothing was judged."""
    judged = [row for row in rows if row.verdict or row.skill == "revise"]
    if not judged:
        return None
    same = sum(row.verdict == ("yes" if row.kind == RIGHT else "no") for row in judged)
    return {"same": same, "n": len(judged)}


def made_tasks(lab: Lab, rows: Sequence[MadeRow], asked: int) -> MadeTasks:
    """The tasks that rows are about, beside tasks of the world's own of the same kinds.

    asked: how many tasks were to be made.
    """
    made = [(row.type, row.task) for row in rows]
    kinds = sorted({kind for kind, _ in made})
    seed = lab.job.training.seed + CHANCE_SEED_OFFSET
    own = lab.world.tasks("train", CHANCE_DRAWS * MOST_OF_A_KIND * len(kinds), seed, kinds) if kinds else ()
    return MadeTasks(asked, made, [(task.type, task.explicit) for task in own])


def precision(rows: Sequence[MadeRow]) -> Metrics:
    """How many of the kept rows are right, and how many were before any was rejected; where it is known."""
    known = [row for row in rows if row.right is not None]
    kept = [row for row in known if row.kept]
    return {
        "before": _share([bool(row.right) for row in known]), "n_before": len(known),
        "kept": _share([bool(row.right) for row in kept]), "n_kept": len(kept),
    }  # fmt: skip


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def kept_pairs(path: Path, sha256: str) -> list[Pair]:
    """The kept rows of a record file, as training reads them.

    Raises:
        RunError: it is missing, or not the file that was written.
    """
    return [(row["prompt"], row["answer"]) for row in read_records(path, sha256) if row["kept"]]
