"""A plain HTTP endpoint: POST / {prompt, image_b64?, expert?} -> {answer, expert, confidence, abstained}.

On the loopback interface, with a token, unless a person says otherwise; bodies are bounded before they are
read. FastAPI and uvicorn come with the extra `serve`. Knows the engine process only by its client.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

from scaler_wizard.errors import (
    DataError,
    IncompatibleModelError,
    MissingDependencyError,
    ScalerError,
    SpecError,
    UnknownExpertError,
    UsageError,
)
from scaler_wizard.serving.engine_process import Answer
from scaler_wizard.serving.kept_engine import KeptEngine

MAX_BODY_BYTES: Final = 28 << 20
BODY_SEC: Final = 60.0
MOST_CONNECTIONS: Final = 256
BACKLOG: Final = 128
STOP_SEC: Final = 10
AGAIN: Final = {"Retry-After": "5"}
KEYS: Final = ("prompt", "image_b64", "expert")


class Asked(Protocol):
    """What answers: an engine, whoever looks after it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the experts."""

    @property
    def ready(self) -> bool:
        """Whether it can be asked now."""

    def submit(
        self, prompt: str, *, image_b64: str | None = None, expert: str | None = None
    ) -> Future[Answer]:
        """Ask without waiting. ScalerError, here or from the future: what was refused."""


def new_token() -> str:
    """A token that nobody guesses: 256 random bits."""
    return secrets.token_urlsafe(32)


def check_host(host: str, *, public: bool) -> None:
    """Refuse to listen where other machines can ask, unless a person says so.

    Raises:
        SpecError: not a loopback address.
    """
    if not _is_loopback(host) and not public:
        raise SpecError(
            f"--host {host} can be reached from other machines", "127.0.0.1, ::1 or localhost",
            "leave it out, or say --public and keep the token secret",
        )  # fmt: skip


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens, taken before an engine is loaded for it; closed when the block ends.

    Raises:
        UsageError: the port is taken, or this machine has no such address.
    """
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        # A server that has just ended leaves connections behind that would keep its port for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise UsageError(
            f"nobody can listen at {host}, port {port} ({error.strerror})", "a free port of this machine",
            "name another with --port, or end the program that listens there",
        ) from None  # fmt: skip
    with listener:
        yield listener


def make_app(engine: Asked, token: str | None, *, body_sec: float = BODY_SEC) -> Any:
    """The ASGI application.

    Args:
        token: required as `Authorization: Bearer TOKEN`; None: any program of this machine may ask.
        body_sec: longest wait for a body.

    Raises:
        MissingDependencyError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.concurrency import run_in_threadpool
        from fastapi.responses import JSONResponse
        from starlette.requests import ClientDisconnect
    except ImportError:
        raise _missing() from None
    app = FastAPI(title="experts", docs_url=None, redoc_url=None, openapi_url=None)

    async def ask(request: Request) -> JSONResponse:
        if not _allowed(request.headers, token):
            return _refused(401, "no token, or a wrong one", "Authorization: Bearer TOKEN")
        length = request.headers.get("content-length")
        if length is not None and (
            not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES
        ):
            return _refused(413, f"a body of {length[:20]} bytes", f"at most {MAX_BODY_BYTES:,}")
        try:
            async with asyncio.timeout(body_sec):
                body = await _read(request.stream())
        except (TimeoutError, ClientDisconnect):
            return _refused(408, f"a body that is not here after {body_sec:g} s", "send it at once")
        if body is None:
            return _refused(413, f"a body of more than {MAX_BODY_BYTES:,} bytes", "a smaller picture")
        try:
            question = understand(body)
            # In a thread: an engine that is behind with its reading must not stop the others' answers.
            future = await run_in_threadpool(
                engine.submit, question["prompt"], image_b64=question.get("image_b64"),
                expert=question.get("expert"),
            )  # fmt: skip
            answer = await asyncio.wrap_future(future)
        except ScalerError as error:
            status = _status(error)
            return JSONResponse(error.as_dict(), status, AGAIN if status == 503 else None)
        return JSONResponse(as_json(answer))

    async def health(request: Request) -> JSONResponse:
        said: dict[str, Any] = {"ready": engine.ready}
        if _allowed(request.headers, token):
            said["labels"] = list(engine.labels)
        return JSONResponse(said, 200 if engine.ready else 503)

    app.add_route("/", ask, methods=["POST"])
    app.add_route("/health", health, methods=["GET"])

    def _refused(status: int, found: str, expected: str) -> JSONResponse:
        return JSONResponse({"error": "HttpError", "found": found, "expected": expected, "todo": ""}, status)

    return app


def run(engine: KeptEngine, listener: socket.socket, token: str | None) -> None:
    """Serve until interrupted: what was asked before is answered, for ten seconds at most.

    Raises:
        MissingDependencyError: uvicorn is not installed.
        WorkerDiedError: the engine died more often than it is started again.
    """
    try:
        import uvicorn
    except ImportError:
        raise _missing() from None
    config = uvicorn.Config(
        make_app(engine, token), log_level="warning", access_log=False, lifespan="off",
        limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=STOP_SEC,
    )  # fmt: skip
    server = uvicorn.Server(config)

    def stop() -> None:
        server.should_exit = True

    engine.when_given_up(stop)
    with suppress(KeyboardInterrupt):  # uvicorn has stopped in good order, and raises it again
        server.run(sockets=[listener])
    if engine.given_up is not None:
        raise engine.given_up


def as_json(answer: Answer) -> dict[str, Any]:
    """What the endpoint says."""
    return {
        "answer": answer.answer, "expert": answer.expert, "confidence": answer.confidence,
        "abstained": answer.abstained,
    }  # fmt: skip


def understand(body: bytes) -> dict[str, str]:
    """The question of a body.

    Raises:
        DataError: not JSON, an unknown key, a value that is no text, or no prompt.
    """
    expected = '{"prompt": "...", "image_b64"?: "...", "expert"?: "..."}'
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise DataError("a body that is not JSON", expected, "send it as shown") from None
    if not isinstance(value, dict) or set(value) - set(KEYS):
        raise DataError("a body with other keys than prompt, image_b64, expert", expected, "send it as shown")
    kept = {str(key): item for key, item in value.items() if item is not None}
    if not all(isinstance(item, str) for item in kept.values()) or not kept.get("prompt", "").strip():
        raise DataError(
            "a body without a prompt, or with a value that is no text", expected, "send it as shown"
        )
    return kept


async def _read(stream: AsyncIterator[bytes]) -> bytes | None:
    """The body; None where it is too long: a length that was not said, or said wrongly."""
    parts, size = [], 0
    async for part in stream:
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _allowed(headers: Mapping[str, str], token: str | None) -> bool:
    if token is None:
        # A page in a browser may reach this machine under a name of its own (DNS rebinding).
        name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        return _is_loopback(name.strip("[]"))
    kind, _, given = headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def _status(error: ScalerError) -> int:
    """404 for an unknown expert, 400 for another question that cannot be asked, 503 for the rest."""
    if isinstance(error, UnknownExpertError):
        return 404
    # The engine is loaded: what is incompatible now is a picture for a base that reads text only.
    return 400 if isinstance(error, DataError | IncompatibleModelError) else 503


def _missing() -> MissingDependencyError:
    return MissingDependencyError(
        "FastAPI and uvicorn are not installed", "the extra serve", "pip install 'scaler-wizard[serve]'"
    )
