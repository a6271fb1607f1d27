"""Questions asked in a data profile's words, and its answers stripped of what the profile puts around them.

A version that learned a profile is asked as it was taught and judged by what it answers: the thinking emojis
before an answer, or the reasoning before a marked one, are neither right nor wrong. Torch-free.
"""

from __future__ import annotations

from dataclasses import replace

from scaler_wizard.data.formats import Conversation, Message
from scaler_wizard.data.profiles import Profile
from scaler_wizard.data.profiles.emoji_think import EMOJI_THINK, STOP_EMOJIS, THINK_EMOJIS
from scaler_wizard.data.profiles.regime3 import REGIME3, marked_answer
from scaler_wizard.data.tokens import Dress
from scaler_wizard.errors import RowError
from scaler_wizard.evals.tasks import TaskRow


def dress_of(profile: Profile, seed: int) -> Dress:
    """How conversations are changed before they are tokenised."""

    def dress(conversation: Conversation, number: int) -> Conversation:
        return replace(conversation, messages=profile.apply(conversation.messages, seed))

    return dress


def plain_answer(profile: Profile, output: str) -> str:
    """What an output of a model answers, under a profile; "" where it answers nothing."""
    if profile is EMOJI_THINK:
        return output.strip().lstrip("".join(THINK_EMOJIS)).rstrip("".join(STOP_EMOJIS)).strip()
    if profile is REGIME3:
        return marked_answer(output) or ""
    return output


def in_profile(row: TaskRow, profile: Profile, seed: int) -> TaskRow:
    """The same question as the profile puts it, its answer judged by what is left of it."""
    if profile.respond is None or isinstance(row.prompt, str):
        return row
    turns = [Message(turn["role"], turn["content"]) for turn in row.prompt]
    try:
        asked = profile.apply((*turns, Message("assistant", row.reference)), seed)[:-1]
    except RowError:
        return row
    prompt = tuple(message.as_dict() for message in asked)
    return TaskRow(
        prompt, row.reference, lambda output: row.is_right(plain_answer(profile, output)), row.task
    )
