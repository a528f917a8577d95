"""The edge mounted in Django: the same answers, the same stream, the same spool."""

from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from campaigns import retargeting
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey, delivery_tokens
from tests.tracking.building import SENT, Issue, append, drain, send_issue, sighting
from tests.tracking.edges import wait_until
from tracking import answers, edge_links, ingesting, recording, stream, views
from tracking.models import Event

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tracking.urls"), pytest.mark.usefixtures("streams", "folder")]
NOW = "2025-03-05T09:02:00Z"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(views, "_links", edge_links.LinkStore(tmp_path / "links"))
    monkeypatch.setattr(views, "_follower", edge_links.Follower())
    for module in (recording, ingesting):
        monkeypatch.setattr(module, "DATA_DIR", tmp_path)
    monkeypatch.setattr(recording, "_recorder", None)
    return tmp_path


def track(issue: Issue) -> str:
    return delivery_tokens(keyring(), DeliveryKey(issue.campaign.pk, issue.people[0].pk)).track


def ask(path: str, **more: Any) -> Any:
    return Client(headers={"user-agent": "Mozilla/5.0 (X11) Firefox/127.0"}).get(path, **more)


def test_pixel_and_link_answer_as_the_edge_does() -> None:
    issue = send_issue()
    pixel = ask(f"/o/{track(issue)}.gif")
    assert (pixel.status_code, pixel["content-type"], pixel.content) == (200, "image/gif", answers.PIXEL.body)
    link = ask(f"/c/{track(issue)}/1", follow=False)
    assert (link.status_code, link["location"]) == (302, "https://example.org/1")
    assert ask(f"/c/{track(issue)}/9").status_code == 404
    assert Client(enforce_csrf_checks=True).post(f"/o/{track(issue)}.gif").status_code == 405
    drain()
    assert sorted(Event.objects.values_list("kind", "link")) == [(1, None), (2, 1)]


def test_a_link_of_a_deleted_campaign_still_leads_on() -> None:
    issue = send_issue()
    edge_links.publish(issue.campaign.pk)
    token = track(issue)
    issue.campaign.delete()
    assert ask(f"/c/{token}/1")["location"] == "https://example.org/1"


def test_with_the_stream_down_hits_wait_on_disk_and_come_in_once(folder: Path, settings: Any) -> None:
    issue = send_issue()
    url = settings.STREAM_URL
    settings.STREAM_URL = f"unix://{folder}/nothing.sock"
    for _time in range(3):
        assert ask(f"/o/{track(issue)}.gif").status_code == 200
    settings.STREAM_URL = url
    sent: list[int] = []

    def all_are_sent() -> bool:
        sent.append(ingesting.replay_spool())
        return sum(sent) == 3

    wait_until(all_are_sent)  # its writer lets go of the file after a moment
    assert ingesting.replay_spool() == 0
    drain()
    assert sum(Event.objects.values_list("hits", flat=True)) == 3


def test_links_that_valkey_lost_are_published_again() -> None:
    issue = send_issue()
    with stream.connect(settings.STREAM_URL) as client:
        client.delete(edge_links.CAMPAIGNS_KEY, edge_links.key(issue.campaign.pk))
        assert edge_links.publish_missing() == 1
        assert edge_links.publish_missing() == 0
        assert client.hget(edge_links.key(issue.campaign.pk), "1") == "https://example.org/1"


def test_a_changed_target_is_followed_here_too_and_published_when_valkey_is_up_again(settings: Any) -> None:
    issue = send_issue()
    place = f"/c/{track(issue)}/0"
    was = ask(place)["Location"]
    up, settings.STREAM_URL = settings.STREAM_URL, "redis://127.0.0.1:1"
    retargeting.retarget(issue.campaign.pk, 0, "https://new.example/", shown=was, actor="ada", now=SENT)
    edge_links.publish(issue.campaign.pk)  # what follows the commit; Valkey is down
    settings.STREAM_URL = up
    assert edge_links.publish_missing() == 1
    assert edge_links.publish_missing() == 0
    wait_until(lambda: ask(place)["Location"] == "https://new.example/", seconds=5)


def test_lag_says_what_waits() -> None:
    issue = send_issue()
    append(sighting(issue))
    assert sum(ingesting.lag().values()) == 1
    drain()
    assert sum(ingesting.lag().values()) == 0
