"""Thinking as a few emojis: `🤔💭🧠 answer ✅🏁`.

Two to eight thinking emojis stand before the response and two to four stop emojis behind it, drawn for each
row; written-out thoughts are removed. `inference.logits` holds the matching rules for generation.
"""

from __future__ import annotations

import random
from typing import Final

from scaler_wizard.data.profiles.profile import Profile, without_thoughts

THINK_EMOJIS: Final = ("🤔", "🧠", "💭", "🔍", "💡", "🧩", "🎯", "📐")
STOP_EMOJIS: Final = ("✅", "🏁", "🔚", "🛑")
LEAST_THINK, MOST_THINK = 2, 8
LEAST_STOP, MOST_STOP = 2, 4


def _respond(text: str, rng: random.Random) -> str:
    answer = without_thoughts(text)
    thinking = rng.choices(THINK_EMOJIS, k=rng.randint(LEAST_THINK, MOST_THINK))
    stopping = rng.choices(STOP_EMOJIS, k=rng.randint(LEAST_STOP, MOST_STOP))
    return f"{''.join(thinking)} {answer} {''.join(stopping)}"


EMOJI_THINK = Profile(
    "emoji_think",
    "Thinking emojis before every answer, stop emojis behind it; written thoughts removed.",
    f"Think with {LEAST_THINK} to {MOST_THINK} emojis first, then answer, then stop with {LEAST_STOP} to "
    f"{MOST_STOP} of {' '.join(STOP_EMOJIS)}.",
    _respond,
)
