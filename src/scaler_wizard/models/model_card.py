"""The README.md of an export: where the model comes from and how the export was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

MAX_VALUE = 2_000


def model_card(title: str, provenance: Mapping[str, str], checks: Sequence[str]) -> str:
    """Markdown with a front matter for model hubs.

    Args:
        provenance: facts from the caller, shown as a table in their order; "base_model" also goes into
            the front matter. Values are data: line breaks and table bars in them are made harmless.
        checks: one sentence per comparison made with the exported files.
    """
    front = {"library_name": "transformers", "tags": ["scaler-wizard"]}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items())]
    if "base_model" in provenance:
        lines.append(f"base_model: {json.dumps(_one_line(provenance['base_model']))}")
    lines += ["---", "", f"# {_one_line(title)}", "", "## Provenance", "", "| | |", "| --- | --- |"]
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in provenance.items()]
    lines += ["", "## Checks of the exported files", "", *(f"- {_one_line(check)}" for check in checks), ""]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(str(text).split())[:MAX_VALUE]


def _cell(text: str) -> str:
    return _one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
