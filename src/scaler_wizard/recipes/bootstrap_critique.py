"""Answers, critique, revision: how the sixth stage makes its pairs, by the model's own word alone.

Every answer is judged by principles drawn for it. One that all of them clear is an anchor. One that is
flagged is revised by the first principle that flags it, judged again by all, and so on; where the revision is
cleared in the end, it is preferred over the answer. Where anything is uncertain nothing is concluded, and the
row is recorded with that reason. Exact checks only count how often the critic was right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from scaler_wizard.data.critique import Item, Opinion, count_critic
from scaler_wizard.data.negatives import choose_negatives
from scaler_wizard.data.pairs import Flag, PairVerdict, count_pairs, judge_pair
from scaler_wizard.data.principles import violates
from scaler_wizard.inference.critic import Asked, judge, option_scores, prompt_ids, revise
from scaler_wizard.recipes.bootstrap_lab import Lab
from scaler_wizard.recipes.bootstrap_prompts import fits
from scaler_wizard.recipes.bootstrap_sampling import Ask
from scaler_wizard.recipes.bootstrap_session import StageSession
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.constitution import Constitution

TOO_LONG = "longer than the context with the prompt"


@dataclass(frozen=True)
class LabAsker:
    """An `inference.critic.Asker` whose replies survive a kill: what was asked once is found again."""

    lab: Lab
    context: PhaseContext
    where: str

    def replies(self, key: str, asked: Sequence[Asked]) -> list[str]:
        """See `Asker.replies`: turns and documents are asked apart, because they end differently."""
        found: dict[str, str] = {}
        for form in ("chat", "document"):
            lines = form == "document"
            part = [item for item in asked if item.form == form]
            prompt = self.lab.document if lines else self.lab.turn
            most = self.lab.job.sampling.max_new_tokens
            asks = [Ask(item.id, prompt(item.text), most) for item in part]
            if asks:
                rows = self.lab.answers(self.context, self.where, f"{key}-{form}", asks, lines=lines)
                found |= {item.id: row[0].text for item, row in zip(part, rows, strict=True)}
        return [found[item.id] for item in asked]

    def option_scores(self, key: str, asked: Sequence[Asked]) -> list[tuple[float, float]]:
        """See `Asker.option_scores`."""
        session = self.lab.session
        with session.as_trained():
            scores = session.room.run(lambda: option_scores(session.adapted, session.tokenizer, asked))
        lengths = [len(prompt_ids(session.tokenizer, item.form, item.text)) for item in asked]
        self.context.scored += 2 * sum(lengths)
        return scores


@dataclass(frozen=True)
class Critiqued:
    """One request with its answer, and what became of it."""

    id: str
    request: str
    initial_answer: str
    principles: tuple[str, ...]
    """That judged it, in the constitution's order."""
    violated: tuple[str, ...] = ()
    """That the critic flagged and a revision was made for, in the order of the revisions."""
    critiques: tuple[str, ...] = ()
    """The critic's words, where it was asked for any."""
    revised_answer: str | None = None
    """The last revision; None where there was none."""
    chosen_flag: Flag = "uncertain"
    rejected_flag: Flag = "uncertain"
    kind: str = "critique"
    """"critique", or the kind of a negative that was made on purpose; "anchor" where all was clear."""
    kept: bool = False
    reason: str = ""
    verdict: PairVerdict | None = None
    scores: dict[str, float] = field(default_factory=dict)
    """Of an "options" judge, by principle and order: nats by which the good option is likelier."""
    filtered: dict[str, Any] = field(default_factory=dict)
    """What the safety filter said, where there is one."""

    @property
    def is_pair(self) -> bool:
        """Whether it is a valid preference pair."""
        return self.kept and self.kind != "anchor"

    @property
    def chosen(self) -> str:
        """The better answer."""
        return self.initial_answer if self.revised_answer is None else self.revised_answer


@contextmanager
def judged_by(lab: Lab, constitution: Constitution) -> Iterator[None]:
    """The session holds the constitution's critic while the block lasts: one model in memory at any time."""
    if constitution.critic == "model":
        yield
        return
    assert not lab.session.trained_in, "training that was not saved would be lost"
    stage = lab.session.stage
    del lab.session
    lab.session = StageSession(lab.job, lab.plan)
    try:
        yield
    finally:
        del lab.session
        lab.session = StageSession(lab.job, lab.plan, stage)


def critique_answers(
    lab: Lab, context: PhaseContext, where: str, constitution: Constitution,
    answered: Sequence[tuple[str, str, str]],
) -> tuple[list[Critiqued], Metrics]:  # fmt: skip
    """Judge and revise (id, request, answer), and say how good the critic was where checks know.

    Raises whatever `Lab.answers` does.
    """
    asker = LabAsker(lab, context, where)
    section, seed = lab.job.constitution, lab.job.training.seed
    rows = [
        Critiqued(name, request, answer, _drawn(constitution, seed, name, section.principles_per_answer))
        for name, request, answer in answered
    ]
    current = {row.id: row.initial_answer for row in rows}
    open_rows = {row.id: row for row in rows if row.initial_answer.strip()}
    done = {row.id: replace(row, reason="empty") for row in rows if not row.initial_answer.strip()}
    first: list[tuple[Item, Opinion]] = []
    for number in range(section.most_revisions + 1):
        items = [
            Item(row.id, principle, row.request, current[row.id])
            for row in open_rows.values()
            for principle in row.principles
        ]
        opinions = _judged(constitution, asker, items, number)
        if number == 0:
            first = list(zip(items, opinions, strict=True))
        found: dict[str, list[tuple[Item, Opinion]]] = {}
        for item, opinion in zip(items, opinions, strict=True):
            found.setdefault(item.id, []).append((item, opinion))
        still = {}
        for name, row in open_rows.items():
            judged = _after_round(row, found[name], number, last=number == section.most_revisions)
            if judged.reason or judged.kept:
                done[name] = judged
            else:
                still[name] = judged
                current[name] = judged.chosen
        open_rows = still
        if not open_rows:
            break
    rows = [done[row.id] for row in rows]
    return rows, {"critic": critic_metrics(constitution, first), "pairs": pair_metrics(rows)}


def _drawn(constitution: Constitution, seed: int, name: str, count: int) -> tuple[str, ...]:
    """Principles that judge one answer: drawn by weight without repetition (Efraimidis & Spirakis 2006)."""
    rng = random.Random(f"principles/{seed}/{name}")
    applied = [rule for rule in constitution.principles if constitution.is_applied(rule)]
    keys = {rule.id: rng.random() ** (1 / rule.weight) for rule in applied}
    chosen = set(sorted(keys, key=lambda rule: (-keys[rule], rule))[:count])
    return tuple(rule.id for rule in applied if rule.id in chosen)


def _judged(
    constitution: Constitution, asker: LabAsker, items: Sequence[Item], number: int
) -> list[Opinion]:  # fmt: skip
    """One round: an opinion on every item, and a revision of every answer that one of them flags."""
    opinions = [Opinion("uncertain", reason=TOO_LONG)] * len(items)
    places = [at for at, item in enumerate(items) if fits(asker.lab, constitution, item)]
    judged = judge(constitution, asker, [items[at] for at in places], f"judge-{number}")
    for at, opinion in zip(places, judged, strict=True):
        opinions[at] = opinion
    return _first_flagged_revised(constitution, asker, items, opinions, f"revise-{number}")


def _first_flagged_revised(
    constitution: Constitution, asker: LabAsker, items: Sequence[Item], opinions: Sequence[Opinion], key: str
) -> list[Opinion]:
    """A revision for each answer's first flagged principle; a judge that brought it along asks nothing."""
    if constitution.judge == "redo":
        return list(opinions)
    wanted: dict[str, int] = {}
    for at, (item, opinion) in enumerate(zip(items, opinions, strict=True)):
        if opinion.flag == "violates":
            wanted.setdefault(item.id, at)
    places = list(wanted.values())
    revised = revise(constitution, asker, [items[at] for at in places], [opinions[at] for at in places], key)
    completed = list(opinions)
    for at, opinion in zip(places, revised, strict=True):
        completed[at] = opinion
    return completed


def _after_round(
    row: Critiqued, judged: Sequence[tuple[Item, Opinion]], number: int, *, last: bool
) -> Critiqued:
    """What one round of judging makes of a row: finished with a verdict or a reason, or revised once more."""
    flagged = [(item, opinion) for item, opinion in judged if opinion.flag == "violates"]
    unsure = next((opinion.reason for _, opinion in judged if opinion.flag == "uncertain"), "")
    scores = {
        f"{item.principle}/{name}": round(value, 6)
        for item, opinion in judged
        for name, value in opinion.scores.items()
    }
    row = replace(row, scores=row.scores | scores)
    if number == 0:
        row = replace(row, rejected_flag="violates" if flagged else "uncertain" if unsure else "clear")
    flag: Flag = "violates" if flagged else "uncertain" if unsure else "clear"
    if not flagged and not unsure and number == 0:
        return replace(row, kind="anchor", kept=True, chosen_flag="clear")
    if not flagged or last:
        if number == 0:
            return replace(row, reason=f"uncertain: {unsure}")
        verdict = judge_pair(
            row.chosen, row.initial_answer, chosen_flag=flag, rejected_flag=row.rejected_flag
        )
        reason = "" if verdict.valid else f"{verdict.reason}: {unsure}" if unsure else verdict.reason
        return replace(row, chosen_flag=flag, verdict=verdict, kept=verdict.valid, reason=reason)
    if unsure and number == 0:
        return replace(row, reason=f"uncertain: {unsure}")
    item, opinion = flagged[0]
    if opinion.revised is None:
        return replace(row, reason=opinion.reason or "no revision")
    critiques = (*row.critiques, *([opinion.critique] if opinion.critique else []))
    return replace(
        row, violated=(*row.violated, item.principle), critiques=critiques, revised_answer=opinion.revised
    )


def add_negatives(rows: Sequence[Critiqued], share: float, seed: int) -> list[Critiqued]:
    """Pairs of known kinds beside those of the critique, so that they are `share` of all pairs.

    The chosen answer is one that the critic cleared; the rejected one is wrong by construction.
    """
    anchors = [row for row in rows if row.kept and row.kind == "anchor"]
    n_pairs = sum(row.is_pair for row in rows)
    wanted = round(n_pairs * share / (1 - share))
    made = []
    for number, (at, kind, bad) in enumerate(
        choose_negatives(random.Random(f"negatives/{seed}"), [row.initial_answer for row in anchors], wanted)
    ):
        good = anchors[at]
        verdict = judge_pair(good.initial_answer, bad, chosen_flag="clear", rejected_flag="violates")
        made.append(
            Critiqued(
                f"{good.id}/negative-{number}", good.request, bad, good.principles,
                revised_answer=good.initial_answer, chosen_flag="clear", rejected_flag="violates",
                kind=kind, kept=verdict.valid, reason="" if verdict.valid else verdict.reason,
                verdict=verdict,
            )
        )  # fmt: skip
    return made


def critic_metrics(constitution: Constitution, judged: Sequence[tuple[Item, Opinion]]) -> Metrics:
    """Verdicts of the first round by principle, beside what an exact check says where there is one."""
    found: Metrics = {}
    for rule in constitution.principles:
        of_rule = [(item, opinion) for item, opinion in judged if item.principle == rule.id]
        if not of_rule:
            continue
        flags = [opinion.flag for _, opinion in of_rule]
        if rule.check is None:
            found[rule.id] = {
                "n": len(flags), "flagged": flags.count("violates"), "cleared": flags.count("clear"),
                "uncertain": flags.count("uncertain"),
            }  # fmt: skip
        else:
            truth = [violates(rule.check, item.request, item.answer) for item, _ in of_rule]
            found[rule.id] = count_critic(flags, truth).as_dict()
    return found


def pair_metrics(rows: Sequence[Critiqued]) -> Metrics:
    """Valid pairs of those that were revised, and of all answers if each were preferred over by its revision.

    The second number is what "the revision always wins" would have trained on.
    """
    revised = [row.verdict for row in rows if row.verdict is not None]
    always = [
        judge_pair(
            row.chosen, row.initial_answer, chosen_flag=row.chosen_flag, rejected_flag=row.rejected_flag
        )
        for row in rows
        if row.kind in ("critique", "anchor")
    ]
    return {"gated": count_pairs(revised).as_dict(), "revision_always_wins": count_pairs(always).as_dict()}
