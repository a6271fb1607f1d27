"""A plain HTTP endpoint: POST / {prompt, image_b64?, expert?} -> {answer, expert, confidence, abstained}.

On the loopback interface, with a token, unless a person says otherwise; bodies are bounded before they are
read. FastAPI and uvicorn come with the extra `serve`. Knows the engine process only by its client.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final

from scaler_wizard.errors import (
    DataError,
    IncompatibleModelError,
    MissingDependencyError,
    ScalerError,
    SpecError,
    UnknownExpertError,
)
from scaler_wizard.serving.engine_process import Answer, EngineProcess

MAX_BODY_BYTES: Final = 28 << 20
KEYS: Final = ("prompt", "image_b64", "expert")


def new_token() -> str:
    """A token that nobody guesses: 256 random bits."""
    return secrets.token_urlsafe(32)


def check_host(host: str, *, public: bool) -> None:
    """Refuse to listen where other machines can ask, unless a person says so.

    Raises:
        SpecError: not a loopback address.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not public:
        raise SpecError(
            f"--host {host} can be reached from other machines", "127.0.0.1, ::1 or localhost",
            "leave it out, or say --public and keep the token secret",
        )  # fmt: skip


def make_app(engine: EngineProcess, token: str | None) -> Any:
    """The ASGI application.

    Args:
        token: required as `Authorization: Bearer TOKEN`; None: anybody who reaches it may ask.

    Raises:
        MissingDependencyError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.concurrency import run_in_threadpool
        from fastapi.responses import JSONResponse
    except ImportError:
        raise _missing() from None
    app = FastAPI(title="experts", docs_url=None, redoc_url=None, openapi_url=None)

    async def ask(request: Request) -> JSONResponse:
        if not _allowed(request.headers.get("authorization"), token):
            return _refused(401, "no token, or a wrong one", "Authorization: Bearer TOKEN")
        length = request.headers.get("content-length")
        if length is not None and (
            not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES
        ):
            return _refused(413, f"a body of {length[:20]} bytes", f"at most {MAX_BODY_BYTES:,}")
        body = await _read(request.stream())
        if body is None:
            return _refused(413, f"a body of more than {MAX_BODY_BYTES:,} bytes", "a smaller picture")
        try:
            question = understand(body)
            future = engine.submit(
                question["prompt"], image_b64=question.get("image_b64"), expert=question.get("expert")
            )
            answer = await run_in_threadpool(future.result)
        except ScalerError as error:
            return JSONResponse(error.as_dict(), _status(error))
        return JSONResponse(as_json(answer))

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"labels": list(engine.labels)})

    app.add_route("/", ask, methods=["POST"])
    app.add_route("/health", health, methods=["GET"])

    def _refused(status: int, found: str, expected: str) -> JSONResponse:
        return JSONResponse({"error": "HttpError", "found": found, "expected": expected, "todo": ""}, status)

    return app


def run(engine: EngineProcess, host: str, port: int, token: str | None) -> None:
    """Serve until interrupted.

    Raises:
        MissingDependencyError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError:
        raise _missing() from None
    uvicorn.run(make_app(engine, token), host=host, port=port, log_level="warning", access_log=False)


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


def _allowed(header: str | None, token: str | None) -> bool:
    if token is None:
        return True
    kind, _, given = (header or "").partition(" ")
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
