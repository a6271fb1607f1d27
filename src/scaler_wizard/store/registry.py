"""The models this workspace knows, each with its hash and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from scaler_wizard.errors import ModelNotFoundError, WorkspaceError
from scaler_wizard.store.checkpoint_files import regular_files
from scaler_wizard.store.database import transaction
from scaler_wizard.store.durable import sha256_file
from scaler_wizard.store.names import safe_name
from scaler_wizard.store.records import Model, ModelKind
from scaler_wizard.store.tables import MODELS


def content_hash(path: Path) -> str:
    """SHA-256 of a model: of a file's bytes, or of the sorted "hash name" lines of a directory's files.

    Raises:
        ModelNotFoundError: nothing at `path`.
        CheckpointError: a symbolic link or special file in the directory.
    """
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise ModelNotFoundError(
            f"there is no model at {path}", "a model directory or file", "check the path"
        )
    return hash_of_files((name, sha256_file(path / name)) for name, _ in regular_files(path))


def hash_of_files(hashes: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of a directory, from the (name, SHA-256) of its files in the order of `regular_files`."""
    lines = (f"{digest} {name}\n" for name, digest in hashes)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def register(
    connection: Connection,
    name: str,
    kind: ModelKind,
    path: Path,
    now: float,
    *,
    run_id: str | None = None,
    parent: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    sha256: str | None = None,
) -> Model:
    """Record a model under its content's hash. The same name and content again returns the first record.

    Args:
        run_id: the run that made it.
        parent: name of the registered model that it was made from.
        sha256: its `content_hash`, where it was taken before; taken here otherwise.

    Raises:
        WorkspaceError: the name is unsafe, taken by other content, or `run_id` is unknown.
        ModelNotFoundError: no such path, or no such parent.
    """
    digest = sha256 or content_hash(path)
    values = {
        "name": safe_name(name, "model name"), "kind": kind, "path": str(path.absolute()), "sha256": digest,
        "run_id": run_id, "created": now, "metrics": dict(metrics or {}),
    }  # fmt: skip
    try:
        with transaction(connection):
            parent_id = _by_name(connection, parent).id if parent is not None else None
            row = connection.execute(select(MODELS).where(MODELS.c.name == name)).mappings().first()
            if row is None:
                connection.execute(insert(MODELS).values(**values, parent_id=parent_id))
                return _by_name(connection, name)
            if row["sha256"] == digest and row["kind"] == kind:
                return Model(**row)
    except IntegrityError as error:
        raise WorkspaceError(
            f"run {run_id} is not in the database", "the run that made the model", ""
        ) from error
    raise WorkspaceError(
        f'the name "{name}" belongs to another model ({row["path"]})',
        "a new name",
        "register it under another name",
    )


def list_models(connection: Connection, kind: ModelKind | None = None) -> tuple[Model, ...]:
    """All models, or those of one kind, newest first."""
    query = select(MODELS).order_by(MODELS.c.created.desc(), MODELS.c.id.desc())
    if kind is not None:
        query = query.where(MODELS.c.kind == kind)
    with transaction(connection):
        return tuple(Model(**row) for row in connection.execute(query).mappings())


def get_model(connection: Connection, name: str) -> Model:
    """One model; ModelNotFoundError when there is none of that name."""
    with transaction(connection):
        return _by_name(connection, name)


def lineage(connection: Connection, name: str) -> tuple[Model, ...]:
    """The model, what it was made from, and so on to the first; ModelNotFoundError as `get_model`."""
    with transaction(connection):
        chain = [_by_name(connection, name)]
        while (parent_id := chain[-1].parent_id) is not None:
            # A parent is registered before its child and never changes, so this ends.
            row = connection.execute(select(MODELS).where(MODELS.c.id == parent_id)).mappings().one()
            chain.append(Model(**row))
        return tuple(chain)


def _by_name(connection: Connection, name: str) -> Model:
    row = connection.execute(select(MODELS).where(MODELS.c.name == name)).mappings().first()
    if row is None:
        raise ModelNotFoundError(
            f'no model is registered as "{name}"',
            "a registered model",
            "see which runs exported one with `scaler runs list`",
        )
    return Model(**row)
