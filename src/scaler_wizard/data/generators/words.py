"""The fixed word lists of the generated world.

Each word of `KEYS`, `VALUES`, `ADJECTIVES`, `NOUNS` and `VERBS` is one token of the seedling's tokenizer
when a space stands before it (`tests/unit/test_seedling.py` holds this), so a needle is found or missed by
one prediction. The lists are disjoint: a value never turns up in filler by accident.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KEYS: Final[tuple[str, ...]] = _words(
    "acorn amber anvil apron arrow atlas badge banjo basil beach birch blade bread brick broom brush "
    "cabin camel candle canoe cedar chalk chest clock cloak cloud clover coral crane crown daisy drum "
    "eagle ember fern flute frost glove grape hazel honey igloo ivory jewel kettle ladle lemon lilac "
    "lotus maple medal melon mirror olive onion otter pearl piano quill raven saddle spoon tulip walnut"
)

VALUES: Final[tuple[str, ...]] = _words(
    "bat bee bow box bun bus cap cat cod cow cup den dew dog ear eel "
    "egg elk elm fan fig fin fir fog fox gem gum hat hay hen hub ice "
    "ink ivy jam jar jaw keg kit lid log mat mop mud net nut oak oar "
    "oat owl paw pea pie pig pin pod rib rug rye sap toe wax yak yew"
)

ADJECTIVES: Final[tuple[str, ...]] = _words("big calm cold dark kind loud pale slow tall tired warm young")
NOUNS: Final[tuple[str, ...]] = _words(
    "baker child clerk farmer guard judge king nurse pilot sailor tailor queen"
)
VERBS: Final[tuple[str, ...]] = _words(
    "asks calls greets helps hears leads likes meets sees seeks thanks visits"
)

LETTERS: Final[tuple[str, ...]] = tuple("abcdefghijklmnopqrstuvwxyz")


def single_token_words() -> tuple[str, ...]:
    """Every word that a tokenizer of the generated world must encode as one token after a space."""
    return KEYS + VALUES + ADJECTIVES + NOUNS + VERBS + LETTERS
