"""consolidate: merge the adapter of a lineage's current version into its base, and export the whole model.

P0 loads base and adapter and keeps reference logits. P1 merges, compares with the reference, exports, and
compares what was read back. The result becomes the lineage's next version, a new base: the next file trains a
fresh adapter on it. Nothing is learned, so a version that answers otherwise than before is an error.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from scaler_wizard.data.chat import prepare_chat_template
from scaler_wizard.errors import ModelError, RunError
from scaler_wizard.models.export import SHORT_CHECK, export_merged, probe_ids
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.models.merge import COARSEST, TOLERANCE, compare_logits, merge_adapter, sampled_logits
from scaler_wizard.models.tensor_files import TensorFile, write_files
from scaler_wizard.planning.consolidation import REFERENCE_POSITIONS
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.continual_parent import read_parent
from scaler_wizard.recipes.continual_result import model_record
from scaler_wizard.recipes.grow_result import memory_record
from scaler_wizard.recipes.session import ModelSession
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics, Phase
from scaler_wizard.specs.continual import ConsolidateJob
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.training.memory import peak_memory_bytes

REFERENCE_FILE = "reference.safetensors"


class ConsolidateRecipe:
    """The phases of one merge."""

    def __init__(self, job: ConsolidateJob, plan: Plan, run_dir: RunDir) -> None:
        self.job = job
        self.plan = plan
        self.run_dir = run_dir
        self.parent = read_parent(run_dir.parent(), job)
        if self.parent.adapter is None or self.parent.version != job.version:
            raise RunError(
                f"{self.parent.words} was found where v{job.version:03d} is to be merged",
                "that version, with an adapter of its own", "`scaler models list` shows what there is",
            )  # fmt: skip
        self.done: dict[str, Metrics] = {}
        self.reference: dict[str, Tensor] = {}
        self.session: ModelSession

    def phases(self) -> Iterator[Phase]:
        """Measure, then merge. No gates: the standing contract covers it."""
        yield Phase("P0", f"measure {self.parent.words}", self.measure)
        yield Phase("P1", "merge, compare, export", self.merge)

    def restore(self, checkpoint: Checkpoint | None, done: dict[str, Metrics]) -> None:
        """Load base and adapter, and the reference where it was kept."""
        self.done = done
        self.session = ModelSession(self.job, self.plan, base=self.parent.base, adapter=self.parent.adapter)
        prepare_chat_template(self.session.tokenizer)
        if checkpoint is not None:
            self.reference = load_file(checkpoint.path / REFERENCE_FILE)

    def save(self, directory: Path) -> None:
        """Reference logits: the weights are the version's own, and the merged ones are in the export."""
        write_files({REFERENCE_FILE: TensorFile(self.reference)}, directory)

    def measure(self, context: PhaseContext) -> Metrics:
        """Logits of base and adapter on seeded ids, at a short length and at the longest row's."""
        for name, ids in self._ids().items():
            self.reference[name] = sampled_logits(self.session.adapted, ids, REFERENCE_POSITIONS)
            context.note(f"kept the logits of {self.parent.words} at {len(ids):,} tokens as reference")
        digest = self.parent.base_sha256 or weights_sha256(self.session.path)
        return {"weights_sha256": digest}

    def merge(self, context: PhaseContext) -> Metrics:
        """One whole model.

        Raises:
            ModelError: its logits are further from the reference than rounding explains.
        """
        merged = self.session.adapted = merge_adapter(self.session.adapted)
        ids = self._ids()
        found = compare_logits(
            [
                (self.reference[name], sampled_logits(merged, row, REFERENCE_POSITIONS))
                for name, row in ids.items()
            ],
            TOLERANCE.get(merged.dtype, COARSEST),
        )
        sentence = f"merged against {self.parent.words}: {found}"
        context.note(sentence)
        if not found.ok:
            raise ModelError(
                f"a merged model that answers otherwise: {sentence}",
                f"a mean difference within {found.tolerance:g} standard deviations",
                "nothing was changed; the lineage goes on with its adapter",
            )
        target = self.run_dir.export / "full"
        if target.exists():  # an attempt that was killed before its checkpoint
            shutil.rmtree(target)
        provenance = {"run": self.run_dir.id, "merged from": self.parent.words}
        report = export_merged(
            merged, self.session.tokenizer, target, title=self.run_dir.id, provenance=provenance,
            input_ids=ids["long"],
        )  # fmt: skip
        for line in report.sentences():
            context.note(f"full: {line}")
        return {"comparison": asdict(found), "sentence": sentence, "export": {"full": str(target)}}

    def finish(self, context: PhaseContext, done: dict[str, Metrics]) -> Metrics:
        """The record that the host publishes as a new base version."""
        merged = done["P1"]
        return {
            "run": self.run_dir.id,
            "recipe": "consolidate",
            "status": "completed",
            "seed": self.job.training.seed,
            "model": model_record(self.job, done["P0"]["weights_sha256"]),
            "parent": {"lineage": self.parent.lineage, "version": self.parent.version},
            "version": {
                "description": f"merged {self.parent.words} into a new base",
                "promote": True,
                "reasons": [merged["sentence"]],
                "metrics": {"consolidated": True, "comparison": merged["comparison"]},
            },
            "phases": [{"phase": name} for name in done],
            "table": [],
            "memory": memory_record(self.plan, peak_memory_bytes(self.session.device)),
            "export": merged["export"],
            "summary": {},
        }

    def _ids(self) -> dict[str, Tensor]:
        """Seeded token ids [T] by name; the base's rows, which merging does not change in number."""
        longest = self.plan.phase("P0").context
        ids = probe_ids(self.session.adapted, longest)
        return {"short": ids[: min(SHORT_CHECK, longest)], "long": ids}
