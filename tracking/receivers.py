"""What providers report: Anymail's events, by one map to ours, each taken once.

A provider sends again after any error, so the row that says "done" is written in the transaction that does it. Opens
and clicks go the same way as the edge's own, through the stream.
"""

import hashlib
import logging
from datetime import datetime
from typing import Any, NamedTuple

from anymail.signals import AnymailTrackingEvent, RejectReason
from django.db import connection, transaction
from django.utils import timezone

from campaigns import reporting
from campaigns.models import Campaign, Delivery, DeliveryError, Link, Outcome
from newsletter.mailing import bounces
from newsletter.mailing.bounces import BounceClass
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import BadToken, DeliveryKey, Purpose, read_delivery
from subscribers import engagement
from subscribers.models import Subscriber, Suppression
from subscribers.suppressing import suppress
from subscribers.unsubscribing import unsubscribe
from subscribers.validating import InvalidAddress, normalise
from tracking import providers, recording, retention, stream
from tracking.models import EventKind, ReceivedReport

log = logging.getLogger(__name__)

METADATA_KEY = "d"  # holds the delivery's report token


class Report(NamedTuple):
    """One event of a provider in our words."""

    kind: EventKind
    delivery: DeliveryKey
    provider: str
    at: datetime
    recipient: str
    code: str  # enhanced status code, "" without
    text: str
    is_invalid: bool  # the provider refused the address itself
    user_agent: str | None
    url: str
    flags: list[str]
    key: str  # ours; the same whenever the same event is sent


def receive(
    sender: object, *, event: AnymailTrackingEvent, esp_name: str, now: datetime | None = None, **_more: Any
) -> None:
    """Anymail's signal: take one event of a webhook that has proved who it is."""
    found = read(event, provider=esp_name, now=now or timezone.now())
    if found is not None:
        take(found, now=now or timezone.now())


def read(event: AnymailTrackingEvent, *, provider: str, now: datetime) -> Report | None:
    """An event in our words; None when it is of no concern or names no delivery of ours."""
    kind = providers.KINDS.get(event.event_type)
    if kind is None:
        return None
    try:
        delivery = read_delivery(keyring(), Purpose.REPORT, _token(event))
    except BadToken:
        log.info("%s reports %s for a mail that is not ours", provider, event.event_type)
        return None
    status = providers.status_of(event)
    text = " ".join(part for part in (event.mta_response, event.description) if part)
    return Report(
        kind=kind,
        delivery=delivery,
        provider=provider,
        at=event.timestamp or now,
        recipient=event.recipient or "",
        code=bounces.enhanced_code(status, event.mta_response, event.description),
        text=text[:1000],
        is_invalid=event.reject_reason == RejectReason.INVALID,
        user_agent=event.user_agent,
        url=event.click_url or "",
        flags=providers.machine_flags(event.esp_event),
        key=_key(event, provider, delivery),
    )


def _token(event: AnymailTrackingEvent) -> str:
    """A delivery's report token, which is the first tag where a provider knows no metadata (Postal, MailerSend)."""
    found = (event.metadata or {}).get(METADATA_KEY) or next(iter(event.tags or ()), "")
    return str(found or "")


def take(report: Report, *, now: datetime) -> bool:
    """Do what a report asks for, once; False when it was done before or its delivery is unknown."""
    with transaction.atomic():
        if not Delivery.objects.filter(pk=tuple(report.delivery)).exists():
            return False
        _report, is_new = ReceivedReport.objects.get_or_create(key=report.key, defaults={"at": now})
        if not is_new:
            return False
        if report.kind in (EventKind.OPEN, EventKind.CLICK):
            # Between this append and the commit a crash would count one hit twice, never a person.
            recording.record(_sighting(report))
            return True
        if report.kind is not EventKind.DELIVERED:
            _store(report)
        _DOERS[report.kind](report, now)
    return True


def _delivered(report: Report, _now: datetime) -> None:
    reporting.record_outcome(*report.delivery, Outcome.DELIVERED)


def _deferred(report: Report, _now: datetime) -> None:
    """The event is all: the provider goes on trying."""


def _bounced(report: Report, now: datetime) -> None:
    """The mail did not arrive. Only a dead address is suppressed; 5.7.x speaks of us, not of them."""
    found = bounces.classify(report.code, report.text)
    if not report.code and report.is_invalid:
        found = BounceClass.HARD
    DeliveryError.objects.create(
        campaign_id=report.delivery.campaign_id,
        subscriber_id=report.delivery.subscriber_id,
        at=report.at,
        code=report.code,
        text=report.text or "The provider gave no reason.",
        is_permanent=found is BounceClass.HARD,
    )
    if not reporting.record_outcome(*report.delivery, Outcome.BOUNCED):
        return
    _clear_delivered(report.delivery)
    if found is BounceClass.HARD:
        _suppress(report, Suppression.Reason.BOUNCE, now)
    elif found is BounceClass.POLICY:
        log.warning(
            "campaign %s: a server refuses the sender, not the recipient (%s %s)",
            report.delivery.campaign_id, report.code, report.text,
        )  # fmt: skip


def _complained(report: Report, now: datetime) -> None:
    reporting.record_outcome(*report.delivery, Outcome.COMPLAINED)
    _suppress(report, Suppression.Reason.COMPLAINT, now)


def _unsubscribed(report: Report, now: datetime) -> None:
    campaign = Campaign.objects.only("list_id").filter(pk=report.delivery.campaign_id).first()
    if campaign:
        unsubscribe(
            list_id=campaign.list_id,
            subscriber_id=report.delivery.subscriber_id,
            campaign_id=campaign.pk,
            source=report.provider,
            now=now,
        )


_DOERS = {
    EventKind.DELIVERED: _delivered,
    EventKind.DEFERRED: _deferred,
    EventKind.BOUNCE: _bounced,
    EventKind.COMPLAINT: _complained,
    EventKind.UNSUBSCRIBE: _unsubscribed,
}


def _clear_delivered(delivery: DeliveryKey) -> None:
    engagement.hold_numbers()
    campaign = Campaign.objects.only("list_id", "number").filter(pk=delivery.campaign_id).first()
    if campaign and campaign.number is not None:
        engagement.clear_delivered(campaign.list_id, campaign.number, [delivery.subscriber_id])


def _suppress(report: Report, reason: str, now: datetime) -> None:
    """The address that was written to, which may no longer be the person's."""
    try:
        key: str | None = normalise(report.recipient).key
    except InvalidAddress:
        people = Subscriber.objects.filter(pk=report.delivery.subscriber_id)
        key = people.values_list("email_key", flat=True).first()
    if key:
        source = f"{report.provider} {report.code}".strip()
        suppress(key, reason=reason, source=source, now=now)


# Facts of a provider, not judged by the rules, hence final.
_STORE = """
INSERT INTO tracking_event (at, last_at, campaign_id, subscriber_id, kind, source, detail, is_final)
VALUES (%(at)s, %(at)s, %(campaign)s, %(subscriber)s, %(kind)s, %(source)s, %(detail)s, true)
"""


def _store(report: Report) -> None:
    retention.ensure_partitions(report.at, report.at)
    with connection.cursor() as cursor:
        cursor.execute(
            _STORE,
            {
                "at": report.at,
                "campaign": report.delivery.campaign_id,
                "subscriber": report.delivery.subscriber_id,
                "kind": report.kind.value,
                "source": report.provider.lower()[:16],
                "detail": f"{report.code} {report.text}".strip()[:200],
            },
        )


def _sighting(report: Report) -> stream.Sighting:
    """An open or click as the stream takes it. Our own tracking is preferred; this is for sites that use theirs."""
    link = None
    if report.kind is EventKind.CLICK:
        links = Link.objects.filter(campaign_id=report.delivery.campaign_id, url=report.url)
        link = links.values_list("index", flat=True).first()
    return stream.Sighting(
        kind=report.kind.value,
        campaign_id=report.delivery.campaign_id,
        subscriber_id=report.delivery.subscriber_id,
        link=link,
        at_ms=int(report.at.timestamp() * 1000),
        method="GET",
        ip="",
        user_agent=report.user_agent,
        flags=report.flags,
        source=report.provider.lower()[:16],
    )


def _key(event: AnymailTrackingEvent, provider: str, delivery: DeliveryKey) -> str:
    """A key of our own: the provider's id where it has one, and the facts, since some send one id for many events."""
    facts = (
        provider, *delivery, event.event_type, event.event_id, event.timestamp, event.click_url, event.recipient,
    )  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()
