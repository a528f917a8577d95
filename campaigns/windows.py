"""The ledger's side of sending: one statement a window settles what was answered and marks who is next.

Each window is one commit and one round trip. What is usual (accepted) stands in that statement; what is rare (refused,
put off, given back, in doubt) goes before it in the same transaction.
"""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import psycopg
from django.db import InterfaceError, NotSupportedError, OperationalError, connection, transaction

from campaigns import refusing
from campaigns.batching import Lease
from campaigns.models import DeliveryError, DeliveryState, SkipReason
from newsletter.mailing.transports.base import Report, Result

T = TypeVar("T")
Row = tuple[Any, ...]

DATABASE_AWAY_SECONDS = 0.5

# Whom a window is taken from: whoever was not looked at yet, or those whom the limits let go (pacing.py).
_IN_ORDER = "subscriber_id > %(after)s::bigint AND subscriber_id <= %(last)s::bigint"
_THESE = "subscriber_id = ANY(%(only)s::bigint[])"

# By the same lease: sending → accepted; unknown → accepted, when the sweep was faster than the answer.
_ACCEPT = f"""
UPDATE campaigns_delivery SET state = {DeliveryState.ACCEPTED}, sent_at = %(now)s
WHERE campaign_id = %(campaign)s::bigint AND subscriber_id = ANY(%(accepted)s::bigint[]) AND lease = %(lease)s::bigint
  AND state IN ({DeliveryState.SENDING}, {DeliveryState.UNKNOWN})
"""

# Accepts those of the last window, marks the next people of a batch, and says who they are. Whoever may not be mailed
# any more is skipped, with the reason; only rows that come back without one may be written to the wire. What this very
# lease deferred waits for its retry batch. The rows are not locked: the lease makes this worker the only one to move
# them. The lease is, until the commit: a sweep that takes it away meanwhile finds whom it has marked.
NEXT_WINDOW = f"""
WITH settled AS ({_ACCEPT}), held AS MATERIALIZED (
    SELECT batch.id FROM campaigns_batch AS batch
    WHERE batch.id = %(batch)s AND batch.lease = %(lease)s AND batch.state = 'leased' AND batch.leased_until > %(now)s
    FOR SHARE
), window_rows AS (
    SELECT delivery.subscriber_id, campaign.list_id
    FROM campaigns_delivery AS delivery
    JOIN campaigns_campaign AS campaign ON campaign.id = delivery.campaign_id AND campaign.state = 'sending'
    JOIN held ON held.id = delivery.batch_id
    WHERE delivery.campaign_id = %(campaign)s::bigint AND {_IN_ORDER} AND delivery.batch_id = %(batch)s::bigint
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
WHERE delivery.campaign_id = %(campaign)s::bigint AND delivery.subscriber_id = judged.subscriber_id
  AND delivery.subscriber_id = ANY(ARRAY(SELECT subscriber_id FROM window_rows))
  AND delivery.state IN ({DeliveryState.QUEUED}, {DeliveryState.DEFERRED})
RETURNING delivery.subscriber_id, judged.email, judged.name, judged.language, judged.attributes::text,
          judged.tracking_consent, judged.reason, delivery.attempts
"""
_NEXT_OF_THESE = NEXT_WINDOW.replace(_IN_ORDER, _THESE)

# By the same lease: sending → what became of them; unknown → failed, when the sweep was faster than the answer.
# Whoever was given back was not tried: a service that asks everybody to wait costs nobody an attempt.
SETTLE = f"""
UPDATE campaigns_delivery AS delivery
SET state = %(state)s::smallint,
    attempts = delivery.attempts - CASE WHEN %(state)s = {DeliveryState.QUEUED} THEN 1 ELSE 0 END
WHERE delivery.campaign_id = %(campaign)s::bigint AND delivery.subscriber_id = ANY(%(ids)s::bigint[])
  AND delivery.lease = %(lease)s
  AND (delivery.state = {DeliveryState.SENDING}
       OR delivery.state = {DeliveryState.UNKNOWN} AND %(state)s = {DeliveryState.FAILED})
"""

# Waits for a statement of a lost connection that the server may still be working on.
_WAIT = "SELECT FROM campaigns_batch WHERE id = %(batch)s FOR NO KEY UPDATE"

# People whom a lost commit may have marked without our knowing.
_UNMARK = f"""
UPDATE campaigns_delivery SET state = {DeliveryState.QUEUED}, attempts = attempts - 1
WHERE campaign_id = %(campaign)s::bigint AND {_IN_ORDER}
  AND batch_id = %(batch)s AND lease = %(lease)s AND state = {DeliveryState.SENDING}
"""
_UNMARK_THESE = _UNMARK.replace(_IN_ORDER, _THESE)


class Told(NamedTuple):
    """What became of one person, other than that they were accepted; not written yet."""

    report: Report
    state: DeliveryState
    at: datetime


class Windows:
    """The windows of one lease. Outcomes are kept over an outage of PostgreSQL and written when it is back."""

    def __init__(
        self, lease: Lease, *, clock: Callable[[], datetime], until: Callable[[], datetime], limit: int
    ) -> None:
        self.accepted: list[int] = []
        self.told: list[Told] = []
        self._taken = self._dead = 0  # people whom the server took, and whom it called dead, under this lease
        self._dead_now = 0
        self._lease = lease
        self._clock = clock
        self._until = until
        self._after = lease.first_id - 1  # rows up to here were looked at under this lease
        self._limit = limit
        self._only: list[int] | None = None  # the people of this window, where they are chosen
        # The commit of a lost connection may have happened: then rows are marked for nobody, and have to wait again.
        self._may_have_marked = False

    @property
    def is_settled(self) -> bool:
        """Whether all that was told stands in the ledger, and nobody is marked there without our knowing."""
        return not (self.accepted or self.told or self._may_have_marked)

    def next(self, only: list[int] | None = None) -> list[Row]:
        """Settle what was told and mark the next people, as columns of NEXT_WINDOW; empty at the end.

        `only` are the people to mark, none of whom was looked at under this lease; None: whoever is next.
        """
        self._only = only
        rows = self._persistently(self._mark, alone=not self.told, marks=True)
        if rows and only is None:
            self._after = max(row[0] for row in rows)
        return rows

    def write(self) -> None:
        """Settle what was told, and unmark whom a lost commit marked, without waiting for the disk.

        It may be lost with the machine: a loss becomes unknown, nobody is mailed twice.
        """
        if not self.is_settled:
            self._persistently(self._write_only, alone=False)

    def _mark(self) -> list[Row]:
        # Settings ask each connection for synchronous commits: this one is on disk before a byte is written.
        self._write_rare()
        return _execute(NEXT_WINDOW if self._only is None else _NEXT_OF_THESE, self._parameters())

    def _write_only(self) -> None:
        _execute("SET LOCAL synchronous_commit = off")
        self._write_rare()
        _execute(_ACCEPT, self._parameters())

    def _persistently(self, work: Callable[[], T], *, alone: bool, marks: bool = False) -> T:
        """Do it again and again while PostgreSQL is away and the lease holds. `alone`: it is one statement."""
        failed = False
        while True:
            try:
                if alone and not failed and not self._may_have_marked:
                    done = work()
                else:
                    with transaction.atomic():
                        if self._may_have_marked:
                            _execute(_WAIT, self._parameters())
                            _execute(_UNMARK if self._only is None else _UNMARK_THESE, self._parameters())
                        done = work()
                self._may_have_marked = False
                self._taken += len(self.accepted)
                self._dead += self._dead_now
                self.accepted.clear()
                self.told.clear()
                return done
            except (OperationalError, InterfaceError, NotSupportedError) as error:
                failed = True
                self._may_have_marked |= marks
                if isinstance(error, NotSupportedError):
                    # A migration changed a column of a prepared statement; only a new connection has another plan.
                    connection.connection.close()
                connection.close()
                if self._clock() >= self._until():
                    raise
                time.sleep(DATABASE_AWAY_SECONDS)

    def _parameters(self) -> dict[str, Any]:
        lease = self._lease
        return {
            "batch": lease.batch_id,
            "lease": lease.number,
            "campaign": lease.campaign_id,
            "after": self._after,
            "last": lease.last_id,
            "limit": self._limit,
            "now": self._clock(),
            "accepted": self.accepted,
            "only": self._only,
        }

    def _write_rare(self) -> None:
        self._dead_now = 0  # of this transaction; they count once it is committed
        if not self.told:
            return  # Django would make its rounds for a list of nobody
        for state in {told.state for told in self.told}:
            people = [told.report.key.subscriber_id for told in self.told if told.state is state]
            _execute(SETTLE, {**self._parameters(), "state": int(state), "ids": people})
        dead = refusing.dead(told.report for told in self.told)
        self._dead_now = len(dead)
        if dead:
            taken = self._taken + len(self.accepted)
            refusing.suppress(dead, before=self._dead, taken=taken, now=self._clock())
        DeliveryError.objects.bulk_create(
            DeliveryError(
                campaign_id=self._lease.campaign_id,
                subscriber_id=told.report.key.subscriber_id,
                at=told.at,
                code=told.report.code,
                text=told.report.text,
                is_permanent=told.state is DeliveryState.FAILED,
            )
            for told in self.told
            if told.report.result is not Result.NOT_SENT
        )


def _execute(statement: str, parameters: dict[str, Any] | None = None) -> list[Row]:
    """A statement past Django's cursor, which would write the values into the text and have it planned each time."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        cursor.execute(statement, parameters, prepare=parameters is not None)
        return cursor.fetchall() if cursor.description else []
