"""Every error a person can cause, in one tree.

Each carries three short texts: what was found, what was expected, and what to do next. The command
line prints them as they are and leaves with `exit_code`; nothing else in the project calls
`sys.exit` on bad input. Programming mistakes are `assert`s, not members of this tree.
"""

from __future__ import annotations


class ScalerError(Exception):
    """Base of the tree.

    Args:
        found: what was found, one sentence without a trailing full stop.
        expected: what would have been right, or "".
        todo: what the person can do next, or "".
    """

    exit_code = 1

    def __init__(self, found: str, expected: str = "", todo: str = "") -> None:
        self.found = found
        self.expected = expected
        self.todo = todo
        parts = [found]
        if expected:
            parts.append(f"Expected: {expected}")
        if todo:
            parts.append(f"What to do: {todo}")
        super().__init__(". ".join(part.rstrip(".") for part in parts) + ".")

    def as_dict(self) -> dict[str, str]:
        """The error as JSON-ready fields: {error, found, expected, todo}."""
        return {
            "error": type(self).__name__,
            "found": self.found,
            "expected": self.expected,
            "todo": self.todo,
        }


class SpecError(ScalerError):
    """A job file that cannot be read or does not say what a job must say."""

    exit_code = 2


class UsageError(ScalerError):
    """A command line that is not understood, or a question on the terminal that got no yes."""

    exit_code = 2


class UnknownKeyError(SpecError):
    """A key that the job format does not have."""


class ContractNotAcceptedError(ScalerError):
    """The contract is missing, unsigned, altered or of another version. `field` names the place."""

    exit_code = 3

    def __init__(self, field: str, found: str, expected: str = "", todo: str = "") -> None:
        self.field = field
        super().__init__(found, expected, todo)


class LimitError(ScalerError):
    """A request beyond what the contract guarantees (90% of memory, 2x context per gate)."""

    exit_code = 4


class DoesNotFitError(LimitError):
    """The job needs more memory or disk than this machine has; `todo` says what would fit."""


class TrainingMemoryError(LimitError):
    """A training step that fits in no size; what was done before giving up is in the events."""


class EvaluationMemoryError(LimitError):
    """A measurement that fits in no size. The training before it is not in question."""


class DataError(ScalerError):
    """A dataset that cannot be used."""

    exit_code = 5


class DataFileMissingError(DataError):
    """A data file that is not there or cannot be opened."""


class EmptyDataError(DataError):
    """A data file, or a split of it, without a usable row."""


class RowError(DataError):
    """A row that cannot be read; the message names file, line and reason.

    `kind` is the problem's name in a validation report (see `data.problems`), `reason` the words without
    file and line.
    """

    def __init__(
        self, found: str, expected: str = "", todo: str = "", *, kind: str = "row", reason: str = ""
    ) -> None:
        self.kind = kind
        self.reason = reason or found
        super().__init__(found, expected, todo)


class FormatError(DataError):
    """A row format that is unknown, or several formats mixed in one file."""


class ImageError(DataError):
    """Bytes that are not a picture that can be used: another format, damaged, cut off."""


class ImageTooLargeError(ImageError):
    """A picture of more bytes, pixels or a longer side than is read; found out before it is decoded."""


class ModelError(ScalerError):
    """A model directory that cannot be used."""

    exit_code = 6


class ModelNotFoundError(ModelError):
    """No model at that path, or a hub name while offline."""


class UnsafeWeightsError(ModelError):
    """Weights stored as pickle (.bin, .pt, .pth, .ckpt); only safetensors are loaded."""


class RemoteCodeError(ModelError):
    """A model that wants to run its own Python code."""


class NotExtendableError(ModelError):
    """A model whose context cannot be extended (no rotary position embeddings)."""


class IncompatibleModelError(ModelError):
    """A model that lacks what the job asks of it (tied weights, vocabulary, architecture)."""


class ExpertError(ModelError):
    """An expert that cannot be served: another base, no effect, a label or content that is there already."""


class UnknownExpertError(ExpertError):
    """A label that no expert has."""


class ReferenceMismatchError(ModelError):
    """Preference training whose reference is not the policy before its first step."""


class SafetyFilterError(ModelError):
    """A safety filter that cannot be used or does not answer."""


class RunError(ScalerError):
    """A run that does not exist, or is not in a state for what was asked."""

    exit_code = 7


class RunNotFoundError(RunError):
    """No run of that name in the workspace."""


class WrongStateError(RunError):
    """The run's state does not allow the command."""


class WorkspaceBusyError(RunError):
    """Another process owns the workspace; the message names it."""


class WorkspaceError(ScalerError):
    """A workspace that cannot be used: not writable, newer schema, a name outside it."""

    exit_code = 8


class CheckpointError(ScalerError):
    """A checkpoint that is missing or whose bytes do not match its manifest."""

    exit_code = 9


class BreakerTrippedError(ScalerError):
    """The circuit breaker stopped the run; `reason` is the telegram's."""

    exit_code = 10

    def __init__(self, reason: str, step: int, todo: str = "") -> None:
        self.reason = reason
        self.step = step
        super().__init__(f"the circuit breaker stopped the run at step {step}: {reason}", "", todo)


class WorkerDiedError(ScalerError):
    """The worker process ended without reporting an outcome; the message classifies the cause."""

    exit_code = 11


class MissingDependencyError(ScalerError):
    """An optional package that the request needs; `todo` names the extra to install."""

    exit_code = 12


class ProcessGroupError(ScalerError):
    """Several processes that cannot train together: launched wrongly, unlike each other, or one was lost."""

    exit_code = 13
