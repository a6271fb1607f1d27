"""The model of a bootstrap: an adapter that is merged when its stage is trained, and whole models as
checkpoints.

Every committed phase after the first holds a model directory that any transformers user can load; a step
checkpoint inside a phase holds the adapter and the optimiser, on the model of the phase before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaler_wizard.data.chat import use_question_template
from scaler_wizard.models.adapter_fold import base_of
from scaler_wizard.models.adapters import trainable_parameters
from scaler_wizard.models.export import write_model, write_tokenizer
from scaler_wizard.models.merge import merge_adapter
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.session import ModelSession
from scaler_wizard.specs.bootstrap import BootstrapJob
from scaler_wizard.store.checkpoint_files import Checkpoint

MODEL_DIR = "model"


class StageSession(ModelSession):
    """A base model, or the model of a stage, with a fresh adapter."""

    def __init__(self, job: BootstrapJob, plan: Plan, stage: Checkpoint | None = None) -> None:
        super().__init__(job, plan, base=None if stage is None else stage.path / MODEL_DIR)
        self.stage = stage
        """The checkpoint that the weights were loaded from; None for the base."""
        self.own_template: str | None = self.tokenizer.chat_template
        """The chat template that the model came with; a base has not learned it."""
        use_question_template(self.tokenizer)
        self.origin = plan.model_digest if stage is None else _digest(stage)
        """Names the weights as they were loaded."""
        self.merged = True
        """Whether the adapter is still no change: nothing was trained since the last merge."""
        self.trained_in = ""
        """What was trained since the weights were loaded: the phase, after the merge a hash; "" for none."""

    def merge(self) -> None:
        """The adapter into the weights, and a fresh adapter on them. Trained weights stay as they are."""
        hasher = hashlib.sha256()
        for name, value in sorted(trainable_parameters(self.adapted).items()):
            hasher.update(name.encode())
            hasher.update(value.detach().float().cpu().numpy().tobytes())
        self.trained_in += f"/{hasher.hexdigest()[:16]}"
        if self.plan.strategy != "full":
            self.adapted = self._attach(merge_adapter(self.adapted))
        self.adapted.eval()
        self.merged = True

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """For generating and measuring: adapters folded in where there is anything to fold."""
        if self.merged:
            yield
        else:
            with self.evaluating():
                yield

    def save_whole(self, directory: Path) -> None:
        """Write the merged model as a model directory; OSError when the disk refuses."""
        assert self.merged
        target = directory / MODEL_DIR
        target.mkdir()
        write_model(base_of(self.adapted), target)
        write_tokenizer(self.tokenizer, target, self.base_context)


def _digest(stage: Checkpoint) -> str:
    """One hash over the weights of a stage's model."""
    hasher = hashlib.sha256()
    for name, found in sorted(stage.files.items()):
        if name.startswith(f"{MODEL_DIR}/") and name.endswith(".safetensors"):
            hasher.update(f"{name} {found.sha256}\n".encode())
    return hasher.hexdigest()
