"""The journal of a lease: whom it knows, whose it is, and what happens where there is no room for it."""

import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.conf import LazySettings

from campaigns import batching, delivering, freezing, journal
from campaigns.journal import Journal
from campaigns.models import Batch, Campaign, Delivery, DeliveryState
from newsletter.env import email_url
from newsletter.mailing.transports import transport_for
from subscribers.models import List, Subscriber
from tests.campaigns.conftest import Patient
from tests.conftest import NOW, MailServer

LEASE = 4_000_000_000  # no other test draws it


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    yield
    journal.forget(LEASE)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process grows past `size` bytes: what a full disk says, said by the kernel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_was_begun_and_answered_is_read_again() -> None:
    kept = Journal(LEASE, worker="ann")
    for person in (1, 2, 2**40):
        kept.begins(person)
    kept.answered(2, DeliveryState.ACCEPTED)
    kept.leave()
    told = journal.read(LEASE, worker="ann")
    assert told == journal.Told(frozenset({1, 2**40}), {2: DeliveryState.ACCEPTED})


def test_a_journal_is_abandoned_when_its_writer_has_let_go_of_it() -> None:
    assert not journal.is_abandoned(LEASE, worker="ann"), "it may lie on another machine"
    kept = Journal(LEASE, worker="ann")
    assert not journal.is_abandoned(LEASE, worker="ann")
    kept.leave()
    assert journal.is_abandoned(LEASE, worker="ann")
    assert not journal.is_abandoned(LEASE, worker="bob"), "a number that came again says nothing of the old worker"


def test_a_number_that_comes_again_after_a_restored_backup_brings_nothing_along() -> None:
    old = Journal(LEASE, worker="ann")
    old.begins(1)
    old.answered(1, DeliveryState.ACCEPTED)
    old.leave()
    assert journal.read(LEASE, worker="bob") is None
    Journal(LEASE, worker="bob").leave()
    assert journal.read(LEASE, worker="bob") == journal.Told()


def test_another_boot_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(LEASE, worker="ann").leave()
    monkeypatch.setattr(journal, "boot_id", lambda: "another")
    assert journal.read(LEASE, worker="ann") is None
    assert not journal.is_abandoned(LEASE, worker="ann")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("size", "sent"), [(100, 0), (10_000, 512)])
def test_a_full_disk_loses_nobody_and_doubles_nobody(
    garden: List,
    subscribe: Callable[..., list[Subscriber]],
    launched: Callable[..., Campaign],
    mail_server: MailServer,
    settings: LazySettings,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    sent: int,
) -> None:
    settings.BATCH_SIZE = 1_000
    monkeypatch.setattr(freezing, "LEAST_IN_A_BATCH", 1_000)
    subscribe(garden, 600)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    transport = transport_for(email_url(mail_server.url))
    with room_for(size):
        delivering.send_batch(batch.pk, transport=Patient(transport), worker="w", clock=lambda: NOW)
    counts = Counter(Delivery.objects.filter(campaign_id=campaign.pk).values_list("state", flat=True))
    assert set(counts) <= {DeliveryState.ACCEPTED, DeliveryState.QUEUED}, "nobody is in doubt"
    assert abs(counts[DeliveryState.ACCEPTED] - sent) <= 8, "of each connection at most one ends late"
    batch.refresh_from_db()
    assert (batch.state, batch.not_before) == (Batch.State.READY, NOW + delivering.TRANSPORT_DOWN_DELAY)

    later = batch.not_before
    delivering.send_batch(batch.pk, transport=Patient(transport), worker="w", clock=lambda: later)
    transport.close()
    assert len(mail_server.recipients) == len(set(mail_server.recipients)) == 600
    assert batching.finish_campaigns(now=later) == [campaign.pk]
