"""`scaler experts ...`: the stages of a job, and what is asked of experts in service."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scaler_wizard.cli import experts_serving, experts_versions
from scaler_wizard.cli.hosting import finish, host_run
from scaler_wizard.cli.options import JobArgument, JsonOption, WorkspaceOption, new_workspace, print_json
from scaler_wizard.cli.render import print_plan
from scaler_wizard.data.routing import merge_sources, routing_folder, write_routing
from scaler_wizard.data.routing_sources import parse_source
from scaler_wizard.errors import SpecError, UsageError
from scaler_wizard.jobs.client import Client
from scaler_wizard.jobs.prepare import load_job, prepare
from scaler_wizard.planning.experts import STAGES, phase_of_stage
from scaler_wizard.planning.plan import Plan
from scaler_wizard.safety.contract import check_job
from scaler_wizard.specs.experts import ExpertsJob, Pace, RoutingSection
from scaler_wizard.specs.yaml_io import read_yaml
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.workspace import Workspace

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Many LoRA experts behind one router: make, measure, serve.",
)
FastOption = Annotated[bool, typer.Option("--fast", help="20 steps a training: does every stage work?")]
TestOption = Annotated[bool, typer.Option("--test", help="A few rows and 20 steps: the smallest whole run.")]
DryOption = Annotated[bool, typer.Option("--dry", help="Show the plan; do nothing.")]
SourceOption = Annotated[
    list[str],
    typer.Option(
        "--source",
        help="A routing set without a job: label=NAME,jsonl=FILE for each expert; "
        ",image_root=FOLDER and ,limit=N may follow.",
    ),
]
DatasetOption = Annotated[Path | None, typer.Option(help="A dataset.yaml, with --source.")]


def _stage(stage: str) -> Callable[..., None]:
    def command(
        job: JobArgument, fast: FastOption = False, test: TestOption = False, dry: DryOption = False,
        workspace: WorkspaceOption = None, json: JsonOption = False,
    ) -> None:  # fmt: skip
        run_until(job, stage, pace_of(fast, test), dry=dry, workspace=workspace, json=json)

    return command


HELP = {
    "make": "Train the experts that have no adapter yet; stages before it are done first where they are not.",
    "preprocess": "Read every input once, so that routers and measurements find it as tokens.",
    "train": "Train each kind of router, choose one by held-out rows, calibrate it.",
    "eval": "Measure: where inputs go, and what is answered, beside one adapter for all and the base.",
    "deploy": "Promote what is worth it, or say why not. The last stage.",
    "run": "All stages. A run that paused, was killed or did some stages only goes on from there.",
}
for _name, _help in HELP.items():
    app.command(_name, help=_help)(_stage("deploy" if _name == "run" else _name))
experts_serving.add_commands(app)
experts_versions.add_commands(app)


@app.command()
def generate(
    job: Annotated[Path | None, typer.Argument(help="A job file (YAML); none with --source.")] = None,
    source: SourceOption = [],  # noqa: B006 (typer reads it once)
    dataset: DatasetOption = None,
    fast: FastOption = False,
    test: TestOption = False,
    dry: DryOption = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Merge the experts' data into a routing set, split so that nothing leaks."""
    if (job is None) == (not source):
        raise UsageError("generate was given both or neither of a job and --source", "one of them")
    if job is not None:
        run_until(job, "generate", pace_of(fast, test), dry=dry, workspace=workspace, json=json)
        return
    section = RoutingSection()
    if dataset is not None:
        section = RoutingSection.parse(read_yaml(dataset), where=dataset.name)
    sources = [parse_source(text) for text in source]
    labels = list(dict.fromkeys(one.label for one in sources))
    merged = merge_sources(sources, section, labels)
    counts = merged.counts()
    if not dry:
        now = datetime.now(UTC)
        folder = routing_folder(new_workspace(workspace).root, now.strftime("%Y%m%d_%H%M%S"))
        typer.echo(f"routing set: {write_routing(merged, section, folder, now.timestamp()).path}")
    for label, found in counts.items():
        typer.echo(f"{label}: {', '.join(f'{count:,} {split}' for split, count in found.items())}")
    if json:
        print_json({"counts": counts, "ambiguous_groups": merged.ambiguous})


def pace_of(fast: bool, test: bool) -> Pace:
    """The pace that two options name.

    Raises:
        UsageError: both.
    """
    if fast and test:
        raise UsageError("--fast and --test", "one of them: --test is the smaller one")
    return "fast" if fast else "test" if test else "full"


def run_until(path: Path, stage: str, pace: Pace, *, dry: bool, workspace: Path | None, json: bool) -> None:
    """Do a job's stages up to one; the run that has begun them, where there is one, goes on.

    Raises:
        SpecError: no experts job. ContractNotAcceptedError: it is not signed.
    """
    job = load_job(path)
    if not isinstance(job, ExpertsJob):
        raise SpecError(f"{path} is a job of recipe {job.recipe}", "recipe experts", "use `scaler run`")
    job = job.model_copy(update={"pace": pace})
    space, console = new_workspace(workspace), Console()
    prepared = prepare(job, space)
    if dry:
        print_plan(console, prepared)
        if json:
            print_json({"plan": prepared.plan.as_dict()})
        return
    check_job(job)
    run = find_begun(space, job) or create(space, job, prepared.plan)
    last = None if stage == STAGES[-1] else phase_of_stage(stage)
    space.run_dir(run).write_until(last)
    outcome = host_run(space, console, run=run)
    if last is not None and outcome["status"] == "paused" and "as asked" in str(outcome.get("error")):
        console.print(
            f"{stage} is done; `scaler experts run {path}` goes on", highlight=False, soft_wrap=True
        )
        if json:
            print_json({"run": run, "status": "paused", "stage": stage})
        return
    finish(space, console, outcome, json=json)


def find_begun(space: Workspace, job: ExpertsJob) -> str | None:
    """The newest run of exactly this job and pace that is not finished."""
    with Client(space) as client:
        rows = client.call("runs")["runs"]
    resting = {str(RunStatus.COMPLETED), str(RunStatus.SKIPPED), str(RunStatus.STOPPED)}
    wanted = job.model_dump(mode="json", exclude={"contract"})
    for row in sorted(rows, key=lambda row: -row["created"]):
        if row["recipe"] == "experts" and row["status"] not in resting:
            begun = {
                key: value for key, value in space.run_dir(row["run"]).job().items() if key != "contract"
            }
            if begun == wanted:
                return str(row["run"])
    return None


def create(space: Workspace, job: ExpertsJob, plan: Plan) -> str:
    """A new run; nothing of it has begun."""
    with Client(space) as client:
        values = job.model_dump(mode="json", by_alias=True)
        return str(client.call("create", job=values, plan=plan.as_dict())["run"])
