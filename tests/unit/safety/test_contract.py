from datetime import UTC, datetime, timedelta, timezone

import pytest

from scaler_wizard.errors import ContractNotAcceptedError
from scaler_wizard.safety.contract import check_contract, check_job, contract_hash, job_hash, sign
from scaler_wizard.specs.contract import SIGNOFF, Contract
from scaler_wizard.specs.grow import GrowJob

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def make_job(**changes: object) -> GrowJob:
    value: dict[str, object] = {
        "model": {"base_model": "seedling"},
        "scaling": {"target_context": 256},
        "dataset": {"source": "synthetic", "identifier": "seedling"},
    }
    return GrowJob.parse(value | changes)


def signed_job() -> GrowJob:
    return sign(make_job(), "Ada", None, None, NOW, "s-1")


def test_a_signed_job_is_accepted() -> None:
    job = signed_job()
    assert job.contract is not None
    accepted = check_job(job, now=NOW)
    assert accepted.approved_at == NOW
    assert accepted.hash == contract_hash(job.contract)
    assert "seedling" in job.contract.scope
    assert "256" in job.contract.scope
    assert GrowJob.parse(job.model_dump(mode="json", by_alias=True)) == job


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"contract_version": ""}, "contract_version", "1.0.0"),
        ({"contract_version": "1.0"}, "contract_version", "not a semantic version"),
        ({"contract_version": "01.0.0"}, "contract_version", "not a semantic version"),
        ({"contract_version": "1.0.1"}, "contract_version", "1.0.0"),
        ({"contract_version": "1.0.0-rc.1"}, "contract_version", "1.0.0"),
        ({"authorized_by": " \n"}, "authorized_by", "empty"),
        ({"approved_at": ""}, "approved_at", "empty"),
        ({"approved_at": "yesterday"}, "approved_at", "not a time"),
        ({"approved_at": "2026-11-21T12:00:00"}, "approved_at", "no UTC offset"),
        ({"approved_at": "2026-11-21"}, "approved_at", "no UTC offset"),
        ({"approved_at": "2026-11-21T12:05:01+00:00"}, "approved_at", "future"),
        ({"session_id": ""}, "session_id", "empty"),
        ({"scope": ""}, "scope", "empty"),
        ({"rollback_plan": ""}, "rollback_plan", "empty"),
        ({"signoff": ""}, "signoff", SIGNOFF),
        ({"signoff": SIGNOFF + "."}, "signoff", "letter for letter"),
        ({"signoff": SIGNOFF.lower()}, "signoff", "letter for letter"),
        ({"signoff": SIGNOFF + " "}, "signoff", "letter for letter"),
        ({"job_hash": ""}, "job_hash", "never signed"),
        ({"job_hash": "0" * 64}, "job_hash", "sign again"),
    ],
)
def test_each_field_is_checked_and_named(change: dict[str, str], field: str, words: str) -> None:
    job = signed_job()
    assert job.contract is not None
    contract = job.contract.model_copy(update=change)
    with pytest.raises(ContractNotAcceptedError) as caught:
        check_contract(contract, job_hash(job), now=NOW)
    assert caught.value.field == field
    assert words in str(caught.value)


def test_missing_contract() -> None:
    with pytest.raises(ContractNotAcceptedError) as caught:
        check_job(make_job(), now=NOW)
    assert caught.value.field == "contract"
    with pytest.raises(ContractNotAcceptedError) as caught:
        check_contract(Contract(), "x", now=NOW)
    assert caught.value.field == "contract_version"


def test_other_offsets_and_the_clock_tolerance() -> None:
    job = signed_job()
    assert job.contract is not None
    for text in ("2026-11-21T12:05:00+00:00", "2026-11-21T09:00:00-03:00", "2026-11-21T12:00:00Z"):
        check_contract(job.contract.model_copy(update={"approved_at": text}), job_hash(job), now=NOW)
    # 12:30 in Sao Paulo is 15:30 UTC: three and a half hours ahead.
    ahead = job.contract.model_copy(update={"approved_at": "2026-11-21T12:30:00-03:00"})
    with pytest.raises(ContractNotAcceptedError, match="future"):
        check_contract(ahead, job_hash(job), now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"max_steps": 201}},
        {"dataset": {"source": "synthetic", "identifier": "other"}},
        {"safety": {"gates": {"ask": "auto_approve"}}},
        {"communityShare": True},
        {"model": {"base_model": "seedling", "trust_remote_code": True}},
    ],
)
def test_a_job_changed_after_signing_is_refused(change: dict[str, object]) -> None:
    tampered = make_job(**change).model_copy(update={"contract": signed_job().contract})
    with pytest.raises(ContractNotAcceptedError, match="changed after it was signed"):
        check_job(tampered, now=NOW)


def test_job_hash_ignores_the_contract_and_spelled_out_defaults() -> None:
    assert job_hash(signed_job()) == job_hash(make_job())
    assert job_hash(make_job(training={"max_steps": 200})) == job_hash(make_job())
    assert job_hash(make_job(training={"max_steps": 199})) != job_hash(make_job())


def test_contract_hash_changes_with_the_scope() -> None:
    contract = signed_job().contract
    assert contract is not None
    assert contract_hash(contract) != contract_hash(contract.model_copy(update={"scope": "other"}))


def test_remote_code_needs_both_the_job_and_the_scope() -> None:
    job = make_job(model={"base_model": "x/y", "trust_remote_code": True})
    with pytest.raises(ContractNotAcceptedError) as caught:
        sign(job, "Ada", None, None, NOW, "s-1")
    assert caught.value.field == "scope"
    allowed = sign(job, "Ada", "Train x/y, with Remote Code of x/y", None, NOW, "s-1")
    check_job(allowed, now=NOW)


def test_sign_refuses_what_would_not_be_accepted() -> None:
    for field, arguments in {
        "authorized_by": ("", None, None, NOW, "s"),
        "scope": ("Ada", " ", None, NOW, "s"),
        "rollback_plan": ("Ada", None, "", NOW, "s"),
        "session_id": ("Ada", None, None, NOW, ""),
    }.items():
        with pytest.raises(ContractNotAcceptedError) as caught:
            sign(make_job(), *arguments)
        assert caught.value.field == field
    with pytest.raises(ContractNotAcceptedError) as caught:
        sign(make_job(), "Ada", None, None, NOW, "s", signoff="yes")
    assert caught.value.field == "signoff"


def test_signing_in_another_time_zone() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=-3)))
    job = sign(make_job(), "Ada", None, None, local, "s")
    assert check_job(job, now=NOW).approved_at == NOW
