"""Rows to tokens: what is trained, for templates of every kind, and that nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from scaler_wizard.data.rows import BadRows, Row
from scaler_wizard.data.template_guard import check_template
from scaler_wizard.data.tokens import TokenizedData, highlight_sample, tokenize_rows
from scaler_wizard.errors import EmptyDataError, IncompatibleModelError, ModelError, RowError

TURN = "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}"
PROMPT = "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
CHATML = "{%- for message in messages -%}" + TURN + "{%- endfor -%}" + PROMPT
MARKED = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- message['content'] + '<|end|>' -}}"
    "{%- endgeneration -%}{%- else -%}{{- message['content'] + '<|end|>' -}}{%- endif -%}"
    "{{- '\\n' -}}{%- endfor -%}" + PROMPT
)
# Like Qwen3: an empty reasoning block, but only for what comes after the last user turn.
REWRITING = (
    "{%- set ns = namespace(last=0) -%}{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' and loop.index0 > ns.last -%}"
    "{{- '<|assistant|>\\n<think>\\n\\n</think>\\n\\n' + message['content'] + '<|end|>\\n' -}}{%- else -%}"
    + TURN + "{%- endif -%}{%- endfor -%}" + PROMPT
)  # fmt: skip
# Like DeepSeek-R1: prompts with an opening <think> that the stored conversation does not have.
FORCED_THINK = CHATML.replace("'<|assistant|>\\n'", "'<|assistant|>\\n<think>\\n'")
# No generation prompt at all: the header is learned with the answer.
NO_PROMPT = CHATML.removesuffix(PROMPT)
# Renders history in a way that cannot be aligned.
LENGTH_DEPENDENT = "{{- messages | length -}}" + CHATML

TWO_TURNS = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "  an answer with    spaces é🙂"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": "bye"},
]
FIRST, SECOND = "  an answer with    spaces é🙂<|end|>", "bye<|end|>"


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without a chat template; it opens texts with <|bos|>."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|eos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(["an answer to the first question with    some spaces in it"] * 20, trainer)
    core.post_processor = processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        additional_special_tokens=special[2:],
        clean_up_tokenization_spaces=False,
    )


def with_template(tokenizer: PreTrainedTokenizerFast, template: str | None) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def chat(*turns: dict[str, str], number: int = 1) -> Row:
    return Row(number, {"messages": list(turns)})


def trained_texts(data: TokenizedData, tokenizer: Any, index: int = 0) -> list[str]:
    return [text for text, trained in highlight_sample(data.rows[index], tokenizer) if trained]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param(CHATML, [FIRST, SECOND], id="chatml"),
        pytest.param(MARKED, [FIRST, SECOND], id="generation marks"),
        pytest.param(FORCED_THINK, [FIRST, SECOND], id="prompt with more than is kept"),
        pytest.param(REWRITING, [FIRST, "<think>\n\n</think>\n\n" + SECOND], id="rewritten history"),
        pytest.param(NO_PROMPT, ["<|assistant|>\n" + FIRST, "<|assistant|>\n" + SECOND], id="no prompt"),
    ],
)
def test_exactly_the_answers_and_their_end_are_trained(
    plain: PreTrainedTokenizerFast, template: str, expected: list[str]
) -> None:
    tokenizer = with_template(plain, template)
    data = tokenize_rows([chat(*TWO_TURNS)], "messages", tokenizer, context=512)
    assert trained_texts(data, tokenizer) == expected
    report = data.report
    assert (report.turns, report.turns_with_end, report.end_of_turn) == (2, 2, "<|end|>")
    assert report.end_of_turn_trained is True
    assert report.trained_tokens == data.rows[0].n_labels == int(data.rows[0].trained.sum())
    whole = tokenizer.apply_chat_template(TWO_TURNS, tokenize=False)
    assert tokenizer.decode(data.rows[0].ids.tolist()) == whole


def test_template_that_cannot_be_aligned_is_refused(plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RowError, match=r"row 1: the chat template renders .* turn 2 differently"):
        tokenize_rows([chat(*TWO_TURNS)], "messages", with_template(plain, LENGTH_DEPENDENT), context=512)


def test_template_that_never_ends_a_turn_is_reported(plain: PreTrainedTokenizerFast) -> None:
    tokenizer = with_template(plain, CHATML.replace("<|end|>", ""))
    report = tokenize_rows([chat(*TWO_TURNS)], "messages", tokenizer, context=512).report
    assert (report.end_of_turn_trained, report.end_of_turn) == (False, None)


def test_template_that_refuses_a_role_is_a_row_error(plain: PreTrainedTokenizerFast) -> None:
    refusing = "{{ raise_exception('no system turns') }}" + CHATML
    with pytest.raises(RowError, match="refuses the conversation: no system turns"):
        tokenize_rows([chat(*TWO_TURNS)], "messages", with_template(plain, refusing), context=512)


def test_base_model_gets_a_plain_template_and_is_told(plain: PreTrainedTokenizerFast) -> None:
    tokenizer = with_template(plain, None)
    data = tokenize_rows([chat(*TWO_TURNS[:2])], "messages", tokenizer, context=512)
    assert "plain one is set" in data.report.template
    text = tokenizer.decode(data.rows[0].ids.tolist())
    assert text == "<|bos|>User: first question\nAssistant:   an answer with    spaces é🙂<|eos|>"
    assert trained_texts(data, tokenizer) == ["   an answer with    spaces é🙂<|eos|>"]
    assert data.report.end_of_turn_trained
    prompt = tokenizer.apply_chat_template(TWO_TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt), "generation continues what was trained"


def test_no_template_and_no_end_token_is_refused(plain: PreTrainedTokenizerFast) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer)
    with pytest.raises(IncompatibleModelError, match="neither"):
        tokenize_rows([chat(*TWO_TURNS)], "messages", tokenizer, context=512)


def test_document_trains_on_everything_and_ends(plain: PreTrainedTokenizerFast) -> None:
    data = tokenize_rows([Row(1, {"text": "some spaces"})], "text", plain, context=64)
    assert plain.decode(data.rows[0].ids.tolist()) == "<|bos|>some spaces<|eos|>"
    assert data.rows[0].trained.all()
    assert data.report.trained_tokens == data.report.tokens - 1
    assert data.report.end_of_turn_trained is None


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text("abc é🙂\n ", min_size=1).filter(str.strip), min_size=1, max_size=6), st.integers(2, 40)
)
def test_splitting_preserves_every_token_and_mark(
    plain: PreTrainedTokenizerFast, texts: list[str], context: int
) -> None:
    rows = [
        chat({"role": "user", "content": "q"}, {"role": "assistant", "content": text}, number=number)
        for number, text in enumerate(texts, start=1)
    ]
    tokenizer = with_template(plain, CHATML)
    whole = tokenize_rows(rows, "messages", tokenizer, context=10_000)
    split = tokenize_rows(rows, "messages", tokenizer, context=context)
    for number in range(1, len(texts) + 1):
        pieces = [row for row in split.rows if row.number == number]
        assert all(len(piece.ids) <= context for piece in pieces)
        np.testing.assert_array_equal(
            np.concatenate([piece.ids for piece in pieces]), whole.rows[number - 1].ids
        )
        np.testing.assert_array_equal(
            np.concatenate([piece.trained for piece in pieces]), whole.rows[number - 1].trained
        )
    assert split.report.tokens == whole.report.tokens
    assert split.report.split_rows == sum(len(row.ids) > context for row in whole.rows)
    assert split.report.trained_tokens == sum(row.n_labels for row in split.rows)


def test_long_row_can_be_refused_or_set_aside(plain: PreTrainedTokenizerFast) -> None:
    rows = [chat(*TWO_TURNS, number=4), chat(*TWO_TURNS[2:], number=9)]
    tokenizer = with_template(plain, CHATML)
    with pytest.raises(RowError, match=r"corpus, row 4: \d+ tokens, and the context is 30"):
        tokenize_rows(rows, "messages", tokenizer, context=30, long_rows="refuse", source="corpus")
    bad = BadRows("quarantine")
    data = tokenize_rows(rows, "messages", tokenizer, context=30, long_rows="refuse", bad_rows=bad)
    assert [row.number for row in data.rows] == [9]
    assert (bad.count, bad.reasons[0][0]) == (1, 4)
    with pytest.raises(EmptyDataError, match="1 rows were set aside"):
        tokenize_rows(
            rows[:1], "messages", tokenizer, context=30, long_rows="refuse", bad_rows=BadRows("quarantine")
        )


def test_pieces_without_a_label_are_named(plain: PreTrainedTokenizerFast) -> None:
    row = chat({"role": "user", "content": "q" * 50}, {"role": "assistant", "content": "a"}, number=12)
    report = tokenize_rows([row], "messages", with_template(plain, CHATML), context=20).report
    assert (report.pieces, report.zero_label_pieces, report.zero_label_rows) == (3, 2, [12])


def test_text_that_spells_a_control_token_is_counted(plain: PreTrainedTokenizerFast) -> None:
    row = chat({"role": "user", "content": "what is <|end|>?"}, {"role": "assistant", "content": "a token"})
    assert (
        tokenize_rows([row], "messages", with_template(plain, CHATML), context=99).report.control_token_rows
        == 1
    )


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1).filter(lambda t: t.strip() and t.isprintable()), data=st.data())
def test_highlight_joins_to_the_decoded_row(
    plain: PreTrainedTokenizerFast, text: str, data: st.DataObject
) -> None:
    row = tokenize_rows([Row(1, {"text": text})], "text", plain, context=4096).rows[0]
    marks = np.array(data.draw(st.lists(st.booleans(), min_size=len(row.ids), max_size=len(row.ids))))
    row.trained[:] = marks
    runs = highlight_sample(row, plain)
    assert "".join(part for part, _ in runs) == plain.decode(row.ids.tolist())


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "did not render"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 1 MB"),
        ("{{ 'x' * (2 * 10 ** 9) }}", "memory"),
        ("{% if %}", "not a template"),
        ("x" * 70_000, "70,000 bytes"),
    ],
)
def test_template_guard_refuses(template: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        check_template(template, time_limit=1.0)


@pytest.mark.parametrize("template", [CHATML, MARKED, REWRITING, "{{ ''.__class__.__mro__ }}"])
def test_template_guard_passes_what_stays_in_its_limits(template: str) -> None:
    check_template(template)
