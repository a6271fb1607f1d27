"""Change one key of a YAML text and leave the rest, comments included, as the person wrote it.

Works on block style; the result is parsed again and compared, and where that fails (flow style, a value over
several lines) the caller gets None and writes the text anew. Knows no spec.
"""

from __future__ import annotations

from typing import Any

import yaml

from scaler_wizard.errors import SpecError
from scaler_wizard.specs.yaml_io import dump_yaml, parse_yaml


def set_key(text: str, key: str, value: Any) -> str | None:
    """`text` with the dotted `key` set to `value`, or None where that cannot be done in place."""
    wanted = with_key(parse_yaml(text), key, value)
    for edited in (_replaced(text, key.split("."), value), _inserted(text, key.split("."), value)):
        if edited is not None and _reads_as(edited, wanted):
            return edited
    return None


def with_key(mapping: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a nested mapping with the dotted `key` set."""
    first, _, rest = key.partition(".")
    if not rest:
        return {**mapping, first: value}
    inner = mapping.get(first)
    return {**mapping, first: with_key(inner if isinstance(inner, dict) else {}, rest, value)}


def _reads_as(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return parse_yaml(text) == wanted
    except SpecError:
        return False


def _replaced(text: str, path: list[str], value: Any) -> str | None:
    """The key is there: its value's characters are exchanged."""
    node = _node_at(text, path)
    if node is None:
        return None
    return text[: node.start_mark.index] + _inline(value) + text[node.end_mark.index :]


def _inserted(text: str, path: list[str], value: Any) -> str | None:
    """The key is not there: it becomes the first line of its section, or a new section at the end."""
    for depth in range(len(path) - 1, 0, -1):
        section = _node_at(text, path[:depth])
        if not isinstance(section, yaml.MappingNode) or section.flow_style or not section.value:
            continue
        start = section.value[0][0].start_mark
        line = text.rfind("\n", 0, start.index) + 1
        block = _block(path[depth:], value, start.column)
        return text[:line] + block + text[line:]
    return text.rstrip("\n") + "\n" + _block(path, value, 0)


def _block(path: list[str], value: Any, indent: int) -> str:
    lines = []
    for depth, part in enumerate(path):
        end = f" {_inline(value)}" if depth == len(path) - 1 else ""
        lines.append(f"{' ' * (indent + 2 * depth)}{part}:{end}\n")
    return "".join(lines)


def _inline(value: Any) -> str:
    """A value on one line, as it may stand behind a key."""
    text = dump_yaml({"value": value}).removeprefix("value:").strip()
    if "\n" not in text:
        return text
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()


def _node_at(text: str, path: list[str]) -> yaml.Node | None:
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for name, value in node.value if name.value == part), None)
    return node
