"""A pause, a cancel and a worker's stop: nothing more is begun, and nobody is left behind."""

import threading
from collections import Counter
from collections.abc import Callable

import pytest
from django.db import connection

from campaigns import batching, delivering, scheduling
from campaigns.models import Batch, Campaign, DeliveryState
from newsletter.env import email_url
from newsletter.mailing.transports import transport_for
from subscribers.models import List, Subscriber
from tests.campaigns.batches import elsewhere, hold, send, states
from tests.campaigns.conftest import Patient
from tests.conftest import NOW, MailServer
from tests.engines import engines

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)


def test_a_pause_stops_the_next_window_and_a_resume_sends_the_rest(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "WINDOW", 10)
    subscribe(garden, 35)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)

    def pause_at_the_fifteenth(_: object) -> None:
        if len(mail_server.received) == 15:
            with engines.postgres.connect(connection.settings_dict["NAME"]) as another_process:
                another_process.execute("UPDATE campaigns_campaign SET state = 'paused' WHERE id = %s", [campaign.pk])

    mail_server.on_message = pause_at_the_fifteenth
    send(batch, mail_server, connections=1)
    assert len(mail_server.received) == 20, "the window on the wire ends"
    assert send(batch, mail_server) is None
    mail_server.on_message = None
    scheduling.resume(campaign.pk, now=NOW)
    send(batch, mail_server)
    assert len(mail_server.recipients) == len(set(mail_server.recipients)) == 35


@pytest.mark.parametrize(
    ("order", "left"),
    [(scheduling.cancel, DeliveryState.SKIPPED), (hold, DeliveryState.QUEUED)],
    ids=["cancel", "pause"],
)
def test_a_window_on_the_wire_stops_as_well(
    garden: List,
    subscribe: People,
    launched: Drafts,
    mail_server: MailServer,
    monkeypatch: pytest.MonkeyPatch,
    order: Callable[..., None],
    left: DeliveryState,
) -> None:
    monkeypatch.setattr(batching, "LOOK_SECONDS", 0.01)
    has_heard = threading.Event()

    class Heartbeat(batching.Heartbeat):
        def look(self) -> None:
            super().look()
            if self.is_called_off:
                has_heard.set()

    monkeypatch.setattr(delivering, "Heartbeat", Heartbeat)
    subscribe(garden, 35)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)

    def at_the_fifteenth(_: object) -> None:
        if len(mail_server.received) == 15:
            elsewhere(lambda: order(campaign.pk, now=NOW))
            assert has_heard.wait(10)

    mail_server.on_message = at_the_fifteenth
    send(batch, mail_server, connections=1)
    assert len(mail_server.received) == 15
    batching.settle_ended()
    assert Counter(states(campaign).values()) == {DeliveryState.ACCEPTED: 15, left: 20}
    batch.refresh_from_db()
    assert batch.not_before == NOW, "a resume need not wait"


def test_whoever_comes_back_after_a_cancel_is_skipped_too(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    people = subscribe(garden, 5)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    mail_server.answers = {people[0].email: "451 4.7.1 later"}

    def cancel(_: object) -> None:
        if len(mail_server.received) == 1:
            elsewhere(lambda: scheduling.cancel(campaign.pk, now=NOW))

    mail_server.on_message = cancel
    send(batch, mail_server, connections=1)
    assert states(campaign)[people[0].pk] == DeliveryState.DEFERRED
    assert batching.settle_ended() == 1
    assert batching.settle_ended() == 0
    assert states(campaign)[people[0].pk] == DeliveryState.SKIPPED
    assert not Batch.objects.filter(campaign=campaign).exclude(state=Batch.State.DONE).exists()


def test_a_worker_told_to_stop_gives_the_rest_back_in_mid_window(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    subscribe(garden, 25)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    transport = transport_for(email_url(f"{mail_server.url}?connections=1"))
    delivering.send_batch(
        batch.pk,
        transport=Patient(transport),
        worker="w",
        clock=lambda: NOW,
        stopping=lambda: len(mail_server.received) >= 10,
    )
    transport.close()
    assert len(mail_server.received) == 10
    counts = Counter(states(campaign).values())
    assert counts == {DeliveryState.ACCEPTED: 10, DeliveryState.QUEUED: 15}
    batch.refresh_from_db()
    assert (batch.state, batch.not_before) == (Batch.State.READY, NOW), "at once"
    send(batch, mail_server)
    assert len(set(mail_server.recipients)) == 25


def test_a_cancelled_campaign_sends_no_more(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    subscribe(garden, 5)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    scheduling.cancel(campaign.pk, now=NOW)
    assert send(batch, mail_server) is None
    assert mail_server.received == []
    assert set(states(campaign).values()) == {DeliveryState.SKIPPED}
