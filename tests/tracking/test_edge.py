"""The edge as a mail client meets it: a real server process, a real Valkey."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey, DeliveryTokens, delivery_tokens
from tests.engines import engines
from tests.tracking.edges import RunningEdge, own_valkey, restart, running, wait_until
from tracking import answers, edge_links, stream
from tracking.stream import Sighting

CAMPAIGN = 4_000_001
TARGET = "https://example.org/a?b=c&d=%2F#e"


def tokens(subscriber_id: int = 7, campaign_id: int = CAMPAIGN) -> DeliveryTokens:
    return delivery_tokens(keyring(), DeliveryKey(campaign_id, subscriber_id))


def give_links(client: redis.Redis, campaign_id: int, targets: dict[int, str]) -> None:
    client.hset(edge_links.key(campaign_id), mapping={str(index): url for index, url in targets.items()})
    client.sadd(edge_links.CAMPAIGNS_KEY, campaign_id)


def recorded(client: redis.Redis) -> list[Sighting]:
    found = []
    for number in range(stream.STREAMS):
        entries: Any = client.xrange(stream.name(number))
        for _id, fields in entries:
            found += stream.decode(fields[b"d"].decode())
    return found


@pytest.fixture(scope="module")
def valkey() -> Iterator[redis.Redis]:
    with engines.valkey.client() as client:
        give_links(client, CAMPAIGN, {0: "https://example.org/", 1: TARGET, 2: "javascript:alert(1)"})
        give_links(client, CAMPAIGN, {3: "https://example.org/\r\nSet-Cookie: a=b", 4: "https://exämple.org/ü"})
        yield client


@pytest.fixture(scope="module")
def edge(valkey: redis.Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEdge]:
    with running(tmp_path_factory.mktemp("edge"), engines.valkey.url) as edge:
        yield edge


@pytest.fixture(autouse=True)
def empty_streams(valkey: redis.Redis) -> None:
    valkey.delete(*(stream.name(number) for number in range(stream.STREAMS)))


def test_a_pixel_is_answered_and_in_the_stream_by_then(edge: RunningEdge, valkey: redis.Redis) -> None:
    response = edge.ask(f"/o/{tokens().track}.gif")
    assert (response.status, response.headers["content-type"]) == (200, "image/gif")
    assert "no-store" in response.headers["cache-control"]
    assert response.content == answers.PIXEL.body  # type: ignore[attr-defined]
    [sighting] = recorded(valkey)
    assert (sighting.kind, sighting.campaign_id, sighting.subscriber_id) == (stream.OPEN, CAMPAIGN, 7)
    assert (sighting.method, sighting.ip) == ("GET", "127.0.0.1")


def test_head_is_answered_without_a_body_and_recorded_as_head(edge: RunningEdge, valkey: redis.Redis) -> None:
    response = edge.ask(f"/o/{tokens().track}.gif", method="HEAD")
    assert (response.status, response.content) == (200, b"")  # type: ignore[attr-defined]
    assert [one.method for one in recorded(valkey)] == ["HEAD"]


def test_a_link_leads_exactly_to_its_stored_target(edge: RunningEdge, valkey: redis.Redis) -> None:
    response = edge.ask(f"/c/{tokens().track}/1?url=https://evil.example/")
    assert (response.status, response.headers["location"]) == (302, TARGET)
    assert [(one.kind, one.link) for one in recorded(valkey)] == [(stream.CLICK, 1)]


def test_a_stored_target_can_inject_nothing(edge: RunningEdge) -> None:
    injected = edge.ask(f"/c/{tokens().track}/3")
    assert injected.headers["location"] == "https://example.org/%0D%0ASet-Cookie:%20a=b"
    assert "set-cookie" not in injected.headers
    assert edge.ask(f"/c/{tokens().track}/2").status == 404
    assert edge.ask(f"/c/{tokens().track}/4").headers["location"] == "https://ex%C3%A4mple.org/%C3%BC"


@pytest.mark.parametrize("change", ["forged", "control", "cut", "empty"])
def test_a_token_that_is_not_ours_leaves_no_trace(edge: RunningEdge, valkey: redis.Redis, change: str) -> None:
    ours = tokens()
    token = {"forged": ours.track[:-1] + "A", "control": ours.control, "cut": ours.track[:-3], "empty": ""}[change]
    if token == ours.track:
        token = ours.track[:-1] + "Q"
    pixel = edge.ask(f"/o/{token}.gif")
    assert (pixel.status, pixel.headers["content-type"]) == (200, "image/gif")
    link = edge.ask(f"/c/{token}/1")
    assert link.status == 404
    assert b"This link leads nowhere" in link.content  # type: ignore[attr-defined]
    assert recorded(valkey) == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/o/x.gif", 405),
        ("DELETE", "/c/x/1", 405),
        ("GET", "/o/" + "a" * 5000, 414),
        ("GET", "/healthz", 200),
    ],
)
def test_what_is_not_asked_so(edge: RunningEdge, method: str, path: str, status: int) -> None:
    assert edge.ask(path, method=method).status == status


def test_an_unknown_link_of_ours_is_not_found(edge: RunningEdge, valkey: redis.Redis) -> None:
    assert edge.ask(f"/c/{tokens().track}/99").status == 404
    assert edge.ask(f"/c/{tokens(campaign_id=CAMPAIGN + 1).track}/0").status == 404
    assert recorded(valkey) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["", "o/", "c/", "c/a/"]), st.text(max_size=40), st.sampled_from(["GET", "HEAD", "PUT"]))
def test_nothing_that_is_asked_breaks_the_edge(edge: RunningEdge, start: str, rest: str, method: str) -> None:
    path = f"/{start}{quote(rest.encode('utf-8', 'replace'))}"
    assert edge.ask(path, method=method).status < 500


@given(st.text(max_size=300), st.integers(0, 5000), st.sampled_from(["GET", "HEAD", "POST", ""]))
def test_no_text_passes_for_a_token(path: str, query: int, method: str) -> None:
    wanted = answers.read(method, path, query, keyring())
    assert not isinstance(wanted, answers.Click)
    assert getattr(wanted, "delivery", None) is None


def test_with_the_stream_killed_everything_is_answered_and_nothing_lost_or_doubled(tmp_path: Path) -> None:
    with own_valkey(tmp_path / "engine") as server, running(tmp_path / "edge", server.url) as edge:
        with server.client() as client:
            give_links(client, CAMPAIGN, {1: TARGET})
        wait_until((tmp_path / "edge" / "links" / f"{CAMPAIGN}.json").exists)
        server.kill()
        assert edge.ask(f"/o/{tokens(1).track}.gif").status == 200
        assert edge.ask(f"/c/{tokens(2).track}/1").headers["location"] == TARGET
        unknown = edge.ask(f"/c/{tokens(3, CAMPAIGN + 1).track}/1")
        assert (unknown.status, unknown.headers["retry-after"]) == (503, "10")
        assert json.loads(edge.ask("/healthz").content)["stream"] == "down"  # type: ignore[attr-defined]
        restart(server)
        with server.client() as client:
            wait_until(lambda: len(recorded(client)) == 2)
            assert {(one.kind, one.subscriber_id) for one in recorded(client)} == {(1, 1), (2, 2)}
        wait_until(lambda: not list((tmp_path / "edge" / "spool").glob("*.spool")))


def test_a_redirect_works_after_a_restart_with_everything_down(tmp_path: Path) -> None:
    edge_links.LinkStore(tmp_path / "edge" / "links").keep(CAMPAIGN, {1: TARGET})
    with running(tmp_path / "edge", f"unix://{tmp_path}/nothing.sock") as edge:
        assert edge.ask(f"/c/{tokens().track}/1").headers["location"] == TARGET
        assert len(list((tmp_path / "edge" / "spool").glob("*.spool"))) == 1


def change_link(client: redis.Redis, campaign_id: int, target: str, version: int) -> None:
    """What edge_links.publish writes when an editor has changed a link."""
    client.hset(edge_links.key(campaign_id), "1", target)
    client.hset(edge_links.CHANGES_KEY, str(campaign_id), str(version))
    client.incr(edge_links.NEWS_KEY)


def test_a_changed_target_reaches_every_edge_within_seconds_and_outlives_everything(tmp_path: Path) -> None:
    new, newer = "https://example.org/new", "https://example.org/newer"
    place = f"/c/{tokens().track}/1"
    with own_valkey(tmp_path / "engine") as server, server.client() as client:
        give_links(client, CAMPAIGN, {1: TARGET})
        with running(tmp_path / "one", server.url) as one, running(tmp_path / "two", server.url) as two:
            assert {edge.ask(place).headers["location"] for edge in (one, two)} == {TARGET}
            changed = time.monotonic()
            change_link(client, CAMPAIGN, new, 1)
            for edge in (one, two):
                wait_until(lambda edge=edge: edge.ask(place).headers["location"] == new, seconds=5)
            assert time.monotonic() - changed < 5
        change_link(client, CAMPAIGN, newer, 2)  # while the edges are down
        with running(tmp_path / "one", server.url) as one:
            wait_until(lambda: one.ask(place).headers["location"] == newer, seconds=5)
    with running(tmp_path / "one", f"unix://{tmp_path}/nothing.sock") as one:
        assert one.ask(place).headers["location"] == newer
