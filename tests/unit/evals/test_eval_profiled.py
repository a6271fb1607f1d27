"""Questions and answers under a data profile."""

from __future__ import annotations

import pytest

from scaler_wizard.data.formats import Conversation, Message
from scaler_wizard.data.profiles import PROFILES
from scaler_wizard.evals.profiled import dress_of, in_profile, plain_answer
from scaler_wizard.evals.tasks import TaskRow
from scaler_wizard.evals.validation import validation_set
from scaler_wizard.specs.continual import ValidationSection

ROW = TaskRow(({"role": "user", "content": "Copy: a b"},), "a b", None, "copy")


@pytest.mark.parametrize("name", list(PROFILES))
def test_what_is_taught_is_right_when_it_is_answered(name: str) -> None:
    profile = PROFILES[name]
    taught = dress_of(profile, 3)(
        Conversation((Message("user", "Copy: a b"), Message("assistant", "a b"))), 1
    ).messages
    row = in_profile(ROW, profile, 3)
    assert row.prompt == (taught[0].as_dict(),)
    assert row.is_right(taught[1].content)
    assert plain_answer(profile, taught[1].content) == "a b"
    assert not row.is_right(taught[1].content.replace("a b", "b a"))


@pytest.mark.parametrize(
    ("name", "output"), [("emoji_think", "🤔💭 ✅"), ("regime3", "a b"), ("regime3", "<<ANS_START>>a b")]
)
def test_an_answer_out_of_its_place_is_none(name: str, output: str) -> None:
    assert not in_profile(ROW, PROFILES[name], 0).is_right(output)


def test_a_profile_changes_the_fixed_questions() -> None:
    section = ValidationSection(rows=8, tasks=["copy"])
    digests = {validation_set(section, 0, None, profile).digest for profile in PROFILES.values()}
    assert len(digests) == len(PROFILES)
