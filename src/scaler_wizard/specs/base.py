"""The base of every spec: frozen, no unknown key, documented where the field stands.

Field documentation is the string under each field; JSON Schema, reference page and command line
labels are generated from it, so it is written once.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from scaler_wizard.errors import SpecError, UnknownKeyError


class Spec(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, strict=False
    )

    @classmethod
    def parse(cls, value: object, where: str = "job") -> Self:
        """Validate a mapping (as read from YAML) and return the frozen spec.

        Raises:
            UnknownKeyError: a key that is not part of the format; names the nearest valid one.
            SpecError: any other mismatch; names the key, what was found and what was expected.
        """
        if not isinstance(value, dict):
            raise SpecError(
                f"{where} is {_kind(value)}", "a mapping of section names to settings",
                "start from `scaler init`, which writes a complete job file",
            )  # fmt: skip
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise _explain(cls, error, where) from None


def key_of(name: str, field: FieldInfo) -> str:
    """The key a file uses for a field: its alias where it has one."""
    return field.alias or name


def nearest_key(key: str, valid: list[str]) -> str:
    """What to do about an unknown key: the nearest valid one, or all of them."""
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"valid keys here: {', '.join(valid)}" if valid else "no keys are valid here"


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The spec class inside an annotation (`X`, `X | None`, `list[X]`), or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = inner_model(argument)
        if found is not None:
            return found
    return None


# What pydantic calls a wrong kind of value, in a person's words.
_KINDS = {
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_type": "a text",
    "list_type": "a list: [a, b]",
    "model_type": "a section: name one of its keys",
    "dict_type": "a section: name one of its keys",
}


def _explain(cls: type[BaseModel], error: ValidationError, where: str) -> SpecError:
    """Turn pydantic's first finding into one of our errors (unknown keys first: they explain others)."""
    findings = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first = findings[0]
    path = _path(cls, first["loc"]) or where
    # The branches of a union are findings of one place: counted once.
    others = {_path(cls, item["loc"]) for item in findings} - {_path(cls, first["loc"])}
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        owner = _model_at(cls, first["loc"][:-1])
        valid = [key_of(name, field) for name, field in owner.model_fields.items()] if owner else []
        return UnknownKeyError(f'unknown key "{path}"{more}', "", nearest_key(str(first["loc"][-1]), valid))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return SpecError(f'"{path}" is missing{more}', "a value for it", f"add {path} to the {where} file")
    if first["type"] == "value_error":
        return SpecError(f"{path}: {message}{more}")
    expected = next((words for kind, words in _KINDS.items() if first["type"].startswith(kind)), message)
    expected = expected[0].lower() + expected[1:]
    near: list[str] = []
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        near = difflib.get_close_matches(first["input"], re.findall("'([^']*)'", expected), n=1, cutoff=0.5)
    todo = f'did you mean "{near[0]}"?' if near else ""
    return SpecError(f"{path} is {_kind(first['input'])}{more}", expected, todo)


def _field_at(model: type[BaseModel] | None, part: int | str) -> FieldInfo | None:
    fields = {} if model is None else model.model_fields
    return next((field for name, field in fields.items() if part in (name, field.alias)), None)


def _model_at(cls: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The spec class that holds the keys at `loc`, or None where it cannot be told."""
    current: type[BaseModel] | None = cls
    for part in loc:
        if isinstance(part, int):  # a place in a list: the class of its members stays
            continue
        field = _field_at(current, part)
        current = inner_model(field.annotation) if field else None
    return current


def _path(cls: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """Dotted path as a person wrote it: pydantic's names of union branches ("list[str]") left out."""
    current: type[BaseModel] | None = cls
    parts: list[str] = []
    for index, part in enumerate(loc):
        field = _field_at(current, part)
        if field is not None:
            current = inner_model(field.annotation)
        elif not isinstance(part, int) and current is None and index:
            continue
        parts.append(str(part))
    return ".".join(parts)


def _kind(value: object) -> str:
    text = repr(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    names = {
        dict: "a mapping",
        list: "a list",
        str: "the text",
        type(None): "empty",
        int: "the number",
        float: "the number",
    }
    name = names.get(type(value), f"the {type(value).__name__}")
    return name if value is None else f"{name} {short}"
