"""Editors are told: once, whom it concerns, with the figures and a link; and the mail is one that can be read."""

import threading
from collections.abc import Callable
from datetime import timedelta
from email.message import EmailMessage

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from campaigns import batching, closing, doubting, scheduling, telling
from campaigns.models import Batch, Campaign, CampaignState, Delivery, DeliveryState, EditorEvent
from newsletter.env import email_url
from newsletter.mailing.tokens import DeliveryKey
from subscribers.models import List, SenderIdentity, Subscriber
from tests.campaigns.batches import mark_a_window
from tests.campaigns.test_admin_composing import page, said
from tests.conftest import NOW, MailServer

pytestmark = pytest.mark.django_db(transaction=True)

LATER = NOW + timedelta(minutes=4)


@pytest.fixture
def author(db: None) -> User:
    return User.objects.create_user("ada", "ada@shed.example", is_staff=True)


@pytest.fixture
def people(garden: List, subscribe: Callable[..., list[Subscriber]]) -> list[Subscriber]:
    return subscribe(garden, 1_200)


@pytest.fixture
def going(people: list[Subscriber], launched: Callable[..., Campaign], author: User) -> Campaign:
    """A campaign that Ada wrote and Bob sends."""
    User.objects.create_user("bob", "bob@shed.example")
    campaign = launched()
    Campaign.objects.filter(pk=campaign.pk).update(created_by=author, scheduled_by="bob")
    return campaign


def finish(campaign: Campaign, *, unknown: int = 0) -> None:
    rows = Delivery.objects.filter(campaign_id=campaign.pk).order_by("subscriber_id")
    ids = list(rows.values_list("subscriber_id", flat=True))
    rows.filter(subscriber_id__in=ids[unknown + 5 :]).update(state=DeliveryState.ACCEPTED, sent_at=NOW)
    rows.filter(subscriber_id__in=ids[unknown : unknown + 5]).update(state=DeliveryState.FAILED)
    rows.filter(subscriber_id__in=ids[:unknown]).update(state=DeliveryState.UNKNOWN)
    Batch.objects.filter(campaign=campaign).update(state=Batch.State.DONE)
    batching.finish_campaigns(now=LATER)
    closing.close(campaign.pk, now=LATER)


def body(message: EmailMessage) -> str:
    return str(message.get_content()).replace("\r\n", "\n")


def tell_all() -> int:
    return sum(telling.tell(event_id, now=LATER) for event_id in telling.due(now=LATER + timedelta(seconds=1)))


def test_who_wrote_and_who_sent_it_are_told_that_it_is_finished(
    going: Campaign, mail_server: MailServer, settings: LazySettings
) -> None:
    settings.SITE_URL = "https://letters.shed.example"
    finish(going, unknown=3)
    assert tell_all() == 2
    assert sorted(mail_server.recipients) == ["ada@shed.example", "bob@shed.example"]
    message = mail_server.messages[0]
    assert message["Subject"] == "“Rain at last” has been sent"
    assert message["From"] == "The Potting Shed <letters@shed.example>"
    assert message["Auto-Submitted"] == "auto-generated"
    text = body(message)
    assert "issue 1 of “The Potting Shed”, has been sent,\nfrom 2 Nov 2026, 08:00 to 08:04 (UTC), 5 a second." in text
    assert "          1,200  recipients\n          1,192  accepted\n              5  refused\n" in text
    assert "Of 3 recipients nobody can say" in text
    assert f"https://letters.shed.example{page('doubts', going.pk)}" in text
    assert f"https://letters.shed.example{page('report', going.pk)}" in text
    assert "\n\n\n" not in text


def test_each_event_is_told_once_by_however_many_sweeps(going: Campaign, mail_server: MailServer) -> None:
    finish(going)
    closing.close(going.pk, now=LATER)
    [event_id] = telling.due(now=LATER)
    told: list[int] = []
    together = threading.Barrier(4)

    def sweep() -> None:
        together.wait()
        try:
            told.append(telling.tell(event_id, now=LATER))
        finally:
            connection.close()

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [0, 0, 0, 2]
    assert len(mail_server.received) == 2
    assert telling.due(now=LATER) == []


def test_a_worker_killed_after_its_claim_costs_a_mail_and_never_sends_a_second(going: Campaign) -> None:
    finish(going)
    EditorEvent.objects.update(told_at=LATER)  # claimed, and then nothing more was heard
    assert telling.due(now=LATER) == []
    assert tell_all() == 0


def test_a_mail_server_that_is_down_is_tried_again(
    going: Campaign, mail_server: MailServer, settings: LazySettings
) -> None:
    finish(going)
    up, settings.MAIL_TRANSPORT = settings.MAIL_TRANSPORT, email_url("smtp://127.0.0.1:1")
    assert tell_all() == 0
    assert telling.due(now=LATER) == []
    settings.MAIL_TRANSPORT = up
    [event_id] = telling.due(now=LATER + telling.TRY_AGAIN)
    assert telling.tell(event_id, now=LATER + telling.TRY_AGAIN) == 2


def test_an_address_that_is_refused_is_not_everybodys(going: Campaign, mail_server: MailServer) -> None:
    mail_server.answers = {"ada@shed.example": "550 5.1.1 no such user"}
    finish(going)
    assert tell_all() == 1
    assert mail_server.recipients == ["bob@shed.example"]
    assert telling.due(now=LATER + telling.TRY_AGAIN) == []


def test_a_pause_by_the_system_is_told_with_its_reason_and_one_by_hand_is_not(
    going: Campaign, mail_server: MailServer
) -> None:
    scheduling.pause(going.pk, reason="Paused by bob.", actor="bob", now=NOW)
    assert telling.due(now=LATER) == []
    scheduling.resume(going.pk, actor="bob", now=NOW)
    scheduling.pause(going.pk, reason="50 mails in a row were refused.", actor="breaker", now=NOW)
    assert tell_all() == 2
    assert mail_server.messages[0]["Subject"] == "“Rain at last” is paused"
    assert "    50 mails in a row were refused.\n" in body(mail_server.messages[0])
    # A second pause is news again; one that somebody has ended meanwhile is none.
    scheduling.resume(going.pk, actor="bob", now=LATER)
    scheduling.pause(going.pk, reason="Again.", now=LATER)
    assert len(telling.due(now=LATER)) == 1
    scheduling.resume(going.pk, actor="bob", now=LATER)
    assert tell_all() == 0


def test_doubts_are_told_when_the_campaign_does_not_end_soon(
    going: Campaign, people: list[Subscriber], mail_server: MailServer
) -> None:
    lease = batching.claim(Batch.objects.filter(campaign=going).earliest("pk").pk, worker="elsewhere", now=NOW)
    assert lease
    mark_a_window(lease).begins(DeliveryKey(going.pk, people[0].pk))
    expired = NOW + timedelta(minutes=3)
    assert batching.take_back_expired(now=expired)
    doubting.recount_open(now=expired)
    doubting.recount_open(now=expired)
    assert telling.due(now=expired) == []
    [event_id] = telling.due(now=expired + telling.DOUBT_WAITS)
    assert telling.tell(event_id, now=expired) == 2
    assert "1 recipient in doubt" in mail_server.messages[0]["Subject"]


def test_doubts_that_were_decided_meanwhile_are_not_told_and_later_ones_are(
    going: Campaign, mail_server: MailServer
) -> None:
    first, second = Delivery.objects.filter(campaign_id=going.pk).order_by("subscriber_id")[:2]
    for doubtful, decide in ((first, True), (second, False)):
        Delivery.objects.filter(campaign_id=going.pk, subscriber_id=doubtful.subscriber_id).update(
            state=DeliveryState.UNKNOWN, sent_at=NOW
        )
        doubting.recount_open(now=NOW)
        if decide:
            doubting.let_be(going.pk, actor="ada")
        told = sum(telling.tell(event_id, now=LATER) for event_id in telling.due(now=NOW + telling.DOUBT_WAITS))
        assert bool(told) is not decide
    assert "1 recipient in doubt" in mail_server.messages[0]["Subject"]


def test_one_mail_says_both_that_it_is_finished_and_who_is_in_doubt(going: Campaign, mail_server: MailServer) -> None:
    telling.note(going.pk, EditorEvent.Kind.DOUBT, now=LATER)
    finish(going, unknown=2)
    for event in EditorEvent.objects.filter(kind=EditorEvent.Kind.FINISHED):
        telling.tell(event.pk, now=LATER)
    assert tell_all() == 0
    assert len(mail_server.received) == 2


def test_a_campaign_that_could_not_start_is_told(
    draft: Callable[..., Campaign],
    people: list[Subscriber],
    author: User,
    mail_server: MailServer,
    sender: SenderIdentity,
) -> None:
    campaign = draft()
    Campaign.objects.filter(pk=campaign.pk).update(created_by=author)
    scheduling.schedule(campaign.pk, LATER, now=NOW)
    SenderIdentity.objects.filter(pk=sender.pk).update(postal_address="")
    assert not scheduling.launch(campaign.pk, now=LATER)
    assert tell_all() == 1
    [message] = mail_server.messages
    assert message["Subject"] == "“Rain at last” was not sent"
    assert "The sender has no postal address." in body(message)
    assert page("change", campaign.pk) in body(message)


@pytest.mark.parametrize("change", [{"email": ""}, {"is_active": False}, {}])
def test_who_has_no_address_or_wants_none_gets_none(going: Campaign, author: User, change: dict[str, object]) -> None:
    if change:
        User.objects.filter(pk=author.pk).update(**change)
    else:
        telling.wish(author.pk, wants_mails=False)
    going.refresh_from_db()
    assert [user.username for user in telling.editors(going)] == ["bob"]


def test_a_history_that_is_loaded_tells_nobody_anything(going: Campaign) -> None:
    finish(going)
    EditorEvent.objects.all().delete()
    Campaign.objects.filter(pk=going.pk).update(closed_at=None)
    closing.close(going.pk, now=LATER + timedelta(days=2))
    assert not EditorEvent.objects.exists()


def test_mails_are_switched_off_and_on_in_the_admin(admin_client: Client, admin_user: User) -> None:
    html = admin_client.get(page("mails")).content.decode()
    assert "They go to admin@shed.example." in html
    assert "no more such mails" in said(admin_client.post(page("mails"), {"wants": "no"}, follow=True))
    assert not telling.wants_mails(admin_user.pk)
    assert "told by mail" in said(admin_client.post(page("mails"), {"wants": "yes"}, follow=True))
    assert telling.wants_mails(admin_user.pk)


def test_the_list_of_campaigns_shows_what_waits(admin_client: Client, going: Campaign) -> None:
    scheduling.pause(going.pk, reason="50 mails in a row were refused.", now=NOW)
    assert "50 mails in a row were refused." in admin_client.get(page("changelist")).content.decode()
    Campaign.objects.filter(pk=going.pk).update(state=CampaignState.SENDING, state_reason="")
    assert "Needs your attention" not in admin_client.get(page("changelist")).content.decode()
