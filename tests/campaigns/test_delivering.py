"""Delivering: each recipient gets exactly one mail; what could not be said is unknown; who left is skipped."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from django.conf import LazySettings
from django.db import connections

from campaigns import batching, closing, composing, delivering, freezing, scheduling
from campaigns import states as states_module
from campaigns.models import Batch, Campaign, CampaignState, Delivery, DeliveryError, DeliveryState, SkipReason
from newsletter.env import email_url
from newsletter.mailing.personalizing import Personalizer, Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports import transport_for
from newsletter.mailing.transports.base import Report, Result, TransportError
from subscribers.models import Engagement, List, Subscriber, Subscription
from subscribers.suppressing import is_suppressed
from tests.campaigns.batches import mark_a_window, send, states
from tests.conftest import NOW, MailServer

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)


def test_each_gets_exactly_one_mail_with_a_token_of_their_own(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, settings: LazySettings
) -> None:
    settings.BATCH_SIZE = 120
    people = subscribe(garden, 250, name="Ada Green")
    campaign = launched()
    for batch in Batch.objects.filter(campaign=campaign):
        outcome = send(batch, mail_server)
        assert outcome
        assert outcome.is_finished
    assert sorted(mail_server.recipients) == sorted(person.email for person in people)
    assert set(states(campaign).values()) == {DeliveryState.ACCEPTED}
    unsubscribe = {message["List-Unsubscribe"] for message in mail_server.messages}
    assert len(unsubscribe) == 250
    assert batching.finish_campaigns(now=NOW) == [campaign.pk]
    assert Campaign.objects.get(pk=campaign.pk).state == CampaignState.SENT


def test_a_batch_sent_by_many_at_once_goes_out_once(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    subscribe(garden, 40)
    batch = Batch.objects.get(campaign=launched())

    def worker(_: int) -> delivering.Outcome | None:
        try:
            return send(batch, mail_server)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(worker, range(4)))
    assert sum(outcome is not None for outcome in outcomes) == 1
    assert len(mail_server.recipients) == len(set(mail_server.recipients)) == 40


def test_who_left_since_the_freeze_is_skipped_with_the_reason(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    people = subscribe(garden, 5)
    campaign = launched()
    Subscription.objects.filter(subscriber=people[0]).update(state="unsubscribed")
    Subscription.objects.filter(subscriber=people[1]).update(state="pruned")
    Subscriber.objects.filter(pk=people[2].pk).update(suppressed_at=NOW)
    people[3].delete()
    send(Batch.objects.get(campaign=campaign), mail_server)
    assert mail_server.recipients == [people[4].email]
    reasons = Delivery.objects.filter(campaign_id=campaign.pk, state=DeliveryState.SKIPPED)
    assert list(reasons.order_by("subscriber_id").values_list("reason", flat=True)) == [
        SkipReason.UNSUBSCRIBED,
        SkipReason.PRUNED,
        SkipReason.SUPPRESSED,
        SkipReason.GONE,
    ]


def test_a_refusal_is_final_and_a_delay_is_tried_again(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    people = subscribe(garden, 3)
    mail_server.answers = {people[0].email: "550 5.1.1 no such user", people[1].email: "451 4.7.1 greylisted"}
    campaign = launched()
    outcome = send(Batch.objects.get(campaign=campaign), mail_server)
    assert outcome
    assert [states(campaign)[person.pk] for person in people] == [
        DeliveryState.FAILED,
        DeliveryState.DEFERRED,
        DeliveryState.ACCEPTED,
    ]
    codes = (
        DeliveryError.objects.filter(campaign_id=campaign.pk).order_by("subscriber_id").values_list("code", flat=True)
    )
    assert list(codes) == ["5.1.1", "4.7.1"]
    assert batching.finish_campaigns(now=NOW) == []

    mail_server.answers = {}
    assert outcome.retry_batch
    retry = Batch.objects.get(pk=outcome.retry_batch)
    assert send(retry, mail_server, at=NOW) is None, "not before its time"
    assert batching.due(now=NOW + timedelta(minutes=5)) == [retry.pk]
    send(retry, mail_server, at=NOW + timedelta(minutes=5))
    assert states(campaign)[people[1].pk] == DeliveryState.ACCEPTED
    assert batching.finish_campaigns(now=NOW) == [campaign.pk]


def test_a_row_put_off_too_often_fails(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    person = subscribe(garden, 1)[0]
    mail_server.answers = {person.email: "451 4.7.1 later"}
    campaign = launched()
    batch, at = Batch.objects.get(campaign=campaign), NOW
    for _ in range(len(delivering.RETRY_DELAYS) + 1):
        outcome = send(batch, mail_server, at=at)
        assert outcome
        if outcome.retry_batch is None:
            break
        batch = Batch.objects.get(pk=outcome.retry_batch)
        at = batch.not_before
    assert states(campaign) == {person.pk: DeliveryState.FAILED}
    assert at - NOW < timedelta(hours=73)


def test_a_connection_lost_after_the_final_dot_is_unknown_and_not_tried_again(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    subscribe(garden, 3)
    campaign = launched()
    mail_server.vanishes = True
    batch = Batch.objects.get(campaign=campaign)
    outcome = send(batch, mail_server)
    assert outcome
    assert outcome.unknown == 3
    assert set(states(campaign).values()) == {DeliveryState.UNKNOWN}
    assert send(batch, mail_server) is None
    assert len(set(mail_server.recipients)) == len(mail_server.recipients) == 3


def test_an_answer_that_puts_off_is_no_doubt(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    subscribe(garden, 3)
    mail_server.data_answer = "421 4.3.2 going down"
    outcome = send(Batch.objects.get(campaign=launched()), mail_server)
    assert outcome
    assert (outcome.deferred, outcome.unknown) == (3, 0)


def test_a_dead_address_is_never_mailed_again(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    people = subscribe(garden, 6)
    dead, full, policy = people[:3]
    mail_server.answers = {
        dead.email: "550 5.1.1 no such user",
        full.email: "552 5.2.2 full",
        policy.email: "550 5.7.1 we do not like you",
    }
    send(Batch.objects.get(campaign=launched()), mail_server)
    assert list(Subscriber.objects.exclude(suppressed_at=None)) == [dead]
    assert is_suppressed(dead.email_key)


def test_a_server_that_calls_everybody_dead_is_not_believed(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    mail_server.answers = {person.email: "550 5.1.1 no such user" for person in subscribe(garden, 30)}
    send(Batch.objects.get(campaign=launched()), mail_server)
    assert not Subscriber.objects.exclude(suppressed_at=None).exists()


def test_a_campaign_that_everybody_left_before_its_time_ends_at_once(
    garden: List, subscribe: People, draft: Drafts
) -> None:
    subscribe(garden, 1)
    campaign = draft()
    scheduling.schedule(campaign.pk, NOW, now=NOW)
    campaign.refresh_from_db()
    compiled = composing.compile_campaign(campaign)
    Subscription.objects.update(state="unsubscribed")
    assert freezing.freeze(campaign, compiled, batch_size=500, now=NOW) == 0
    assert batching.finish_campaigns(now=NOW) == [campaign.pk]


def test_the_transport_being_down_loses_nobody(garden: List, subscribe: People, launched: Drafts) -> None:
    subscribe(garden, 3)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    nowhere = transport_for(email_url("smtp://127.0.0.1:1"))
    outcome = delivering.send_batch(batch.pk, transport=nowhere, worker="w", clock=lambda: NOW)
    assert outcome
    assert set(states(campaign).values()) == {DeliveryState.QUEUED}
    batch.refresh_from_db()
    assert (batch.state, batch.not_before) == (Batch.State.READY, NOW + delivering.TRANSPORT_DOWN_DELAY)


class _Busy:
    """A service that takes one person and asks to be left alone for a while."""

    def deliver(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None] = lambda key: None,
    ) -> Iterator[Report]:
        waiting = iter(recipients)
        yield Report(next(waiting).key, Result.ACCEPTED)
        yield Report(next(waiting).key, Result.NOT_SENT)
        raise TransportError("429 Too Many Requests", retry_after=timedelta(minutes=7))

    def close(self) -> None:
        pass


def test_a_service_that_asks_to_wait_puts_the_batch_off_and_costs_nobody_an_attempt(
    garden: List, subscribe: People, launched: Drafts
) -> None:
    subscribe(garden, 4)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    delivering.send_batch(batch.pk, transport=_Busy(), worker="test", clock=lambda: NOW)
    batch.refresh_from_db()
    assert (batch.state, batch.not_before) == (Batch.State.READY, NOW + timedelta(minutes=7))
    rows = Delivery.objects.filter(campaign_id=campaign.pk).order_by("subscriber_id").values_list("state", "attempts")
    assert list(rows) == [(DeliveryState.ACCEPTED, 1), *[(DeliveryState.QUEUED, 0)] * 3]


def test_when_a_campaign_has_ended_hygiene_knows_who_was_sent_it(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    people = subscribe(garden, 4)
    mail_server.answers = {people[0].email: "550 5.1.1 no such user"}
    campaign = launched()
    send(Batch.objects.get(campaign=campaign), mail_server)
    batching.finish_campaigns(now=NOW)
    closing.close(campaign.pk, now=NOW)
    closing.close(campaign.pk, now=NOW)
    bits = dict(Engagement.objects.values_list("subscription__subscriber_id", "delivered"))
    assert bits == {person.pk: "1" for person in people[1:]}


def test_every_attempt_of_a_mail_is_the_same_mail(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer
) -> None:
    person = subscribe(garden, 1)[0]
    campaign = launched()
    send(Batch.objects.get(campaign=campaign), mail_server)
    composing.frozen.cache_clear()
    again = composing.revision(campaign.pk).message(composing.recipient_of(person, campaign.pk))
    assert again.content == mail_server.contents[0]


def test_deliveries_move_only_as_the_table_of_states_allows(
    garden: List,
    subscribe: People,
    launched: Drafts,
    mail_server: MailServer,
    seen_moves: Callable[[], set[tuple[int, int]]],
) -> None:
    people = subscribe(garden, 8)
    campaign = launched()
    batch = Batch.objects.get(campaign=campaign)
    lease = batching.claim(batch.pk, worker="elsewhere", now=NOW)
    assert lease
    sending = mark_a_window(lease)
    sending.begins(DeliveryKey(campaign.pk, people[0].pk))
    later = NOW + timedelta(seconds=121)
    batching.take_back_expired(now=later)
    mail_server.answers = {people[1].email: "550 5.1.1 nobody", people[2].email: "451 4.7.1 later"}
    Subscription.objects.filter(subscriber=people[3]).update(state="unsubscribed")
    send(batch, mail_server, at=later)
    scheduling.cancel(campaign.pk, now=later)
    moves = {(DeliveryState(was), DeliveryState(now)) for was, now in seen_moves()}
    assert len(moves) >= 8
    assert all(now in states_module.DELIVERY_MOVES[was] for was, now in moves)
