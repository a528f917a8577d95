"""Deliveries in doubt: listed, counted, sent again or let be, once, whoever presses how often."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from campaigns import batching, closing, doubting, reporting, scheduling
from campaigns.errors import CampaignError
from campaigns.models import (
    Batch,
    Campaign,
    CampaignFigures,
    CampaignState,
    Delivery,
    DeliveryError,
    DeliveryState,
    Outcome,
    SkipReason,
)
from subscribers.hygiene import opportunities
from subscribers.models import AuditEntry, Engagement, List, Subscriber, Subscription
from tests.campaigns.batches import send
from tests.conftest import NOW, MailServer

pytestmark = pytest.mark.django_db(transaction=True)

People = Callable[..., list[Subscriber]]
LATER = NOW + timedelta(hours=1)


@pytest.fixture
def people(garden: List, subscribe: People) -> list[Subscriber]:
    return subscribe(garden, 5)


@pytest.fixture
def sent(people: list[Subscriber], launched: Callable[..., Campaign]) -> Campaign:
    """A campaign that has ended: three accepted, the first two in doubt."""
    campaign = launched()
    rows = Delivery.objects.filter(campaign_id=campaign.pk)
    rows.update(state=DeliveryState.ACCEPTED, sent_at=NOW, lease=1)
    rows.filter(subscriber_id__in=[people[0].pk, people[1].pk]).update(state=DeliveryState.UNKNOWN)
    Batch.objects.filter(campaign=campaign).update(state=Batch.State.DONE)
    assert batching.finish_campaigns(now=NOW) == [campaign.pk]
    assert closing.close(campaign.pk, now=NOW)
    campaign.refresh_from_db()
    return campaign


def states(campaign: Campaign) -> list[DeliveryState]:
    rows = Delivery.objects.filter(campaign_id=campaign.pk).order_by("subscriber_id")
    return [DeliveryState(state) for state in rows.values_list("state", flat=True)]


def figure(campaign: Campaign) -> int:
    return CampaignFigures.objects.get(pk=campaign.pk).in_doubt


def deliver(campaign: Campaign, server: MailServer) -> None:
    for batch in Batch.objects.filter(campaign=campaign, state=Batch.State.READY):
        send(batch, server, at=LATER)
    batching.finish_campaigns(now=LATER)


def test_the_end_of_a_campaign_counts_them_and_the_page_says_what_is_known(
    sent: Campaign, people: list[Subscriber]
) -> None:
    DeliveryError.objects.create(
        campaign_id=sent.pk,
        subscriber_id=people[1].pk,
        at=NOW + timedelta(seconds=1),
        text="the server went away",
        is_permanent=False,
    )
    assert figure(sent) == 2
    first, second = doubting.listed(sent.pk, limit=10)
    assert (first.subscriber_id, first.since, first.known) == (people[0].pk, NOW, doubting.WORKER_ENDED)
    assert (second.subscriber_id, second.known) == (people[1].pk, "the server went away")
    assert [doubt.subscriber_id for doubt in doubting.listed(sent.pk, after=people[0].pk, limit=10)] == [people[1].pk]


def test_a_sent_campaign_sends_to_them_again_and_is_sent_afterwards(
    sent: Campaign, people: list[Subscriber], mail_server: MailServer
) -> None:
    assert doubting.resend(sent.pk, actor="ada", now=LATER) == 2
    sent.refresh_from_db()
    assert (sent.state, figure(sent)) == (CampaignState.SENDING, 0)
    deliver(sent, mail_server)
    sent.refresh_from_db()
    assert sorted(mail_server.recipients) == sorted(person.email for person in people[:2])
    assert (sent.state, sent.finished_at, sent.closed_at) == (CampaignState.SENT, NOW, None)
    assert states(sent) == [DeliveryState.ACCEPTED] * 5
    assert closing.due() == [sent.pk]
    closing.close(sent.pk, now=LATER)
    assert closing.due() == []
    assert Engagement.objects.filter(delivered="1").count() == 5
    assert CampaignFigures.objects.get(pk=sent.pk).in_doubt == 0


def test_while_a_few_get_it_again_the_issue_still_counts_for_hygiene(sent: Campaign) -> None:
    before = opportunities.issues_of_list(sent.list_id)
    doubting.resend(sent.pk, actor="ada", now=LATER)
    assert opportunities.issues_of_list(sent.list_id) == before
    assert len(before) == 1


def test_only_those_chosen_are_sent_to(sent: Campaign, people: list[Subscriber], mail_server: MailServer) -> None:
    accepted = people[4].pk  # not in doubt: a forged form cannot send to them twice
    assert doubting.resend(sent.pk, people=[people[1].pk, accepted], actor="ada", now=LATER) == 1
    deliver(sent, mail_server)
    assert mail_server.recipients == [people[1].email]
    assert figure(sent) == 1


def test_pressing_twice_does_it_once(sent: Campaign, mail_server: MailServer) -> None:
    assert [doubting.resend(sent.pk, actor="ada", now=LATER) for _ in range(2)] == [2, 0]
    assert doubting.let_be(sent.pk, actor="bob") == 0
    deliver(sent, mail_server)
    assert len(mail_server.received) == 2
    assert [entry.action for entry in AuditEntry.objects.all()].count("campaign.doubt_resend") == 1


def test_two_editors_at_once_do_it_once(sent: Campaign, mail_server: MailServer) -> None:
    done: list[int] = []
    together = threading.Barrier(4)

    def press(number: int) -> None:
        together.wait()
        try:
            if number % 2:
                done.append(doubting.resend(sent.pk, actor=f"editor {number}", now=LATER))
            else:
                done.append(doubting.let_be(sent.pk, actor=f"editor {number}"))
        finally:
            connection.close()

    threads = [threading.Thread(target=press, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 0, 0, 2]
    deliver(sent, mail_server)
    assert len(mail_server.received) in {0, 2}


def test_more_than_the_page_showed_are_not_sent_to(sent: Campaign) -> None:
    with pytest.raises(CampaignError, match="more recipients are in doubt now"):
        doubting.resend(sent.pk, most=1, actor="ada", now=LATER)
    assert figure(sent) == 2


def test_letting_them_be_leaves_them_unknown_and_asks_no_more(
    sent: Campaign, people: list[Subscriber], mail_server: MailServer
) -> None:
    assert doubting.let_be(sent.pk, actor="ada") == 2
    sent.refresh_from_db()
    assert (sent.state, figure(sent)) == (CampaignState.SENT, 0)
    assert states(sent)[:2] == [DeliveryState.UNKNOWN] * 2
    assert doubting.resend(sent.pk, actor="ada", now=LATER) == 0
    assert Engagement.objects.filter(delivered="1").count() == 3  # nothing is held against the other two
    entry = AuditEntry.objects.get(action="campaign.doubt_close")
    assert (entry.actor, entry.details["subscribers"]) == ("ada", [people[0].pk, people[1].pk])
    # A reader proves that the mail had arrived, decided or not.
    reporting.record_signals([reporting.Signal(sent.pk, people[0].pk, 1, LATER, None, 1, 0)])
    assert states(sent)[0] == DeliveryState.ACCEPTED


def test_proof_takes_them_out_of_the_count(sent: Campaign, people: list[Subscriber]) -> None:
    reporting.record_signals([reporting.Signal(sent.pk, people[0].pk, 1, LATER, None, 1, 0)])
    assert figure(sent) == 1
    reporting.record_outcome(sent.pk, people[1].pk, Outcome.BOUNCED)
    assert figure(sent) == 0
    assert doubting.listed(sent.pk, limit=10) == []


def test_who_has_unsubscribed_since_is_not_sent_to_again(
    sent: Campaign, people: list[Subscriber], mail_server: MailServer
) -> None:
    Subscription.objects.filter(subscriber=people[0]).update(state="unsubscribed")
    doubting.resend(sent.pk, actor="ada", now=LATER)
    deliver(sent, mail_server)
    assert mail_server.recipients == [people[1].email]
    assert states(sent)[0] == DeliveryState.SKIPPED


def test_a_late_word_of_the_old_worker_does_not_move_who_was_queued_again(sent: Campaign) -> None:
    doubting.resend(sent.pk, actor="ada", now=LATER)
    assert set(Delivery.objects.filter(campaign_id=sent.pk, state=DeliveryState.QUEUED).values_list("lease")) == {
        (None,)
    }


def test_a_repeat_that_is_cancelled_leaves_a_sent_campaign(sent: Campaign) -> None:
    doubting.resend(sent.pk, actor="ada", now=LATER)
    scheduling.cancel(sent.pk, actor="ada", now=LATER)
    sent.refresh_from_db()
    assert (sent.state, sent.finished_at) == (CampaignState.SENT, NOW)
    skipped = Delivery.objects.filter(campaign_id=sent.pk, state=DeliveryState.SKIPPED)
    assert set(skipped.values_list("reason", flat=True)) == {SkipReason.CANCELLED}


def test_nobody_is_sent_a_cancelled_campaign(sent: Campaign) -> None:
    Campaign.objects.filter(pk=sent.pk).update(state=CampaignState.CANCELLED)
    with pytest.raises(CampaignError, match="the campaign is cancelled"):
        doubting.resend(sent.pk, actor="ada", now=LATER)
    assert doubting.let_be(sent.pk, actor="ada") == 2


def test_a_batch_made_while_the_campaign_ends_keeps_it_open(sent: Campaign, people: list[Subscriber]) -> None:
    """The sweep that saw no open batch looks again once it has the campaign."""
    Campaign.objects.filter(pk=sent.pk).update(state=CampaignState.SENDING)
    doubting.resend(sent.pk, actor="ada", now=LATER)
    assert batching.finish_campaigns(now=LATER) == []


def test_the_command_lists_resends_and_closes(
    sent: Campaign, people: list[Subscriber], capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("unknown_deliveries", str(sent.pk))
    shown = capsys.readouterr().out
    assert people[0].email in shown
    assert "2 in doubt" in shown
    call_command("unknown_deliveries", str(sent.pk), "--close", "--only", people[0].email)
    assert figure(sent) == 1
    call_command("unknown_deliveries", str(sent.pk), "--resend", "--json")
    assert '"resent": 1' in capsys.readouterr().out
    with pytest.raises(CommandError, match="There is no campaign 9999"):
        call_command("unknown_deliveries", "9999")
    with pytest.raises(CommandError, match="is not among those in doubt"):
        call_command("unknown_deliveries", str(sent.pk), "--resend", "--only", "nobody@mail.example")
