"""From logits to the next token of every active row, and to finished continuations. Knows no cache."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from scaler_wizard.inference.logits import process_logits
from scaler_wizard.inference.requests import Generation
from scaler_wizard.inference.sampling import choose_tokens
from scaler_wizard.inference.slab import Row


class Continuations:
    """Each row's own random numbers, from its first token to its last."""

    def __init__(self) -> None:
        self._generators: dict[int, random.Random] = {}

    def advance(self, rows: Sequence[Row], logits_BV: Tensor) -> list[tuple[Row, Generation]]:
        """Append a token to each row; rows that end become inactive and are returned with what they made."""
        requests = [row.request for row in rows]
        logits_BV = process_logits(logits_BV, requests, lambda at: rows[at].tokens[rows[at].prompt_length :])
        temperatures = [request.temperature for request in requests]
        chosen = choose_tokens(logits_BV, temperatures, [self._draw(row) for row in rows])
        ended = []
        for row, token in zip(rows, chosen, strict=True):
            row.cached += 1
            result = _append(row, token)
            if result is not None:
                row.active = False
                self._generators.pop(row.index, None)
                ended.append((row, result))
        return ended

    def _draw(self, row: Row) -> float:
        """The request's next uniform number; Python's generator gives the same one on every device."""
        if row.request.temperature == 0:
            return 0.0
        if row.index not in self._generators:
            self._generators[row.index] = random.Random(row.request.seed)
        return self._generators[row.index].random()


def _append(row: Row, token: int) -> Generation | None:
    """Append a chosen token; the finished continuation where that ends it."""
    request, length = row.request, row.prompt_length
    if token in request.stop_ids:
        return Generation(tuple(row.tokens[length:]), "stop")
    row.tokens.append(token)
    if len(row.tokens) - length == request.max_new_tokens:
        return Generation(tuple(row.tokens[length:]), "length")
    return None
