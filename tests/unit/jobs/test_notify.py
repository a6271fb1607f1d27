"""Notifications over a real HTTP server on this machine; addresses are told to nobody."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scaler_wizard.errors import MissingDependencyError, SpecError
from scaler_wizard.jobs.notify import Notifier
from scaler_wizard.specs.continual import NotifySection

# Apprise 2.2 imports it on Python before 3.13.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
needs_apprise = pytest.mark.skipif(
    importlib.util.find_spec("apprise") is None, reason="the optional extra `notify` is not installed"
)
SECRET = "hunter2hunter2"


class Listener:
    """A real HTTP server that keeps what was posted to it. Its thread never keeps pytest from ending."""

    def __init__(self, status: int = 200) -> None:
        received: list[dict[str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.received = received
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"json://user:{SECRET}@127.0.0.1:{self.server.server_port}/path"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listening = Listener()
    try:
        yield listening
    finally:
        listening.close()


@pytest.fixture
def broken() -> Iterator[Listener]:
    """A server that answers every request with an error."""
    listening = Listener(status=500)
    try:
        yield listening
    finally:
        listening.close()


@needs_apprise
def test_a_notification_arrives(listener: Listener) -> None:
    notifier = Notifier(NotifySection(urls=[listener.url], events=["failed"]))
    assert notifier.send("failed", "a run failed", "birds.jsonl: no usable row")
    assert not notifier.send("finished", "nobody", "asked for this")
    notifier.close()
    (message,) = listener.received
    assert (message["title"], message["message"]) == ("a run failed", "birds.jsonl: no usable row")
    assert (notifier.sent, notifier.failed) == (1, 0)


@needs_apprise
def test_a_failure_is_one_line_without_the_address(
    broken: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        notifier = Notifier(NotifySection(urls=[broken.url]))
        notifier.send("failed", "title", "text")
        notifier.close()
    assert notifier.failed == 1
    ours = [record for record in caplog.records if record.name.startswith("scaler_wizard")]
    assert len(ours) == 1
    assert "notify.urls[1]" in ours[0].getMessage()
    assert SECRET not in caplog.text


@needs_apprise
def test_an_address_of_no_service_is_refused_without_being_told() -> None:
    with pytest.raises(SpecError) as caught:
        Notifier(NotifySection(urls=[f"nosuchservice://{SECRET}"]))
    assert SECRET not in str(caught.value)


def test_without_addresses_nothing_is_needed() -> None:
    notifier = Notifier(NotifySection())
    assert not notifier.send("failed", "a", "b")
    notifier.close()


def test_without_apprise_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(MissingDependencyError, match="notify"):
        Notifier(NotifySection(urls=["json://localhost"]))
