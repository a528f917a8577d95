"""Rows are the queue: claiming a batch under a lease, keeping it, giving it back, and finding what was left behind.

A broker message is only a hint that a batch is due. Every statement here is conditional on the lease or the state, so
that a message delivered twice, two sweeps or two workers change nothing that is not theirs.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import Error, connection, transaction
from django.db.models import Exists, Q, QuerySet
from django.db.models.functions import Coalesce, Now

from campaigns import journal
from campaigns.models import Batch, Campaign, CampaignState, Delivery, DeliveryState, SkipReason

log = logging.getLogger(__name__)

# A message is sent again when nothing came of the last one for this long; a lost one costs time, not mail, and one too
# many finds the batch taken.
ENQUEUE_AGAIN = timedelta(seconds=20)
ENQUEUE_AT_ONCE = 200  # batches that one sweep hands out
ATTEMPTS_BEFORE_ASIDE = 3
LOOK_SECONDS = 1.0  # how long a pause may go unnoticed by a worker in mid-window
_WAITING = (DeliveryState.QUEUED, DeliveryState.DEFERRED)

# The lease is drawn from a sequence, so that no two are alike and a late report can be told from a new owner's.
CLAIM = """
UPDATE campaigns_batch AS batch
SET state = 'leased', lease = nextval('campaigns_lease'), leased_until = %(until)s, worker = %(worker)s
FROM campaigns_campaign AS campaign
WHERE batch.id = (
        SELECT id FROM campaigns_batch
        WHERE id = %(batch)s AND state = 'ready' AND not_before <= %(now)s FOR UPDATE SKIP LOCKED
    ) AND campaign.id = batch.campaign_id AND campaign.state = 'sending'
RETURNING batch.campaign_id, batch.lease, batch.first_id, batch.last_id, batch.leased_until
"""

# Due batches that nobody was told of lately, marked as told in the same statement. Those that wait for a limit are
# handed out by limiting.py. An array is made once; a subquery would be run, and limited, for each batch anew.
DUE = """
UPDATE campaigns_batch SET enqueued_at = %(now)s
WHERE id = ANY(ARRAY(
    SELECT batch.id FROM campaigns_batch AS batch
    JOIN campaigns_campaign AS campaign ON campaign.id = batch.campaign_id AND campaign.state = 'sending'
    WHERE batch.state = 'ready' AND batch.not_before <= %(now)s AND batch.throttle = ''
      AND (batch.enqueued_at IS NULL OR batch.enqueued_at < %(again)s)
    ORDER BY batch.id LIMIT %(limit)s FOR UPDATE OF batch SKIP LOCKED
)) AND state = 'ready'
RETURNING id
"""


@dataclass(frozen=True)
class Lease:
    """The right to send a batch until a moment, unless it is renewed."""

    batch_id: int
    campaign_id: int
    number: int
    first_id: int
    last_id: int
    until: datetime


def claim(batch_id: int, *, worker: str, now: datetime) -> Lease | None:
    """Take a batch that is due; None when it is not, or somebody else has it, or its campaign is not being sent."""
    parameters: dict[str, Any] = {"batch": batch_id, "now": now, "until": _until(now), "worker": worker[:120]}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(CLAIM, parameters)
        row = cursor.fetchone()
    return Lease(batch_id, *row) if row else None


def renew(lease: Lease, *, now: datetime) -> datetime | None:
    """Extend a lease that is still held; its new end, or None when it was lost."""
    until = _until(now)
    kept = Batch.objects.filter(
        pk=lease.batch_id, lease=lease.number, state=Batch.State.LEASED, leased_until__gt=now
    ).update(leased_until=until)
    return until if kept else None


class Heartbeat:
    """Looks after a lease from a thread of its own while a batch is sent, however slow the server is.

    It renews the lease, and looks every second whether the campaign is still to be sent: a pause or a cancel must not
    wait for the end of a window of large mails.
    """

    def __init__(self, lease: Lease, *, clock: Callable[[], datetime]) -> None:
        self.leased_until = lease.until
        self.is_called_off = False  # nothing more of the batch is to be begun
        self._lease = lease
        self._clock = clock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease {lease.number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """See whether the batch is still ours and its campaign still to be sent."""
        self.is_called_off = (
            self.is_called_off
            or not Batch.objects.filter(
                pk=self._lease.batch_id,
                lease=self._lease.number,
                state=Batch.State.LEASED,
                campaign__state=CampaignState.SENDING,
            ).exists()
        )

    def renew(self) -> None:
        """Extend the lease; it holds until its former end where that does not succeed."""
        self.leased_until = renew(self._lease, now=self._clock()) or self.leased_until

    def _run(self) -> None:
        renewed_at = time.monotonic()
        while not self.is_called_off and not self._ended.wait(LOOK_SECONDS):
            try:
                self.look()
                if time.monotonic() - renewed_at > settings.BATCH_LEASE_SECONDS / 3:
                    self.renew()
                    renewed_at = time.monotonic()
            except Error as error:
                log.info("lease %s: the database does not answer: %s", self._lease.number, error)
            finally:
                connection.close()


def give_back(lease: Lease) -> None:
    """The batch is ready for another worker (a pause, a deploy)."""
    Batch.objects.filter(pk=lease.batch_id, lease=lease.number, state=Batch.State.LEASED).update(
        state=Batch.State.READY, leased_until=None, enqueued_at=None
    )


def finish(lease: Lease) -> bool:
    """Nothing of the batch waits any more; False if somebody is still marked as being sent, whom the sweep settles."""
    rows = _rows(lease.campaign_id, lease.batch_id, lease.first_id, lease.last_id)
    return bool(
        Batch.objects.filter(
            ~Exists(rows.filter(state=DeliveryState.SENDING)),
            pk=lease.batch_id,
            lease=lease.number,
            state=Batch.State.LEASED,
        ).update(state=Batch.State.DONE, leased_until=None)
    )


def has_rows(lease: Lease) -> bool:
    """Whether any recipient of the batch still waits (the campaign was paused, or the transport stopped)."""
    return _rows(lease.campaign_id, lease.batch_id, lease.first_id, lease.last_id).filter(state__in=_WAITING).exists()


def put_off(lease: Lease, *, until: datetime) -> None:
    """The batch is ready again, but not before a moment (the transport is down).

    Where the campaign is not being sent, that was why it stopped: then it may go on as soon as the campaign does.
    """
    mine = Batch.objects.filter(pk=lease.batch_id, lease=lease.number, state=Batch.State.LEASED)
    mine.filter(campaign__state=CampaignState.SENDING).update(
        state=Batch.State.READY, leased_until=None, enqueued_at=None, not_before=until
    )
    give_back(lease)


def later(lease: Lease, *, at: datetime) -> int | None:
    """Move the deferred rows of a batch to a retry batch that is due at `at`; its id, None if there are none."""
    with transaction.atomic():
        retry = Batch.objects.create(
            campaign_id=lease.campaign_id, first_id=lease.first_id, last_id=lease.last_id, not_before=at
        )
        moved = _rows(lease.campaign_id, lease.batch_id, lease.first_id, lease.last_id).filter(
            state=DeliveryState.DEFERRED, lease=lease.number
        )
        if not moved.update(batch_id=retry.pk):
            retry.delete()
            return None
    return retry.pk


def due(*, now: datetime) -> list[int]:
    """Batches that a message should be sent for now."""
    parameters: dict[str, Any] = {"now": now, "again": now - ENQUEUE_AGAIN, "limit": ENQUEUE_AT_ONCE}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(DUE, parameters)
        return [batch_id for (batch_id,) in cursor.fetchall()]


def take_back_expired(*, now: datetime) -> int:
    """Free the batches of workers that died; the number of recipients whose mail nobody can answer for.

    A worker of this machine whose process is gone is not waited for. Its journal tells which of the rows that were
    being sent were never begun (they wait again) and which were answered; the others become unknown: they may have
    been accepted, and nobody is mailed twice (promise 1). Without a journal of this boot all of them are unknown.
    """
    unknown = 0
    for batch in Batch.objects.filter(state=Batch.State.LEASED):
        if (batch.leased_until and batch.leased_until <= now) or _is_abandoned(batch):
            unknown += _take_back(batch)
    return unknown


def _is_abandoned(batch: Batch) -> bool:
    return batch.lease is not None and journal.is_abandoned(batch.lease, worker=batch.worker)


def _take_back(batch: Batch) -> int:
    # Read only now that the worker is known to be gone, or past the end of its lease by the clock of this machine: what
    # it begins from here on it writes down first, and then sees that its time is over.
    told = journal.read(batch.lease, worker=batch.worker) if batch.lease else None
    # A worker that got somewhere was killed by something else than this batch.
    attempts = 1 if told is not None and told.answered else batch.attempts + 1
    aside = attempts >= ATTEMPTS_BEFORE_ASIDE
    with transaction.atomic():
        freed = Batch.objects.filter(
            pk=batch.pk, lease=batch.lease, leased_until=batch.leased_until, state=Batch.State.LEASED
        ).update(
            state=Batch.State.ASIDE if aside else Batch.State.READY,
            attempts=attempts,
            leased_until=None,
            enqueued_at=None,
        )
        if not freed:
            return 0
        sending = _rows(batch.campaign_id, batch.pk, batch.first_id, batch.last_id).filter(
            state=DeliveryState.SENDING, lease=batch.lease
        )
        if told is not None:
            _believe(sending, told)
        unknown = sending.update(state=DeliveryState.UNKNOWN, sent_at=Now())
    if batch.lease:
        journal.forget(batch.lease)
    return unknown


def _believe(sending: QuerySet[Delivery], told: journal.Told) -> None:
    """Settle what a journal knows: answers as they were, and whatever was never begun back to the queue."""
    by_state: dict[int, list[int]] = {}
    for subscriber_id, state in told.answered.items():
        by_state.setdefault(state, []).append(subscriber_id)
    in_doubt = {*told.begun, *by_state.pop(DeliveryState.UNKNOWN, ())}  # our connection was lost, before we were
    for state, people in by_state.items():
        sent = {"sent_at": Now()} if state == DeliveryState.ACCEPTED else {}
        sending.filter(subscriber_id__in=people).update(state=state, **sent)
    sending.exclude(subscriber_id__in=in_doubt).update(state=DeliveryState.QUEUED)


def set_aside(campaign_id: int) -> list[Batch]:
    """The batches of a campaign that wait for somebody to look at them: each ended several workers."""
    return list(Batch.objects.filter(campaign_id=campaign_id, state=Batch.State.ASIDE).order_by("pk"))


def release(batch_id: int, *, now: datetime) -> bool:
    """Let a batch that was set aside be tried again; whether this call did it."""
    return bool(
        Batch.objects.filter(pk=batch_id, state=Batch.State.ASIDE).update(
            state=Batch.State.READY, attempts=0, not_before=now, enqueued_at=None
        )
    )


def settle_ended() -> int:
    """Skip whom workers gave back after their campaign had ended; the number of people.

    A cancel skips whoever waits at that moment. Who was being sent, and was put off or never begun, comes back later.
    """
    skipped = 0
    left = Batch.objects.filter(
        state__in=(Batch.State.READY, Batch.State.ASIDE),
        campaign__state__in=(CampaignState.CANCELLED, CampaignState.SENT),
    )
    for batch in left:
        with transaction.atomic():
            # Held, so that an editor who sends again to somebody (doubting.resend) comes before or after.
            Campaign.objects.select_for_update().filter(pk=batch.campaign_id).values_list("pk").first()
            done = Batch.objects.filter(
                pk=batch.pk, state=batch.state, campaign__state__in=(CampaignState.CANCELLED, CampaignState.SENT)
            ).update(state=Batch.State.DONE)
            if done:
                waiting = _rows(batch.campaign_id, batch.pk, batch.first_id, batch.last_id).filter(state__in=_WAITING)
                skipped += waiting.update(state=DeliveryState.SKIPPED, reason=SkipReason.CANCELLED)
    return skipped


def finish_campaigns(*, now: datetime) -> list[int]:
    """Move campaigns with no open batch from sending to sent; those that this call moved.

    The campaign is locked first, so that a batch made by who holds it (doubting.resend) is seen by the second look.
    """
    open_states = (Batch.State.READY, Batch.State.LEASED, Batch.State.ASIDE)
    candidates = Campaign.objects.filter(state=CampaignState.SENDING).exclude(
        pk__in=Batch.objects.filter(state__in=open_states).values("campaign_id")
    )
    finished: list[int] = []
    for campaign_id in candidates.values_list("pk", flat=True):
        with transaction.atomic():
            Campaign.objects.select_for_update().filter(pk=campaign_id).values_list("pk").first()
            done = Campaign.objects.filter(
                ~Q(pk__in=Batch.objects.filter(campaign_id=campaign_id, state__in=open_states).values("campaign_id")),
                pk=campaign_id,
                state=CampaignState.SENDING,
            ).update(state=CampaignState.SENT, finished_at=Coalesce("finished_at", now))
        if done:
            finished.append(campaign_id)
    return finished


def _rows(campaign_id: int, batch_id: int, first_id: int, last_id: int) -> QuerySet[Delivery]:
    """The ledger rows of a batch, found by the range of the key."""
    return Delivery.objects.filter(
        campaign_id=campaign_id, subscriber_id__gte=first_id, subscriber_id__lte=last_id, batch_id=batch_id
    )


def _until(now: datetime) -> datetime:
    return now + timedelta(seconds=settings.BATCH_LEASE_SECONDS)
