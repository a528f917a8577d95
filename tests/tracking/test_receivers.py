"""Webhooks on the wire: Mailgun's documented payloads, signed as Mailgun signs them, to the real URL."""

import copy
import hashlib
import hmac
import itertools
import json
from typing import Any

import pytest
from anymail.signals import AnymailTrackingEvent
from django.test import Client

from campaigns import reporting
from campaigns.models import Delivery, DeliveryError, Outcome
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey, delivery_tokens, report_token
from subscribers import engagement, suppressing
from subscribers.models import ConsentRecord, Engagement, Subscription, Suppression
from tests.tracking.building import SENT, Issue, drain, send_issue
from tests.tracking.mailgun_urls import SIGNING_KEY
from tracking import providers, receivers
from tracking.models import Event, EventKind, ReceivedReport, Verdict

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.tracking.mailgun_urls"),
    pytest.mark.usefixtures("streams", "mailgun"),
]
URL = "/webhooks/mailgun/tracking/"
_tokens = itertools.count()

# From Mailgun's documentation of webhook payloads, cut to what is read.
DELIVERED = {"event": "delivered", "delivery-status": {"code": 250, "message": "OK", "description": ""}}
FAILED = {
    "event": "failed",
    "severity": "permanent",
    "reason": "bounce",
    "delivery-status": {
        "attempt-no": 1,
        "message": "5.1.1 The email account that you tried to reach does not exist.",
        "code": 550,
        "enhanced-code": "5.1.1",
        "description": "",
    },
}
OPENED = {
    "event": "opened",
    "ip": "50.56.129.169",
    "client-info": {
        "client-type": "browser",
        "client-name": "Chrome",
        "user-agent": "Mozilla/5.0 (X11) Chrome/126.0",
        "bot": "",
    },
}
CLICKED = OPENED | {"event": "clicked", "url": "https://example.org/1"}


@pytest.fixture
def mailgun(settings: Any) -> None:
    settings.ANYMAIL = {"MAILGUN_WEBHOOK_SIGNING_KEY": SIGNING_KEY}


def payload(event: dict[str, Any], issue: Issue, *, after: float = 60, metadata: str | None = None) -> dict[str, Any]:
    key = DeliveryKey(issue.campaign.pk, issue.people[0].pk)
    token = f"{next(_tokens):050d}"
    timestamp = "1741165260"
    return {
        "signature": {
            "token": token,
            "timestamp": timestamp,
            "signature": hmac.digest(SIGNING_KEY.encode(), f"{timestamp}{token}".encode(), "sha256").hex(),
        },
        "event-data": copy.deepcopy(event)
        | {
            "id": hashlib.sha256(token.encode()).hexdigest()[:22],
            "timestamp": SENT.timestamp() + after,
            "recipient": issue.people[0].email,
            "message": {"headers": {"message-id": "20130503182626.18666.16540@example.org"}},
            "user-variables": {"d": report_token(keyring(), key) if metadata is None else metadata},
        },
    }


def post(body: dict[str, Any]) -> int:
    return Client().post(URL, json.dumps(body), content_type="application/json").status_code


def test_a_delivery_report_is_the_delivery_s_outcome() -> None:
    issue = send_issue()
    assert post(payload(DELIVERED, issue)) == 200
    assert issue.delivery().outcome == Outcome.DELIVERED


def test_a_dead_address_is_suppressed_and_its_mail_was_no_opportunity() -> None:
    issue = send_issue()
    engagement.record_delivered(issue.list.pk, 1, [issue.people[0].pk])
    body = payload(FAILED, issue)
    assert [post(body), post(body)] == [200, 200]
    assert issue.delivery().outcome == Outcome.BOUNCED
    assert reporting.status(issue.campaign.pk)["outcomes"]["bounced"] == 1
    assert Suppression.objects.get().reason == Suppression.Reason.BOUNCE
    assert suppressing.is_suppressed(issue.people[0].email_key)
    assert DeliveryError.objects.get().code == "5.1.1"
    assert Event.objects.get().detail.startswith("5.1.1 ")
    assert Engagement.objects.get().delivered == "0"
    assert ReceivedReport.objects.count() == 1


@pytest.mark.parametrize("code", ["5.7.1", "5.2.2"])
def test_policy_and_full_mailboxes_never_suppress(code: str) -> None:
    issue = send_issue()
    event = copy.deepcopy(FAILED)
    event["delivery-status"] = {"code": 550, "enhanced-code": code, "message": f"{code} no", "description": ""}
    assert post(payload(event, issue)) == 200
    assert issue.delivery().outcome == Outcome.BOUNCED
    assert not Suppression.objects.exists()


def test_a_temporary_failure_is_noted_and_changes_nothing() -> None:
    issue = send_issue()
    assert post(payload(FAILED | {"severity": "temporary"}, issue)) == 200
    assert Event.objects.get().kind == EventKind.DEFERRED
    assert issue.delivery().outcome == Outcome.NONE


def test_a_complaint_suppresses_whatever_came_before() -> None:
    issue = send_issue()
    for event in (DELIVERED, {"event": "complained"}):
        assert post(payload(event, issue)) == 200
    assert issue.delivery().outcome == Outcome.COMPLAINED
    assert Suppression.objects.get().reason == Suppression.Reason.COMPLAINT


def test_an_unsubscribe_at_the_provider_is_one_here() -> None:
    issue = send_issue()
    body = payload({"event": "unsubscribed"}, issue)
    assert [post(body), post(body)] == [200, 200]
    assert Subscription.objects.get().state == Subscription.State.UNSUBSCRIBED
    assert ConsentRecord.objects.get().source == "Mailgun"


def test_opens_and_clicks_go_through_the_stream_once() -> None:
    issue = send_issue()
    for body in (payload(OPENED, issue), payload(CLICKED, issue, after=90)):
        assert [post(body), post(body)] == [200, 200]
    drain()
    opened, clicked = Event.objects.order_by("at")
    assert (opened.hits, opened.source, opened.verdict) == (1, "mailgun", Verdict.HUMAN)
    assert (clicked.kind, clicked.link) == (EventKind.CLICK, 1)


@pytest.mark.parametrize(("bot", "verdict"), [("apple", 2), ("generic", 2), ("gmail", 1)])
def test_what_the_provider_says_of_the_client_decides(bot: str, verdict: int) -> None:
    issue = send_issue()
    event = copy.deepcopy(OPENED)
    event["client-info"] = {"bot": bot, "user-agent": "Mozilla/5.0 (Windows NT 10.0) Firefox/11.0"}
    assert post(payload(event, issue)) == 200
    drain()
    assert Event.objects.get().verdict == verdict


@pytest.mark.parametrize("what", ["unsigned", "forged", "foreign", "track", "none"])
def test_what_is_not_signed_or_not_ours_changes_nothing(what: str) -> None:
    issue = send_issue()
    body = payload(FAILED, issue)
    variables = body["event-data"]["user-variables"]
    if what == "unsigned":
        body["signature"]["signature"] = "0" * 64
    elif what == "forged":
        variables["d"] = "A" * 28
    elif what == "foreign":
        variables["d"] = report_token(keyring(), DeliveryKey(issue.campaign.pk, 99_999_999))
    elif what == "track":
        variables["d"] = delivery_tokens(keyring(), DeliveryKey(issue.campaign.pk, issue.people[0].pk)).track
    else:
        del body["event-data"]["user-variables"]
    assert post(body) == (400 if what == "unsigned" else 200)
    assert not Suppression.objects.exists()
    assert not Delivery.objects.exclude(outcome=Outcome.NONE).exists()


def test_a_provider_without_a_secret_has_no_address() -> None:
    def paths(anymail: dict[str, str]) -> list[str]:
        return [str(one.pattern) for one in providers.webhook_patterns(anymail)]

    assert paths({}) == []
    assert paths({"MAILGUN_API_KEY": "k", "POSTMARK_SERVER_TOKEN": "t"}) == []
    assert paths({"MAILGUN_WEBHOOK_SIGNING_KEY": "k"}) == ["webhooks/mailgun/tracking/"]
    assert "webhooks/postmark/tracking/" in paths({"WEBHOOK_SECRET": "name:password"})
    assert "webhooks/mailgun/tracking/" not in paths({"WEBHOOK_SECRET": "name:password"})


def test_a_provider_without_metadata_brings_the_token_back_as_a_tag() -> None:
    issue = send_issue()
    key = DeliveryKey(issue.campaign.pk, issue.people[0].pk)
    for tags, expected in (([report_token(keyring(), key)], key), (["something else"], None), ([None], None)):
        event = AnymailTrackingEvent(event_type="delivered", tags=tags, metadata=None, timestamp=SENT)
        found = receivers.read(event, provider="Postal", now=SENT)
        assert (found and found.delivery) == expected
