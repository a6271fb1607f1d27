"""What a job leaves open, decided: device, precision, strategy, adapter, learning rate. Pure.

The order is always the same: a value in the job wins, then the template's, then the suggestion.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from scaler_wizard.errors import IncompatibleModelError, SpecError
from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import Hardware
from scaler_wizard.planning.lora import (
    BASE_RANK,
    TINY_PARAMETERS,
    LoraSuggestion,
    Targets,
    choose_precision,
    suggest_lora_config,
)
from scaler_wizard.planning.templates import FittedTemplate, Template, fit_template
from scaler_wizard.specs.job import Job

_ATTENTION = re.compile(
    r"^(q|k|v|o|qkv|out|query|key|value)(_proj)?$|^(query_key_value|c_attn|Wqkv|qkv|wqkv)$"
)


@dataclass(frozen=True)
class LoraPlan:
    """The adapter as it will be trained."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    use_rslora: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """Everything but the phases."""

    hardware: Hardware
    device: str
    precision: str
    strategy: str
    template: str | None
    lora: LoraPlan
    learning_rate: float
    learning_rate_reason: str
    target_context: int | None
    telemetry: str
    notes: tuple[str, ...]


def choose_hardware(job: Job, hardware: Hardware) -> tuple[Hardware, str]:
    """The part of the machine that `model.runtime` names, and a note.

    Raises:
        SpecError: GPUs are asked for that are not there.
    """
    runtime, count = job.model.runtime, len(hardware.gpus)
    if runtime == "cpu":
        return hardware.without_gpus(), "runs on the CPU, as asked"
    if runtime in ("multi_gpu", "remote"):
        raise SpecError(
            f"model.runtime is {runtime}, which this release cannot run",
            "auto, cpu or single_gpu",
            "set model.runtime to auto",
        )
    if runtime == "single_gpu" and not count:
        raise SpecError(
            "model.runtime is single_gpu and this machine has no GPU",
            "at least one",
            "set model.runtime to auto, or run on another machine",
        )
    return hardware, "runs on the GPU with the most free memory" if count else "runs on the CPU: no GPU here"


def choose_template(job: Job, hardware: Hardware, templates: Mapping[str, Template]) -> FittedTemplate | None:
    """The job's template fitted to the machine.

    Raises:
        SpecError: no template of that name; names the nearest.
    """
    name = job.scaling.template
    if name is None:
        return None
    if name not in templates:
        near = difflib.get_close_matches(name, templates, n=1, cutoff=0.4)
        hint = f'did you mean "{near[0]}"?' if near else f"use one of: {', '.join(sorted(templates))}"
        raise SpecError(
            f'no template "{name}"', "a shipped template or one in the workspace's templates/", hint
        )
    return fit_template(templates[name], hardware)


def resolve(
    job: Job,
    machine: Hardware,
    facts: ModelFacts,
    templates: Mapping[str, Template],
    *,
    data_tokens: int | None,
    row_tokens: int | None,
) -> Settings:
    """Decide every open setting, each with its reason.

    Raises:
        SpecError: an unknown template, a missing GPU, qlora without a GPU.
        IncompatibleModelError: target modules that the model does not have.
    """
    hardware, note = choose_hardware(job, machine)
    fitted = choose_template(job, hardware, templates)
    notes = [note, *(fitted.reasons if fitted else ())]
    target = _target_context(job, facts, fitted, notes)
    suggestion = suggest_lora_config(
        hardware, Targets(context=target, data_tokens=data_tokens, row_tokens=row_tokens), facts
    )
    strategy = _strategy(job, hardware, suggestion, notes)
    precision, why = choose_precision(hardware, facts)
    if job.model.precision != "auto":
        precision, why = job.model.precision, f"{job.model.precision}: set in the job"
        if precision == "bfloat16" and not hardware.bf16:
            why += "; this hardware only emulates it, which is slow"
    notes.append(why)
    rate, rate_reason = choose_learning_rate(job, facts, strategy)
    template = fitted.template if fitted else None
    telemetry = job.safety.telemetry
    if template and "telemetry" not in job.safety.model_fields_set:
        telemetry = template.telemetry
    if template and template.distillation and job.scaling.distillation is None:
        notes.append(
            f"{template.name} distils in its last phase; name a teacher in scaling.distillation to do so"
        )
    return Settings(
        hardware, hardware.device_kind, precision, strategy, template.name if template else None,
        _lora(job, facts, template, suggestion), rate, rate_reason, target, telemetry, tuple(notes),
    )  # fmt: skip


def choose_learning_rate(job: Job, facts: ModelFacts, strategy: str) -> tuple[float, str]:
    """Peak learning rate and its reason."""
    if job.training.learning_rate is not None:
        return job.training.learning_rate, "set in the job"
    tiny = facts.parameters < TINY_PARAMETERS
    if strategy == "full":
        if tiny:
            return (
                3e-4,
                f"3e-4: all weights of a model of {facts.parameters:,} parameters, trained from small widths",
            )
        return 2e-5, "2e-5: usual for all weights of a pretrained model; more forgets what it knew"
    if strategy == "prefix_tuning":
        return 1e-2, "1e-2: a prefix has few parameters and each moves the output little"
    if tiny:
        return 2e-3, (
            f"2e-3: below {TINY_PARAMETERS:,} parameters the layers are narrow, and an adapter "
            f"needs ten times the "
            "step of a real model's to move its output as far"
        )
    return 2e-4, "2e-4: usual for low-rank adapters (QLoRA, Dettmers 2023, table 9)"


def target_modules(job: Job, facts: ModelFacts) -> tuple[str, ...]:
    """Names of the adapted linear layers.

    Raises:
        IncompatibleModelError: a name that the model lacks, or no attention layer is recognised.
    """
    asked = job.scaling.lora.target_modules
    if isinstance(asked, list):
        facts.shapes_of(asked)
        return tuple(asked)
    if asked == "all-linear":
        return facts.suffixes
    chosen = tuple(name for name in facts.suffixes if _ATTENTION.match(name))
    if not chosen:
        raise IncompatibleModelError(
            f"no layer of {facts.name} is recognised as attention",
            f"names among: {', '.join(facts.suffixes)}",
            "list the layers in scaling.lora.target_modules, or use all-linear",
        )
    return chosen


def _target_context(
    job: Job, facts: ModelFacts, fitted: FittedTemplate | None, notes: list[str]
) -> int | None:
    if job.scaling.target_context is not None or job.scaling.context_schedule:
        return job.scaling.target_context or (job.scaling.context_schedule or [0])[-1]
    if fitted is None:
        return None
    template = fitted.template
    if not facts.has_rope:
        notes.append(f"{facts.name} has no rotary positions: the template's longer context is left out")
        return None
    target = int(facts.base_context * template.context_multiplier)
    notes.append(
        f"target context {target:,}: {template.name} asks for {template.context_multiplier:g} times the base"
    )
    return target


def _strategy(job: Job, hardware: Hardware, suggestion: LoraSuggestion, notes: list[str]) -> str:
    asked = job.scaling.strategy
    if asked == "qlora" and not hardware.gpus:
        raise SpecError(
            "scaling.strategy is qlora and the run has no GPU: 4-bit layers (bitsandbytes) need one here",
            "lora on a CPU",
            "set scaling.strategy: lora; a smaller micro-batch and activation checkpointing save memory",
        )
    if "strategy" not in job.scaling.model_fields_set and suggestion.use_qlora:
        notes.append(next(reason for reason in suggestion.reasons if reason.startswith("QLoRA")))
        return "qlora"
    return asked


def _lora(job: Job, facts: ModelFacts, template: Template | None, suggestion: LoraSuggestion) -> LoraPlan:
    asked = job.scaling.lora
    reasons: list[str] = []
    if asked.rank is not None:
        rank = asked.rank
        reasons.append(f"rank {rank}: set in the job")
    elif template is not None:
        rank = template.rank
        reasons.append(f"rank {rank}: from the template {template.name}")
    elif job.scaling.adaptive_rank:
        rank = suggestion.rank
        reasons += [reason for reason in suggestion.reasons if not reason.startswith(_NOT_ABOUT_RANK)]
    else:
        rank = BASE_RANK
        reasons.append(f"rank {rank}: the default, because adaptive_rank is off")
    if asked.alpha is not None:
        alpha = asked.alpha
        reasons.append(f"alpha {alpha:g}: set in the job")
    elif template is not None:
        alpha = template.alpha * rank / template.rank
        reasons.append(
            f"alpha {alpha:g}: the template's ratio of {template.alpha / template.rank:.3g} x rank"
        )
    else:
        ratio = suggestion.alpha / suggestion.rank
        alpha = ratio * rank
        reasons.append(f"alpha {alpha:g}: {ratio:g} x rank, so that the update keeps its size at any rank")
    dropout = asked.dropout if asked.dropout is not None else suggestion.dropout
    reasons.append(
        f"dropout {dropout:g}: set in the job"
        if asked.dropout is not None
        else next(reason for reason in suggestion.reasons if "dropout" in reason)
    )
    modules = target_modules(job, facts)
    reasons.append(f"adapters on {', '.join(modules)}")
    return LoraPlan(rank, alpha, dropout, modules, asked.use_rslora, tuple(reasons))


_NOT_ABOUT_RANK = (
    "alpha", "dropout", "no dropout", "QLoRA", "no QLoRA", "all ", "bfloat16", "float32", "micro-batch",
    "activation", "no activation",
)  # fmt: skip
