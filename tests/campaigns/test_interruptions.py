"""Two things going wrong at once: what one part makes good must not be undone by another."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection

from campaigns import batching, delivering, doubting, freezing, journal, limiting, pacing, scheduling, tasks, windows
from campaigns.models import Batch, Campaign, Delivery, DeliveryState, SendingLimit
from newsletter.env import email_url
from newsletter.mailing.throttling import Throttle
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports import transport_for
from newsletter.mailing.transports.base import Report, Result
from subscribers.models import List, Subscriber
from tests.campaigns.batches import mark_a_window, send, states
from tests.campaigns.conftest import Patient
from tests.conftest import NOW, MailServer
from tests.engines import engines

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("people", [2, 5])  # a whole window, and more than one
def test_a_commit_lost_as_the_lease_ends_leaves_nobody_marked(
    garden: List,
    subscribe: People,
    launched: Drafts,
    mail_server: MailServer,
    monkeypatch: pytest.MonkeyPatch,
    people: int,
) -> None:
    """The database took the window, the connection broke before it said so, and there is no time to ask again."""
    monkeypatch.setattr(delivering, "WINDOW", 2)
    subscribe(garden, people)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    at = [NOW]
    execute = windows._execute

    def lose(statement: str, parameters: dict[str, Any] | None = None) -> list[windows.Row]:
        rows = execute(statement, parameters)
        if statement == windows.NEXT_WINDOW and at[0] == NOW:
            at[0] = NOW + timedelta(seconds=101)  # within the margin before the lease's end
            raise OperationalError("the connection broke")
        return rows

    monkeypatch.setattr(windows, "_execute", lose)
    transport = transport_for(email_url(mail_server.url))
    delivering.send_batch(batch.pk, transport=Patient(transport), worker="w", clock=lambda: at[0])
    transport.close()
    later = NOW + timedelta(hours=1)
    assert batching.take_back_expired(now=later) == 0, "nobody is in doubt: nobody was begun"
    send(batch, mail_server, at=later)
    assert len(set(mail_server.recipients)) == len(mail_server.recipients) == people
    assert set(states(campaign).values()) == {DeliveryState.ACCEPTED}
    assert batching.finish_campaigns(now=later) == [campaign.pk]


def test_a_pause_in_mid_batch_lets_nobody_wait_for_the_limit_of_others(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gmail's day is spent; the others of the batch were about to go as the campaign was paused."""
    shared = Throttle(limiting.server(), zone=UTC, uses_server_time=False)
    monkeypatch.setattr(limiting, "throttle", lambda: shared)
    limiting.server().flushdb()
    SendingLimit.objects.create(name="Gmail", domains="gmail.com", per_day=1)
    limiting.forget()
    people = subscribe(garden, 10)
    for person in people[:4]:
        person.email = person.email_key = person.email.replace("mail.example", "gmail.com")
    Subscriber.objects.bulk_update(people, ["email", "email_key"])
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    next_window = windows.Windows.next

    def paused_first(self: windows.Windows, only: list[int] | None = None) -> list[windows.Row]:
        scheduling.pause(campaign.pk, reason="", now=NOW)
        return next_window(self, only)

    with monkeypatch.context() as at_that_moment:
        at_that_moment.setattr(windows.Windows, "next", paused_first)
        send(batch, mail_server)
    assert not mail_server.recipients
    scheduling.resume(campaign.pk, now=NOW)
    for due in (*batching.due(now=NOW), *limiting.due(now=NOW)):
        send(Batch.objects.get(pk=due), mail_server)
    counted = Counter(Delivery.objects.filter(campaign_id=campaign.pk).values_list("state", flat=True))
    assert counted == {DeliveryState.ACCEPTED: 7, DeliveryState.QUEUED: 3}
    limiting.forget()
    limiting.server().flushdb()


def test_a_migration_under_a_worker_costs_nobody_their_mail(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of the window's prepared statement gets another type, and all its connections have the old plan."""
    monkeypatch.setattr(delivering, "WINDOW", 5)
    monkeypatch.setattr(windows, "DATABASE_AWAY_SECONDS", 0)
    subscribe(garden, 60)
    campaign = launched()
    length = Subscriber._meta.get_field("name").max_length
    assert length

    def migrate(length: int) -> None:
        with engines.postgres.connect(connection.settings_dict["NAME"]) as another:
            another.execute(f"ALTER TABLE subscribers_subscriber ALTER COLUMN name TYPE varchar({length})")

    def in_mid_campaign(_: object) -> None:
        if len(mail_server.received) == 30:
            migrate(length + 1)

    mail_server.on_message = in_mid_campaign
    try:
        outcome = send(Batch.objects.get(campaign=campaign), mail_server)
    finally:
        migrate(length)
    assert outcome
    assert outcome.is_finished
    assert len(mail_server.recipients) == len(set(mail_server.recipients)) == 60
    assert set(states(campaign).values()) == {DeliveryState.ACCEPTED}


def test_a_database_that_goes_away_before_the_first_window_leaves_no_journal_open(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: batching.Lease) -> None:
        raise OperationalError("the server has gone away")

    subscribe(garden, 2)
    batch = Batch.objects.get(campaign=launched())
    monkeypatch.setattr(pacing, "pace", away)
    with pytest.raises(OperationalError):
        send(batch, mail_server)
    assert not list(journal.folder().glob("*")), "else its lock would be held as long as the worker lives"


def test_a_campaign_of_many_batches_needs_no_sweep_to_go_on(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep hands out so many at once; while all workers are busy, none may come for long."""
    monkeypatch.setattr(batching, "ENQUEUE_AT_ONCE", 1)
    monkeypatch.setattr(freezing, "LEAST_IN_A_BATCH", 2)
    monkeypatch.setattr(tasks, "_looked_at", 0.0)
    transport = transport_for(email_url(mail_server.url))
    monkeypatch.setattr(tasks, "transport", lambda: transport)
    subscribe(garden, 6)
    campaign = launched()
    first, second, _ = Batch.objects.filter(campaign=campaign).order_by("pk")
    assert batching.due(now=NOW) == [first.pk]
    tasks.send_batch(first.pk)
    transport.close()
    second.refresh_from_db()
    assert second.enqueued_at is not None
    assert second.state == Batch.State.READY


def test_whoever_was_in_doubt_before_the_worker_died_is_counted_too(
    garden: List, subscribe: People, launched: Drafts
) -> None:
    """The connection was lost, and then the worker, before it wrote that down in the ledger."""
    person, *_ = subscribe(garden, 3)
    campaign = launched()
    lease = batching.claim(Batch.objects.get(campaign=campaign).pk, worker="w", now=NOW)
    assert lease
    sending = mark_a_window(lease)
    sending.begins(DeliveryKey(campaign.pk, person.pk))
    sending.told(Report(DeliveryKey(campaign.pk, person.pk), Result.UNKNOWN, "", "the connection was lost"))
    assert batching.take_back_expired(now=NOW + timedelta(hours=1)) == 1
    (doubt,) = doubting.listed(campaign.pk, limit=9)
    assert (doubt.subscriber_id, doubt.since is not None) == (person.pk, True)


def test_what_a_day_granted_is_given_back_to_that_day(
    garden: List, subscribe: People, launched: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker takes the day's last mails before midnight and finds after it that the mail server is down."""
    shared = Throttle(limiting.server(), zone=UTC, uses_server_time=False)
    monkeypatch.setattr(limiting, "throttle", lambda: shared)
    limiting.server().flushdb()
    limit = SendingLimit.objects.create(name="All", per_day=5)
    limiting.forget()
    subscribe(garden, 10)
    before, after = NOW.replace(hour=23, minute=59), NOW.replace(hour=0) + timedelta(days=1)
    lease = batching.claim(Batch.objects.get(campaign=launched()).pk, worker="w", now=before)
    assert lease
    pace = pacing.pace(lease)
    assert pace
    assert len(pace.next(now=before)) == 5
    pace.close(is_interrupted=True, now=after)
    one = limiting.as_limit(limit)
    assert [shared.sent_today([one], now=at)[one] for at in (before, after)] == [0, 0]
    limiting.forget()
    limiting.server().flushdb()
