"""Sending a batch: window by window, each recipient marked before their mail is written and settled after.

The promise (DESIGN, 1): the commit of queued → sending comes before the first byte, so nobody is mailed twice; what
came of it is written afterwards, so a worker that dies in between leaves `unknown`, which the editor sees.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.db import InterfaceError, OperationalError

from campaigns import batching, composing, pacing
from campaigns.batching import Heartbeat, Lease
from campaigns.breaking import Strain
from campaigns.journal import Journal
from campaigns.models import DeliveryState
from campaigns.pacing import Pace
from campaigns.windows import Row, Told, Windows
from newsletter.mailing.bounds import read_values
from newsletter.mailing.personalizing import Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Report, Result, Transport, TransportError
from subscribers.models import TrackingConsent

log = logging.getLogger(__name__)

WINDOW = 100  # rows marked "sending" at once: what a killed worker may leave unknown
LEASE_MARGIN = 1 / 6  # of a lease, by default 20 s: no write starts this close to its end
RETRY_DELAYS = tuple(timedelta(minutes=minutes) for minutes in (5, 15, 60, 240, 720, 1_440, 1_440))
LONGEST_UNWRITTEN = timedelta(seconds=5)  # an outcome waits so long for the next window, at a slow server
TRANSPORT_DOWN_DELAY = timedelta(minutes=1)
_LONG_PAST = datetime(1970, 1, 1, tzinfo=UTC)


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

    def count(self, state: DeliveryState) -> None:
        """One more person came to this."""
        self.failed += state is DeliveryState.FAILED
        self.deferred += state is DeliveryState.DEFERRED
        self.unknown += state is DeliveryState.UNKNOWN


def send_batch(
    batch_id: int,
    *,
    transport: Transport,
    worker: str,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    stopping: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Send what a batch still holds; None when it was not ours to send.

    `stopping` is asked before each message: a worker that is told to go begins no other and gives the rest back.
    """
    lease = batching.claim(batch_id, worker=worker, now=clock())
    if lease is None:
        return None
    personalizer = composing.revision(lease.campaign_id)
    pace = pacing.pace(lease)  # before the journal: what asks the database may raise, and nobody would close the file
    try:
        journal = Journal(lease.number, worker=worker)
    except OSError as error:
        # Without one a killed worker would leave a whole window in doubt: better late.
        log.error("batch %s waits, since DATA_DIR takes no journal: %s", batch_id, error)
        batching.put_off(lease, until=clock() + TRANSPORT_DOWN_DELAY)
        return Outcome()
    with _Sending(lease, journal, clock=clock, stopping=stopping, pace=pace) as sending:
        try:
            reports = transport.deliver(personalizer, sending, until=sending.until, begins=sending.begins)
            for report in reports:
                sending.told(report)
            if sending.is_interrupted and clock() < sending.until():
                # It gave people back, and not because our time was over.
                sending.strain.ended(TransportError(sending.why), accepted=sending.outcome.sent)
        except TransportError as error:
            log.warning("batch %s waits: %s", batch_id, error)
            sending.is_interrupted = True
            sending.strain.ended(error, accepted=sending.outcome.sent)
            sending.wait = error.retry_after or TRANSPORT_DOWN_DELAY
        sending.settle()
        outcome = _close(lease, sending, now=clock())
    sending.strain.add(accepted=outcome.sent, now=clock())
    return outcome


class _Sending:
    """A batch under way: an iterator of people, window by window, and the place where outcomes are told."""

    def __init__(
        self,
        lease: Lease,
        journal: Journal,
        *,
        clock: Callable[[], datetime],
        stopping: Callable[[], bool],
        pace: Pace | None = None,
    ) -> None:
        self.lease = lease
        self.pace = pace  # None: nothing is limited
        self.outcome = Outcome()
        self.strain = Strain(lease.campaign_id)
        self.longest_wait = 0  # attempts of the row that was put off most often
        self._clock = clock
        self.is_told_to_stop = stopping
        self.is_interrupted = False  # the transport gave people back
        self.why = "The mail server ends its connections."
        self.wait = TRANSPORT_DOWN_DELAY  # how long the transport asks to be left alone after that
        self._open: dict[int, int] = {}  # people marked as being sent → attempts, until told what became of them
        self._heartbeat = Heartbeat(lease, clock=clock)
        self._journal = journal
        self._has_failed = False  # the journal or the database: nothing more is begun, what is on the wire ends
        self._windows = Windows(lease, clock=clock, until=self._lease_ends, limit=WINDOW)
        self._unwritten_since: datetime | None = None
        self._margin = timedelta(seconds=settings.BATCH_LEASE_SECONDS * LEASE_MARGIN)

    def __enter__(self) -> "_Sending":
        self._heartbeat.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._heartbeat.stop()
        # Only what is settled in the ledger may be forgotten; after a failure the sweep reads the journal.
        if kind is None and self._windows.is_settled:
            self._journal.close()
        else:
            self._journal.leave()

    def until(self) -> datetime:
        """No write that could complete a message starts after this moment: long past once no other is to be begun."""
        if self._has_failed or self._heartbeat.is_called_off or self.is_told_to_stop():
            return _LONG_PAST
        return self._lease_ends()

    def _lease_ends(self) -> datetime:
        return self._heartbeat.leased_until - self._margin

    def begins(self, key: DeliveryKey) -> None:
        """The next write may complete this person's message, unless `until`, asked after this, forbids it."""
        try:
            self._journal.begins(key.subscriber_id)
        except OSError as error:
            self._fail("the journal cannot be written", error)

    def _answered(self, subscriber_id: int, state: int) -> None:
        try:
            self._journal.answered(subscriber_id, state)
        except OSError as error:
            self._fail("the journal cannot be written", error)  # the ledger is told all the same

    def _fail(self, what: str, error: Exception) -> None:
        if not self._has_failed:
            log.error("batch %s is given back: %s: %s", self.lease.batch_id, what, error)
        self._has_failed = self.is_interrupted = True

    def __iter__(self) -> Iterator[Recipient]:
        while self._clock() < self.until():
            allowed = self.pace.next(now=self._clock()) if self.pace else None
            if allowed == []:
                return
            try:
                rows = self._windows.next(allowed)
            except (OperationalError, InterfaceError) as error:
                # The answers that are still to come go into the journal.
                self._fail("the database was away for too long", error)
                return
            self._unwritten_since = None
            if not rows:
                return
            people = [self._recipient(row) for row in rows if row[_REASON] is None]
            if self.pace:
                self.pace.went([person.key.subscriber_id for person in people])
            self.outcome.skipped += len(rows) - len(people)
            yield from people

    def _recipient(self, row: Row) -> Recipient:
        subscriber_id, email, name, language, attributes, consent, _, attempts = row
        self._open[subscriber_id] = attempts
        key = DeliveryKey(self.lease.campaign_id, subscriber_id)
        fields = read_values(attributes) if attributes != "{}" else {}
        return Recipient(key, email, name, language, fields, consent != TrackingConsent.NONE)

    def told(self, report: Report) -> None:
        """Keep what became of one person until it is written with the next window, or after a few seconds."""
        now = self._clock()
        subscriber_id = report.key.subscriber_id
        attempts = self._open.pop(subscriber_id)
        if report.result is Result.ACCEPTED:
            self._answered(subscriber_id, _ACCEPTED)
            self._windows.accepted.append(subscriber_id)
            self.outcome.sent += 1
        else:
            self._told_otherwise(report, attempts, now)
        if self._unwritten_since is None:
            self._unwritten_since = now
        elif now - self._unwritten_since > LONGEST_UNWRITTEN and not self._has_failed:
            self._unwritten_since = None
            try:
                self._windows.write()
            except (OperationalError, InterfaceError) as error:
                self._fail("the database was away for too long", error)

    def _told_otherwise(self, report: Report, attempts: int, now: datetime) -> None:
        state = _STATES[report.result]
        if report.result is Result.NOT_SENT:
            self.is_interrupted = True
            self.why = report.text or self.why
            if self.pace:
                self.pace.came_back(report.key.subscriber_id)
        elif state is DeliveryState.DEFERRED:
            if attempts > len(RETRY_DELAYS):
                state = DeliveryState.FAILED  # put off too often
            else:
                self.longest_wait = max(self.longest_wait, attempts)
        self._answered(report.key.subscriber_id, state)
        self._windows.told.append(Told(report, state, now))
        self.outcome.count(state)
        if self.strain.note(report, accepted=self.outcome.sent):
            self.strain.add(accepted=self.outcome.sent, now=now)

    def settle(self) -> None:
        """Write what was told; whoever was marked and not told of was never begun."""
        for subscriber_id in list(self._open):
            self.told(Report(DeliveryKey(self.lease.campaign_id, subscriber_id), Result.NOT_SENT))
        self._windows.write()


_ACCEPTED = int(DeliveryState.ACCEPTED)
_REASON = 6  # the place in a window's row of why somebody is skipped
_STATES = {
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
    if sending.pace:
        is_interrupted = sending.is_interrupted or sending.is_told_to_stop()
        if sending.pace.close(is_interrupted=is_interrupted, now=now):
            return outcome
    if batching.has_rows(lease):
        if sending.is_interrupted and not sending.is_told_to_stop():
            batching.put_off(lease, until=now + sending.wait)
        else:
            batching.give_back(lease)
    else:
        outcome.is_finished = batching.finish(lease)
    return outcome
