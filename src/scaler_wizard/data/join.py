"""Short token rows joined into long ones, so that far positions have something to be learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from scaler_wizard.data.token_rows import TokenRow


def join_rows(rows: Sequence[TokenRow], context: int) -> Iterator[TokenRow]:
    """Rows joined in order until the next one would pass `context` tokens; every token is kept."""
    held: list[TokenRow] = []
    length = 0
    for row in rows:
        if held and length + len(row.ids) > context:
            yield _joined(held)
            held, length = [], 0
        held.append(row)
        length += len(row.ids)
    if held:
        yield _joined(held)


def _joined(rows: Sequence[TokenRow]) -> TokenRow:
    assert all(row.active_from is None for row in rows), "an activated adapter acts in single rows"
    ids = np.concatenate([row.ids for row in rows])
    return TokenRow(rows[0].number, ids, np.concatenate([row.trained for row in rows]))
