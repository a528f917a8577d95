"""Double opt-in, from the page over a real mail to the button behind its link."""

import re
from datetime import timedelta
from email.message import EmailMessage
from urllib.parse import urlencode

import pytest
from django.conf import LazySettings
from pytest_django.live_server_helper import LiveServer

from newsletter.env import email_url
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import BadToken, confirmation_token
from subscribers import confirming, subscribing, suppressing, tasks, unsubscribing
from subscribers.models import ConsentRecord, List, Subscription
from tests.conftest import NOW, MailServer
from tests.subscribers.conftest import fetch

pytestmark = pytest.mark.django_db


@pytest.fixture
def asked(garden: List) -> Subscription:
    """Bea has asked for the garden list."""
    subscribing.subscribe(garden.pk, email="bea@mail.example", source="sign-up page", now=NOW)
    return Subscription.objects.get()


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert body is not None
    return str(body.get_content())


def link_in(message: EmailMessage) -> str:
    found = re.search(r"https?://\S+/confirm/\S+", part(message, "plain"))
    assert found
    return found.group()


@pytest.mark.django_db(transaction=True)
def test_signing_up_mailing_and_confirming_over_http_and_smtp(
    live_server: LiveServer, mail_server: MailServer, garden: List, settings: LazySettings
) -> None:
    settings.SITE_URL = live_server.url
    page = f"{live_server.url}/subscribe/garden/"
    assert fetch(page).status == 200

    answer = fetch(page, body=urlencode({"email": "bea@mail.example", "name": "Bea", "topic": ""}).encode())
    assert answer.status == 200
    assert "bea@mail.example" in answer.text
    tasks.send_due_confirmations()  # what beat does every minute, should the hint be lost
    [message] = mail_server.messages
    link = link_in(message)

    for _again in range(2):  # a scanner follows the link, as often as it likes
        assert fetch(link).status == 200
    assert Subscription.objects.get().state == "pending"

    confirmed = fetch(link, body=b"")
    assert (confirmed.status, confirmed.headers["Location"]) == (302, link.removeprefix(live_server.url))
    assert Subscription.objects.get().state == "active"
    assert "You are subscribed" in fetch(link).text
    kinds = list(ConsentRecord.objects.values_list("kind", "network"))
    assert kinds == [("requested", "127.0.0.0/24"), ("confirmed", "127.0.0.0/24")]


def test_the_mail_is_complete(asked: Subscription, mail_server: MailServer) -> None:
    assert confirming.send_confirmation(asked.pk, now=NOW)
    [message] = mail_server.messages
    assert message["From"] == "The Potting Shed <letters@shed.example>"
    assert message["To"] == "bea@mail.example"
    assert message["Subject"] == "Please confirm: The Potting Shed"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"].endswith("@shed.example>")
    assert message.get_content_type() == "multipart/alternative"
    link = link_in(message)
    for kind in ("plain", "html"):
        text = part(message, kind)
        assert link in text
        assert "7 days" in text
        assert "1 Garden Row" in text


def test_the_mail_never_repeats_what_a_stranger_typed_as_a_name(garden: List, mail_server: MailServer) -> None:
    subscribing.subscribe(
        garden.pk, email="bea@mail.example", name="Win at https://spam.example", source="sign-up page", now=NOW
    )
    confirming.send_due(limit=1, now=NOW)
    [message] = mail_server.messages
    assert "spam.example" not in message.as_string()


def test_a_mail_is_sent_once_however_often_the_task_runs(asked: Subscription, mail_server: MailServer) -> None:
    assert confirming.send_confirmation(asked.pk, now=NOW)
    assert not confirming.send_confirmation(asked.pk, now=NOW)
    assert confirming.send_due(limit=10, now=NOW) == 0
    assert len(mail_server.received) == 1


def test_a_server_that_is_down_or_busy_costs_time_not_mail(
    asked: Subscription, mail_server: MailServer, settings: LazySettings
) -> None:
    settings.MAIL_TRANSPORT = email_url("smtp://127.0.0.1:1")
    with pytest.raises(confirming.ConfirmationDelayed):
        confirming.send_confirmation(asked.pk, now=NOW)
    settings.MAIL_TRANSPORT = email_url(mail_server.url)
    mail_server.answers["bea@mail.example"] = "451 4.7.1 greylisted"
    with pytest.raises(confirming.ConfirmationDelayed):
        confirming.send_confirmation(asked.pk, now=NOW)
    del mail_server.answers["bea@mail.example"]
    assert confirming.send_due(limit=10, now=NOW) == 1


def test_a_mailbox_that_does_not_exist_is_not_tried_again(asked: Subscription, mail_server: MailServer) -> None:
    mail_server.answers["bea@mail.example"] = "550 5.1.1 nobody here"
    assert not confirming.send_confirmation(asked.pk, now=NOW)
    assert not confirming.due(now=NOW).exists()


def test_confirming_works_once_and_again_changes_nothing(asked: Subscription) -> None:
    token = confirmation_token(keyring(), asked.pk, NOW)
    assert confirming.confirm(token, now=NOW + timedelta(days=6)).state == "active"
    assert confirming.confirm(token, now=NOW + timedelta(days=6)).state == "active"
    assert ConsentRecord.objects.filter(kind="confirmed").count() == 1


def test_both_of_two_mails_work(asked: Subscription, garden: List) -> None:
    first = confirmation_token(keyring(), asked.pk, NOW)
    later = NOW + timedelta(minutes=11)
    subscribing.subscribe(garden.pk, email="bea@mail.example", source="sign-up page", now=later)
    assert confirming.confirm(first, now=later).state == "active"


def test_a_link_ends_after_seven_days(asked: Subscription) -> None:
    token = confirmation_token(keyring(), asked.pk, NOW)
    with pytest.raises(BadToken):
        confirming.confirm(token, now=NOW + timedelta(days=7, seconds=1))


def test_an_old_link_revives_nobody_who_left(asked: Subscription) -> None:
    token = confirmation_token(keyring(), asked.pk, NOW)
    confirming.confirm(token, now=NOW)
    unsubscribing.unsubscribe(
        list_id=asked.list_id, subscriber_id=asked.subscriber_id, campaign_id=None, source="page", now=NOW
    )
    with pytest.raises(BadToken):
        confirming.confirm(token, now=NOW + timedelta(minutes=1))
    # Nor does it when they ask anew: only the new mail's link does.
    later = NOW + timedelta(hours=1)
    subscribing.subscribe(asked.list_id, email="bea@mail.example", source="sign-up page", now=later)
    with pytest.raises(BadToken):
        confirming.confirm(token, now=later)
    assert confirming.confirm(confirmation_token(keyring(), asked.pk, later), now=later).state == "active"


def test_leaving_between_looking_and_pressing_wins(asked: Subscription, monkeypatch: pytest.MonkeyPatch) -> None:
    token = confirmation_token(keyring(), asked.pk, NOW)
    look = confirming.look
    calls: list[int] = []

    def look_then_leave(token: str, *, now: object) -> Subscription:
        found = look(token, now=NOW)
        if not calls:
            calls.append(1)
            unsubscribing.unsubscribe(
                list_id=asked.list_id, subscriber_id=asked.subscriber_id, campaign_id=None, source="page", now=NOW
            )
        return found

    monkeypatch.setattr(confirming, "look", look_then_leave)
    with pytest.raises(BadToken):
        confirming.confirm(token, now=NOW)
    asked.refresh_from_db()
    assert asked.state == "unsubscribed"


def test_a_suppressed_address_is_neither_mailed_nor_confirmed(asked: Subscription, mail_server: MailServer) -> None:
    suppressing.suppress("bea@mail.example", reason="complaint", source="", now=NOW)
    assert confirming.send_due(limit=10, now=NOW) == 0
    with pytest.raises(BadToken):
        confirming.confirm(confirmation_token(keyring(), asked.pk, NOW), now=NOW)
