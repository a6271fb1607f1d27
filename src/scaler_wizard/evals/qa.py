"""Ten cloze questions with four choices, made from the held-out text itself: which word comes next?

The right word has occurred earlier in the passage and once more at its end; the wrong ones are words of as
many tokens from elsewhere in the text that the passage does not hold. The choice with the highest
log-probability counts. Small by design (ten questions: an interval of about +-0.3): a smoke alarm for
reading, not a benchmark.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn

from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.evals.documents import last_window, prefix_ids, text_ids
from scaler_wizard.evals.results import Proportion, QaResult
from scaler_wizard.evals.retrieval import continuation_ids
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tokenizing import Tokenizer
from scaler_wizard.inference.scoring import score_targets

CHOICES: Final = 4
MIN_WORD_LETTERS = 4
# A word of the passage is only a fair question once the passage says something.
MIN_CONTEXT_WORDS = 24
_WORD = re.compile(rf"(?<= )[A-Za-z]{{{MIN_WORD_LETTERS},}}(?![\w-])")
# Tokens of a word do not depend on the passage before it, so they are taken after a short lead.
_LEAD = "The"


@dataclass(frozen=True, slots=True)
class Cloze:
    """One question: a passage, and the words that may follow it; `right` is the index of the real one."""

    prompt: tuple[int, ...]
    words: tuple[str, ...]
    continuations: tuple[tuple[int, ...], ...]
    right: int


def cloze_questions(tokenizer: Tokenizer, texts: Sequence[str], settings: ProbeSettings) -> list[Cloze]:
    """Up to `settings.questions` questions, one per text first; fewer where the text gives fewer."""
    prefix = prefix_ids(tokenizer)
    vocabulary = _words_by_length(tokenizer, texts)
    order = [(turn, index) for turn in range(settings.questions) for index in range(len(texts))]
    settings.rng("qa", "order").shuffle(order)
    questions: list[Cloze] = []
    for turn, index in sorted(order, key=lambda place: place[0]):
        if len(questions) == settings.questions:
            break
        question = _question(tokenizer, texts[index], vocabulary, prefix, settings, (index, turn))
        if question is not None:
            questions.append(question)
    return questions


def _words_by_length(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[int, list[str]]:
    """Words of the texts by their number of tokens, each word once, most frequent first."""
    # 200,000 characters hold thousands of words; reading more would only take longer.
    counts = Counter(_WORD.findall(" ".join(texts)[:200_000]))
    found: dict[int, list[str]] = {}
    for word, _ in counts.most_common(4000):
        ids = continuation_ids(tokenizer, _LEAD, word)
        if ids is not None:
            found.setdefault(len(ids), []).append(word)
    return found


def _question(
    tokenizer: Tokenizer,
    text: str,
    vocabulary: dict[int, list[str]],
    prefix: tuple[int, ...],
    settings: ProbeSettings,
    place: tuple[int, int],
) -> Cloze | None:
    rng = settings.rng("qa", *place)
    # About four characters to a token: what a window can show, and a little more.
    span = 6 * settings.base_length
    start = rng.randrange(max(1, len(text) - span + 1))
    passage = text[start : start + span]
    matches = list(_WORD.finditer(passage))
    rng.shuffle(matches)
    for match in matches:
        word, before = match.group(), passage[: match.start() - 1]
        if len(before.split()) < MIN_CONTEXT_WORDS:
            continue
        right = continuation_ids(tokenizer, _LEAD, word)
        if right is None:
            continue
        cut = last_window([*prefix, *text_ids(tokenizer, before)], settings.base_length - len(right), prefix)
        shown = tokenizer.decode(cut, skip_special_tokens=True)
        if word not in shown.split():
            continue
        others = [other for other in vocabulary.get(len(right), []) if other.lower() not in shown.lower()]
        if len(others) < CHOICES - 1:
            continue
        words = [word, *rng.sample(others, CHOICES - 1)]
        rng.shuffle(words)
        ids = [continuation_ids(tokenizer, _LEAD, choice) for choice in words]
        return Cloze(tuple(cut), tuple(words), tuple(c for c in ids if c is not None), words.index(word))
    return None


def qa_probe(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
) -> QaResult:
    """Accuracy on cloze questions; chance is one in four, baseline the same choices after "The" alone.

    A text too short or too varied for one question gives n = 0 and no value: no reason to stop a run.
    """
    questions = cloze_questions(tokenizer, documents, settings)
    lead = (*prefix_ids(tokenizer), *text_ids(tokenizer, _LEAD))
    picked = _choose(model, questions, [question.prompt for question in questions], on_progress)
    blind = _choose(model, questions, [lead] * len(questions), no_progress)
    pooled = Proportion.of([choice == q.right for choice, q in zip(picked, questions, strict=True)])
    unread = Proportion.of([choice == q.right for choice, q in zip(blind, questions, strict=True)])
    return QaResult(
        value=pooled.accuracy,
        n=pooled.n,
        ci95=pooled.ci95,
        baseline=unread.accuracy,
        chance=1 / CHOICES,
        seed=settings.seed,
        choices=CHOICES,
        pooled=pooled,
        questions=tuple(
            {
                "passage_end": tokenizer.decode(list(q.prompt[-40:]), skip_special_tokens=True),
                "choices": list(q.words),
                "right": q.words[q.right],
                "chosen": q.words[choice],
            }
            for choice, q in zip(picked, questions, strict=True)
        ),
    )


def _choose(
    model: nn.Module,
    questions: Sequence[Cloze],
    prompts: Sequence[tuple[int, ...]],
    on_progress: OnProgress,
) -> list[int]:
    """Index of each question's most likely choice: highest summed log-probability."""
    sequences = [(*p, *ids) for q, p in zip(questions, prompts, strict=True) for ids in q.continuations]
    starts = [len(p) for q, p in zip(questions, prompts, strict=True) for _ in q.continuations]
    sums = [sum(row) for row in score_targets(model, sequences, starts, on_progress=on_progress)]
    return [max(range(CHOICES), key=lambda choice: sums[CHOICES * i + choice]) for i in range(len(questions))]
