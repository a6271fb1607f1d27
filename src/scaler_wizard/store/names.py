"""Names that people and files give us, and the paths made of them. Both are hostile input."""

from __future__ import annotations

import re
from pathlib import Path

from scaler_wizard.errors import WorkspaceError

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def safe_name(name: str, what: str = "name") -> str:
    """Return `name` when it is one harmless path component.

    Raises:
        WorkspaceError: empty, longer than 64, a separator, a leading dot or dash, any other character.
    """
    if SAFE_NAME.fullmatch(name):
        return name
    shown = name if len(name) <= 80 else name[:77] + "..."
    raise WorkspaceError(
        f"the {what} {shown!r} cannot be used as a file name",
        "1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit",
        "choose another name",
    )


def contained(root: Path, *parts: str) -> Path:
    """Join `parts` to `root` and return the real path, which lies below `root` (symlinks resolved).

    Parts may have slashes (a relative path from a file); an absolute part, "..", or a symbolic link that
    leads out of `root` is refused. The path itself need not exist.

    Raises:
        WorkspaceError: the path would lie outside `root`.
    """
    real_root = root.resolve()
    relative = Path(*parts)
    if not relative.is_absolute() and ".." not in relative.parts and "\0" not in str(relative):
        try:
            path = (real_root / relative).resolve()
        except (OSError, RuntimeError):  # a loop of links
            path = Path("/")
        if path != real_root and path.is_relative_to(real_root):
            return path
    raise WorkspaceError(
        f"the path {str(relative)!r} leads outside {root}",
        "a path inside that folder",
        "use a plain relative path",
    )
