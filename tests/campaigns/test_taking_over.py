"""Workers, databases and batches that fail: who takes over, and what is believed of those that are gone."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection

from campaigns import batching, delivering, journal, scheduling, windows
from campaigns.journal import Journal
from campaigns.models import Batch, Campaign, DeliveryState
from newsletter.env import email_url
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports import transport_for
from newsletter.mailing.transports.base import Report, Result
from subscribers.models import List, Subscriber
from tests.campaigns.batches import hold, mark_a_window, send, states
from tests.campaigns.conftest import Patient
from tests.conftest import NOW, MailServer
from tests.engines import engines

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)


def test_a_database_that_stays_away_leaves_nobody_in_doubt(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease ends while it is away; the answers that still come are in the journal, which the sweep reads."""
    monkeypatch.setattr(delivering, "WINDOW", 10)
    subscribe(garden, 35)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    at = [NOW]
    away = [False]

    def lose(statement: str, parameters: dict[str, Any] | None = None) -> list[windows.Row]:
        if away[0]:
            at[0] = NOW + timedelta(seconds=101)
            raise OperationalError("the server has gone away")
        return execute(statement, parameters)

    def go_away(_: object) -> None:
        away[0] |= len(mail_server.received) == 15

    execute = windows._execute
    monkeypatch.setattr(windows, "_execute", lose)
    mail_server.on_message = go_away
    transport = transport_for(email_url(f"{mail_server.url}?connections=4"))
    with pytest.raises(OperationalError):
        delivering.send_batch(batch.pk, transport=Patient(transport), worker="w", clock=lambda: at[0])
    transport.close()
    away[0], mail_server.on_message = False, None
    assert batching.take_back_expired(now=at[0]) == 0, "nobody is in doubt"
    assert Counter(states(campaign).values())[DeliveryState.ACCEPTED] == len(mail_server.received)
    send(batch, mail_server, at=at[0])
    assert len(mail_server.recipients) == len(set(mail_server.recipients)) == 35


def test_a_batch_that_was_set_aside_can_be_tried_again(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    subscribe(garden, 3)
    campaign = launched()
    Batch.objects.filter(campaign=campaign).update(state=Batch.State.ASIDE, attempts=3)
    (batch,) = batching.set_aside(campaign.pk)
    assert batching.release(batch.pk, now=NOW)
    assert not batching.release(batch.pk, now=NOW)
    send(batch, mail_server)
    assert batching.finish_campaigns(now=NOW) == [campaign.pk]


def test_a_resume_takes_up_what_was_set_aside(garden: List, subscribe: People, launched: Drafts) -> None:
    subscribe(garden, 3)
    campaign = launched()
    Batch.objects.filter(campaign=campaign).update(state=Batch.State.ASIDE, attempts=3)
    hold(campaign.pk, now=NOW)
    scheduling.resume(campaign.pk, now=NOW)
    assert list(Batch.objects.values_list("state", "attempts")) == [(Batch.State.READY, 0)]


def test_the_batch_of_a_dead_worker_is_taken_over_and_its_journal_is_believed(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "WINDOW", 10)
    people = subscribe(garden, 25)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    lease = batching.claim(batch.pk, worker="elsewhere", now=NOW)
    assert lease
    sending = mark_a_window(lease)
    for person in people[:4]:
        sending.begins(DeliveryKey(campaign.pk, person.pk))
    sending.told(Report(DeliveryKey(campaign.pk, people[0].pk), Result.ACCEPTED))
    sending.told(Report(DeliveryKey(campaign.pk, people[1].pk), Result.FAILED, "5.1.1", "no such user"))
    assert batching.take_back_expired(now=NOW) == 0, "the lease still holds"
    later = NOW + timedelta(seconds=121)
    assert batching.take_back_expired(now=later) == 2
    assert batching.take_back_expired(now=later) == 0
    now = states(campaign)
    expected = [DeliveryState.ACCEPTED, DeliveryState.FAILED, DeliveryState.UNKNOWN, DeliveryState.UNKNOWN]
    assert [now[person.pk] for person in people[:4]] == expected
    assert {now[person.pk] for person in people[4:]} == {DeliveryState.QUEUED}
    send(batch, mail_server, at=later)
    assert sorted(mail_server.recipients) == sorted(person.email for person in people[4:])


def test_without_a_journal_the_whole_open_window_is_unknown(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "WINDOW", 10)
    subscribe(garden, 25)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    lease = batching.claim(batch.pk, worker="elsewhere", now=NOW)
    assert lease
    mark_a_window(lease)
    journal.forget(lease.number)
    later = NOW + timedelta(seconds=121)
    assert batching.take_back_expired(now=later) == 10
    send(batch, mail_server, at=later)
    counts = list(states(campaign).values())
    assert (counts.count(DeliveryState.UNKNOWN), counts.count(DeliveryState.ACCEPTED)) == (10, 15)


def test_a_dead_process_of_this_machine_is_not_waited_for(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    subscribe(garden, 5)
    batch = Batch.objects.get(campaign=launched())
    lease = batching.claim(batch.pk, worker="elsewhere", now=NOW)
    assert lease
    sending = mark_a_window(lease)
    batching.take_back_expired(now=NOW)
    assert send(batch, mail_server) is None, "the worker may be alive: it holds its journal"
    sending._journal.leave()  # as the kernel does when a process is killed
    assert batching.take_back_expired(now=NOW) == 0, "nobody is in doubt"
    send(batch, mail_server)
    assert len(mail_server.recipients) == 5


def test_a_late_report_of_a_lost_lease_settles_what_was_unknown(
    garden: List, subscribe: People, launched: Drafts
) -> None:
    (person,) = subscribe(garden, 1)
    campaign = launched()
    lease = batching.claim(Batch.objects.get(campaign=campaign).pk, worker="slow", now=NOW)
    assert lease
    sending = mark_a_window(lease)
    journal.forget(lease.number)
    batching.take_back_expired(now=NOW + timedelta(seconds=121))
    assert states(campaign) == {person.pk: DeliveryState.UNKNOWN}
    sending.told(Report(DeliveryKey(campaign.pk, person.pk), Result.ACCEPTED))
    sending.settle()
    assert states(campaign) == {person.pk: DeliveryState.ACCEPTED}


def test_a_database_that_goes_away_costs_nobody_their_outcome(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "WINDOW", 10)
    monkeypatch.setattr(windows, "DATABASE_AWAY_SECONDS", 0)
    subscribe(garden, 35)
    campaign = launched()

    def cut_every_connection(_: object) -> None:
        if len(mail_server.received) == 15:
            with engines.postgres.connect("postgres") as another:
                another.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    [connection.settings_dict["NAME"]],
                )

    mail_server.on_message = cut_every_connection
    send(Batch.objects.get(campaign=campaign), mail_server)
    assert len(mail_server.recipients) == len(set(mail_server.recipients)) == 35
    assert set(states(campaign).values()) == {DeliveryState.ACCEPTED}


def test_a_batch_that_ended_three_workers_is_set_aside_and_shown(
    garden: List, subscribe: People, launched: Drafts
) -> None:
    subscribe(garden, 3)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    at = NOW
    for _ in range(batching.ATTEMPTS_BEFORE_ASIDE):
        lease = batching.claim(batch.pk, worker="elsewhere", now=at)
        assert lease
        Journal(lease.number, worker="elsewhere").leave()
        at += timedelta(seconds=121)
        batching.take_back_expired(now=at)
    batch.refresh_from_db()
    assert batch.state == Batch.State.ASIDE
    assert batching.finish_campaigns(now=at) == [], "somebody has to look at it"


def test_a_worker_that_got_somewhere_was_not_ended_by_the_batch(
    garden: List, subscribe: People, launched: Drafts
) -> None:
    people = subscribe(garden, 5)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    at = NOW
    for person in people[:4]:
        lease = batching.claim(batch.pk, worker="elsewhere", now=at)
        assert lease
        sending = mark_a_window(lease)
        sending.begins(DeliveryKey(campaign.pk, person.pk))
        sending.told(Report(DeliveryKey(campaign.pk, person.pk), Result.ACCEPTED))
        at += timedelta(seconds=121)
        batching.take_back_expired(now=at)
    batch.refresh_from_db()
    assert (batch.state, batch.attempts) == (Batch.State.READY, 1)
