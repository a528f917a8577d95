"""Leaving: by one click from the mail client, by the page, and back again within a day."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from pytest_django.live_server_helper import LiveServer

from subscribers import unsubscribing
from tests.conftest import NOW
from tests.subscribers.conftest import Reader, control_token, fetch

pytestmark = pytest.mark.django_db

MULTIPART = b'--b\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--b--\r\n'


def leave(reader: Reader, **changes: Any) -> bool:
    facts = {
        "list_id": reader.subscription.list_id,
        "subscriber_id": reader.subscriber.pk,
        "campaign_id": reader.campaign.pk,
        "source": "one-click",
        "now": NOW,
    }
    return unsubscribing.unsubscribe(**{**facts, **changes})


def come_back(reader: Reader, **changes: Any) -> bool:
    facts = {
        "list_id": reader.subscription.list_id,
        "subscriber_id": reader.subscriber.pk,
        "campaign_id": reader.campaign.pk,
        "source": "page",
        "now": NOW,
    }
    return unsubscribing.undo(**{**facts, **changes})


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"List-Unsubscribe=One-Click", "application/x-www-form-urlencoded"),
        (MULTIPART, "multipart/form-data; boundary=b"),
        (MULTIPART, "multipart/form-data; boundary=quite-another"),
        (b"not a multipart body at all", "multipart/form-data"),
        (b"", "application/x-www-form-urlencoded"),
        (b"\xff\xfe\x00", "application/x-www-form-urlencoded; charset=utf-16"),
        (b'{"List-Unsubscribe": "One-Click"}', "application/json"),
        (b"x=" + b"y" * 3_000_000, "application/x-www-form-urlencoded"),
    ],
)
def test_one_click_works_over_http_with_any_body(
    live_server: LiveServer, reader: Reader, body: bytes, content_type: str
) -> None:
    url = f"{live_server.url}/u/{reader.token}"
    for _again in range(2):
        answer = fetch(url, body=body, content_type=content_type)
        assert answer.status == 200
        assert answer.headers["Set-Cookie"] is None
    assert reader.state == "unsubscribed"
    assert reader.proofs == ["unsubscribed"]
    assert reader.subscriber.consents.get().source == "one-click"


def test_looking_at_the_page_changes_nothing(browser_client: Client, reader: Reader) -> None:
    for method in (browser_client.get, browser_client.head):
        assert method(f"/u/{reader.token}").status_code == 200
    assert reader.state == "active"
    assert reader.proofs == []


def test_the_pages_button_ends_on_a_page_that_offers_to_undo(browser_client: Client, reader: Reader) -> None:
    page = browser_client.post(f"/u/{reader.token}", {"action": "unsubscribe"}, follow=True)
    assert reader.state == "unsubscribed"
    assert b"You are unsubscribed" in page.content
    assert b'value="undo"' in page.content
    page = browser_client.post(f"/u/{reader.token}", {"action": "undo"}, follow=True)
    assert reader.state == "active"
    assert b"Unsubscribe from The Potting Shed?" in page.content
    assert reader.proofs == ["unsubscribed", "resubscribed"]


def test_the_campaign_that_lost_a_reader_is_told_once(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(unsubscribing, "on_unsubscribed", [lambda *who: told.append(who)])
    assert leave(reader)
    assert not leave(reader)
    assert told == [(reader.campaign.pk, reader.subscriber.pk)]


def test_undoing_ends_after_a_day_and_needs_the_same_mail(reader: Reader) -> None:
    leave(reader)
    assert not come_back(reader, campaign_id=reader.campaign.pk + 1)
    assert not come_back(reader, now=NOW + timedelta(days=1, seconds=1))
    assert come_back(reader, now=NOW + timedelta(hours=23))
    assert not come_back(reader)


def test_a_suppressed_person_does_not_come_back(reader: Reader) -> None:
    leave(reader)
    reader.subscriber.suppressed_at = NOW
    reader.subscriber.save()
    assert not come_back(reader)


@pytest.mark.django_db(transaction=True)
def test_clicks_at_the_same_moment_leave_one_proof(reader: Reader) -> None:
    def once(_number: int) -> bool:
        try:
            return leave(reader)
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(once, range(6))) == [False] * 5 + [True]
    assert reader.proofs == ["unsubscribed"]


def test_who_is_gone_gets_a_friendly_page(browser_client: Client, reader: Reader) -> None:
    for token in (
        control_token(reader.campaign.pk, reader.subscriber.pk + 1000),
        control_token(reader.campaign.pk + 1000, reader.subscriber.pk),
    ):
        assert browser_client.post(f"/u/{token}").status_code == 404
