"""Which template suits a wish in words, this machine and this model. Pure and deterministic.

A wish is a use case (long_context, reasoning, creative, general) or free text ("budget laptop, focus on
documents"). Words are found in groups; a negated word counts against its group.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import GIB, Hardware
from scaler_wizard.planning.templates import SHIPPED, Template

# A word ending in * matches every word that begins so; a phrase matches consecutive words.
KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "long": (
        "long", "longer", "longest", "context", "document*", "book*", "contract*", "paper*", "pdf*",
        "report*",
        "transcript*", "summar*", "novel", "novels", "article*", "manual*", "legal", "codebase*",
        "retrieval", "rag",
        "lang", "lange", "langer", "dokument*", "buch", "bucher", "largo*", "documento*",
    ),
    "reasoning": (
        "reason*", "math*", "logic*", "proof*", "think*", "step by step", "chain of thought", "puzzle*",
        "science",
        "scientific", "code", "coding", "program*", "problem solving", "analy*", "logik", "mathe*", "razon*",
    ),
    "creative": (
        "creativ*", "story", "stories", "storytelling", "poe*", "fiction", "write", "writing", "writer",
        "novelist",
        "style", "roleplay", "lyric*", "imagin*", "kreativ*", "geschichte*", "cuento*",
    ),
    "budget": (
        "budget", "cheap*", "laptop", "laptops", "notebook", "small machine", "low memory", "low vram",
        "limited",
        "weak", "old", "modest", "frugal", "save memory", "cpu", "raspberry*", "gunstig", "billig", "barato",
    ),
    "capacity": (
        "capacity", "parameter*", "bigger", "powerful", "smarter", "capable", "quality", "knowledge",
        "most capable",
        "strong*", "skills", "maximum rank",
    ),
    "general": (
        "general", "balanced", "balance", "everything", "all round", "allround", "versatile", "assistant",
        "chat",
        "everyday", "default", "general purpose",
    ),
}  # fmt: skip
NEGATIONS = frozenset(
    {"no", "not", "without", "never", "dont", "doesnt", "isnt", "nothing", "neither", "nor", "avoid",
    "less", "kein",
     "keine", "keinen", "nicht", "ohne", "sin", "sans", "pas"}
)  # fmt: skip
NEGATION_REACH = 3
AFFINITY: Mapping[str, Mapping[str, float]] = {
    "balanced_scaling": {"general": 1.0, "reasoning": 0.4, "creative": 0.4, "long": 0.5, "capacity": 0.4},
    "max_context": {"long": 1.0},
    "max_parameters": {"capacity": 1.0, "reasoning": 0.5, "general": 0.4},
    "budget_context": {"budget": 1.0, "long": 0.6, "general": 0.3},
    "reasoning_boost": {"reasoning": 1.0, "capacity": 0.5},
    "creative_fusion": {"creative": 1.0, "long": 0.3},
}
NAMES = {
    "long": "long context", "reasoning": "reasoning", "creative": "creative writing",
    "budget": "a small budget",
    "capacity": "capacity", "general": "general use",
}  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """Groups that a text asks for and groups it rules out, in the order of `KEYWORDS`."""

    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]
    understood: bool


@dataclass(frozen=True)
class Recommendation:
    """One template, its score in 0..1 and the reasons in words."""

    template: Template
    score: float
    reasons: tuple[str, ...]


def parse_wish(text: str) -> Wish:
    """Groups in a free text; case, accents and punctuation do not matter.

    A group counts as wanted when any of its words stands un-negated. "not only" does not negate.
    """
    wanted: set[str] = set()
    unwanted: set[str] = set()
    for words in _clauses(text):
        for group, patterns in KEYWORDS.items():
            for pattern in patterns:
                for position in _matches(words, pattern.split()):
                    (unwanted if _negated(words, position) else wanted).add(group)
    unwanted -= wanted
    chosen = tuple(group for group in KEYWORDS if group in wanted)
    return Wish(
        chosen or ("general",),
        tuple(group for group in KEYWORDS if group in unwanted),
        bool(wanted or unwanted),
    )


def recommend(
    wish: str, hardware: Hardware, facts: ModelFacts, templates: Mapping[str, Template] = SHIPPED
) -> tuple[Recommendation, ...]:
    """Every template, best first; equal scores in the order of their names.

    Score = mean affinity to the wanted groups x hardware factor x model factor, minus what it offers of
    an unwanted group. More memory never lowers a score.
    """
    parsed = parse_wish(wish)
    ranked = [_score(template, parsed, hardware, facts) for template in templates.values()]
    return tuple(sorted(ranked, key=lambda item: (-item.score, item.template.name)))


def _score(template: Template, wish: Wish, hardware: Hardware, facts: ModelFacts) -> Recommendation:
    affinity = AFFINITY.get(template.name) or _affinity_of(template)
    reasons = []
    if not wish.understood:
        reasons.append(
            "the wish names nothing we know (long documents, reasoning, creative, budget): general use taken"
        )
    match = sum(affinity.get(group, 0.0) for group in wish.wanted) / len(wish.wanted)
    for group in wish.wanted:
        strength = affinity.get(group, 0.0)
        word = "suits" if strength >= 0.8 else "helps with" if strength > 0 else "does little for"
        reasons.append(f"{word} {NAMES[group]}")
    for group in wish.unwanted:
        if affinity.get(group, 0.0) > 0:
            match *= 1 - affinity[group]
            reasons.append(f"you asked for no {NAMES[group]}")
    memory_gb = hardware.memory_total / GIB
    kind = "VRAM" if hardware.gpus else "RAM (no GPU)"
    room = min(1.0, max(0.25, memory_gb / template.min_vram_gb)) if template.min_vram_gb else 1.0
    if room < 1:
        reasons.append(
            f"{memory_gb:.0f} GiB {kind}, made for {template.min_vram_gb:g}: rank and multiplier are halved"
        )
    else:
        reasons.append(f"{memory_gb:.0f} GiB {kind} are enough (made for {template.min_vram_gb:g})")
    reach = 1.0
    if not facts.has_rope and template.context_multiplier > 1:
        reach = 0.5 if affinity.get("long", 0.0) >= 0.5 else 0.8
        reasons.append(f"{facts.name} has no rotary positions, so its context cannot grow")
    return Recommendation(template, round(match * room * reach, 4), tuple(reasons))


def _affinity_of(template: Template) -> Mapping[str, float]:
    """What a person's own template offers, from its numbers."""
    return {
        "long": min(1.0, (template.context_multiplier - 1) / 8),
        "capacity": min(1.0, template.rank / 32),
        "budget": max(0.0, min(1.0, (16 - template.min_vram_gb) / 8)),
        "general": 0.5,
    }


def _clauses(text: str) -> list[list[str]]:
    """Words of each clause, lower case, without accents; a negation does not reach beyond its clause."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = (
        "".join(char for char in plain if not unicodedata.combining(char)).replace("'", "").replace("’", "")
    )
    plain = plain.replace("_", " ").replace("-", " ")
    clauses = re.split(r"[,.;:!?()\n]|\bbut\b|\baber\b|\bpero\b|\bmais\b", plain)
    return [re.findall(r"[a-z0-9]+", clause) for clause in clauses]


def _matches(words: list[str], pattern: list[str]) -> list[int]:
    found = []
    for start in range(len(words) - len(pattern) + 1):
        window = words[start : start + len(pattern)]
        if all(
            word.startswith(part[:-1]) if part.endswith("*") else word == part
            for word, part in zip(window, pattern, strict=True)
        ):
            found.append(start)
    return found


def _negated(words: list[str], position: int) -> bool:
    for index in range(max(0, position - NEGATION_REACH), position):
        if words[index] in NEGATIONS and words[index + 1 : index + 2] != ["only"]:
            return True
    return False
