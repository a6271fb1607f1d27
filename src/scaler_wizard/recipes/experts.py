"""experts: many LoRA experts on one base behind one router, promoted only where that is worth it.

P0 merges the experts' data into a routing set, split so that nothing leaks. P1 trains an adapter for every
expert that has none, from rows that nothing is measured on, and one adapter for everything to compare with.
P2 reads every input once. P3 trains routers of rising cost and keeps the best. P4 measures where inputs go
and what is answered, beside the right expert, one adapter for all, the base and the majority. P5 exports all
of it and says whether it is promoted; the host publishes it as the next version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scaler_wizard.data.routing import RoutingSet
from scaler_wizard.errors import CheckpointError
from scaler_wizard.evals.worth import Standing, decide_worth
from scaler_wizard.inference.experts.routers.files import load_router
from scaler_wizard.inference.experts.served import Served, add_expert, serve_base
from scaler_wizard.models.feature_files import FeatureFiles
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.experts_bundle import export_bundle
from scaler_wizard.recipes.experts_data import generate, routing_set
from scaler_wizard.recipes.experts_in_service import decision_at_deploy, followed, measure_in_service
from scaler_wizard.recipes.experts_make import adapter_folders, changed_adapters, make_adapters
from scaler_wizard.recipes.experts_measure import (
    end_to_end,
    majority_label,
    measure_answers,
    measure_routing,
    measured_rows,
)
from scaler_wizard.recipes.experts_result import experts_result
from scaler_wizard.recipes.experts_routers import encode, train_routers
from scaler_wizard.recipes.session import DTYPES
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics, Phase
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.store.experts_bundle import MULTITASK
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

STATE_FILE = "experts.json"


class ExpertsRecipe:
    """The phases of one job. What they make lies in the run directory, its hashes in their metrics."""

    def __init__(self, job: ExpertsJob, plan: Plan, run_dir: RunDir) -> None:
        self.job = job
        self.plan = plan
        self.run_dir = run_dir
        self.done: dict[str, Metrics] = {}
        self.partial: Checkpoint | None = None
        self._rows: RoutingSet | None = None
        self._served: Served | None = None

    def phases(self) -> Iterator[Phase]:
        """One a stage. No gates: nothing that exists is changed before promotion, which asks numbers."""
        bodies = (self.generate, self.make, self.preprocess, self.train, self.measure, self.deploy)
        for phase, body in zip(self.plan.phases, bodies, strict=True):
            yield Phase(phase.name, phase.title, body)

    def restore(self, checkpoint: Checkpoint | None, done: dict[str, Metrics]) -> None:
        """Nothing is loaded before it is needed; what was made is checked against its hashes.

        Raises:
            CheckpointError: an adapter that this run trained is not what it was.
        """
        self.done = done
        self.partial = checkpoint if checkpoint is not None and checkpoint.kind == "step" else None
        if "P1" in done and (changed := changed_adapters(done["P1"])):
            raise CheckpointError(
                f"the adapters {', '.join(changed)} of this run are not what was trained",
                "the bytes that were written", f"`scaler rollback {self.run_dir.id} --to-phase 0`",
            )  # fmt: skip

    def save(self, directory: Path) -> None:
        """Which phases are done; their work is in the run directory."""
        (directory / STATE_FILE).write_text(json.dumps({"done": list(self.done)}), encoding="utf-8")

    @property
    def workspace(self) -> Workspace:
        """Where the run lies."""
        return Workspace(self.run_dir.path.parent.parent)

    @property
    def rows(self) -> RoutingSet:
        """The routing set, read and checked once an attempt."""
        if self._rows is None:
            self._rows = routing_set(self.done["P0"])
        return self._rows

    @property
    def served(self) -> Served:
        """The base with every adapter, each through its canary; loaded once an attempt."""
        if self._served is None:
            self._served = serve_base(
                self.job.model.base_model, device=self.plan.device, dtype=DTYPES[self.plan.precision],
                tokenizer=self.job.model.tokenizer,
                features=FeatureFiles(self.workspace.vision_features),
            )  # fmt: skip
            for label, folder in adapter_folders(self.job, self.done["P1"]).items():
                add_expert(self._served, label, folder)
            add_expert(self._served, MULTITASK, Path(self.done["P1"]["adapters"][MULTITASK]["folder"]))
        return self._served

    # P0

    def generate(self, context: PhaseContext) -> Metrics:
        """Merge, group, split, write."""
        return generate(context, self.job, self.run_dir)

    # P1

    def make(self, context: PhaseContext) -> Metrics:
        """Adapters of experts that have none, their plain twins, and one adapter for everything."""
        partial, self.partial = self.partial, None
        return make_adapters(context, self.job, self.plan, self.run_dir, self.rows, partial)

    # P2

    def preprocess(self, context: PhaseContext) -> Metrics:
        """Every input as tokens, kept by the hash of what it was made from."""
        cache = self.workspace.root / "cache" / "contents"
        return encode(context, self.served, self.rows, cache)

    # P3

    def train(self, context: PhaseContext) -> Metrics:
        """Each kind of router on the ladder; the best on the val rows, then again with other seeds."""
        return train_routers(context, self.job, self.served, self.rows, self.run_dir, self.done["P2"])

    # P4

    def measure(self, context: PhaseContext) -> Metrics:
        """Routing and answers on rows that nothing was trained or chosen on."""
        job, served = self.job, self.served
        rows = measured_rows(self.rows.test, self.rows.labels, job.evaluation.rows)
        routers = [load_router(Path(folder), served.bank) for folder in self.done["P3"]["seeds"]]
        routing = context.once("routing", partial(measure_routing, context, served, routers, rows))
        context.probe("routing", {"value": routing["accuracy"]["value"], **routing["accuracy"]})
        asked = measured_rows(rows, self.rows.labels, job.evaluation.answers)
        answers = measure_answers(context, served, routers[0], job, asked, majority_label(self.rows))
        measured = end_to_end(answers)
        context.probe("answers", measured.as_dict())
        standing = Standing(min(routing["per_label"].values()), routing["seeds"]["values"], job.pace)
        in_service = measure_in_service(context, served, job, self.run_dir, asked)
        decision = decide_worth(measured, standing, in_service)
        return {
            "routing": routing, "answers": answers, "end_to_end": measured.as_dict(),
            "in_service": in_service.as_dict(measured) if in_service is not None else None,
            "decision": decision.as_dict(), "accuracy": measured.share("routed").value,
        }  # fmt: skip

    # P5

    def deploy(self, context: PhaseContext) -> Metrics:
        """Export all that answers; the host publishes it: current where it is worth it, else held."""
        decision = decision_at_deploy(self.done["P4"], followed(self.run_dir))
        wanted = bool(decision["promote"]) and self.job.deploy.promote
        for reason in decision["reasons"]:
            context.note(f"{'promoted' if wanted else 'held'}: {reason}")
        for warning in decision["warnings"]:
            context.note(f"look at this: {warning}")
        digest = weights_sha256(resolve_model(self.job.model.base_model, self.job.model.revision))
        folder = export_bundle(
            self.job, self.run_dir, Path(self.done["P3"]["seeds"][0]), self.done, digest
        )  # fmt: skip
        return {"folder": str(folder), "promote": wanted, "decision": decision, "weights_sha256": digest}

    def finish(self, context: PhaseContext, done: dict[str, Metrics]) -> Metrics:
        """The record that the host publishes and the report shows."""
        return experts_result(self.job, self.plan, self.run_dir, done)
