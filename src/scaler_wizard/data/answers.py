"""When two short answers say the same. Torch-free."""

from __future__ import annotations

import unicodedata


def normalise(text: str) -> str:
    """NFKC, case folded, white space collapsed, without surrounding quotes or a full stop."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip("\"'`").rstrip(".").strip()
