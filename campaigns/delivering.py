"""Sending a batch: window by window, each recipient marked before their mail is written and settled after.

The promise (DESIGN, 1): the commit of queued → sending comes before the first byte, so nobody is mailed twice; what
came of it is written afterwards, so a worker that dies in between leaves `unknown`, which the editor sees.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from django.db import InterfaceError, OperationalError, connection, transaction

from campaigns import batching, composing
from campaigns.batching import Heartbeat, Lease
from campaigns.journal import Journal
from campaigns.models import DeliveryError, DeliveryState, SkipReason
from newsletter.mailing.bounds import read_values
from newsletter.mailing.personalizing import Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Report, Result, Transport, TransportError
from subscribers.models import TrackingConsent

log = logging.getLogger(__name__)
T = TypeVar("T")

WINDOW = 100  # rows marked "sending" at once: what a killed worker may leave unknown
LEASE_MARGIN = timedelta(seconds=20)  # no write starts this close to a lease's end
RETRY_DELAYS = tuple(timedelta(minutes=minutes) for minutes in (5, 15, 60, 240, 720, 1_440, 1_440))
DATABASE_AWAY_SECONDS = 0.5
TRANSPORT_DOWN_DELAY = timedelta(minutes=1)

# Marks the next rows of a batch and says who they are. Whoever may not be mailed any more is skipped in the same
# statement, with the reason; only rows that come back as `sending` may be written to the wire. What this very lease
# deferred waits for its retry batch. No FOR UPDATE: the lease makes this worker the only one to move these rows.
NEXT_WINDOW = f"""
WITH window_rows AS (
    SELECT delivery.subscriber_id, campaign.list_id
    FROM campaigns_delivery AS delivery
    JOIN campaigns_campaign AS campaign ON campaign.id = delivery.campaign_id AND campaign.state = 'sending'
    JOIN campaigns_batch AS batch
      ON batch.id = %(batch)s AND batch.lease = %(lease)s AND batch.state = 'leased' AND batch.leased_until > %(now)s
    WHERE delivery.campaign_id = %(campaign)s AND delivery.subscriber_id BETWEEN %(first)s AND %(last)s
      AND delivery.batch_id = %(batch)s
      AND (delivery.state = {DeliveryState.QUEUED}
           OR delivery.state = {DeliveryState.DEFERRED} AND delivery.lease IS DISTINCT FROM %(lease)s)
    ORDER BY delivery.subscriber_id LIMIT %(limit)s
), judged AS (
    SELECT window_rows.subscriber_id, subscriber.email, subscriber.name, subscriber.language, subscriber.attributes,
           subscriber.tracking_consent,
           CASE WHEN subscription.id IS NULL THEN {SkipReason.GONE}
                WHEN subscriber.suppressed_at IS NOT NULL THEN {SkipReason.SUPPRESSED}
                WHEN subscription.state = 'pruned' THEN {SkipReason.PRUNED}
                WHEN subscription.state <> 'active' THEN {SkipReason.UNSUBSCRIBED}
           END AS reason
    FROM window_rows
    LEFT JOIN subscribers_subscriber AS subscriber ON subscriber.id = window_rows.subscriber_id
    LEFT JOIN subscribers_subscription AS subscription
      ON subscription.subscriber_id = window_rows.subscriber_id AND subscription.list_id = window_rows.list_id
)
UPDATE campaigns_delivery AS delivery
SET state = CASE WHEN judged.reason IS NULL THEN {DeliveryState.SENDING} ELSE {DeliveryState.SKIPPED} END,
    reason = judged.reason, lease = %(lease)s,
    attempts = delivery.attempts + CASE WHEN judged.reason IS NULL THEN 1 ELSE 0 END
FROM judged
WHERE delivery.campaign_id = %(campaign)s AND delivery.subscriber_id = judged.subscriber_id
  AND delivery.subscriber_id = ANY(ARRAY(SELECT subscriber_id FROM window_rows))
  AND delivery.state IN ({DeliveryState.QUEUED}, {DeliveryState.DEFERRED})
RETURNING delivery.subscriber_id, judged.email, judged.name, judged.language, judged.attributes::text,
          judged.tracking_consent, judged.reason, delivery.attempts
"""

# By the same lease: sending → what the server said; unknown → what it said, when the sweep was faster than the answer.
# Whoever was given back was not tried: a service that asks everybody to wait costs nobody an attempt.
SETTLE = f"""
UPDATE campaigns_delivery AS delivery
SET state = told.state, attempts = delivery.attempts - CASE WHEN told.state = {DeliveryState.QUEUED} THEN 1 ELSE 0 END,
    sent_at = CASE WHEN told.state = {DeliveryState.ACCEPTED} THEN %(now)s END
FROM unnest(%(ids)s::bigint[], %(states)s::smallint[]) AS told(subscriber_id, state)
WHERE delivery.campaign_id = %(campaign)s AND delivery.subscriber_id = told.subscriber_id
  AND delivery.subscriber_id = ANY(%(ids)s::bigint[])  -- by the key, whatever the planner thinks of unnest
  AND delivery.lease = %(lease)s
  AND (delivery.state = {DeliveryState.SENDING}
       OR delivery.state = {DeliveryState.UNKNOWN}
          AND told.state IN ({DeliveryState.ACCEPTED}, {DeliveryState.FAILED}))
"""


# People whom a lost commit may have marked without our knowing.
UNMARK = f"""
UPDATE campaigns_delivery SET state = {DeliveryState.QUEUED}
WHERE campaign_id = %(campaign)s AND subscriber_id BETWEEN %(first)s AND %(last)s AND batch_id = %(batch)s
  AND lease = %(lease)s AND state = {DeliveryState.SENDING} AND NOT subscriber_id = ANY(%(known)s::bigint[])
"""


@dataclass
class Outcome:
    """What a call of send_batch did."""

    sent: int = 0
    failed: int = 0
    deferred: int = 0
    unknown: int = 0
    skipped: int = 0
    is_finished: bool = False
    retry_batch: int | None = None


def send_batch(
    batch_id: int,
    *,
    transport: Transport,
    worker: str,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    stopping: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Send what a batch still holds; None when it was not ours to send.

    `stopping` is asked before each window: a worker that is told to go finishes the window and gives the rest back.
    """
    lease = batching.claim(batch_id, worker=worker, now=clock())
    if lease is None:
        return None
    personalizer = composing.revision(lease.campaign_id)
    with _Sending(lease, clock=clock, stopping=stopping) as sending:
        try:
            reports = transport.deliver(personalizer, sending, until=sending.until, begins=sending.begins)
            for report in reports:
                sending.told(report)
        except TransportError as error:
            log.warning("batch %s waits: %s", batch_id, error)
            sending.is_interrupted = True
            sending.wait = error.retry_after or TRANSPORT_DOWN_DELAY
        sending.settle()
        return _close(lease, sending, now=clock())


class _Told(NamedTuple):
    """What became of one person, not written yet."""

    report: Report
    state: DeliveryState
    at: datetime


class _Sending:
    """A batch under way: an iterator of people, window by window, and the place where outcomes are told.

    The outcomes of one window are written in the transaction that marks the next, so that a window costs one commit.
    """

    def __init__(self, lease: Lease, *, clock: Callable[[], datetime], stopping: Callable[[], bool]) -> None:
        self.lease = lease
        self.outcome = Outcome()
        self.longest_wait = 0  # attempts of the row that was put off most often
        self._clock = clock
        self.is_told_to_stop = stopping
        self.is_interrupted = False  # the transport gave people back
        self.wait = TRANSPORT_DOWN_DELAY  # how long the transport asks to be left alone after that
        self._open: dict[int, int] = {}  # people marked as being sent → attempts, until told what became of them
        self._told: list[_Told] = []
        self._heartbeat = Heartbeat(lease, clock=clock)
        self._journal = Journal(lease.number)
        self.begins: Callable[[DeliveryKey], None] = lambda key: self._journal.begins(key.subscriber_id)

    def __enter__(self) -> "_Sending":
        self._heartbeat.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._heartbeat.stop()
        # Only what is settled in the ledger may be forgotten; after a failure the sweep reads the journal.
        if kind is None and not self._told:
            self._journal.close()
        else:
            self._journal.leave()

    def until(self) -> datetime:
        """No write that could complete a message starts after this moment."""
        return self._heartbeat.leased_until - LEASE_MARGIN

    def __iter__(self) -> Iterator[Recipient]:
        while not self.is_told_to_stop() and self._clock() < self.until():
            people, others = self._next_window()
            if not people and not others:
                return
            yield from people

    def told(self, report: Report) -> None:
        """Keep what became of one person until it is written."""
        self._journal.answered([(report.key.subscriber_id, _STATES[report.result])])
        if report.result is Result.NOT_SENT:
            self.is_interrupted = True
        attempts = self._open.pop(report.key.subscriber_id)
        state = _STATES[report.result]
        if state is DeliveryState.DEFERRED:
            if attempts > len(RETRY_DELAYS):
                state = DeliveryState.FAILED  # put off too often
            else:
                self.longest_wait = max(self.longest_wait, attempts)
        self._told.append(_Told(report, state, self._clock()))

    def settle(self) -> None:
        """Write what was told; whoever was marked and not told of was never begun.

        It may be lost with the machine: a loss becomes unknown, nobody is mailed twice.
        """
        for subscriber_id in list(self._open):
            self.told(Report(DeliveryKey(self.lease.campaign_id, subscriber_id), Result.NOT_SENT))
        self._persistently(self._write_only)

    def _write_only(self, cursor: Any) -> None:
        cursor.execute("SET LOCAL synchronous_commit = off")
        self._write(cursor)

    def _next_window(self) -> tuple[list[Recipient], int]:
        """Mark the next people as being sent; they, and how many were skipped instead."""
        rows = self._persistently(self._write_and_mark)
        people = [self._recipient(row) for row in rows if row[6] is None]
        skipped = len(rows) - len(people)
        self.outcome.skipped += skipped
        return people, skipped

    def _write_and_mark(self, cursor: Any) -> list[tuple[Any, ...]]:
        # Settings ask each connection for synchronous commits: this one is on disk before a byte is written.
        self._write(cursor)
        parameters: dict[str, Any] = {**self._parameters(), "limit": WINDOW, "now": self._clock()}
        cursor.execute(NEXT_WINDOW, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows

    def _persistently(self, work: Callable[[Any], T]) -> T:
        """Do it in a transaction, again and again while PostgreSQL is away and the lease holds; outcomes are kept."""
        failed = False
        while True:
            try:
                with transaction.atomic(), connection.cursor() as cursor:
                    if failed:
                        # The commit of a lost connection may have happened: rows marked for nobody wait again.
                        known = [*self._open, *(told.report.key.subscriber_id for told in self._told)]
                        cursor.execute(UNMARK, {**self._parameters(), "known": known})
                    done = work(cursor)
                    told = len(self._told)
                self._count(self._told[:told])
                del self._told[:told]
                return done
            except (OperationalError, InterfaceError):
                failed = True
                connection.close()
                if self._clock() >= self.until():
                    raise
                time.sleep(DATABASE_AWAY_SECONDS)

    def _parameters(self) -> dict[str, Any]:
        return {
            "batch": self.lease.batch_id,
            "lease": self.lease.number,
            "campaign": self.lease.campaign_id,
            "first": self.lease.first_id,
            "last": self.lease.last_id,
        }

    def _recipient(self, row: tuple[Any, ...]) -> Recipient:
        subscriber_id, email, name, language, attributes, consent, _, attempts = row
        self._open[subscriber_id] = attempts
        key = DeliveryKey(self.lease.campaign_id, subscriber_id)
        fields = read_values(attributes)
        return Recipient(key, email, name, language, fields, is_tracked=consent != TrackingConsent.NONE)

    def _write(self, cursor: Any) -> None:
        if not self._told:
            return
        cursor.execute(
            SETTLE,
            {
                **self._parameters(),
                "ids": [told.report.key.subscriber_id for told in self._told],
                "states": [int(told.state) for told in self._told],
                "now": self._told[-1].at,  # a window's answers come within moments of each other
            },
        )
        errors = [told for told in self._told if told.report.result not in {Result.ACCEPTED, Result.NOT_SENT}]
        DeliveryError.objects.bulk_create(
            DeliveryError(
                campaign_id=self.lease.campaign_id,
                subscriber_id=told.report.key.subscriber_id,
                at=told.at,
                code=told.report.code,
                text=told.report.text,
                is_permanent=told.state is DeliveryState.FAILED,
            )
            for told in errors
        )

    def _count(self, written: Sequence[_Told]) -> None:
        states = [told.state for told in written]
        self.outcome.sent += states.count(DeliveryState.ACCEPTED)
        self.outcome.failed += states.count(DeliveryState.FAILED)
        self.outcome.deferred += states.count(DeliveryState.DEFERRED)
        self.outcome.unknown += states.count(DeliveryState.UNKNOWN)


_STATES = {
    Result.ACCEPTED: DeliveryState.ACCEPTED,
    Result.FAILED: DeliveryState.FAILED,
    Result.DEFERRED: DeliveryState.DEFERRED,
    Result.NOT_SENT: DeliveryState.QUEUED,
    Result.UNKNOWN: DeliveryState.UNKNOWN,
}


def _close(lease: Lease, sending: _Sending, *, now: datetime) -> Outcome:
    """No row waits, or the campaign is not being sent any more: finish the batch or give it back."""
    outcome = sending.outcome
    if outcome.deferred:
        delay = RETRY_DELAYS[min(sending.longest_wait, len(RETRY_DELAYS)) - 1]
        outcome.retry_batch = batching.later(lease, at=now + delay)
    if batching.has_rows(lease):
        if sending.is_interrupted and not sending.is_told_to_stop():
            batching.put_off(lease, until=now + sending.wait)
        else:
            batching.give_back(lease)
    else:
        batching.finish(lease)
        outcome.is_finished = True
    return outcome
