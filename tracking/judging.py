"""From hits to verdicts to what they change: events, the ledger's first human open and click, the engagement bits.

A delivery's events are always judged together, stored ones with new ones, because the other nine clicks may come
later. So a verdict is provisional at once, final after the settling time, and figures may go down. The tracking
consent that stands in the database now decides what is kept, also of mails sent long ago.

Callers hold the stream's lock: a delivery is judged in one place at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from django.conf import settings
from django.db import connection

from campaigns import reporting
from campaigns.models import Delivery
from campaigns.reporting import Signal
from subscribers import engagement
from subscribers.engagement import LastSeen, Sign
from subscribers.models import TrackingConsent
from tracking import rows as stored_rows
from tracking.models import EventKind
from tracking.rows import Key, Known, Row
from tracking.stream import Sighting


@dataclass
class Counts:
    """What became of the hits."""

    stored: int = 0
    foreign: int = 0  # of deliveries that are not in the ledger
    unwanted: int = 0  # of people who agreed to less


class _Human(NamedTuple):
    """What people did with one delivery."""

    first_open: datetime | None
    first_click: datetime | None
    last_open: datetime | None
    last_click: datetime | None


@dataclass
class _Case:
    """One delivery on trial."""

    delivery: Known
    rows: list[Row]
    before: _Human
    open_hits: int = 0
    click_hits: int = 0
    after: _Human = field(default=_Human(None, None, None, None))

    def add(self, sighting: Sighting) -> None:
        stored_rows.merge(self.rows, stored_rows.from_sighting(sighting, self.delivery.sent_at))
        if sighting.kind == EventKind.OPEN:
            self.open_hits += 1
        else:
            self.click_hits += 1

    def judge(self, final_before: datetime) -> None:
        self.rows.sort(key=lambda row: (row.at, row.id or 0))
        stored_rows.judge(self.rows, final_before=final_before)
        self.after = _human(self.rows)

    @property
    def signal(self) -> Signal:
        seen = 0
        for row in self.rows:
            seen |= Delivery.SEEN_OPEN if row.kind == EventKind.OPEN else Delivery.SEEN_CLICK
        return Signal(
            self.delivery.campaign_id,
            self.delivery.subscriber_id,
            seen,
            self.after.first_open,
            self.after.first_click,
            self.open_hits,
            self.click_hits,
        )

    @property
    def is_withdrawn(self) -> bool:
        """Whether the last human open or click is no longer what it was taken for."""
        return _earlier(self.after.last_open, self.before.last_open) or _earlier(
            self.after.last_click, self.before.last_click
        )

    def signs(self) -> Iterable[Sign]:
        if self.after.last_open:
            yield _sign(self.delivery, "open", self.after.last_open)
        if self.after.last_click:
            yield _sign(self.delivery, "click", self.after.last_click)


def take(sightings: Sequence[Sighting], *, now: datetime) -> Counts:
    """Store and judge hits, and write down what they show. The caller's transaction makes it one step."""
    engagement.hold_numbers()
    counts = Counts()
    known = stored_rows.known({(one.campaign_id, one.subscriber_id) for one in sightings})
    full: list[Sighting] = []
    date_only: list[Sighting] = []
    for sighting in sightings:
        delivery = known.get((sighting.campaign_id, sighting.subscriber_id))
        if delivery is None:
            counts.foreign += 1
        elif delivery.consent == TrackingConsent.FULL:
            counts.stored += 1
            full.append(sighting)
        else:
            counts.unwanted += 1
            if delivery.consent == TrackingConsent.HYGIENE:
                date_only.append(sighting)
    cases = _cases([one for one in known.values() if one.consent == TrackingConsent.FULL])
    for sighting in full:
        cases[sighting.campaign_id, sighting.subscriber_id].add(sighting)
    _decide(cases, now=now)
    _keep_dates(date_only, known, now=now)
    return counts


# Deliveries of one stream with events whose settling time has passed. The arithmetic is stream.stream_of.
_UNSETTLED = """
SELECT DISTINCT campaign_id, subscriber_id FROM (
    SELECT campaign_id, subscriber_id FROM tracking_event
     WHERE NOT is_final AND at < %(before)s AND kind IN (1, 2)
       AND (campaign_id * 31 + subscriber_id) %% %(streams)s = %(stream)s
     ORDER BY at LIMIT %(limit)s
) AS oldest
"""


def settle(stream: int, *, streams: int, now: datetime, limit: int = 5_000) -> int:
    """Judge again, for good, what has had its time; the number of deliveries judged."""
    engagement.hold_numbers()
    before = now - timedelta(seconds=settings.SETTLING_SECONDS)
    with connection.cursor() as cursor:
        cursor.execute(_UNSETTLED, {"before": before, "streams": streams, "stream": stream, "limit": limit})
        keys = cursor.fetchall()
    known = stored_rows.known(keys)
    _decide(_cases(list(known.values())), now=now)
    _finish_orphans([key for key in keys if key not in known], before)
    return len(keys)


# Events whose delivery is gone from the ledger keep the verdict they have.
_FINISH = """
UPDATE tracking_event SET is_final = true
 WHERE campaign_id = %s AND subscriber_id = %s AND NOT is_final AND at < %s
"""


def _finish_orphans(keys: Sequence[Key], before: datetime) -> None:
    with connection.cursor() as cursor:
        for campaign_id, subscriber_id in keys:
            cursor.execute(_FINISH, [campaign_id, subscriber_id, before])


def _cases(deliveries: Sequence[Known]) -> dict[Key, _Case]:
    loaded = stored_rows.load(deliveries)
    return {
        key: _Case(delivery, loaded[key], _human(loaded[key]))
        for delivery in deliveries
        for key in [(delivery.campaign_id, delivery.subscriber_id)]
    }


def _decide(cases: Mapping[Key, _Case], *, now: datetime) -> None:
    final_before = now - timedelta(seconds=settings.SETTLING_SECONDS)
    for case in cases.values():
        case.judge(final_before)
    stored_rows.store(row for case in cases.values() for row in case.rows)
    reporting.record_signals([case.signal for case in cases.values()])
    _write_down(list(cases.values()))


def _write_down(cases: Sequence[_Case]) -> None:
    """Tell subscribers who was seen reading which issue, and what turned out to be a machine."""
    numbered = [case for case in cases if case.delivery.number is not None]
    withdrawn = [case for case in numbered if case.is_withdrawn]
    if withdrawn:
        last = _last_seen([case.delivery for case in withdrawn])
        engagement.withdraw_signs([_sign(case.delivery, "open", _any(case.before)) for case in withdrawn], last=last)
    seen = [case for case in numbered if case.is_withdrawn or case.after != case.before]
    engagement.record_signs([sign for case in seen for sign in case.signs()])


# What is left of people after a withdrawal: the ledger keeps the first human open and click of each delivery.
_LAST = """
SELECT c.list_id, d.subscriber_id, max(d.opened_at), max(d.clicked_at)
  FROM campaigns_campaign c
  JOIN campaigns_delivery d ON d.campaign_id = c.id AND d.subscriber_id = ANY(%s)
 WHERE c.list_id = ANY(%s)
 GROUP BY 1, 2
"""


def _last_seen(deliveries: Sequence[Known]) -> dict[tuple[int, int], LastSeen]:
    with connection.cursor() as cursor:
        cursor.execute(_LAST, [[one.subscriber_id for one in deliveries], sorted({one.list_id for one in deliveries})])
        return {(list_id, subscriber_id): LastSeen(*last) for list_id, subscriber_id, *last in cursor.fetchall()}


def _keep_dates(sightings: Sequence[Sighting], known: Mapping[Key, Known], *, now: datetime) -> None:
    """Of people who agreed to the date of the last open only: judge what came together, keep no event."""
    cases: dict[Key, _Case] = {}
    for sighting in sightings:
        key = (sighting.campaign_id, sighting.subscriber_id)
        cases.setdefault(key, _Case(known[key], [], _human([]))).add(sighting)
    for case in cases.values():
        case.judge(now)
    numbered = [case for case in cases.values() if case.delivery.number is not None]
    engagement.record_signs([sign for case in numbered for sign in case.signs() if sign.kind == "open"])


def _human(rows: Iterable[Row]) -> _Human:
    opens = [row for row in rows if row.is_human and row.kind == EventKind.OPEN]
    clicks = [row for row in rows if row.is_human and row.kind == EventKind.CLICK]
    return _Human(
        min((row.at for row in opens), default=None),
        min((row.at for row in clicks), default=None),
        max((row.last_at for row in opens), default=None),
        max((row.last_at for row in clicks), default=None),
    )


def _earlier(after: datetime | None, before: datetime | None) -> bool:
    return before is not None and (after is None or after < before)


def _any(human: _Human) -> datetime:
    found = human.last_open or human.last_click
    assert found is not None
    return found


def _sign(delivery: Known, kind: Literal["open", "click"], at: datetime) -> Sign:
    assert delivery.number is not None
    return Sign(delivery.list_id, delivery.number, delivery.subscriber_id, kind, at)
