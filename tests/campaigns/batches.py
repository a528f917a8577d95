"""Batches sent as workers send them, for the tests of delivering."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from django.db import connections

from campaigns import batching, delivering, scheduling
from campaigns.journal import Journal
from campaigns.models import Batch, Campaign, Delivery
from newsletter.env import email_url
from newsletter.mailing.transports import transport_for
from tests.campaigns.conftest import Patient
from tests.conftest import NOW, MailServer


def hold(campaign_id: int, *, now: datetime) -> None:
    scheduling.pause(campaign_id, reason="", now=now)


def elsewhere(what: Callable[[], None]) -> None:
    """Do it as another process would, while the server holds its answer back."""

    def once() -> None:
        try:
            what()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(once).result()


def send(
    batch: Batch,
    server: MailServer,
    *,
    at: datetime = NOW,
    connections: int = 4,
    stopping: Callable[[], bool] = lambda: False,
) -> delivering.Outcome | None:
    """Send a batch as a worker would, at an injected moment."""
    transport = transport_for(email_url(f"{server.url}?connections={connections}"))
    try:
        return delivering.send_batch(
            batch.pk, transport=Patient(transport), worker="test", clock=lambda: at, stopping=stopping
        )
    finally:
        transport.close()


def states(campaign: Campaign) -> dict[int, int]:
    return dict(Delivery.objects.filter(campaign_id=campaign.pk).values_list("subscriber_id", "state"))


def mark_a_window(lease: batching.Lease) -> delivering._Sending:
    """What a worker has done that dies right after: a window is marked, its journal is open."""
    worker = Batch.objects.get(pk=lease.batch_id).worker
    journal = Journal(lease.number, worker=worker)
    sending = delivering._Sending(lease, journal, clock=lambda: NOW, stopping=lambda: False)
    next(iter(sending))
    return sending
