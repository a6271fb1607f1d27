"""Whether a constitution's prompts fit the model's context, with the answer in them and the reply after.

A prompt that is longer would be read with its beginning cut off or beyond what the model was trained on, and
the verdict would be about something else. Asks no model.
"""

from __future__ import annotations

from scaler_wizard.data.critique import Item, pieces_of
from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.inference.critic import prompt_ids
from scaler_wizard.recipes.bootstrap_lab import Lab
from scaler_wizard.specs.constitution import Constitution, Principle, Prompt

TRIED = 16
"""Requests that are tried before anything is trained."""
VERDICT_TOKENS = 2
"""A or B, and a space before it in some vocabularies."""


def tokens_needed(lab: Lab, constitution: Constitution, item: Item) -> int:
    """Tokens of the longest prompt that an answer may be asked about with, its reply included."""
    rule = constitution.principle(item.principle)
    pieces = pieces_of(item.answer, constitution.piece_words)
    values = Item(item.id, item.principle, item.request, max(pieces, key=len)).values(rule.text)
    good, bad = constitution.options
    filled = {**values, "a": good, "b": bad}
    tokenizer = lab.session.tokenizer
    return max(
        len(prompt_ids(tokenizer, prompt.form, prompt.fill(filled))) + more
        for prompt, more in _asked(constitution, rule, lab.job.sampling.max_new_tokens)
    )


def _asked(constitution: Constitution, rule: Principle, reply: int) -> list[tuple[Prompt, int]]:
    """Every prompt of an applied principle, with the tokens that critique and reply may add to it."""
    critique, verdict = constitution.critique_of(rule), constitution.verdict_of(rule)
    found = [
        (prompt, 2 * reply if prompt.holds("critique") else reply)
        for prompt in constitution.revisions_of(rule)
    ]
    if constitution.judge == "options":
        found += [(verdict, VERDICT_TOKENS)] if verdict is not None else []
        found += [(critique, reply)] if critique is not None else []
    return found


def fits(lab: Lab, constitution: Constitution, item: Item) -> bool:
    """Whether an answer can be judged and revised by a principle within the model's context."""
    return tokens_needed(lab, constitution, item) <= lab.session.base_context


def check_prompts(lab: Lab, constitution: Constitution) -> None:
    """Refuse a constitution by whose principles not even the shortest request with a short answer fits.

    Raises:
        IncompatibleModelError: the context is too short for it.
    """
    tasks = lab.world.tasks("train", TRIED, lab.job.training.seed)
    request = min((task.explicit for task in tasks), key=len)
    needed = {
        rule.id: tokens_needed(lab, constitution, Item("", rule.id, request, request.split()[0]))
        for rule in constitution.principles
        if constitution.is_applied(rule)
    }
    context = lab.session.base_context
    long = [name for name, tokens in needed.items() if tokens > context]
    if not long:
        return
    raise IncompatibleModelError(
        f'{len(long)} of {len(needed)} principles of "{constitution.name}" need prompts of up to '
        f'{max(needed.values()):,} tokens ("{max(needed, key=lambda name: needed[name])}"), and this model '
        f"reads {context:,}",
        "prompts that fit the context with the answer in them and the reply after",
        "shorten the prompts and principles in a constitution of your own (constitution.source), lower "
        "sampling.max_new_tokens, or give the model a longer context first (recipe grow)",
    )
