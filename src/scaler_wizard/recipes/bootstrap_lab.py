"""What every stage of a bootstrap works with: the session, the world, answers, questions, training.

A stage decides what is asked and what is kept; how answers are drawn resumably, rows become tokens, replay is
mixed in and the fixed questions are measured is here, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from scaler_wizard.data.records import read_records
from scaler_wizard.data.rows import Row
from scaler_wizard.data.token_rows import TokenRow, TokenRows
from scaler_wizard.data.tokens import tokenize_rows
from scaler_wizard.data.world import SKILLS, Skill, World
from scaler_wizard.data.world_questions import Question, check, questions
from scaler_wizard.evals.documents import text_ids
from scaler_wizard.evals.tasks import encode_prompt
from scaler_wizard.inference.generate import stop_token_ids
from scaler_wizard.inference.scoring import score_targets
from scaler_wizard.models.adapter_fold import base_of
from scaler_wizard.planning.plan import PhasePlan, Plan
from scaler_wizard.recipes.bootstrap_sampling import Ask, Sampled, Sampler
from scaler_wizard.recipes.bootstrap_session import StageSession
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.bootstrap import BootstrapJob, StageSection
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.store.rundir import RunDir

Pair = tuple[str, str]
"""(what is asked, what is answered)."""
QUESTION_SEED_OFFSET = 1_000_003
"""Keeps the questions' draws apart from the data's, whatever seed a job names."""


class Lab:
    """One run's material. `done` holds the metrics of the committed phases, kept up to date by the engine."""

    def __init__(self, job: BootstrapJob, plan: Plan, run_dir: RunDir, world: World) -> None:
        self.job = job
        self.plan = plan
        self.run_dir = run_dir
        self.world = world
        self.done: dict[str, Metrics] = {}
        self.partial: Checkpoint | None = None
        self.session: StageSession

    def directory(self, name: str) -> Path:
        """Where a stage's chunks and records lie: `bootstrap/stage2` in the run directory."""
        return self.run_dir.path / "bootstrap" / name

    def begin(self, partial: Checkpoint | None) -> None:
        """An attempt begins; `partial` is the step checkpoint of its training, where that was interrupted."""
        self.partial = partial

    # what is behind

    def has_passed(self, number: int) -> bool:
        """Whether a stage has passed its gate."""
        return any(found.get("stage") == number and found["passed"] for found in self.done.values())

    def passed(self, number: int) -> Metrics:
        """Metrics of the attempt of a stage that passed; of the assessment for 0."""
        return next(found for found in self.done.values() if found.get("stage") == number and found["passed"])

    def passed_answers(self, number: int) -> dict[str, list[bool]]:
        """What the model of a stage answered to the fixed questions; the base for 0."""
        answers: dict[str, list[bool]] = self.passed(number)["answers"]
        return answers

    def share_of(self, skill: Skill) -> float:
        """The share of right answers that a skill's own gate asks for."""
        section: StageSection = getattr(self.job.stages, skill)
        return section.share

    def base_texts(self) -> list[str]:
        """Texts that the base wrote before anything was trained, to be replayed.

        Raises:
            RunError: the file is not what the assessment wrote.
        """
        stored = self.passed(0)["base_texts"]
        rows = read_records(self.run_dir.path / stored["file"], stored["sha256"])
        return [str(row["text"]) for row in rows]

    # asking

    @cached_property
    def _turn_stops(self) -> frozenset[int]:
        return stop_token_ids(base_of(self.session.adapted), self.session.tokenizer)

    @cached_property
    def _line_stops(self) -> frozenset[int]:
        """Every token that ends a line: what ends a document's answer."""
        tokenizer = self.session.tokenizer
        found = {token for token in range(len(tokenizer)) if "\n" in tokenizer.decode([token])}
        return self._turn_stops | found

    def turn(self, text: str) -> tuple[int, ...]:
        """Token ids of one user turn, ready to be answered."""
        return tuple(encode_prompt(self.session.tokenizer, [{"role": "user", "content": text}]))

    def turn_opening(self, text: str) -> tuple[int, ...]:
        """Token ids of a user turn that is only begun: the model goes on as the one who asks."""
        messages = [{"role": "user", "content": text}]
        whole = self.session.tokenizer.apply_chat_template(messages, tokenize=False)
        return tuple(text_ids(self.session.tokenizer, whole[: whole.rindex(text) + len(text)]))

    def document(self, text: str) -> tuple[int, ...]:
        """Token ids of the beginning of a document."""
        return tuple(self.session.tokenizer.encode(text))

    def opening(self) -> tuple[int, ...]:
        """What a document of the base opens with: its first special token, else the one that ends texts."""
        tokenizer = self.session.tokenizer
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        assert first is not None
        return (int(first),)

    @property
    def weights(self) -> str:
        """Names the weights that the session holds: as they were loaded, and what was trained since."""
        session = self.session
        return f"{session.origin}+{session.trained_in}" if session.trained_in else session.origin

    def answers(
        self, context: PhaseContext, where: str, key: str, asks: Sequence[Ask], *, lines: bool = False
    ) -> list[list[Sampled]]:
        """Answers to every ask, the same after a kill as without one.

        Args:
            where: directory of the stage, see `directory`.
            key: what they are for: names the chunks and what the progress bar says.
            lines: whether a line break ends an answer, besides the tokens that end a turn.
        """
        session = self.session
        stops = self._line_stops if lines else self._turn_stops

        def count(tokens: int) -> None:
            context.generated += tokens

        with session.as_trained():
            sampler = Sampler(
                session.adapted,
                lambda ids: session.tokenizer.decode(list(ids), skip_special_tokens=True),
                self.directory(where), self.weights, self.job.training.seed,
                context.progress(key.replace("-", " ")), count,
            )  # fmt: skip
            return session.room.run(lambda: sampler.answers(key, asks, stops))

    def confidence(self, context: PhaseContext, asked: Sequence[tuple[tuple[int, ...], str]]) -> list[float]:
        """Geometric mean of the probabilities of each answer's tokens, given its prompt."""
        session = self.session
        end = session.tokenizer.eos_token_id
        rows, starts = [], []
        for prompt, answer in asked:
            ids = text_ids(session.tokenizer, answer)
            rows.append([*prompt, *ids] if ids else [*prompt, end])
            starts.append(len(prompt))
        with session.as_trained():
            scores = session.room.run(
                lambda: score_targets(
                    session.adapted, rows, starts, on_progress=context.progress("confidence of answers")
                )
            )
        context.scored += sum(map(len, rows))
        return [math.exp(sum(score) / len(score)) for score in scores]

    # measuring

    @cached_property
    def all_questions(self) -> dict[Skill, tuple[Question, ...]]:
        """The fixed questions of every skill."""
        n, seed = self.job.evaluation.questions, self.job.training.seed + QUESTION_SEED_OFFSET
        return {skill: questions(self.world, skill, n, seed) for skill in SKILLS}

    def measure(
        self, context: PhaseContext, where: str, skills: Sequence[Skill], known: Sequence[str] = ()
    ) -> tuple[dict[str, list[bool]], dict[str, list[Metrics]]]:
        """Right or wrong by skill, in the order of its questions, and what was said to the first few.

        known: tasks that the model was taught to make: they are not new when it makes them.
        """
        right: dict[str, list[bool]] = {}
        samples: dict[str, list[Metrics]] = {}
        for skill in skills:
            right[skill], samples[skill] = self._ask_skill(context, where, skill, set(known))
        return right, samples

    def _ask_skill(
        self, context: PhaseContext, where: str, skill: Skill, known: set[str]
    ) -> tuple[list[bool], list[Metrics]]:
        asked = self.all_questions[skill]
        asks = [
            Ask(f"{question.id}/{part}", self.turn(prompt), self.job.sampling.max_new_tokens,
                samples=int(question.temperature > 0), greedy=not question.temperature,
                temperature=question.temperature)
            for question in asked
            for part, prompt in enumerate(question.prompts)
        ]  # fmt: skip
        replies = iter(self.answers(context, where, f"questions-{skill}", asks))
        right, said, given = [], [], set[str]()
        for question in asked:
            texts = [next(replies)[0].text for _ in question.prompts]
            checked = check(self.world, question, texts, known, given)
            if skill == "make":
                given.add(texts[0].strip())
            right.append(checked.right)
            said.append(
                {"type": question.type, "kind": question.kind, "prompt": question.prompts[0],
                 "answer": texts[0][:400], "expected": question.expected[0], "right": checked.right,
                 "reason": checked.reason}
            )  # fmt: skip
        wrong_first = sorted(said, key=lambda sample: bool(sample["right"]))
        return right, wrong_first[:6] + wrong_first[-6:]

    # training

    def rows(self, pairs: Sequence[Pair], *, prompts_too: float = 0.0) -> TokenRows:
        """Token rows of (question, answer) turns.

        prompts_too: share of the rows that train on the question as well: a model that has learned to write
        questions can be asked for new ones.
        """
        data = tokenize_rows(
            [
                Row(number, {"messages": [
                    {"role": "user", "content": asked}, {"role": "assistant", "content": answer}]})
                for number, (asked, answer) in enumerate(pairs)
            ],
            "messages", self.session.tokenizer, context=self.session.base_context, source="made data",
        )  # fmt: skip
        every = round(1 / prompts_too) if prompts_too else 0
        return TokenRows.of(
            TokenRow(row.number, row.ids, np.ones_like(row.trained))
            if every and row.number % every == 0 else row
            for row in data.rows
        )  # fmt: skip

    def text_rows(self, texts: Sequence[str]) -> TokenRows:
        """Token rows of plain text."""
        opened = [Row(number, {"text": text}) for number, text in enumerate(texts) if text.strip()]
        if not opened:
            return TokenRows.of(())
        return tokenize_rows(opened, "text", self.session.tokenizer, context=self.session.base_context).rows

    def train(
        self, context: PhaseContext, phase: PhasePlan, rows: Sequence[TokenRow], replay: Sequence[TokenRow],
        steps: int, share: float, learning_rate: float | None = None,
    ) -> int:  # fmt: skip
        """Train on rows with a share of replay, and merge; the optimiser steps done."""
        session = self.session
        interrupted = self.partial.path if self.partial is not None else None
        self.partial = None
        if interrupted is not None:
            session.load(interrupted)
        training = session.training(phase, rows, replay, steps, share)
        if learning_rate is not None:
            training.settings = replace(training.settings, learning_rate=learning_rate)
        if interrupted is not None:
            session.continue_training(training, interrupted)
        session.trained_in, session.merged = context.phase, False
        done = session.run(context, training)
        session.merge()
        return done
