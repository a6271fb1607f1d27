"""The endpoint over a real socket, in front of the real engine."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from PIL import Image

from scaler_wizard.errors import DataError, SpecError, UsageError
from scaler_wizard.serving.engine_process import EngineProcess
from scaler_wizard.serving.http import MAX_BODY_BYTES, check_host, listen, make_app, new_token, understand

TOKEN = new_token()


@contextmanager
def served(app: Any) -> Iterator[int]:
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def port(engine: EngineProcess) -> Iterator[int]:
    with served(make_app(engine, TOKEN)) as port:
        yield port


def post(port: int, body: Any, token: str | None = TOKEN, **headers: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    named = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request("POST", "/", body, named | headers)
    answer = connection.getresponse()
    value = json.loads(answer.read())
    connection.close()
    return answer.status, value


def test_a_question_is_answered(port: int) -> None:
    status, value = post(port, json.dumps({"prompt": "Sort: b a", "expert": "north"}).encode())
    assert status == 200
    assert value.keys() == {"answer", "expert", "confidence", "abstained"}
    assert value["expert"] == "north"


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1]], ids=["none", "empty", "wrong", "cut"])
def test_without_its_token_nobody_is_answered(port: int, token: str | None) -> None:
    assert post(port, b'{"prompt": "a"}', token)[0] == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"[]", 400), (b"nonsense", 400), (b'{"prompt": 7}', 400), (b'{"prompt": ""}', 400),
        (b'{"prompt": "a", "command": "rm"}', 400), (b'{"prompt": "a", "expert": "nobody"}', 404),
        (b'{"prompt": "a", "image_b64": "bm8="}', 400), (b"[" * 100_000, 400),
    ],
)  # fmt: skip
def test_hostile_bodies_are_refused_with_words(port: int, body: bytes, status: int) -> None:
    found, value = post(port, body)
    assert found == status
    assert value["found"]


def test_a_picture_for_a_base_that_reads_text_only_is_the_questions_fault(port: int) -> None:
    drawn = io.BytesIO()
    Image.new("RGB", (32, 32)).save(drawn, "PNG")
    picture = base64.b64encode(drawn.getvalue()).decode()
    status, value = post(port, json.dumps({"prompt": "a", "image_b64": picture}).encode())
    assert (status, value["error"]) == (400, "IncompatibleModelError")


def test_many_at_once_get_their_own_answers(port: int) -> None:
    bodies = [json.dumps({"prompt": f"Sort: {c} a", "expert": "north"}).encode() for c in "bcdefghk"]
    alone = [post(port, body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(partial(post, port), bodies)) == alone


def test_a_body_that_claims_to_be_too_long_is_not_read(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/")
    connection.putheader("Authorization", f"Bearer {TOKEN}")
    connection.putheader("Content-Length", str(MAX_BODY_BYTES + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_that_does_not_say_how_long_it_is_ends_at_the_limit(port: int) -> None:
    half = b"x" * (MAX_BODY_BYTES // 2)
    assert post(port, iter([half, half, b"x"]))[0] == 413  # sent in chunks


def begun(port: int, length: int = 100) -> socket.socket:
    """A client that has sent its headers and the first bytes of its body."""
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n"
    client.sendall(head.encode() + b'{"pro')
    return client


def test_a_slow_client_keeps_nobody_waiting_and_not_for_ever(
    engine: EngineProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with served(make_app(engine, TOKEN, body_sec=1.0)) as port:
        slow, gone = begun(port), begun(port)
        gone.close()
        assert post(port, b'{"prompt": "Sort: b a"}')[0] == 200
        slow.settimeout(20)
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
        slow.close()
    assert not caplog.records, "who has gone is no error of the server"


def test_health_says_whether_it_can_be_asked_and_labels_only_with_the_token(port: int) -> None:
    assert get(port, "/health") == (200, {"ready": True})
    known = get(port, "/health", Authorization=f"Bearer {TOKEN}")
    assert known == (200, {"ready": True, "labels": ["north", "south", "plain"]})


def get(port: int, path: str, **headers: str) -> tuple[int, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    value = json.loads(answer.read())
    connection.close()
    return answer.status, value


def test_without_a_token_only_this_machine_may_ask_by_its_own_name(engine: EngineProcess) -> None:
    with served(make_app(engine, None)) as port:
        body = b'{"prompt": "Sort: b a"}'
        assert post(port, body, None)[0] == 200
        assert post(port, body, None, Host=f"localhost:{port}")[0] == 200
        assert post(port, body, None, Host="rebound.example:80")[0] == 401


def test_a_port_that_is_taken_and_an_address_that_is_elsewhere_are_refused() -> None:
    with (
        listen("127.0.0.1", 0) as held,
        pytest.raises(UsageError, match="in use"),
        listen("127.0.0.1", held.getsockname()[1]),
    ):
        pass
    with pytest.raises(UsageError), listen("192.0.2.1", 8765):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "example.org", ""])
def test_other_machines_are_let_in_only_when_said(host: str) -> None:
    with pytest.raises(SpecError):
        check_host(host, public=False)
    check_host(host, public=True)


def test_loopback_needs_no_word() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_host(host, public=False)


def test_only_the_three_keys_are_understood() -> None:
    assert understand(b'{"prompt": "a", "image_b64": null}') == {"prompt": "a"}
    with pytest.raises(DataError):
        understand(b'{"prompt": "a", "max_new_tokens": 5}')
