"""Celery's edge of campaigns. Messages are hints: each task asks the rows what is due, and may be lost or repeated."""

import time
from datetime import UTC, datetime

from celery import shared_task

from campaigns import batching, breaking, closing, delivering, doubting, limiting, scheduling, telling, workers
from newsletter.celery import stopping
from newsletter.mailing.transports import transport

LOOK_SECONDS = 2.0  # so that it costs next to nothing beside a batch
_looked_at = 0.0


@shared_task(name="campaigns.launch")
def launch(campaign_id: int) -> None:
    """Freeze a campaign whose time has come and hand out its batches."""
    if scheduling.launch(campaign_id, now=datetime.now(UTC)):
        _hand_out()


# A hint that has waited so long is one of several by now, and would only pile up.
@shared_task(name="campaigns.send_batch", expires=60)
def send_batch(batch_id: int) -> None:
    """Send one batch."""
    outcome = delivering.send_batch(batch_id, transport=transport(), worker=workers.name(), stopping=stopping)
    if outcome and outcome.is_finished:
        finish()
        if limiting.are_there_any():
            hand_out_limited()  # the next of its group
        if not stopping():
            _look_for_more()
    elif outcome is None or not stopping():
        _hand_out()


@shared_task(name="campaigns.sweep")
def sweep() -> None:
    """Find what is due: scheduled campaigns, batches of dead workers, batches that nobody was told of."""
    now = datetime.now(UTC)
    for campaign_id in scheduling.due(now=now):
        launch.delay(campaign_id)
    if batching.take_back_expired(now=now):
        doubting.recount_open(now=now)
    breaking.check(now=now)
    batching.settle_ended()
    _hand_out()
    finish()
    for event_id in telling.due(now=now):
        tell_editors.delay(event_id)


@shared_task(name="campaigns.tell_editors")
def tell_editors(event_id: int) -> None:
    """Mail what happened to a campaign to those who wrote and sent it."""
    telling.tell(event_id, now=datetime.now(UTC))


@shared_task(name="campaigns.hand_out_limited", expires=2)  # another hint follows
def hand_out_limited() -> None:
    """What waited for a limit and may have room by now; asked for by the workers' clocks (newsletter/celery.py)."""
    for batch_id in limiting.due(now=datetime.now(UTC)):
        send_batch.delay(batch_id)


@shared_task(name="campaigns.close_ledger")
def close_ledger(campaign_id: int) -> None:
    """What is owed when a campaign has ended: opportunities for hygiene, who is in doubt, the index by person."""
    closing.close(campaign_id, now=datetime.now(UTC))


def finish() -> None:
    """Mark campaigns whose last batch is done, and see to those that ended."""
    batching.finish_campaigns(now=datetime.now(UTC))
    for campaign_id in closing.due():
        close_ledger.delay(campaign_id)


def _look_for_more() -> None:
    """Hand out what is due, if this process has not just done so: a long campaign has more than one look hands out."""
    global _looked_at  # noqa: PLW0603  one clock a process
    if time.monotonic() - _looked_at > LOOK_SECONDS:
        _looked_at = time.monotonic()
        _hand_out()


def _hand_out() -> None:
    now = datetime.now(UTC)
    for batch_id in (*batching.due(now=now), *limiting.due(now=now)):
        send_batch.delay(batch_id)
