"""The session of a `grow` run: the model with the job's data set, its held-out texts and its probes."""

from __future__ import annotations

from collections.abc import Sequence

from scaler_wizard.data.batches import Collate
from scaler_wizard.data.batches import collate as collate_text
from scaler_wizard.data.dataset import Dataset, load_dataset
from scaler_wizard.data.join import join_rows
from scaler_wizard.data.rows import Row
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.tokens import TokenizedData, TokenReport, tokenize_rows
from scaler_wizard.evals.documents import MIN_DOCUMENTS
from scaler_wizard.evals.suite import Suite
from scaler_wizard.evals.tasks import TaskRow, row_from_conversation, row_from_example
from scaler_wizard.planning.plan import PhasePlan, Plan
from scaler_wizard.recipes.session import ModelSession, Training
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.specs.grow import GrowJob

SHORTEST_WINDOW = 64


class GrowSession(ModelSession):
    """The model of a `grow` run and what it is trained and measured on."""

    def __init__(self, job: GrowJob, plan: Plan, target_context: int) -> None:
        super().__init__(job, plan)
        self.job = job
        self.dataset: Dataset = load_dataset(job.dataset, job.training.seed, target_context)
        self._rows: dict[int, TokenizedData] = {}
        self._held_out_texts: tuple[str, ...] | None = None
        self._measured_context: int | None = None

    def rows_at(self, context: int) -> TokenizedData:
        """The dataset's training rows in pieces of at most `context` tokens."""
        if context not in self._rows:
            self._rows = {context: self._tokenize(self.dataset.train, context)}
        return self._rows[context]

    def _tokenize(self, rows: Sequence[Row], context: int) -> TokenizedData:
        section = self.job.dataset
        return tokenize_rows(
            rows, self.dataset.row_format, self.tokenizer, context=context, long_rows=section.long_rows,
            system_prompt=section.system_prompt, bad_rows=self.dataset.bad, source=self.dataset.source,
        )  # fmt: skip

    def text_rows(self, context: int) -> list[TokenRow]:
        """Training texts as rows of plain text in pieces of at most `context` tokens."""
        rows = [Row(number, {"text": text}) for number, text in enumerate(self.dataset.train_texts, start=1)]
        if not rows:
            return []
        return list(tokenize_rows(rows, "text", self.tokenizer, context=context, source="texts").rows)

    def long_rows(self, context: int) -> list[TokenRow]:
        """Rows that fill `context`: long texts in pieces, short texts or conversations joined.

        Joined rows see each other on purpose: far positions are learned from them.
        """
        source = self.text_rows(context) or list(self.rows_at(context).rows)
        return list(join_rows(source, context))

    @property
    def held_out_texts(self) -> tuple[str, ...]:
        """Texts to measure the context on; the held-out rows as the model sees them without any."""
        if self._held_out_texts is None:
            texts = self.dataset.held_out_texts
            if not texts:
                tokens = self._tokenize(self.dataset.held_out, 1 << 20).rows
                texts = tuple(self.tokenizer.decode(row.ids.tolist()) for row in tokens)
            self._held_out_texts = texts
        return self._held_out_texts

    def task_rows(self) -> list[TaskRow]:
        """Held-out questions with checkable answers."""
        if self.dataset.examples:
            return [row_from_example(example, "instruction") for example in self.dataset.examples]
        found = (
            row_from_conversation(conversation)
            for conversation in self.dataset.conversations(
                self.dataset.held_out, self.job.dataset.system_prompt
            )
        )
        return [row for row in found if row is not None]

    @property
    def measured_context(self) -> int:
        """Window the probes call the base context: the model's own.

        Shorter, by halves, only where the context stays and the held-out text is too little for the whole.
        """
        if self._measured_context is None:
            window = self.base_context
            if self.plan.target_context == self.base_context:
                held = sum(len(self.tokenizer(text).input_ids) for text in self.held_out_texts)
                while window > SHORTEST_WINDOW and held < MIN_DOCUMENTS * window:
                    window //= 2
            self._measured_context = window
        return self._measured_context

    def suite(self, context: PhaseContext) -> Suite:
        """The probes of this model. Limits that one measurement was brought down to hold for the next."""
        self.room.on_halving = context.note
        return Suite(
            self.adapted, self.tokenizer, self.held_out_texts, self.task_rows(), self.job.evaluation,
            self.measured_context, self.job.training.seed, context.progress,
            ends_turns=self.dataset.row_format != "text", room=self.room,
        )  # fmt: skip

    def training(
        self,
        phase: PhasePlan,
        rows: Sequence[TokenRow],
        replay: Sequence[TokenRow],
        steps: int,
        replay_fraction: float | None = None,
        collate: Collate = collate_text,
    ) -> Training:
        """See `ModelSession.training`; the job's own share of replayed rows where none is given."""
        share = self.job.training.replay_fraction if replay_fraction is None else replay_fraction
        return super().training(phase, rows, replay, steps, share, collate)

    def token_report(self) -> TokenReport:
        """What tokenising the training rows at the base context found."""
        return self.rows_at(self.base_context).report
