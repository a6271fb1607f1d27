"""The contract a person signs before a run: what it must say is checked in `safety/contract.py`."""

from __future__ import annotations

from scaler_wizard.specs.base import Spec

CONTRACT_VERSION = "1.0.0"
SIGNOFF = "I accept responsibility for this run"


class Contract(Spec):
    """A person's signature under a job. Text fields are checked when the run is constructed."""

    contract_version: str = ""
    """Version of the contract text (semantic versioning); this release knows 1.0.0."""
    authorized_by: str = ""
    """Who answers for this run: a name, an email address, anything that identifies a person."""
    approved_at: str = ""
    """When it was signed: ISO 8601 with a UTC offset."""
    session_id: str = ""
    """Which sitting signed it: any identifier, a UUID by default."""
    scope: str = ""
    """What may be done, in words; changing it needs a new signature."""
    rollback_plan: str = ""
    """How the person gets back if the result is not wanted."""
    signoff: str = ""
    """The sentence "I accept responsibility for this run", letter for letter."""
    job_hash: str = ""
    """SHA-256 of the job without its contract, written by `scaler sign`; a changed job is signed anew."""
