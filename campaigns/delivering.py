"""Sending a batch: window by window, each recipient marked before their mail is written and settled after.

The promise (DESIGN, 1): the commit of queued → sending comes before the first byte, so nobody is mailed twice; what
came of it is written afterwards, so a worker that dies in between leaves `unknown`, which the editor sees.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection, transaction

from campaigns import batching, composing
from campaigns.batching import Lease
from campaigns.models import DeliveryError, DeliveryState, SkipReason
from newsletter.mailing.personalizing import Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Report, Result, Transport, TransportError
from subscribers.models import TrackingConsent

WINDOW = 100  # rows marked "sending" at once: what a killed worker may leave unknown
LEASE_MARGIN = timedelta(seconds=20)  # no write starts this close to a lease's end
RETRY_DELAYS = tuple(timedelta(minutes=minutes) for minutes in (5, 15, 60, 240, 720, 1_440, 1_440))
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
  AND delivery.state IN ({DeliveryState.QUEUED}, {DeliveryState.DEFERRED})
RETURNING delivery.subscriber_id, judged.email, judged.name, judged.language, judged.attributes::text,
          judged.tracking_consent, judged.reason, delivery.attempts
"""

# By the same lease: sending → what the server said; unknown → what it said, when the sweep was faster than the answer.
SETTLE = f"""
UPDATE campaigns_delivery AS delivery
SET state = told.state, sent_at = told.sent_at
FROM unnest(%(ids)s::bigint[], %(states)s::smallint[], %(sent)s::timestamptz[]) AS told(subscriber_id, state, sent_at)
WHERE delivery.campaign_id = %(campaign)s AND delivery.subscriber_id = told.subscriber_id
  AND delivery.lease = %(lease)s
  AND (delivery.state = {DeliveryState.SENDING}
       OR delivery.state = {DeliveryState.UNKNOWN}
          AND told.state IN ({DeliveryState.ACCEPTED}, {DeliveryState.FAILED}))
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


@dataclass(frozen=True)
class _Window:
    recipients: list[Recipient]
    attempts: dict[int, int]
    skipped: int


@dataclass
class _Tally:
    outcome: Outcome = field(default_factory=Outcome)
    longest_wait: int = 0  # attempts of the row that was put off most often


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
    tally = _Tally()
    personalizer = composing.revision(lease.campaign_id)
    while True:
        until = batching.renew(lease, now=clock())
        if until is None:
            return tally.outcome
        if stopping():
            batching.give_back(lease)
            return tally.outcome
        window = _next_window(lease, now=clock())
        tally.outcome.skipped += window.skipped
        if not window.recipients and not window.skipped:
            break
        try:
            reports = transport.deliver(personalizer, window.recipients, until=until - LEASE_MARGIN)
            if not _settle(lease, window, reports, tally, clock=clock):
                break
        except TransportError as error:
            _put_off(lease, window, str(error), now=clock())
            return tally.outcome
    return _close(lease, tally, now=clock())


def _next_window(lease: Lease, *, now: datetime) -> _Window:
    parameters: dict[str, Any] = {
        "batch": lease.batch_id,
        "lease": lease.number,
        "campaign": lease.campaign_id,
        "first": lease.first_id,
        "last": lease.last_id,
        "limit": WINDOW,
        "now": now,
    }
    with transaction.atomic(), connection.cursor() as cursor:
        # Said aloud, whatever the server's default: this commit is on disk before a byte is written.
        cursor.execute("SET LOCAL synchronous_commit = on")
        cursor.execute(NEXT_WINDOW, parameters)
        rows = cursor.fetchall()
    recipients: list[Recipient] = []
    attempts: dict[int, int] = {}
    for subscriber_id, email, name, language, attributes, consent, reason, attempt in rows:
        if reason is None:
            key = DeliveryKey(lease.campaign_id, subscriber_id)
            is_tracked = consent != TrackingConsent.NONE
            recipients.append(Recipient(key, email, name, language, json.loads(attributes), is_tracked=is_tracked))
            attempts[subscriber_id] = attempt
    return _Window(recipients, attempts, skipped=len(rows) - len(recipients))


_STATES = {
    Result.ACCEPTED: DeliveryState.ACCEPTED,
    Result.FAILED: DeliveryState.FAILED,
    Result.DEFERRED: DeliveryState.DEFERRED,
    Result.NOT_SENT: DeliveryState.QUEUED,
    Result.UNKNOWN: DeliveryState.UNKNOWN,
}


def _settle(
    lease: Lease, window: _Window, reports: Iterable[Report], tally: _Tally, *, clock: Callable[[], datetime]
) -> bool:
    """Write what became of a window; False when the transport stopped in the middle of it."""
    told: list[tuple[Report, datetime]] = []
    try:
        told.extend((report, clock()) for report in reports)
    finally:
        # Also when the transport raised after some reports: what is known is written.
        _write(lease, told, window, tally)
    return not any(report.result is Result.NOT_SENT for report, _ in told)


def _write(lease: Lease, told: Sequence[tuple[Report, datetime]], window: _Window, tally: _Tally) -> None:
    if not told:
        return
    states = [_final(report, window, tally) for report, _ in told]
    parameters: dict[str, Any] = {
        "campaign": lease.campaign_id,
        "lease": lease.number,
        "ids": [report.key.subscriber_id for report, _ in told],
        "states": [int(state) for state in states],
        "sent": [at if state is DeliveryState.ACCEPTED else None for state, (_, at) in zip(states, told, strict=True)],
    }
    errors = [
        DeliveryError(
            campaign_id=lease.campaign_id,
            subscriber_id=report.key.subscriber_id,
            at=at,
            code=report.code,
            text=report.text,
            is_permanent=state is DeliveryState.FAILED,
        )
        for state, (report, at) in zip(states, told, strict=True)
        if report.result not in {Result.ACCEPTED, Result.NOT_SENT}
    ]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(SETTLE, parameters)
        DeliveryError.objects.bulk_create(errors)


def _final(report: Report, window: _Window, tally: _Tally) -> DeliveryState:
    """The state that a report leads to; a row that was put off too often fails."""
    state = _STATES[report.result]
    outcome = tally.outcome
    if state is DeliveryState.DEFERRED:
        attempts = window.attempts[report.key.subscriber_id]
        if attempts > len(RETRY_DELAYS):
            state = DeliveryState.FAILED
        else:
            outcome.deferred += 1
            tally.longest_wait = max(tally.longest_wait, attempts)
    if state is DeliveryState.ACCEPTED:
        outcome.sent += 1
    elif state is DeliveryState.FAILED:
        outcome.failed += 1
    elif state is DeliveryState.UNKNOWN:
        outcome.unknown += 1
    return state


def _put_off(lease: Lease, window: _Window, reason: str, *, now: datetime) -> None:
    """The transport is down: nothing was written, so the rows wait again and the batch is tried later."""
    back = [(Report(recipient.key, Result.NOT_SENT, "", reason), now) for recipient in window.recipients]
    _write(lease, back, window, _Tally())
    batching.put_off(lease, until=now + TRANSPORT_DOWN_DELAY)


def _close(lease: Lease, tally: _Tally, *, now: datetime) -> Outcome:
    """No row waits, or the campaign is not being sent any more: finish the batch or give it back."""
    outcome = tally.outcome
    if outcome.deferred:
        delay = RETRY_DELAYS[min(tally.longest_wait, len(RETRY_DELAYS)) - 1]
        outcome.retry_batch = batching.later(lease, at=now + delay)
    if batching.has_rows(lease):
        batching.give_back(lease)
    else:
        batching.finish(lease)
        outcome.is_finished = True
    return outcome
