"""Everyday words, most of them one token in any English tokenizer: keys and values of needles."""

from __future__ import annotations

from typing import Final

_WORDS = (
    "river garden window summer winter market village mountain bridge island forest captain doctor "
    "teacher horse bird fish tree flower water fire earth wind rain snow night morning evening kitchen "
    "school church paper letter music picture story song game ball table chair door floor wall house "
    "street road field hill lake sea ship boat train car gold silver iron stone wood glass cotton milk "
    "bread butter sugar salt apple orange lemon corn rice tea coffee wine king queen prince soldier "
    "farmer baker hunter sister brother mother father child friend stranger guest thief judge star moon "
    "sun cloud storm shadow light color red blue green yellow black white brown small big old young "
    "happy"
)
COMMON_WORDS: Final[tuple[str, ...]] = tuple(_WORDS.split())
