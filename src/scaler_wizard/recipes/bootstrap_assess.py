"""Stage 0: is this a base model, what can it do already, and may the scorer be trusted? Trains nothing.

The base is asked every skill in four ways; training starts only where the best of them leaves a proven gap.
It also writes the texts that later stages replay, as long as it is still the base.
"""

from __future__ import annotations

from collections.abc import Sequence

from scaler_wizard.data.records import write_records
from scaler_wizard.data.sentinels import SentinelReport, look_for_sentinels, suspect_instruct
from scaler_wizard.data.world import SKILLS
from scaler_wizard.data.world_questions import Question, check, questions
from scaler_wizard.evals.documents import text_ids
from scaler_wizard.evals.gap_proof import GapProof, decide_gap, prove_gap
from scaler_wizard.evals.scorer_audit import ScorerAudit, audit_scorer, plant
from scaler_wizard.evals.statistics import wilson_interval
from scaler_wizard.recipes.bootstrap_lab import Lab
from scaler_wizard.recipes.bootstrap_sampling import Ask
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics

WHERE = "stage0"
GAP_QUESTIONS = 120
"""Of each skill and way: the interval of 0 of 120 ends at 0.031."""
LEAST_GAP_QUESTIONS = 20
BASE_TEXT_TOKENS = 96
ELICITED = "Question: {}\nAnswer:"


def assess(lab: Lab, context: PhaseContext) -> Metrics:
    """Measure the base; `train` says whether there is anything to teach it."""
    audit = audit_verifier(lab)
    base_texts, sentinels = _base_texts(lab, context)
    answers, samples = lab.measure(context, WHERE, SKILLS)
    proofs, ways = _gaps(lab, context, answers)
    document = _document_form(lab, context)
    decision = decide_gap(proofs)
    for reason in decision.reasons:
        context.note(reason)
    warnings = suspect_instruct(
        sentinels, name=lab.plan.model, templated_accuracy=share(_in_own_template(lab, context)),
        raw_accuracy=share(ways["explicit"]["raw"]),
    )  # fmt: skip
    for warning in warnings:
        context.note(f"this may not be a base model: {warning}")
    if not audit.trusted:
        context.note(f"the scorer is not trusted, so that nothing is trained: {'; '.join(audit.reasons)}")
    right = sum(document)
    low, high = wilson_interval(right, len(document))
    context.note(f"as documents the base is right {right} of {len(document)} times ({low:.3f} to {high:.3f})")
    return {
        "stage": 0, "passed": True, "steps": 0, "answers": answers, "samples": samples,
        "document_accuracy": right / len(document) if document else None, "document": document,
        "gaps": {proof.name: proof.as_dict() for proof in proofs}, "ways": ways,
        "decision": decision.as_dict(),
        "audit": audit.as_dict(), "train": decision.train and audit.trusted, "warnings": list(warnings),
        "sentinels": sentinels.as_dict(), "base_texts": base_texts,
    }  # fmt: skip


def share(answers: Sequence[bool]) -> float | None:
    """Of right ones; None where nothing was asked."""
    return sum(answers) / len(answers) if answers else None


def audit_verifier(lab: Lab) -> ScorerAudit:
    """Planted right and wrong answers, judged by what will judge the stages."""
    asked = lab.all_questions["explicit"]
    pairs = [(question, question.expected[0]) for question in asked]
    planted = plant(pairs, lab.job.training.seed)
    return audit_scorer(planted, lambda question, answer: check(lab.world, question, [answer]).right)


def _base_texts(lab: Lab, context: PhaseContext) -> tuple[Metrics, SentinelReport]:
    """Text that the base writes by itself, kept for replay, and what it gives away about the base."""
    count, opening = lab.job.sampling.base_texts, lab.opening()
    most = min(BASE_TEXT_TOKENS, lab.session.base_context - len(opening))
    asks = [Ask(f"text{number}", opening, most, samples=1, greedy=False) for number in range(count)]
    found = [row[0].text for row in lab.answers(context, WHERE, "base-texts", asks)]
    path = lab.directory(WHERE) / "base_texts.jsonl"
    about = {"stage": 0, "seed": lab.job.training.seed, "weights": lab.weights}
    manifest = write_records(path, ({"text": text, "kept": True} for text in found), about)
    own = [token for token in lab.session.tokenizer.all_special_tokens if token.strip()]
    stored = {"file": str(path.relative_to(lab.run_dir.path)), "sha256": manifest.sha256, "n": len(found)}
    return stored, look_for_sentinels(found, own)


def _gaps(
    lab: Lab, context: PhaseContext, templated: dict[str, list[bool]]
) -> tuple[list[GapProof], dict[str, dict[str, list[bool]]]]:
    """Every skill asked raw, in the chat template, after worked examples and as a question with an answer."""
    proofs: list[GapProof] = []
    ways: dict[str, dict[str, list[bool]]] = {}
    for skill in SKILLS:
        asked = lab.all_questions[skill][:GAP_QUESTIONS]
        if not asked:
            continue
        shown = questions(lab.world, skill, 8, lab.job.training.seed, "train")
        found = {
            "raw": _ask_plain(lab, context, f"raw-{skill}", asked, "{}\n", ()),
            "templated": templated[skill][: len(asked)],
            "few_shot": _ask_plain(lab, context, f"few-shot-{skill}", asked, "{}\n", shown),
            "elicited": _ask_plain(lab, context, f"elicited-{skill}", asked, ELICITED, ()),
        }
        target = getattr(lab.job.stages, skill).share
        least = min(len(asked), max(LEAST_GAP_QUESTIONS, GAP_QUESTIONS // 2))
        proofs.append(prove_gap(skill, found, target, least_n=least))
        ways[skill] = found
    return proofs, ways


def _ask_plain(
    lab: Lab, context: PhaseContext, key: str, asked: Sequence[Question], form: str, shown: Sequence[Question]
) -> list[bool]:
    """Right or wrong for questions put as plain text, each after as many worked examples as fit."""
    room = lab.session.base_context - lab.job.sampling.max_new_tokens
    asks = []
    for question in asked:
        for part, prompt in enumerate(question.prompts):
            ids = lab.document(form.format(prompt))
            text = ""
            for example in shown[: lab.job.sampling.examples]:
                longer = f"{text}{example.prompts[0]}\n{example.replies[0]}\n\n"
                if len(lab.document(longer)) + len(ids) > room:
                    break
                text = longer
            ids = lab.document(text + form.format(prompt)) if text else ids
            asks.append(
                Ask(f"{question.id}/{part}", ids, lab.job.sampling.max_new_tokens,
                    samples=int(question.temperature > 0), greedy=not question.temperature)
            )  # fmt: skip
    replies = iter(lab.answers(context, WHERE, key, asks, lines=True))
    return [
        check(lab.world, question, [next(replies)[0].text for _ in question.prompts]).right
        for question in asked
    ]


def _in_own_template(lab: Lab, context: PhaseContext) -> list[bool]:
    """Instructions in the chat template that the model came with: a base does not follow them."""
    session = lab.session
    if session.own_template is None:
        return []
    asked = lab.all_questions["explicit"][:GAP_QUESTIONS]
    asks = []
    for question in asked:
        text = session.tokenizer.apply_chat_template(
            [{"role": "user", "content": question.prompts[0]}], chat_template=session.own_template,
            tokenize=False, add_generation_prompt=True,
        )  # fmt: skip
        ids = tuple(text_ids(session.tokenizer, text))
        asks.append(Ask(question.id, ids, lab.job.sampling.max_new_tokens))
    found = lab.answers(context, WHERE, "own-template", asks)
    return [
        check(lab.world, question, [row[0].text]).right for question, row in zip(asked, found, strict=True)
    ]


def _document_form(lab: Lab, context: PhaseContext) -> list[bool]:
    """The tasks of the explicit questions in the form that the base knows: what training can bring out."""
    asked = lab.all_questions["explicit"]
    most = lab.job.sampling.max_new_tokens
    asks = [Ask(question.id, lab.document(question.task.document), most) for question in asked]
    found = lab.answers(context, WHERE, "document-form", asks, lines=True)
    return [lab.world.verify(question.task, row[0].text) for question, row in zip(asked, found, strict=True)]
