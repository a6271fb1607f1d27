"""Rules of the house that no single room can hold itself to."""

from __future__ import annotations

import ast
import importlib
import os
import re
import resource
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import typer

from scaler_wizard.cli.main import COMMANDS
from scaler_wizard.jobs.prepare import load_job, parse_job, prepare
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import FAKES
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import make_plan
from scaler_wizard.specs.yaml_io import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "scaler_wizard"
PACKAGE = SOURCE.name
# Downward: a room imports only rooms after it.
ORDER = (
    "cli", "jobs", "serving", "recipes", "runs", "evals", "inference", "training", "losses", "models", "data",
    "report", "safety", "planning", "store", "specs", "errors",
)  # fmt: skip
LIBRARY = {"runner", "assets"}  # top level: runner.py is the library's door, assets holds files only
UPPER_HALF = ("cli", "jobs", "serving", "report", "safety", "planning", "store", "specs", "errors")
HEAVY = {"torch", "transformers", "peft", "trl", "accelerate"}
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Every module of this package that a file names, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return {name for name in found if name == PACKAGE or name.startswith(f"{PACKAGE}.")}


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def type_only_imports(path: Path) -> set[str]:
    """Modules imported under `if TYPE_CHECKING`: no import at run time."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            found |= {
                inner.module for inner in ast.walk(node) if isinstance(inner, ast.ImportFrom) and inner.module
            }
    return found


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_module_has_a_place_in_the_order() -> None:
    rooms = {room_of(name) for name in MODULES}
    assert rooms - {"", *LIBRARY} == set(ORDER)


def test_imports_point_downward() -> None:
    rank = {room: place for place, room in enumerate(ORDER)}
    upward = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target in targets
        if room_of(module) in rank and room_of(target) in rank
        if rank[room_of(target)] < rank[room_of(module)]
    ]
    assert not upward


def test_nothing_imports_the_library_door() -> None:
    assert not [name for name, targets in IMPORTS.items() if f"{PACKAGE}.runner" in targets]


def test_imports_have_no_cycle() -> None:
    graph = {name: IMPORTS[name] - type_only_imports(MODULES[name]) - {name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path[path.index(name) :], name))}"
        if name in done:
            return
        for target in sorted(graph.get(name, ())):
            visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def run_python(code: str, *arguments: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, cwd=cwd,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def reaches_torch(module: str, seen: set[str]) -> bool:
    """Whether a module imports torch by its own text, or through another module of the package."""
    seen.add(module)
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    tops = {
        alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    tops |= {
        node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom) and node.module
    }
    if tops & HEAVY:
        return True
    return any(reaches_torch(name, seen) for name in IMPORTS[module] if name in MODULES and name not in seen)


def test_the_upper_half_never_imports_torch() -> None:
    upper = [name for name in MODULES if room_of(name) in UPPER_HALF and "migrations.env" not in name]
    data = [name for name in MODULES if room_of(name) == "data" and not reaches_torch(name, set())]
    assert f"{PACKAGE}.data.sample" in data
    code = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    assert run_python(code, *upper, *data).strip() == "[]"


def test_planning_the_demo_imports_no_torch(tmp_path: Path) -> None:
    demo = files(f"{PACKAGE}.assets").joinpath("demo_grow.yaml")
    (tmp_path / "job.yaml").write_text(demo.read_text(encoding="utf-8"), encoding="utf-8")
    code = (
        "import sys\n"
        "from scaler_wizard.cli.main import app\n"
        "app(['plan', 'job.yaml', '-w', 'space'], standalone_mode=False)\n"
        "print('torch' in sys.modules)\n"
    )
    assert run_python(code, cwd=tmp_path).splitlines()[-1] == "False"


def test_help_starts_quickly() -> None:
    """Under 0.3 s of CPU time, the best of five: a busy machine must not fail it, an import of torch must."""

    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "scaler_wizard.cli.main", "--help"],
            capture_output=True, env={**os.environ, "PYTHONPATH": str(SOURCE.parent)}, check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert b"rollback" in done.stdout
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(5)) < 0.3


def test_there_are_shipped_configs() -> None:
    assert CONFIGS, "configs/ holds no job"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_parses_and_plans(path: Path, tmp_path: Path) -> None:
    job = load_job(path)
    assert job.contract is None, "a shipped job must be signed by the person who runs it"
    prepared = prepare(job, None, FAKES["rtx_3090"])
    assert prepared.plan.phases


def test_the_demo_plans_on_every_fake_machine() -> None:
    text = files(f"{PACKAGE}.assets").joinpath("demo_grow.yaml").read_text(encoding="utf-8")
    job = parse_job(parse_yaml(text), ROOT)
    facts = read_facts(resolve_model(job.model.base_model))
    for name, machine in FAKES.items():
        plan = make_plan(job, machine, facts)
        assert [phase.context for phase in plan.phases] == [128, 128, 256, 512, 512], name


@pytest.mark.parametrize("path", sorted((SOURCE / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_recipes_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "torch.load", "yaml.unsafe_load"}


@pytest.mark.parametrize("path", list(MODULES.values()), ids=list(MODULES))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & {
                "pickle",
                "dill",
                "cloudpickle",
                "marshal",
                "joblib",
            }
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            place = f"line {node.lineno}: {called}"
            assert called not in FORBIDDEN_CALLS, place
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("shell") in (None, "False"), place
            if called == "yaml.load":
                assert keywords.get("Loader") == "_StrictLoader", place
            if called.startswith("yaml.safe_load"):
                pytest.fail(f"{place}: use specs.yaml_io, which refuses aliases and duplicate keys")


def test_every_error_class_is_raised_somewhere() -> None:
    tree = ast.parse(MODULES[f"{PACKAGE}.errors"].read_text(encoding="utf-8"))
    classes = {
        node.name: [ast.unparse(base) for base in node.bases]
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    families = {base for bases in classes.values() for base in bases}
    used = {
        node.id if isinstance(node, ast.Name) else node.attr
        for name, path in MODULES.items()
        if name != f"{PACKAGE}.errors"
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        for node in [call.func]
        if isinstance(node, ast.Name | ast.Attribute)
    }
    # A class that others inherit from may stand for its family in `except` only.
    assert not sorted(set(classes) - used - families)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_imports_and_has_help(name: str) -> None:
    place, summary = COMMANDS[name]
    module, _, attribute = place.partition(":")
    command = typer.main.get_command(
        getattr(importlib.import_module(f"{PACKAGE}.cli.{module}"), attribute or "app")
    )
    assert summary.endswith(".")
    assert len(summary) <= 90
    assert command.help, f"{name} --help explains nothing"
    assert all(getattr(option, "help", "") for option in command.params), "an option without help"


def test_messages_name_only_commands_that_exist() -> None:
    mentioned = {
        (name, match)
        for name, path in MODULES.items()
        for match in re.findall(r"`scaler ([a-z]+)", path.read_text(encoding="utf-8"))
    }
    assert not {(name, command) for name, command in mentioned if command not in COMMANDS}
