"""The tables of the state database, in types that SQLite and PostgreSQL share.

Times are Unix seconds. `tests/unit/store/test_database.py` proves that the migrations make exactly these.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only where the key's type is exactly INTEGER, which has 64 bits there.
ROW_ID = BigInteger().with_variant(Integer, "sqlite")
NAME = String(80)
WORD = String(32)


def _run_id() -> Column[str]:
    return Column("run_id", NAME, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False)


RUNS = Table(
    "runs", METADATA,
    Column("id", NAME, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("name", NAME, nullable=False),
    Column("recipe", WORD, nullable=False),
    Column("status", WORD, nullable=False),
    Column("phase", NAME),
    Column("priority", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("job", JSON, nullable=False),
    Column("job_hash", String(64), nullable=False),
    Column("contract_hash", String(64)),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("host", String(255)),
    Column("host_pid", BigInteger),
    Column("host_boot_id", String(36)),
    Column("error", Text),
    Column("advice", Text),
    Column("dedup_key", NAME),
    Column("lineage", NAME),
    Column("retries", Integer, nullable=False, server_default="0"),
    Index(None, "status", "priority", "created"),
    Index(None, "dedup_key"),
)  # fmt: skip

ATTEMPTS = Table(
    "attempts", METADATA,
    Column("run_id", NAME, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("pid", BigInteger),
    Column("boot_id", String(36), nullable=False),
    Column("started", Double, nullable=False),
    Column("heartbeat_monotonic", Double),
    Column("ended", Double),
    Column("outcome", WORD),
)  # fmt: skip

PHASES = Table(
    "phases", METADATA,
    Column("run_id", NAME, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("phase", NAME, primary_key=True),
    Column("status", WORD, nullable=False),
    Column("checkpoint", NAME),
    Column("started", Double),
    Column("ended", Double),
    Column("metrics", JSON, nullable=False),
)  # fmt: skip

GATES = Table(
    "gates", METADATA,
    Column("id", ROW_ID, primary_key=True),
    _run_id(),
    Column("gate", NAME, nullable=False),
    Column("sentence", String(120), nullable=False),
    Column("opened", Double, nullable=False),
    Column("deadline", Double, nullable=False),
    Column("action", WORD),
    Column("by", String(255)),
    Column("reason", Text),
    Column("answered", Double),
    Column("decision_id", NAME, unique=True),
    Column("target_phase", NAME),
    Index(None, "run_id"),
)  # fmt: skip

COMMANDS = Table(
    "commands", METADATA,
    Column("id", ROW_ID, primary_key=True),
    _run_id(),
    Column("action", WORD, nullable=False),
    Column("target_phase", NAME),
    Column("reason", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("consumed", Double),
    Index(None, "run_id", "consumed"),
)  # fmt: skip

RUN_EVENTS = Table(
    "run_events", METADATA,
    Column("id", ROW_ID, primary_key=True),
    _run_id(),
    Column("time", Double, nullable=False),
    Column("kind", WORD, nullable=False),
    Column("data", JSON, nullable=False),
    Index(None, "run_id", "id"),
)  # fmt: skip

MODELS = Table(
    "models", METADATA,
    Column("id", ROW_ID, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("kind", WORD, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("run_id", NAME, ForeignKey("runs.id", ondelete="SET NULL")),
    Column("parent_id", ROW_ID, ForeignKey("models.id")),
    Column("created", Double, nullable=False),
    Column("metrics", JSON, nullable=False),
    Index(None, "sha256"),
)  # fmt: skip

VERSIONS = Table(
    "versions", METADATA,
    Column("id", ROW_ID, primary_key=True),
    Column("lineage", NAME, nullable=False),
    Column("number", Integer, nullable=False),
    Column("status", WORD, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("parent_id", ROW_ID, ForeignKey("versions.id")),
    Column("run_id", NAME, ForeignKey("runs.id", ondelete="SET NULL")),
    Column("description", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("metrics", JSON, nullable=False),
    UniqueConstraint("lineage", "number"),
)  # fmt: skip

INBOX_FILES = Table(
    "inbox_files", METADATA,
    Column("key", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("outcome", WORD, nullable=False),
    Column("run_id", NAME, ForeignKey("runs.id", ondelete="SET NULL")),
    Column("sha256", String(64)),
    Column("note", Text, nullable=False),
    Column("seen", Double, nullable=False),
    Index(None, "seen"),
)  # fmt: skip
