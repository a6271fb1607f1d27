"""A spec as YAML text in which each key stands under its own documentation: a file a person can edit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from scaler_wizard.specs.base import Spec, inner_model, key_of
from scaler_wizard.specs.yaml_io import dump_yaml

WIDTH = 100
INDENT = "  "


def commented_yaml(spec: Spec, *, leave_out: frozenset[str] = frozenset(), only_set: bool = False) -> str:
    """The keys of `spec` with their values, each below its documentation; `parse_yaml` reads back the same.

    Args:
        leave_out: top-level keys that are not written.
        only_set: without the keys that were left at their defaults.
    """
    value = spec.model_dump(mode="json", by_alias=True, exclude_unset=only_set)
    kept = {key: item for key, item in value.items() if key not in leave_out}
    return "\n".join(_lines(type(spec), kept, "")) + "\n"


def _lines(model: type[BaseModel], value: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = key_of(name, field)
        if key not in value:
            continue
        if not indent:
            yield ""
        yield from textwrap.wrap(
            field.description or "", WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        inner = inner_model(field.annotation)
        if inner is not None and isinstance(value[key], Mapping):
            yield f"{indent}{key}:"
            yield from _lines(inner, value[key], indent + INDENT)
        else:
            for line in dump_yaml({key: value[key]}).splitlines():
                yield indent + line
