"""Two things going wrong at once: what one part makes good must not be undone by another."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection

from campaigns import batching, delivering, journal, limiting, pacing, scheduling, windows
from campaigns.models import Batch, Campaign, Delivery, DeliveryState, SendingLimit
from newsletter.env import email_url
from newsletter.mailing.throttling import Throttle
from newsletter.mailing.transports import transport_for
from subscribers.models import List, Subscriber
from tests.campaigns.conftest import Patient
from tests.campaigns.test_delivering import send, states
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
