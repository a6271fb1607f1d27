"""Read a job file safely: size cap, no aliases, no tags, no duplicate keys, depth cap.

A YAML file is hostile input: aliases can expand to gigabytes, tags can construct objects, and a
duplicated key silently wins over the first. All of these are refused with their line number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from scaler_wizard.errors import SpecError
from scaler_wizard.specs.yaml_words import in_words

MAX_BYTES = 1 << 20
MAX_DEPTH = 20


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without aliases and duplicate keys; times stay text, only true and false are booleans.

    YAML 1.1 reads `activation_checkpointing: on` as True and an unquoted `approved_at` as a datetime,
    neither of which is what stands in the file.
    """

    depth = 0
    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"an alias (*name) at line {event.start_mark.line + 1}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nesting deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.YAMLError(f'the key "{key}" twice, again at line {key_node.start_mark.line + 1}')
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse one YAML mapping from `path`.

    Raises:
        SpecError: missing, too large, not UTF-8, not YAML, an alias, a duplicate key, not a mapping.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SpecError(
            f"no job file at {path} ({error.strerror})", "a YAML file", "write one with `scaler init`"
        ) from None
    if not path.is_file():
        raise SpecError(f"{path} is not a file", "a YAML file", "name the file itself")
    if size > MAX_BYTES:
        raise SpecError(f"{path} has {size:,} bytes", f"at most {MAX_BYTES:,}", "move data into data files")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path} is not UTF-8 (byte {error.start})", "UTF-8 text", "save it as UTF-8"
        ) from None


def parse_yaml(text: str, name: str = "the text") -> dict[str, Any]:
    """Parse one YAML mapping from text; see `read_yaml`."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader subclass)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem, todo = in_words(error, text)
        raise SpecError(
            f"{name} is not plain YAML: {problem}", "plain mappings, lists and values", todo
        ) from None
    if not isinstance(value, dict):
        raise SpecError(
            f"{name} holds {'nothing' if value is None else type(value).__name__}",
            "a mapping of sections",
            "start from `scaler init`",
        )
    return value


class _PlainDumper(yaml.SafeDumper):
    """SafeDumper that escapes what PyYAML would write raw and read back as a space or a line break."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        odd = any(not character.isprintable() and character not in "\n\t" for character in data)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if odd else None)


_PlainDumper.add_representer(str, _PlainDumper.represent_str)


def dump_yaml(value: dict[str, Any]) -> str:
    """Plain YAML text of a mapping, keys in their own order; `parse_yaml` reads back an equal one."""
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=100)
