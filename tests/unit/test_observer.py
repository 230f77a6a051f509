"""What is counted and logged of events, by a clock that is moved by hand."""

import logging

import pytest
from prometheus_client import REGISTRY
from twisted.internet.task import Clock

from synapse_rendezvous.config import RendezvousConfig
from synapse_rendezvous.metrics import Metrics
from synapse_rendezvous.observer import STORE_WARNING_INTERVAL_S, UNIDENTIFIED_WARNING_INTERVAL_S, Observer
from synapse_rendezvous.session import Session

SERVER_NAME = "observed.localhost"
SESSION = Session("a" * 22, b"hello", b"text/plain", b"0" * 20, None, 0, 300_000, 0, "203.0.113.9")


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1)
    return clock


@pytest.fixture
def observer(clock: Clock, caplog: pytest.LogCaptureFixture) -> Observer:
    caplog.set_level(logging.INFO)
    metrics = Metrics(SERVER_NAME, version="0", process="main", store="memory", config=RendezvousConfig())
    return Observer(metrics, clock.seconds, ttl_ms=300_000, is_enforced=True)


def sample(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(f"synapse_rendezvous_{name}", {"server_name": SERVER_NAME, **labels})
    assert value is not None
    return value


def test_many_sources(observer: Observer, caplog: pytest.LogCaptureFixture) -> None:
    """However many clients create sessions, the look at where they come from ends well."""
    for number in range(30_000):
        observer.session_created(SESSION, "msc3886", f"8.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    observer.log_dominant_source()
    assert [] == caplog.messages


def test_dominant_source(observer: Observer, caplog: pytest.LogCaptureFixture) -> None:
    """One private address that creates nearly all sessions is named; one warning, until it happens again."""
    for _ in range(19):
        observer.session_created(SESSION, "msc3886", "10.1.2.3")
    observer.log_dominant_source()
    assert [] == caplog.messages
    for _ in range(20):
        observer.session_created(SESSION, "msc3886", "10.1.2.3")
    observer.log_dominant_source()
    observer.log_dominant_source()
    (message,) = caplog.messages
    assert message.startswith("20 of the last 20 sessions were created from 10.1.2.3, a private address.")


def test_unidentified_clients(observer: Observer, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A proxy that hides its clients is named once an hour."""
    for _ in range(2):
        observer.client_unidentified("10.0.0.1")
    clock.advance(UNIDENTIFIED_WARNING_INTERVAL_S - 1)
    observer.client_unidentified("10.0.0.1")
    assert 1 == len(caplog.messages)
    clock.advance(1)
    observer.client_unidentified(None)
    assert "A request came through a unix socket without" in caplog.messages[1]


def test_store_failures(observer: Observer, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Failures of the store are counted each, and logged once a minute with their number; so is its return."""
    before = sample("store_failures_total")
    observer.store_went_down()
    for _ in range(3):
        observer.store_call_failed("no answer")
    clock.advance(STORE_WARNING_INTERVAL_S)
    observer.store_call_failed("no answer")
    assert (4, 1) == (sample("store_failures_total") - before, sample("store_down"))
    assert [1, 3] == [int(message.rpartition(" ")[2]) for message in caplog.messages]
    for _ in range(2):
        observer.store_came_back()
    assert ["Redis answers again after 60.0 s"] == caplog.messages[2:]
    assert 0 == sample("store_down")


def test_conflict(observer: Observer) -> None:
    """A conflict of MSC4388 is no defect, but a precondition that failed."""
    before = sample("requests_total", method="PUT", outcome="precondition_failed")
    observer.request_answered(b"PUT", 409)
    assert 1 == sample("requests_total", method="PUT", outcome="precondition_failed") - before


def test_any_request(observer: Observer) -> None:
    """Methods and statuses that nobody foresaw are counted too, without a label of their own."""
    before = sample("requests_total", method="other", outcome="error")
    observer.request_answered(b"BREW", 418)
    assert 1 == sample("requests_total", method="other", outcome="error") - before
    before = sample("requests_total", method="GET", outcome="error")
    observer.request_answered(b"GET", 418)
    assert 1 == sample("requests_total", method="GET", outcome="error") - before
