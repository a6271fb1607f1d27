"""The signature under a job: what it must say, and that the job is still the one that was signed.

Knows the contract's fields and the job's hash. Does not know how a person is asked (the command line
does that) nor what a run does with the result; it reads no file and loads no model, so that the check
can stand before everything else.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

from scaler_wizard.errors import ContractNotAcceptedError
from scaler_wizard.specs.bootstrap import BootstrapJob
from scaler_wizard.specs.continual import LEARNING_SECTIONS, ContinualConfig
from scaler_wizard.specs.contract import CONTRACT_VERSION, SIGNOFF, Contract
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.specs.job import FileJob, Job

KNOWN_VERSIONS = (CONTRACT_VERSION,)
CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far `approved_at` may lie ahead of this machine's clock (signed on another machine)."""
REMOTE_CODE = "remote code"
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", re.ASCII
)
DEFAULT_ROLLBACK_PLAN = "Return to a committed phase with `scaler rollback`; the base model is never changed."
_SIGN_AGAIN = "sign with `scaler sign job.yaml`"


@dataclass(frozen=True)
class SignedContract:
    """A contract that passed every check."""

    contract: Contract
    approved_at: datetime
    """When it was signed; carries a UTC offset."""
    hash: str
    """SHA-256 of the contract's canonical JSON, stored with the run."""


Signable = Job | ContinualConfig
_Job = TypeVar("_Job", bound=Signable)


def job_hash(job: Signable) -> str:
    """SHA-256 (hex) of the canonical JSON of what is signed: a job without its contract.

    Of a continual job or config the learning sections: one signature covers every file and merge.

    Defaults are part of what is hashed: a release that changes a default changes what would be run, and
    so needs a new signature. The pace of an experts job is not: a trial does less of what was signed.
    """
    if isinstance(job, FileJob):
        return _sha256(job.model_dump(mode="json", by_alias=True, exclude={"contract", "pace"}))
    signed = job.model_dump(mode="json", by_alias=True, include=set(LEARNING_SECTIONS))
    return _sha256({"recipe": "continual", **signed})


def contract_hash(contract: Contract) -> str:
    """SHA-256 (hex) of the contract's canonical JSON, `job_hash` included."""
    return _sha256(contract.model_dump(mode="json", by_alias=True))


def check_contract(
    contract: Contract | None, job_hash: str, *, now: datetime | None = None, remote_code: bool = False
) -> SignedContract:
    """Accept the contract or say which field is wrong. Call it before any model is loaded.

    Args:
        contract: as the job carries it.
        job_hash: hash of the job as it is now, from `job_hash`.
        now: current time with an offset; the system clock when None.
        remote_code: whether the job lets the model run its own Python code.

    Raises:
        ContractNotAcceptedError: `field` names the first field that is missing, wrong or outdated.
    """
    if contract is None:
        raise ContractNotAcceptedError("contract", "the job has no contract", "a signed one", _SIGN_AGAIN)
    _check_version(contract.contract_version)
    _require_text("authorized_by", contract.authorized_by, "the name of the person who answers for this run")
    approved_at = _check_time(contract.approved_at, now or datetime.now(UTC))
    _require_text("session_id", contract.session_id, "any identifier of the sitting, for example a UUID")
    _require_text("scope", contract.scope, "what this run may do, in words")
    _require_text("rollback_plan", contract.rollback_plan, "how you get back if you do not want the result")
    if contract.signoff != SIGNOFF:
        found = (
            f"contract.signoff is {_short(contract.signoff)}"
            if contract.signoff
            else "contract.signoff is empty"
        )
        raise ContractNotAcceptedError("signoff", found, f'letter for letter "{SIGNOFF}"', _SIGN_AGAIN)
    _check_job_hash(contract.job_hash, job_hash)
    if remote_code and REMOTE_CODE not in contract.scope.lower():
        raise ContractNotAcceptedError(
            "scope",
            "model.trust_remote_code is on, but the contract's scope does not mention it",
            f'the words "{REMOTE_CODE}" in contract.scope',
            "switch trust_remote_code off, or sign a scope that allows it",
        )
    return SignedContract(contract, approved_at, contract_hash(contract))


def check_job(job: Signable, *, now: datetime | None = None) -> SignedContract:
    """`check_contract` for a whole job; same errors."""
    return check_contract(job.contract, job_hash(job), now=now, remote_code=job.model.trust_remote_code)


def default_scope(job: Signable) -> str:
    """One sentence that says what the job may do. Never mentions remote code: a person writes that."""
    if isinstance(job, GrowJob):
        return _grow_scope(job)
    if isinstance(job, ExpertsJob):
        return (
            f"Train LoRA experts and a router on {job.model.base_model}, measure them, and put the router "
            "into service only where it is better; at most 90% of available memory."
        )
    if isinstance(job, BootstrapJob):
        return (
            f"Let {job.model.base_model} make its own training data and learn from it in six stages, each "
            "behind a gate; at most 90% of available memory."
        )
    return (
        f"Train {job.model.base_model} ({job.lineage.strategy}) on every file put into the inbox, as "
        f"lineage {job.lineage.model_name}; a version that got worse is held back; at most 90% of "
        "available memory."
    )


def _grow_scope(job: GrowJob) -> str:
    context = job.scaling.target_context
    reach = f"to a context of {context:,} tokens" if context else "at its own context length"
    return (
        f"Grow {job.model.base_model} ({job.scaling.strategy}) {reach}, training on {job.dataset.identifier}"
        "; at most 2x context per gate and 90% of available memory."
    )


def sign(
    job: _Job,
    authorized_by: str,
    scope: str | None,
    rollback_plan: str | None,
    now: datetime,
    session_id: str,
    *,
    signoff: str = SIGNOFF,
) -> _Job:
    """The same job with a filled contract; what a person typed as `signoff` must be the exact sentence.

    Raises:
        ContractNotAcceptedError: what was given would not pass `check_contract`.
    """
    contract = Contract(
        contract_version=CONTRACT_VERSION,
        authorized_by=authorized_by,
        approved_at=now.isoformat(timespec="seconds"),
        session_id=session_id,
        scope=default_scope(job) if scope is None else scope,
        rollback_plan=DEFAULT_ROLLBACK_PLAN if rollback_plan is None else rollback_plan,
        signoff=signoff,
        job_hash=job_hash(job),
    )
    signed = job.model_copy(update={"contract": contract})
    check_job(signed, now=now)
    return cast(_Job, signed)


def _sha256(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _require_text(field: str, value: str, expected: str) -> None:
    if not value.strip():
        raise ContractNotAcceptedError(field, f"contract.{field} is empty", expected, _SIGN_AGAIN)


def _check_version(version: str) -> None:
    known = f"a version this release knows: {', '.join(KNOWN_VERSIONS)}"
    if not version:
        raise ContractNotAcceptedError(
            "contract_version", "contract.contract_version is empty", known, _SIGN_AGAIN
        )
    if not _SEMVER.fullmatch(version):
        found = f"contract.contract_version {_short(version)} is not a semantic version"
        raise ContractNotAcceptedError("contract_version", found, known, _SIGN_AGAIN)
    if version not in KNOWN_VERSIONS:
        found = f"contract.contract_version is {_short(version)}"
        raise ContractNotAcceptedError("contract_version", found, known, _SIGN_AGAIN)


def _check_time(text: str, now: datetime) -> datetime:
    assert now.utcoffset() is not None, "now needs a UTC offset"
    expected = "ISO 8601 with a UTC offset, for example 2026-01-31T12:00:00+00:00"
    if not text.strip():
        raise ContractNotAcceptedError("approved_at", "contract.approved_at is empty", expected, _SIGN_AGAIN)
    try:
        approved_at = datetime.fromisoformat(text.strip())
    except ValueError:
        found = f"contract.approved_at {_short(text)} is not a time"
        raise ContractNotAcceptedError("approved_at", found, expected, _SIGN_AGAIN) from None
    if approved_at.utcoffset() is None:
        found = f"contract.approved_at {_short(text)} has no UTC offset"
        raise ContractNotAcceptedError("approved_at", found, expected, _SIGN_AGAIN)
    if approved_at - now > CLOCK_TOLERANCE:
        found = f"contract.approved_at {_short(text)} lies in the future"
        todo = f"check this machine's clock, or {_SIGN_AGAIN}"
        raise ContractNotAcceptedError(
            "approved_at", found, f"at most {now.isoformat(timespec='seconds')} (now)", todo
        )
    return approved_at


def _check_job_hash(signed: str, actual: str) -> None:
    if not signed.strip():
        found = "contract.job_hash is empty: this job was never signed"
        raise ContractNotAcceptedError("job_hash", found, "the hash that signing writes", _SIGN_AGAIN)
    if signed != actual:
        found, expected = "the job changed after it was signed", "the job exactly as it was signed"
        raise ContractNotAcceptedError("job_hash", found, expected, f"sign again: {_SIGN_AGAIN}")


def _short(text: str) -> str:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return json.dumps(shown)
