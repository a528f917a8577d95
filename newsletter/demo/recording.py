"""The demo's year as rows: campaigns with what was sent, the ledger, the events and the figures.

Hits go the way of ingest: merged by the minute, judged and stored by tracking.rows. The ledger goes in by COPY, with
the first human open and click of those events; figures are then counted from the rows, not kept beside them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any, Literal

from django.conf import settings
from django.db import connection

from campaigns import closing, composing, freezing
from campaigns.models import (
    Batch,
    Campaign,
    CampaignFigures,
    CampaignState,
    CompiledRevision,
    Delivery,
    DeliveryState,
    Link,
    Outcome,
)
from newsletter.demo.history import Received, Sent, year_of
from newsletter.demo.people import Person
from newsletter.demo.texts import Letter
from subscribers import engagement
from subscribers.engagement import Sign
from subscribers.models import List, TrackingConsent
from tracking import retention
from tracking import rows as stored_rows
from tracking.models import EventKind
from tracking.rows import Row
from tracking.stream import Sighting

KINDS = {"open": EventKind.OPEN, "click": EventKind.CLICK}
COUNTS_AS_DELIVERED = timedelta(hours=72)

DELIVERY_COLUMNS = (
    "campaign_id", "subscriber_id", "batch_id", "sent_at", "opened_at", "clicked_at", "state", "attempts", "outcome",
    "seen",
)  # fmt: skip
REPORT_COLUMNS = (
    "at", "last_at", "campaign_id", "subscriber_id", "kind", "is_final", "delay_ms", "source", "detail",
)  # fmt: skip

# Distinct deliveries and hits by campaign, as the definitions of the figures say.
COUNT_FIGURES = """
UPDATE campaigns_campaignfigures AS figures SET
    opens_raw = ledger.opens_raw, opens_human = ledger.opens_human,
    clicks_raw = ledger.clicks_raw, clicks_human = ledger.clicks_human,
    bounced = ledger.bounced, complained = ledger.complained,
    open_hits = coalesce(seen.open_hits, 0), click_hits = coalesce(seen.click_hits, 0),
    unsubscribed = coalesce(gone.people, 0)
FROM (
    SELECT campaign_id, count(*) FILTER (WHERE seen & 1 > 0) AS opens_raw, count(opened_at) AS opens_human,
           count(*) FILTER (WHERE seen & 2 > 0) AS clicks_raw, count(clicked_at) AS clicks_human,
           count(*) FILTER (WHERE outcome = 2) AS bounced, count(*) FILTER (WHERE outcome = 3) AS complained
    FROM campaigns_delivery WHERE campaign_id = ANY(%(campaigns)s) GROUP BY campaign_id
) AS ledger
LEFT JOIN (
    SELECT campaign_id, sum(hits) FILTER (WHERE kind = 1) AS open_hits, sum(hits) FILTER (WHERE kind = 2) AS click_hits
    FROM tracking_event WHERE campaign_id = ANY(%(campaigns)s) GROUP BY campaign_id
) AS seen USING (campaign_id)
LEFT JOIN (
    SELECT unsubscribed_by AS campaign_id, count(*) AS people FROM subscribers_subscription
    WHERE list_id = %(list)s AND unsubscribed_by IS NOT NULL GROUP BY unsubscribed_by
) AS gone USING (campaign_id)
WHERE figures.campaign_id = ledger.campaign_id
"""

COUNT_AUDIENCES = """
UPDATE campaigns_campaign SET audience = ledger.people
FROM (SELECT campaign_id, count(*) AS people FROM campaigns_delivery
      WHERE campaign_id = ANY(%(campaigns)s) GROUP BY campaign_id) AS ledger
WHERE campaigns_campaign.id = ledger.campaign_id
"""
COUNT_BATCHES = """
UPDATE campaigns_batch SET first_id = ledger.first, last_id = ledger.last
FROM (SELECT batch_id, min(subscriber_id) AS first, max(subscriber_id) AS last FROM campaigns_delivery
      WHERE campaign_id = ANY(%(campaigns)s) GROUP BY batch_id) AS ledger
WHERE campaigns_batch.id = ledger.batch_id
"""


@dataclass(frozen=True)
class Left:
    """Somebody's unsubscribing."""

    at: datetime
    campaign_id: int
    source: str


@dataclass
class Recorded:
    """What came of a list's issues, by the person's place."""

    now: datetime
    unsubscribed: dict[int, Left] = field(default_factory=dict)
    bounced: dict[int, datetime] = field(default_factory=dict)
    complained: dict[int, datetime] = field(default_factory=dict)
    signs: list[Sign] = field(default_factory=list)


@dataclass(frozen=True)
class SentCampaign:
    """A campaign of the past, ready for its ledger."""

    campaign: Campaign
    issue: Sent
    batch_id: int


def sent_campaigns(
    of_list: List, letters: Sequence[Letter], times: Sequence[datetime], *, first_place: int = 0
) -> list[SentCampaign]:
    """One sent, numbered campaign a letter, compiled as it would have been."""
    layout = composing.default_layout()
    made = []
    for number, (letter, at) in enumerate(zip(letters, times, strict=True), start=1):
        campaign = Campaign.objects.create(
            list=of_list, number=number, subject=letter.subject, preheader=letter.preheader, body=letter.body,
            layout=layout, state=CampaignState.SENT, scheduled_at=at, started_at=at,
            finished_at=at + timedelta(seconds=41), created_at=at - timedelta(days=2, hours=3),
        )  # fmt: skip
        compiled = composing.compile_campaign(campaign, now=at)
        CompiledRevision.objects.create(campaign=campaign, content=compiled.to_json(), created_at=at)
        Link.objects.bulk_create(Link(campaign=campaign, index=i, url=url) for i, url in enumerate(compiled.links))
        CampaignFigures.objects.create(campaign=campaign)
        freezing.ensure_partition(campaign.pk)
        batch = Batch.objects.create(campaign=campaign, first_id=0, last_id=0, state=Batch.State.DONE, not_before=at)
        made.append(SentCampaign(campaign, Sent(first_place + number - 1, at, len(compiled.links)), batch.pk))
    List.objects.filter(pk=of_list.pk).update(issues=len(made))
    return made


def record_year(
    of_list: List,
    sent: Sequence[SentCampaign],
    people: Sequence[Person],
    ids: dict[int, int],
    *,
    seed: int,
    now: datetime,
) -> Recorded:
    """Ledger and events of these issues for these people."""
    recorded = Recorded(now)
    retention.ensure_partitions(sent[0].issue.at, now)
    final_before = now - timedelta(seconds=settings.SETTLING_SECONDS)
    networks_since = now - timedelta(days=retention.NETWORK_DAYS)
    by_place = {each.issue.place: each for each in sent}
    issues = [each.issue for each in sent]
    deliveries: list[tuple[Any, ...]] = []
    reports: list[tuple[Any, ...]] = []
    events: list[Row] = []
    for person in people:
        for received in year_of(person, issues, seed=seed, now=now):
            copy = _Copy(of_list, by_place[received.issue.place], received, ids[person.place])
            reports += copy.leave(recorded)
            rows = copy.judged(final_before)
            recorded.signs += copy.signs(rows)
            # Who gave less than full consent leaves no event and no mark in the ledger.
            rows = rows if person.consent == TrackingConsent.FULL else []
            deliveries.append(copy.delivery(rows, now))
            events += rows
    for row in events:
        row.network_hash = row.network_hash if row.at > networks_since else None
    deliveries.sort(key=lambda row: row[:2])
    events.sort(key=lambda row: row.at)
    _copy_rows("campaigns_delivery", DELIVERY_COLUMNS, deliveries)
    _copy_rows("tracking_event", REPORT_COLUMNS, reports)
    stored_rows.store(events)
    return recorded


def close_year(of_list: List, sent: Sequence[SentCampaign], recorded: Recorded, *, now: datetime) -> None:
    """Audience, batch ranges and figures from the ledger; the bits of every subscription through its own functions."""
    ids = [each.campaign.pk for each in sent]
    with connection.cursor() as cursor:
        cursor.execute(COUNT_AUDIENCES, {"campaigns": ids})
        cursor.execute(COUNT_BATCHES, {"campaigns": ids})
        cursor.execute(COUNT_FIGURES, {"campaigns": ids, "list": of_list.pk})
    for campaign_id in ids:
        closing.close(campaign_id, now=now)
    engagement.record_signs(recorded.signs)


class _Copy:
    """One person's copy of one issue on its way into the tables."""

    def __init__(self, of_list: List, sent: SentCampaign, received: Received, subscriber_id: int) -> None:
        self.list = of_list
        self.sent = sent
        self.received = received
        self.person = received.person
        self.subscriber_id = subscriber_id
        self.campaign_id = sent.campaign.pk

    def leave(self, recorded: Recorded) -> Iterator[tuple[Any, ...]]:
        """Unsubscribing, bouncing and complaining, if this is the issue and it has happened by now; reports of it."""
        person, issue = self.person, self.received.issue.place
        if issue != person.leaves:
            return
        accepted = self.received.accepted_at
        random = Random(f"{self.list.slug}:{person.email}")  # noqa: S311  a story, no secret
        if issue == person.bounces:
            recorded.bounced[person.place] = at = accepted + timedelta(seconds=random.uniform(2, 600))
            yield self._report(EventKind.BOUNCE, at, "5.1.1")
        if issue == person.complains:
            recorded.complained[person.place] = at = accepted + timedelta(hours=random.uniform(1, 9))
            yield self._report(EventKind.COMPLAINT, at, "")
        if issue == person.unsubscribes:
            at = accepted + timedelta(hours=random.uniform(0.5, 40))
            if at < recorded.now:
                source = "one-click" if random.random() < 0.6 else "unsubscribe page"
                recorded.unsubscribed[person.place] = Left(at, self.campaign_id, source)

    def _report(self, kind: EventKind, at: datetime, detail: str) -> tuple[Any, ...]:
        delay = round((at - self.received.accepted_at).total_seconds() * 1000)
        return at, at, self.campaign_id, self.subscriber_id, int(kind), True, delay, "smtp", detail

    def judged(self, final_before: datetime) -> list[Row]:
        """The hits of this copy as judged events."""
        rows: list[Row] = []
        for hit in self.received.hits:
            sighting = Sighting(
                int(KINDS[hit.kind]), self.campaign_id, self.subscriber_id, hit.link, round(hit.at.timestamp() * 1000),
                hit.method, hit.ip, hit.user_agent, [], "edge",
            )  # fmt: skip
            stored_rows.merge(rows, stored_rows.from_sighting(sighting, self.received.accepted_at))
        if rows:
            stored_rows.judge(rows, final_before=final_before)
        return rows

    def signs(self, rows: Iterable[Row]) -> Iterator[Sign]:
        """What the events say about reading; who agreed only to the date of the last open leaves no click."""
        for row in rows:
            if row.is_human and (row.kind == EventKind.OPEN or self.person.consent == "full"):
                kind: Literal["open", "click"] = "open" if row.kind == EventKind.OPEN else "click"
                number = self.sent.campaign.number or 0
                yield Sign(self.list.pk, number, self.subscriber_id, kind, row.last_at)

    def delivery(self, rows: Sequence[Row], now: datetime) -> tuple[Any, ...]:
        """The ledger's row."""
        seen = 0
        for row in rows:
            seen |= Delivery.SEEN_OPEN if row.kind == EventKind.OPEN else Delivery.SEEN_CLICK
        opened, clicked = (
            min((row.at for row in rows if row.is_human and row.kind == kind), default=None) for kind in KINDS.values()
        )
        return (
            self.campaign_id, self.subscriber_id, self.sent.batch_id, self.received.accepted_at, opened, clicked,
            int(DeliveryState.ACCEPTED), 1, int(self._outcome(now)), seen,
        )  # fmt: skip

    def _outcome(self, now: datetime) -> Outcome:
        if self.received.issue.place == self.person.bounces:
            return Outcome.BOUNCED
        if self.received.issue.place == self.person.complains:
            return Outcome.COMPLAINED
        return Outcome.DELIVERED if self.received.accepted_at + COUNTS_AS_DELIVERED <= now else Outcome.NONE


def _copy_rows(table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)
