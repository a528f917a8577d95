"""Limits at work: nobody goes before there is room, nobody waits for another's limit, nobody is lost."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from django.conf import LazySettings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from campaigns import batching, limiting, scheduling
from campaigns.models import Batch, Campaign, CampaignState, Delivery, DeliveryState, SendingLimit
from newsletter.mailing.throttling import Throttle
from subscribers.models import List, Subscriber, Subscription
from tests.campaigns.batches import send
from tests.conftest import NOW, MailServer

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def throttle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Throttle]:
    """The real script in the real Valkey, by the tests' clock; nothing of another test is left."""
    shared = Throttle(limiting.server(), zone=UTC, uses_server_time=False)
    monkeypatch.setattr(limiting, "throttle", lambda: shared)
    _clear()
    yield shared
    _clear()


def _clear() -> None:
    limiting.forget()
    limiting.server().flushdb()


@pytest.fixture
def mixed(garden: List, subscribe: People) -> list[Subscriber]:
    """Thirty people, every third of them at Gmail."""
    people = subscribe(garden, 30)
    for person in people[::3]:
        person.email = person.email_key = person.email.replace("mail.example", "gmail.com")
    Subscriber.objects.bulk_update(people, ["email", "email_key"])
    return people


def limit(**fields: Any) -> SendingLimit:
    made = SendingLimit.objects.create(**{"name": "Gmail", "domains": "gmail.com", **fields})
    limiting.forget()
    return made


def states(campaign: Campaign) -> Counter[int]:
    return Counter(Delivery.objects.filter(campaign_id=campaign.pk).values_list("state", flat=True))


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def due(campaign: Campaign, now: datetime) -> list[Batch]:
    """What the workers would be handed now."""
    return list(Batch.objects.filter(pk__in=[*batching.due(now=now), *limiting.due(now=now)], campaign=campaign))


def test_who_has_no_room_waits_and_the_others_go(
    mixed: list[Subscriber], launched: Drafts, mail_server: MailServer
) -> None:
    limit(per_second=4)  # two at once
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    outcome = send(batch, mail_server)
    assert outcome
    assert (outcome.sent, outcome.is_finished) == (22, False)
    assert sum(address.endswith("@gmail.com") for address in mail_server.recipients) == 2
    batch.refresh_from_db()
    assert (batch.state, batch.not_before, batch.lease is not None) == (Batch.State.READY, at(0.25), True)
    assert due(campaign, at(0.2)) == []
    assert batching.finish_campaigns(now=NOW) == []

    seconds = 0.0
    while states(campaign)[DeliveryState.QUEUED]:
        seconds += 0.5
        (turn,) = due(campaign, at(seconds))
        assert turn == batch  # only they are left, so nobody is moved
        send(turn, mail_server, at=at(seconds))
    assert seconds == 2.0
    assert len(set(mail_server.recipients)) == len(mail_server.recipients) == 30
    assert batching.finish_campaigns(now=at(3)) == [campaign.pk]


def test_groups_that_wait_go_apart_and_the_batch_is_done(
    mixed: list[Subscriber], launched: Drafts, mail_server: MailServer
) -> None:
    limit(per_second=4)
    limit(name="The house", domains="mail.*", per_second=20)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    outcome = send(batch, mail_server)
    assert outcome
    assert (outcome.sent, outcome.is_finished) == (12, True)
    apart = Batch.objects.exclude(pk=batch.pk).filter(campaign=campaign)
    people = [Delivery.objects.filter(batch_id=one.pk, state=DeliveryState.QUEUED).count() for one in apart]
    assert sorted(people) == [8, 10]
    for one in apart:
        rows = Delivery.objects.filter(batch_id=one.pk)
        assert {one.first_id <= row.subscriber_id <= one.last_id for row in rows} == {True}
    assert len(due(campaign, at(1))) == 2


def test_only_as_many_batches_of_a_group_are_handed_out_as_its_rate_feeds(
    garden: List, subscribe: People, launched: Drafts, settings: LazySettings
) -> None:
    settings.BATCH_SIZE = 2
    subscribe(garden, 40)
    one = limit(domains="", per_second=300)
    campaign = launched()
    Batch.objects.filter(campaign=campaign).update(throttle=str(one.pk))
    assert len(due(campaign, NOW)) == 2
    assert due(campaign, NOW) == []  # those two are under way
    leased = Batch.objects.filter(campaign=campaign, enqueued_at=NOW).first()
    assert leased
    assert batching.claim(leased.pk, worker="test", now=NOW)
    assert due(campaign, at(1)) == []
    assert len(due(campaign, at(30))) == 1  # a hint was lost; the lease goes on
    one.delete()
    limiting.forget()
    assert len(due(campaign, at(60))) == 19  # nothing limits them any more


def test_a_spent_day_lets_all_wait_until_the_next_and_says_so(
    mixed: list[Subscriber], launched: Drafts, mail_server: MailServer, settings: LazySettings
) -> None:
    settings.BATCH_SIZE = 15
    limit(per_day=3)
    campaign = launched()
    for batch in Batch.objects.filter(campaign=campaign).order_by("pk"):
        send(batch, mail_server)
    assert states(campaign) == {DeliveryState.ACCEPTED: 23, DeliveryState.QUEUED: 7}
    tomorrow = datetime(2026, 11, 3, tzinfo=UTC)
    waiting = Batch.objects.filter(campaign=campaign, state=Batch.State.READY)
    assert {batch.not_before for batch in waiting} == {tomorrow}
    note = limiting.throttling_note(campaign, now=NOW)
    assert note == "Today’s 3 mails of “Gmail” are sent; the others follow from 3 Nov 2026, 00:00 on."
    for batch in due(campaign, tomorrow):
        send(batch, mail_server, at=tomorrow)
    assert states(campaign)[DeliveryState.ACCEPTED] == 26


def test_a_rate_is_said_in_one_sentence_and_nothing_where_nothing_waits(
    mixed: list[Subscriber], launched: Drafts, mail_server: MailServer
) -> None:
    limit(per_second=0.5)
    campaign = launched()
    assert limiting.throttling_note(campaign, now=NOW) == ""
    send(Batch.objects.get(campaign=campaign), mail_server)
    note = limiting.throttling_note(campaign, now=NOW)
    assert note == "“Gmail” lets 0.5 mails a second go, so some people wait for their turn."
    campaign.state = CampaignState.PAUSED
    assert limiting.throttling_note(campaign, now=NOW) == ""


def test_whoever_is_skipped_or_not_sent_to_uses_nothing_up(
    mixed: list[Subscriber], launched: Drafts, mail_server: MailServer, throttle: Throttle
) -> None:
    one = limiting.as_limit(limit(per_second=100, per_day=50))
    campaign = launched()
    Subscription.objects.filter(subscriber=mixed[0]).update(state="unsubscribed")
    send(Batch.objects.get(campaign=campaign), mail_server)
    assert throttle.sent_today([one], now=NOW) == {one: 9}


def test_a_transport_that_is_down_uses_nothing_up(
    mixed: list[Subscriber], launched: Drafts, throttle: Throttle
) -> None:
    one = limiting.as_limit(limit(per_second=100, per_day=50))
    batch = Batch.objects.get(campaign=launched())
    send(batch, MailServer(port=1))
    assert throttle.sent_today([one], now=NOW) == {one: 0}
    batch.refresh_from_db()
    assert (batch.state, batch.not_before, batch.throttle) == (Batch.State.READY, at(60), "")


def test_a_throttle_that_does_not_answer_lets_the_batch_wait_a_moment(
    mixed: list[Subscriber], launched: Drafts, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(per_second=100)
    away = Throttle(redis.Redis(port=1), zone=UTC)
    monkeypatch.setattr(limiting, "throttle", lambda: away)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    send(batch, mail_server)
    batch.refresh_from_db()
    assert (batch.state, batch.not_before) == (Batch.State.READY, at(5))
    assert states(campaign) == {DeliveryState.QUEUED: 30}
    assert not mail_server.recipients


def test_a_campaign_that_is_paused_meanwhile_keeps_everybody(
    mixed: list[Subscriber], launched: Drafts, mail_server: MailServer, throttle: Throttle
) -> None:
    one = limiting.as_limit(limit(domains="", per_second=50, per_day=50))
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    calls: list[int] = []

    def pause() -> bool:
        if len(mail_server.received) == 8 and not calls:
            calls.append(1)
            scheduling.pause(campaign.pk, reason="wait", now=NOW)
        return False

    send(batch, mail_server, connections=1, stopping=pause)
    assert states(campaign) == {DeliveryState.ACCEPTED: 10, DeliveryState.QUEUED: 20}
    assert throttle.sent_today([one], now=NOW) == {one: 10}
    batch.refresh_from_db()
    assert (batch.state, batch.not_before) == (Batch.State.READY, NOW)


def test_limits_of_one_sender_hold_for_its_campaigns_only(
    mixed: list[Subscriber], launched: Drafts, garden: List
) -> None:
    other = type(garden.sender).objects.create(name="Other", email="o@other.example", postal_address="x")
    own = limit(per_second=4, sender=other)
    campaign = launched()
    assert limiting.rules_of(campaign.pk) is None
    own.sender = garden.sender
    own.save()
    limiting.forget()
    assert limiting.rules_of(campaign.pk)


def test_without_limits_a_look_asks_nobody(garden: List, launched: Drafts, subscribe: People) -> None:
    subscribe(garden, 1)
    campaign = launched()
    assert limiting.rules_of(campaign.pk) is None

    with CaptureQueriesContext(
        connection,
    ) as asked:
        for _ in range(1_000):
            limiting.rules_of(campaign.pk)
    assert len(asked) == 0


def test_the_campaigns_page_says_what_it_waits_for(
    admin_client: Client, mixed: list[Subscriber], launched: Drafts, mail_server: MailServer
) -> None:
    limit(per_second=0.5)
    campaign = launched()
    send(Batch.objects.get(campaign=campaign), mail_server)
    page = admin_client.get(reverse("admin:campaigns_campaign_report", args=[campaign.pk])).content.decode()
    assert "“Gmail” lets 0.5 mails a second go, so some people wait for their turn." in page
    said = admin_client.get(reverse("admin:campaigns_campaign_progress", args=[campaign.pk])).json()
    assert said["words"]["waits"].startswith("“Gmail” lets 0.5")
