"""Reference page and JSON Schemas, generated from the specs so that no field is described twice.

    python -m scaler_wizard.specs.documentation --write [--root DIR]
    python -m scaler_wizard.specs.documentation --check [--root DIR]

writes (or compares) docs/job.md, specs/cockpit_schema.json and specs/grow_schema.json under DIR. Knows
pydantic models only; prints nothing about how a run uses a value.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from scaler_wizard.errors import UnknownKeyError
from scaler_wizard.specs.base import inner_model, key_of, nearest_key
from scaler_wizard.specs.bootstrap import BootstrapJob
from scaler_wizard.specs.cockpit import CockpitPayload
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.specs.grow import GrowJob

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class FieldHelp:
    """What one key of a job file means."""

    path: str
    """Dotted place in the file, for example "scaling.lora.rank"."""
    type: str
    """Type and bounds in words."""
    default: str
    """Default as YAML writes it; "required" where there is none; "" for a section."""
    description: str


def cockpit_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the cockpit payload, in its own camelCase keys."""
    return _schema(CockpitPayload, "cockpit_schema.json")


def grow_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a `grow` job file."""
    return _schema(GrowJob, "grow_schema.json")


def config_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a workspace's config.yaml."""
    return _schema(ContinualConfig, "config_schema.json")


def experts_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of an `experts` job file."""
    return _schema(ExpertsJob, "experts_schema.json")


def bootstrap_schema() -> dict[str, Any]:
    """specs/bootstrap_schema.json: JSON Schema (2020-12) of a `bootstrap` job."""
    return _schema(BootstrapJob, "bootstrap_schema.json")


def field_help(path: str, model: type[BaseModel] = GrowJob) -> FieldHelp:
    """Help of one key by its dotted path.

    Raises:
        UnknownKeyError: no such key; names the nearest one at the level where the path breaks.
    """
    owner: type[BaseModel] | None = model
    found: FieldHelp | None = None
    parts = path.split(".")
    for depth, part in enumerate(parts):
        fields = {} if owner is None else {key_of(n, f): f for n, f in owner.model_fields.items()}
        if part not in fields:
            place = ".".join(parts[: depth + 1])
            raise UnknownKeyError(f'there is no key "{place}"', "", nearest_key(part, list(fields)))
        found = _help(".".join(parts[: depth + 1]), fields[part])
        owner = inner_model(fields[part].annotation)
    assert found is not None
    return found


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[FieldHelp]:
    """Every key of a spec in file order, sections before their keys."""
    for name, field in model.model_fields.items():
        path = prefix + key_of(name, field)
        yield _help(path, field)
        inner = inner_model(field.annotation)
        if inner is not None:
            yield from walk(inner, path + ".")


def job_page() -> str:
    """docs/job.md: every key of a `grow` job with type, default and description."""
    return _page(
        "The job file",
        "`scaler init` writes a complete job file, `scaler sign` the contract. Unknown keys are\n"
        "refused. The same rules as JSON Schema: `specs/grow_schema.json`.",
        GrowJob,
    )


def config_page() -> str:
    """docs/config.md: every key of a workspace's config.yaml."""
    return _page(
        "The workspace's config.yaml",
        "What a model that keeps learning learns, and how its daemon runs. `scaler daemon init` writes the\n"
        "file, `scaler daemon sign` the contract, `scaler config get|set|diff` reads and changes it. The\n"
        "sections model, lineage, training, data, replay, validation and safety are what is signed. The\n"
        "same rules as JSON Schema: `specs/config_schema.json`.",
        ContinualConfig,
    )


def experts_page() -> str:
    """docs/experts_job.md: every key of an `experts` job with type, default and description."""
    return _page(
        "The experts job file",
        "`configs/experts.yaml` is one to start from, `scaler sign` writes the contract; docs/experts.md\n"
        "says what becomes of it. The same rules as JSON Schema: `specs/experts_schema.json`.",
        ExpertsJob,
    )


def bootstrap_page() -> str:
    """docs/bootstrap_job.md: every key of a `bootstrap` job with type, default and description."""
    return _page(
        "The bootstrap job file",
        "`configs/bootstrap.yaml` is one to start from, `scaler sign` writes the contract;\n"
        "docs/bootstrap.md says what becomes of it. The same rules as JSON Schema:\n"
        "`specs/bootstrap_schema.json`.",
        BootstrapJob,
    )


def _page(title: str, about: str, model: type[BaseModel]) -> str:
    lines = [
        f"# {title}",
        "",
        "Generated by `python -m scaler_wizard.specs.documentation --write` from `src/scaler_wizard/specs/`;",
        "edit the text under the field there.",
        "",
        about,
        "",
        *_section("Top level", model, ""),
    ]
    for path, inner in _sections(model, ""):
        lines += _section(f"`{path}`", inner, path + ".")
    return "\n".join(lines).rstrip() + "\n"


def generated_files() -> dict[str, str]:
    """Path under the repository root -> text of every generated file."""
    return {
        "docs/bootstrap_job.md": bootstrap_page(),
        "docs/config.md": config_page(),
        "docs/experts_job.md": experts_page(),
        "docs/job.md": job_page(),
        "specs/bootstrap_schema.json": _json(bootstrap_schema()),
        "specs/cockpit_schema.json": _json(cockpit_schema()),
        "specs/config_schema.json": _json(config_schema()),
        "specs/experts_schema.json": _json(experts_schema()),
        "specs/grow_schema.json": _json(grow_schema()),
    }


def stale_files(root: Path) -> list[str]:
    """Generated files under `root` that are missing or differ from what the specs say now."""
    stale = []
    for name, text in generated_files().items():
        path = root / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    return stale


def write_files(root: Path) -> list[Path]:
    """Write every generated file under `root`; folders are made."""
    written = []
    for name, text in generated_files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when written or fresh, 1 when stale."""
    parser = argparse.ArgumentParser(prog="python -m scaler_wizard.specs.documentation")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the generated files")
    what.add_argument("--check", action="store_true", help="fail when a generated file is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="repository root (default: this folder)")
    options = parser.parse_args(arguments)
    if options.write:
        for path in write_files(options.root):
            print(path)
        return 0
    stale = stale_files(options.root)
    for name in stale:
        print(
            f"{name} is out of date; run: python -m scaler_wizard.specs.documentation --write",
            file=sys.stderr,
        )
    return 1 if stale else 0


def _schema(model: type[BaseModel], name: str) -> dict[str, Any]:
    body = model.model_json_schema(by_alias=True)
    return {"$schema": DIALECT, "$id": f"https://scaler-wizard.github.io/specs/{name}", **body}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n"


def _sections(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        inner = inner_model(field.annotation)
        if inner is not None:
            path = prefix + key_of(name, field)
            yield path, inner
            yield from _sections(inner, path + ".")


def _section(title: str, model: type[BaseModel], prefix: str) -> list[str]:
    """One table; keys are relative to the section in the heading."""
    lines = [f"## {title}", "", _first_paragraph(model), "", "| key | type | default | what it does |"]
    lines.append("| --- | --- | --- | --- |")
    for name, field in model.model_fields.items():
        help_ = _help(key_of(name, field), field)
        default = f"`{help_.default}`" if help_.default not in ("", "required") else help_.default
        kind = f"[section](#{_anchor(prefix + help_.path)})" if inner_model(field.annotation) else help_.type
        lines.append(f"| `{help_.path}` | {_cell(kind)} | {_cell(default)} | {_cell(help_.description)} |")
    return [*lines, ""]


def _help(path: str, field: FieldInfo) -> FieldHelp:
    section = inner_model(field.annotation) is not None
    if field.is_required():
        default = "required"
    elif section and field.default is not None:
        default = ""
    else:
        default = json.dumps(field.get_default(call_default_factory=False), ensure_ascii=False, default=str)
    return FieldHelp(path, _type_words(field), default, _one_line(field.description or ""))


def _type_words(field: FieldInfo) -> str:
    """The field's JSON Schema in words: "integer 1..1024 or empty", "one of a, b"."""
    inner = inner_model(field.annotation)
    if inner is not None:
        return "section" if field.default is not None else "section or empty"
    return _schema_words(TypeAdapter(field.rebuild_annotation()).json_schema())


def _schema_words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        options = [part for part in schema["anyOf"] if part.get("type") != "null"]
        empty = " or empty" if len(options) < len(schema["anyOf"]) else ""
        return " or ".join(_schema_words(part) for part in options) + empty
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    kind = str(schema.get("type", "any value"))
    names = {"array": "list", "string": "text", "boolean": "true or false", "object": "mapping"}
    words = names.get(kind, kind)
    if kind == "array" and "items" in schema:
        words += f" of {_schema_words(schema['items'])}"
    return " ".join(part for part in (words, _bounds(schema)) if part)


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:,}" for key, sign in signs.items() if key in schema]
    if "maxLength" in schema:
        bounds.append(f"of at most {schema['maxLength']} characters")
    return " and ".join(bounds)


def _first_paragraph(model: type[BaseModel]) -> str:
    return _one_line((model.__doc__ or "").split("\n\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(path: str) -> str:
    """Fragment that GitHub gives to the heading `path`."""
    return re.sub(r"[^a-z0-9_-]", "", path.lower())


if __name__ == "__main__":
    raise SystemExit(main())
