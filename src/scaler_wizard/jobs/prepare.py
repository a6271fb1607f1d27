"""From a job file to a plan: everything that is known before any weight is loaded. No torch.

The same steps serve `scaler plan`, `run` and `run_job`: read and validate the job, read the model's facts
from its headers, probe the machine, look at the first rows of the data as the model will see them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.data.sample import DataSample, check_held_out, sample_data, sample_file
from scaler_wizard.errors import SpecError
from scaler_wizard.jobs.history import run_records
from scaler_wizard.planning.continual import make_continual_plan
from scaler_wizard.planning.facts import ModelFacts, read_facts
from scaler_wizard.planning.hardware import Hardware, probe_hardware
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import Plan, make_plan
from scaler_wizard.planning.templates import load_templates
from scaler_wizard.specs.continual import ContinualJob
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.specs.job import parse_job as parse_any_job
from scaler_wizard.specs.yaml_io import read_yaml
from scaler_wizard.store.learned_sizes import learned_sizes
from scaler_wizard.store.workspace import Workspace


@dataclass(frozen=True)
class Prepared:
    """A job that can be planned, and its plan."""

    job: GrowJob | ContinualJob
    facts: ModelFacts
    hardware: Hardware
    sample: DataSample
    plan: Plan


def load_job(path: Path) -> GrowJob:
    """Read and validate a job file; relative paths in it are relative to the file's folder.

    Raises:
        SpecError: not readable, not YAML, or not a job.
    """
    return parse_job(read_yaml(path), path.absolute().parent)


def parse_job(value: dict[str, Any], folder: Path) -> GrowJob:
    """Validate a job mapping and make its local paths absolute.

    Raises:
        SpecError: an unknown recipe, or anything the spec refuses.
    """
    job = parse_any_job(value)
    if not isinstance(job, GrowJob):
        raise SpecError(
            f"a job file of recipe {job.recipe}", "recipe grow",
            "files of a continual model go into the inbox of `scaler daemon start`",
        )  # fmt: skip
    return _absolute(job, folder)


def _absolute(job: GrowJob, folder: Path) -> GrowJob:
    dataset = job.dataset
    changes: dict[str, Any] = {}
    if dataset.source == "local":
        changes["identifier"] = str((folder / Path(dataset.identifier).expanduser()).resolve())
    if dataset.text_file:
        changes["text_file"] = str((folder / Path(dataset.text_file).expanduser()).resolve())
    model = job.model
    local = folder / Path(model.base_model).expanduser()
    # A name that is a folder here is that folder; anything else is a hub name or "seedling".
    if local.is_dir():
        model = model.model_copy(update={"base_model": str(local.resolve())})
    return job.model_copy(update={"dataset": dataset.model_copy(update=changes), "model": model})


def prepare(
    job: GrowJob | ContinualJob, workspace: Workspace | None, hardware: Hardware | None = None
) -> Prepared:
    """Facts, machine, data sample and plan of a job. Loads no weights.

    Raises:
        ScalerError: whatever makes the job impossible, each with what to do.
    """
    folder = workspace.root if workspace else Path.cwd()
    machine = hardware or probe_hardware(folder)
    path = resolve_model(job.model.base_model, job.model.revision)
    facts = read_facts(path, allow_remote_code=job.model.trust_remote_code)
    tokenizer = Path(job.model.tokenizer) if job.model.tokenizer else path
    if isinstance(job, ContinualJob):
        sample = sample_file(job.dataset, tokenizer)
        learned = learned_sizes(workspace.learned) if workspace else ()
        plan = make_continual_plan(job, machine, facts, data=sample.summary, learned=learned)
    else:
        sample = sample_data(job, tokenizer)
        plan = _grow_plan(job, workspace, machine, facts, sample)
    return Prepared(job, facts, machine, sample, plan)


def _grow_plan(
    job: GrowJob, workspace: Workspace | None, machine: Hardware, facts: ModelFacts, sample: DataSample
) -> Plan:
    templates = load_templates(workspace.root if workspace else None)
    history = run_records(workspace) if workspace else []
    section = job.scaling.distillation
    teacher = read_facts(resolve_model(section.teacher)) if section else None
    plan = make_plan(
        job, machine, facts, history, templates=templates, data=sample.summary, teacher=teacher,
        learned=learned_sizes(workspace.learned) if workspace else (),
    )  # fmt: skip
    check_held_out(sample, plan.base_context, plan.target_context)
    return plan
