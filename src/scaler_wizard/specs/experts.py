"""The `experts` job: many LoRA experts on one base behind one router, served as one model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scaler_wizard.specs.base import Spec
from scaler_wizard.specs.contract import Contract
from scaler_wizard.specs.sections import (
    NAME_PATTERN,
    BreakerSection,
    GateSection,
    LoraSection,
    ModelSection,
    OptimiserSection,
    SafetySection,
    ScalingSection,
)

LadderStep = Literal["probe", "alora", "early"]
Pace = Literal["full", "fast", "test"]

RESERVED_LABELS = ("base", "multitask")
"""Labels that no expert may take: the base alone, and the single adapter that a router is compared with."""
MOST_EXPERTS = 64
FAST_STEPS = 20
TEST_ROWS, TEST_TEST_ROWS = 64, 24


class ExpertSection(Spec):
    """One expert: data, and the adapter that is there already; without one it is trained from the data."""

    label: Annotated[str, Field(pattern=NAME_PATTERN)]
    """What the router calls it; different for every expert, and not "base" or "multitask"."""
    adapter: str | None = None
    """Directory of a LoRA adapter in PEFT's format; trained from the data when empty."""
    data: str | None = None
    """Its data set: a file in any format that `scaler data check` knows. Needed beside an adapter, too."""
    generator: str | None = None
    """A generated task as its data set, where no file is named."""
    image_root: str | None = None
    """Folder that the `image` of a row is relative to; the file's own folder when empty."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Read at most this many rows of the data."""
    mode: Literal["alora", "lora"] = "alora"
    """How it is trained: alora shares the base's prefill, lora reads the input again; a given one is kept."""
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Most optimiser steps of its training, where it needs more or fewer than training.max_steps."""
    description: Annotated[str, Field(max_length=500)] = ""
    """What it is for, in words."""

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if self.label in RESERVED_LABELS:
            raise ValueError(
                f'the label "{self.label}" is taken: {" and ".join(RESERVED_LABELS)} are reserved'
            )
        if self.data and self.generator:
            raise ValueError(f'expert "{self.label}" names data and a generator; name one of them')
        if not (self.adapter or self.data or self.generator):
            raise ValueError(f'expert "{self.label}" has no adapter, no data and no generator; name one')
        return self


class RoutingSection(Spec):
    """The routing set; the same keys may stand in a file of their own, dataset.yaml."""

    rows: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """Rows of train and val together for each expert; all there are when empty."""
    experts: dict[str, Annotated[int, Field(ge=0, le=1_000_000)]] = {}
    """The same for single experts, by label; 0 leaves an expert out."""
    test_rows: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Rows of each expert that are held out to measure with."""
    train: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the rows that the router learns from."""
    val: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the rows that chooses and calibrates the router."""
    seed: int = 42
    """Seed of the split and of generated rows."""
    system_prompt: str | None = None
    """System turn put before every input; the row's own when empty."""
    image_format: Literal["copy", "reference"] = "copy"
    """Pictures are copied into the set, each once, or named where they are."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.train + self.val - 1) > 1e-6:
            raise ValueError(f"train {self.train:g} and val {self.val:g} must sum to 1")
        return self


class RouterSection(Spec):
    """The router. What is empty is chosen from the number of rows, and printed."""

    ladder: Annotated[list[LadderStep], Field(min_length=1, max_length=3)] = ["probe", "alora", "early"]
    """Kinds of router that are tried; the best on the val rows is kept, the cheaper of equals."""
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    """Rank of the router's own adapter (alora, early)."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Its peak learning rate."""
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Its optimiser steps."""
    patience: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Looks at the val rows without progress after which it stops."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability below which the router abstains; chosen on the val rows when empty."""
    fallback: Literal["base", "multitask"] = "multitask"
    """Who answers when the router abstains."""


class ExpertTrainingSection(OptimiserSection):
    """Budget and optimiser of each expert that this run trains."""

    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 300
    """Most optimiser steps of one expert; the single adapter for all gets those of all experts together."""
    rows: Annotated[int, Field(ge=8, le=1_000_000)] = 2000
    """Rows of each expert that are generated, where its data is a generated task, besides the test rows."""


class ExpertsEvaluationSection(Spec):
    """What is measured before a router may be promoted."""

    rows: Annotated[int, Field(ge=8, le=100_000)] = 300
    """Held-out rows of each expert that are routed; below 300 nothing is promoted."""
    answers: Annotated[int, Field(ge=8, le=100_000)] = 100
    """Held-out rows of each expert that are answered from end to end, in every setting."""
    seeds: Annotated[int, Field(ge=1, le=20)] = 5
    """Times that the chosen router is trained, with seeds of its own; below 5 nothing is promoted."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 48
    """Longest answer in tokens."""


class DeploySection(Spec):
    """Where a router that is worth it goes."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "experts"
    """Name of the bundle that `scaler experts ask` and `serve` use; each promotion is a new version of it."""
    promote: bool = True
    """Make it the current version when it is worth it; otherwise it is kept as held."""
    twins: bool = True
    """Train a plain LoRA twin of every activated expert, for engines that do not know activation (vLLM)."""


class ExpertsJob(Spec):
    """One `experts` job."""

    recipe: Literal["experts"] = "experts"
    """Which recipe this job is for."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "experts"
    """Name of the run's folder."""
    model: ModelSection
    """The base that every expert was trained on, and where it runs."""
    experts: Annotated[list[ExpertSection], Field(min_length=2, max_length=MOST_EXPERTS)]
    """The experts, two to 64."""
    dataset: RoutingSection | str = RoutingSection()
    """The routing set: settings, or the path of a dataset.yaml that holds them."""
    lora: LoraSection = LoraSection()
    """Shape of the adapters that this run trains."""
    training: ExpertTrainingSection = ExpertTrainingSection()
    """Budget and optimiser of the adapters that this run trains."""
    router: RouterSection = RouterSection()
    """The router."""
    evaluation: ExpertsEvaluationSection = ExpertsEvaluationSection()
    """What is measured before a router may be promoted."""
    deploy: DeploySection = DeploySection()
    """Where a router that is worth it goes."""
    safety: SafetySection = SafetySection(
        circuit_breaker=BreakerSection(min_accuracy=0.0), gates=GateSection(ask="auto_approve")
    )
    """Breaker and reports. There is no gate: nothing that exists is changed before promotion."""
    pace: Pace = "full"
    """How much is done: full, fast (20 steps each), test (a few rows); a signature covers all three."""
    contract: Contract | None = None
    """The signed contract; `scaler sign` writes it."""

    @model_validator(mode="after")
    def _labels(self) -> Self:
        labels = [expert.label for expert in self.experts]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"experts: the label {', '.join(twice)} is given twice")
        return self

    @property
    def scaling(self) -> ScalingSection:
        """The adapters in the words of `grow`: planning and model loading know one kind of section."""
        return ScalingSection(strategy="lora", lora=self.lora)

    @property
    def routing(self) -> RoutingSection:
        """The routing set's settings at this pace; a dataset.yaml is read when the job is."""
        assert isinstance(self.dataset, RoutingSection), "prepare puts the file's settings in its place"
        if self.pace != "test":
            return self.dataset
        enabled = {label: min(count, TEST_ROWS) for label, count in self.dataset.experts.items()}
        rows = min(self.dataset.rows or TEST_ROWS, TEST_ROWS)
        small = {"rows": rows, "experts": enabled, "test_rows": min(self.dataset.test_rows, TEST_TEST_ROWS)}
        return self.dataset.model_copy(update=small)

    def steps_of(self, expert: ExpertSection) -> int:
        """Optimiser steps of one expert at this pace."""
        steps = expert.max_steps or self.training.max_steps
        return steps if self.pace == "full" else min(steps, FAST_STEPS)

    @property
    def multitask_steps(self) -> int:
        """Optimiser steps of the single adapter for all: those of every expert that is routed to."""
        return sum(self.steps_of(expert) for expert in self.experts if expert.label in self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every expert that is routed to, in the job's order."""
        return tuple(e.label for e in self.experts if self.routing.experts.get(e.label) != 0)
