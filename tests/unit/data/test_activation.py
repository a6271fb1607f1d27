"""Where an activated adapter begins in a row."""

from __future__ import annotations

import numpy as np
import pytest

from scaler_wizard.data.activation import activate, chat_invocation, last_occurrence
from scaler_wizard.data.batches import collate
from scaler_wizard.data.chat import prepare_chat_template
from scaler_wizard.data.sample import load_tokenizer
from scaler_wizard.data.token_rows import TokenRow, TokenRows
from scaler_wizard.errors import IncompatibleModelError, RowError
from scaler_wizard.planning.locate import resolve_model


def row(ids: list[int], answer: range) -> TokenRow:
    trained = np.isin(np.arange(len(ids)), list(answer))
    return TokenRow(1, np.array(ids, dtype=np.int32), trained)


@pytest.mark.parametrize(
    ("ids", "answer", "start"),
    [
        ([5, 7, 8, 1, 2], range(3, 5), 1),
        ([7, 8, 1, 2], range(2, 4), 0),
        ([5, 7, 8, 6, 7, 8, 1], range(6, 7), 4),  # a forged one in the content is not the last
        ([5, 7, 8, 1, 7, 8, 2], range(3, 7), 1),  # one in the answer has not been written yet
    ],
)
def test_the_last_invocation_before_the_answer_counts(ids: list[int], answer: range, start: int) -> None:
    (found,) = activate([row(ids, answer)], (7, 8))
    assert found.active_from == start
    assert found.trained.tolist() == row(ids, answer).trained.tolist()
    micro = collate([found])
    assert micro.active is not None
    assert micro.active[0].tolist() == [at >= start for at in range(len(ids))]


def test_earlier_answers_are_the_bases_and_train_nothing() -> None:
    ids = [5, 7, 8, 1, 6, 7, 8, 2]
    (found,) = activate([row_with_two_answers(ids)], (7, 8))
    assert found.active_from == 5
    assert np.flatnonzero(found.trained).tolist() == [7]


def row_with_two_answers(ids: list[int]) -> TokenRow:
    return TokenRow(1, np.array(ids, dtype=np.int32), np.isin(np.arange(len(ids)), [3, 7]))


def test_an_answer_without_its_invocation_is_refused_by_number() -> None:
    with pytest.raises(RowError, match="row 1 has an answer"):
        activate([row([5, 7, 9, 1], range(3, 4))], (7, 8))


def test_marks_survive_flat_arrays_and_mixed_packing() -> None:
    plain, marked = row([5, 6], range(1, 2)), activate([row([5, 7, 8, 1], range(3, 4))], (7, 8))[0]
    rows = TokenRows.of([plain, marked])
    assert [item.active_from for item in rows] == [None, 1]
    assert [item.active_from for item in rows.at(np.array([1]))] == [1]
    micro = collate(rows)
    assert micro.active is not None
    assert micro.active[0].tolist() == [False, False, False, True, True, True]
    assert collate([plain]).active is None


def test_last_occurrence() -> None:
    assert last_occurrence([1, 2, 1, 2], [1, 2]) == 2
    assert last_occurrence([1], [1, 2]) is None
    assert last_occurrence([], [1]) is None


def test_a_chats_invocation_is_what_opens_the_assistants_turn() -> None:
    tokenizer = load_tokenizer(resolve_model("seedling"))
    assert tokenizer.convert_ids_to_tokens(chat_invocation(tokenizer)) == ["<|assistant|>"]
    tokenizer.chat_template = None
    prepare_chat_template(tokenizer)
    assert tokenizer.decode(chat_invocation(tokenizer)) == "\nAssistant:"
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(IncompatibleModelError, match="fixed opening"):
        chat_invocation(tokenizer)
