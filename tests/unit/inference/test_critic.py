"""A model as critic: probabilities of A and B, both orders, and revisions asked for in several wordings."""

from __future__ import annotations

import pytest
import torch

from scaler_wizard.data.critique import Item
from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.inference.critic import (
    Asked,
    ModelAsker,
    judge,
    option_scores,
    option_tokens,
    prompt_ids,
    revise,
)
from scaler_wizard.inference.critic_fakes import ScriptedAsker
from scaler_wizard.models.tiny import tiny_model, tiny_tokenizer
from scaler_wizard.specs.constitution import Constitution, read_constitution

OPTIONS = Constitution.parse(
    {
        "version": 1, "name": "t", "judge": "options", "margin": 1.0, "options": ["fine", "not fine"],
        "verdict": {"text": "{principle}? {answer}\nA: {a}\nB: {b}"},
        "critique": {"text": "What is wrong with {answer}?"},
        "revisions": [{"text": "{answer} is wrong because {critique}. Better:"}],
        "principles": [{"id": "kind", "text": "Be kind"}, {"id": "brief", "text": "Be brief"}],
    },
    "constitution",
)  # fmt: skip


def item(answer: str, principle: str = "kind", name: str = "1") -> Item:
    return Item(name, principle, "a request", answer)


def test_option_scores_are_the_models_own_log_probabilities() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    asked = [Asked("1", "chat", "is it?"), Asked("2", "document", "is it:"), Asked("3", "chat", "and so?")]
    found = option_scores(model, tokenizer, asked)
    for one, scores in zip(asked, found, strict=True):
        ids = torch.tensor([prompt_ids(tokenizer, one.form, one.text)])
        options = option_tokens(tokenizer, one.form)
        assert tokenizer.decode([*options.lead, options.b]) == (" B" if one.form == "document" else "B")
        ids = torch.cat([ids, torch.tensor([list(options.lead)], dtype=torch.long)], dim=1)
        logits = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        assert scores == pytest.approx([logits[options.a].item(), logits[options.b].item()], abs=1e-5)


def test_a_tokenizer_that_cannot_tell_a_from_b_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ 'x' if m.role == 'assistant' else m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(IncompatibleModelError, match="alike"):
        option_tokens(tokenizer, "chat")


def test_a_critic_that_likes_the_letter_a_says_nothing() -> None:
    asker = ScriptedAsker(score=lambda text: (-0.1, -9.0))
    (found,) = judge(OPTIONS, asker, [item("hello")], "round")
    assert (found.flag, found.reason) == ("uncertain", "the orders disagree")


def test_both_orders_are_asked_and_the_verdict_follows_the_meaning() -> None:
    asker = ScriptedAsker(score=lambda text: (-5.0, -0.1) if "A: fine" in text else (-0.1, -5.0))
    (found,) = judge(OPTIONS, asker, [item("hello")], "round")
    assert found.flag == "violates"
    first, second = asker.asked["round-options"]
    assert "A: fine\nB: not fine" in first.text
    assert "A: not fine\nB: fine" in second.text
    assert first.id != second.id


def test_a_flagged_answer_is_criticised_then_revised() -> None:
    def score(text: str) -> tuple[float, float]:
        if "rude" not in text:
            return (-0.1, -0.1)
        return (-5.0, -0.1) if "A: fine" in text else (-0.1, -5.0)

    asker = ScriptedAsker(
        reply=lambda text: "it is rude" if text.startswith("What") else "please", score=score
    )
    items = [item("rude"), item("nice", name="2")]
    opinions = judge(OPTIONS, asker, items, "r")
    completed = revise(OPTIONS, asker, items, opinions, "v")
    assert (completed[0].critique, completed[0].revised) == ("it is rude", "please")
    assert completed[1] == opinions[1]
    assert [asked.text for asked in asker.asked["v-revision"]] == [
        "rude is wrong because it is rude. Better:"
    ]


def edits(text: str) -> str:
    """A model that edits as it is told, q to x, whatever the wording."""
    inner = text.split("[")[1].split("]")[0] if "[" in text else text.split(":")[1]
    return inner.strip().replace("q", "x")


def test_redo_asks_every_wording_of_every_piece_once_and_wants_agreement() -> None:
    constitution = read_constitution("embedded")
    asker = ScriptedAsker(reply=edits)
    items = [Item("1", "no_slur", "Copy: a q", "a q"), Item("2", "no_slur", "Copy: a b", "a b")]
    found = judge(constitution, asker, items, "k")
    assert [(one.flag, one.revised) for one in found] == [("violates", "a x"), ("clear", "a b")]
    asked = asker.asked["k-redo"]
    assert len(asked) == 3 * 3  # a, q and b, each in three wordings
    assert len({one.id for one in asked}) == len(asked)
    asker.reply = lambda text: "k h z" if "k h" in text else edits(text)
    assert judge(constitution, asker, items[:1], "k")[0].flag == "violates"  # two against one
    asker.reply = lambda text: "lost the beginning"
    assert judge(constitution, asker, items[:1], "k")[0].reason == "an empty revision"


def test_a_model_is_asked_the_same_way_twice() -> None:
    asker = ModelAsker(tiny_model(), tiny_tokenizer(), max_new_tokens=4)
    constitution = read_constitution("embedded")
    items = [Item(str(n), "no_slur", "Copy: a", "a b"[: n + 1]) for n in range(3)]
    assert judge(constitution, asker, items, "k") == judge(constitution, asker, items, "k")
