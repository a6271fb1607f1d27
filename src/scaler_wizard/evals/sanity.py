"""Two greedy and two sampled texts, checked for what breaks first: empty, repeating, never ending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.evals.generation import generate_batch
from scaler_wizard.evals.results import Proportion, SanityResult
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tasks import encode_prompt
from scaler_wizard.evals.tokenizing import Tokenizer

# The longest period looked for, and how many times in a row it must come to count as being stuck.
MAX_PERIOD = 16
MIN_REPEATS = 4
MIN_REPEATED_TOKENS = 16


def is_stuck(tokens: Sequence[int]) -> bool:
    """Whether some run of tokens repeats a period of at most 16 tokens at least four times over 16 tokens."""
    for period in range(1, MAX_PERIOD + 1):
        needed = max(MIN_REPEATS * period, MIN_REPEATED_TOKENS) - period
        run = 0
        for i in range(period, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - period] else 0
            if run >= needed:
                return True
    return False


def sanity_probe(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[dict[str, str]]],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
    *,
    max_new_tokens: int = 96,
    temperature: float = 0.8,
    must_end: bool = True,
) -> SanityResult:
    """Continue the first two prompts greedily and once sampled each; the texts come back with their findings.

    prompts: texts or messages, at least one.
    must_end: whether a text that reaches `max_new_tokens` fails; not asked of base models, which never end.
    """
    assert prompts
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts[:2]]
    seeds = [settings.rng("sanity", i).randrange(2**31) for i in range(len(ids))]
    greedy = generate_batch(model, tokenizer, ids, max_new_tokens)
    on_progress(len(ids), 2 * len(ids))
    sampled = generate_batch(model, tokenizer, ids, max_new_tokens, temperature=temperature, seeds=seeds)
    on_progress(2 * len(ids), 2 * len(ids))
    texts = [
        _finding(tokenizer, prompt, row, kind, max_new_tokens)
        for kind, rows in (("greedy", greedy), ("sampled", sampled))
        for prompt, row in zip(ids, rows, strict=True)
    ]
    good = [not t["empty"] and not t["stuck"] and (t["ended"] or not must_end) for t in texts]
    pooled = Proportion.of(good)
    return SanityResult(
        value=pooled.accuracy,
        n=pooled.n,
        ci95=pooled.ci95,
        baseline=None,
        chance=None,
        seed=settings.seed,
        passed=all(good),
        texts=tuple(texts),
    )


def _finding(
    tokenizer: Tokenizer, prompt: Sequence[int], row: Sequence[int], kind: str, limit: int
) -> dict[str, Any]:
    text = tokenizer.decode(list(row), skip_special_tokens=True)
    return {
        "kind": kind,
        "prompt": tokenizer.decode(list(prompt)),
        "text": text,
        "empty": not text.strip(),
        "stuck": is_stuck(row),
        "ended": len(row) < limit,
    }
