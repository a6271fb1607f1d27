"""From a job file to a plan: everything that is known before any weight is loaded. No torch.

The same steps serve `scaler plan`, `run` and `run_job`: read and validate the job, read the model's facts
from its headers, probe the machine, look at the first rows of the data as the model will see them. Each
recipe adds one function that makes its paths absolute and one that plans it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.data.generators import GENERATORS
from scaler_wizard.data.sample import DataSample, check_held_out, sample_data, sample_file
from scaler_wizard.data.worlds import open_world
from scaler_wizard.errors import DataFileMissingError, ModelNotFoundError, SpecError
from scaler_wizard.jobs.history import run_records
from scaler_wizard.planning.bootstrap import make_bootstrap_plan
from scaler_wizard.planning.continual import make_continual_plan
from scaler_wizard.planning.experts import make_experts_plan
from scaler_wizard.planning.facts import ModelFacts, read_facts
from scaler_wizard.planning.hardware import Hardware, probe_hardware
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import Plan, make_plan
from scaler_wizard.planning.templates import load_templates
from scaler_wizard.specs.bootstrap import BootstrapJob, constitution_name
from scaler_wizard.specs.constitution import SHIPPED, read_constitution
from scaler_wizard.specs.continual import ContinualJob
from scaler_wizard.specs.experts import ExpertSection, ExpertsJob, RoutingSection
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.specs.job import FileJob
from scaler_wizard.specs.job import parse_job as parse_any_job
from scaler_wizard.specs.sections import ModelSection
from scaler_wizard.specs.yaml_io import read_yaml
from scaler_wizard.store.learned_sizes import LearnedSize, learned_sizes
from scaler_wizard.store.workspace import Workspace

Preparable = FileJob | ContinualJob


@dataclass(frozen=True)
class Prepared:
    """A job that can be planned, and its plan."""

    job: Preparable
    facts: ModelFacts
    hardware: Hardware
    sample: DataSample | None
    """Rows of the data as the model will see them; None where the run makes its data itself."""
    plan: Plan


@dataclass(frozen=True)
class Given:
    """What every planner may look at, besides the job."""

    workspace: Workspace | None
    machine: Hardware
    facts: ModelFacts
    tokenizer: Path
    """Directory of the tokenizer."""

    @property
    def learned(self) -> tuple[LearnedSize, ...]:
        """Micro-batch sizes that earlier runs of this workspace were brought down to."""
        return tuple(learned_sizes(self.workspace.learned)) if self.workspace else ()


def load_job(path: Path) -> FileJob:
    """Read and validate a job file; relative paths in it are relative to the file's folder.

    Raises:
        SpecError: not readable, not YAML, or not a job.
    """
    return parse_job(read_yaml(path), path.absolute().parent)


def parse_job(value: dict[str, Any], folder: Path) -> FileJob:
    """Validate a job mapping and make its local paths absolute.

    Raises:
        SpecError: an unknown recipe, or anything the spec refuses.
    """
    job = parse_any_job(value)
    if not isinstance(job, FileJob):
        raise SpecError(
            f"a job file of recipe {job.recipe}", f"recipe {', '.join(ABSOLUTE)}",
            "files of a continual model go into the inbox of `scaler daemon start`",
        )  # fmt: skip
    changes = ABSOLUTE[job.recipe](job, folder)
    return job.model_copy(update={**changes, "model": _absolute_model(job.model, folder)})


def absolute_path(path: str, folder: Path) -> str:
    """A path as a job file writes it, seen from the file's folder."""
    return str((folder / Path(path).expanduser()).resolve())


def _absolute_model(model: ModelSection, folder: Path) -> ModelSection:
    # A name that is a folder here is that folder; anything else is a hub name or "seedling".
    local = folder / Path(model.base_model).expanduser()
    if not local.is_dir():
        return model
    return model.model_copy(update={"base_model": str(local.resolve())})


def _absolute_grow(job: GrowJob, folder: Path) -> dict[str, Any]:
    dataset = job.dataset
    changes: dict[str, Any] = {}
    if dataset.source == "local":
        changes["identifier"] = absolute_path(dataset.identifier, folder)
    if dataset.text_file:
        changes["text_file"] = absolute_path(dataset.text_file, folder)
    return {"dataset": dataset.model_copy(update=changes)}


def _absolute_experts(job: ExpertsJob, folder: Path) -> dict[str, Any]:
    """Paths of the experts, and the settings of dataset.yaml in the place of its path."""

    def absolute(expert: ExpertSection) -> ExpertSection:
        named = {key: getattr(expert, key) for key in ("adapter", "data", "image_root")}
        return expert.model_copy(update={k: absolute_path(v, folder) for k, v in named.items() if v})

    dataset = job.dataset
    if isinstance(dataset, str):
        file = Path(absolute_path(dataset, folder))
        dataset = RoutingSection.parse(read_yaml(file), where=file.name)
    return {"experts": [absolute(expert) for expert in job.experts], "dataset": dataset}


def _absolute_bootstrap(job: BootstrapJob, folder: Path) -> dict[str, Any]:
    """Paths of the prompts and of a constitution of one's own."""
    world, constitution = job.world, job.constitution
    found: dict[str, Any] = {}
    if world.file is not None:
        found["world"] = world.model_copy(update={"file": absolute_path(world.file, folder)})
    if constitution.source is not None and constitution.source not in SHIPPED:
        path = absolute_path(constitution.source, folder)
        found["constitution"] = constitution.model_copy(update={"source": path})
    return found


ABSOLUTE: dict[str, Callable[[Any, Path], dict[str, Any]]] = {
    "grow": _absolute_grow,
    "experts": _absolute_experts,
    "bootstrap": _absolute_bootstrap,
}
"""By recipe: (job, folder of its file) -> sections with absolute paths. The model's is everybody's."""


def prepare(job: Preparable, workspace: Workspace | None, hardware: Hardware | None = None) -> Prepared:
    """Facts, machine, data sample and plan of a job. Loads no weights.

    Raises:
        ScalerError: whatever makes the job impossible, each with what to do.
    """
    folder = workspace.root if workspace else Path.cwd()
    machine = hardware or probe_hardware(folder)
    path = resolve_model(job.model.base_model, job.model.revision)
    facts = read_facts(path, allow_remote_code=job.model.trust_remote_code)
    tokenizer = Path(job.model.tokenizer) if job.model.tokenizer else path
    given = Given(workspace, machine, facts, tokenizer)
    sample, plan = PLANNERS[job.recipe](job, given)
    return Prepared(job, facts, machine, sample, plan)


def _plan_continual(job: ContinualJob, given: Given) -> tuple[DataSample, Plan]:
    sample = sample_file(job.dataset, given.tokenizer)
    plan = make_continual_plan(job, given.machine, given.facts, data=sample.summary, learned=given.learned)
    return sample, plan


def _plan_grow(job: GrowJob, given: Given) -> tuple[DataSample, Plan]:
    workspace = given.workspace
    sample = sample_data(job, given.tokenizer)
    section = job.scaling.distillation
    plan = make_plan(
        job, given.machine, given.facts, run_records(workspace) if workspace else [],
        templates=load_templates(workspace.root if workspace else None), data=sample.summary,
        teacher=read_facts(resolve_model(section.teacher)) if section else None, learned=given.learned,
    )  # fmt: skip
    check_held_out(sample, plan.base_context, plan.target_context)
    return sample, plan


def _check_expert(expert: ExpertSection) -> None:
    """What an expert names is there; what is in it, the run looks at.

    Raises:
        DataFileMissingError, ModelNotFoundError, SpecError: it is not.
    """
    if expert.data is not None and not Path(expert.data).exists():
        raise DataFileMissingError(
            f'expert "{expert.label}" names data that is not there ({expert.data})', "a data file",
            "correct experts.data",
        )  # fmt: skip
    if expert.adapter is not None and not (Path(expert.adapter) / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f'expert "{expert.label}" names an adapter that is not there ({expert.adapter})',
            "a folder with adapter_config.json", "correct experts.adapter, or leave it out to train one",
        )  # fmt: skip
    if expert.generator is not None and expert.generator not in GENERATORS:
        near = difflib.get_close_matches(expert.generator, GENERATORS, n=1)
        raise SpecError(
            f'expert "{expert.label}" names the generated task "{expert.generator}", which does not exist',
            f"one of: {', '.join(GENERATORS)}", f'did you mean "{near[0]}"?' if near else "name one",
        )  # fmt: skip


def _plan_experts(job: ExpertsJob, given: Given) -> tuple[None, Plan]:
    for expert in job.experts:
        _check_expert(expert)
        if expert.label in job.labels and not (expert.data or expert.generator):
            raise SpecError(
                f'expert "{expert.label}" has an adapter and no data',
                "questions of its kind in experts.data (or a generator): the router learns from them, and "
                "the adapter is measured on those held out",
                f"add data, or leave it out with dataset.experts: {{{expert.label}: 0}}",
            )
    return None, make_experts_plan(job, given.machine, given.facts, learned=given.learned)


def _plan_bootstrap(job: BootstrapJob, given: Given) -> tuple[None, Plan]:
    # Files that cannot be used are refused before anything is queued.
    open_world(job)
    read_constitution(constitution_name(job))
    return None, make_bootstrap_plan(job, given.machine, given.facts, learned=given.learned)


PLANNERS: dict[str, Callable[[Any, Given], tuple[DataSample | None, Plan]]] = {
    "grow": _plan_grow,
    "experts": _plan_experts,
    "continual": _plan_continual,
    "bootstrap": _plan_bootstrap,
}
"""By recipe: (job, what is known) -> a look at its data, where it has any, and the plan."""
