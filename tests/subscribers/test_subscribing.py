"""Asking for a list: one answer for everybody, few mails to one address, nothing changed for its owner."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import close_old_connections, connection

from subscribers import confirming, subscribing, suppressing
from subscribers.models import ConsentRecord, List, SenderIdentity, Subscriber, Subscription
from subscribers.validating import InvalidAddress
from tests.conftest import NOW
from tests.subscribers.conftest import Reader

pytestmark = pytest.mark.django_db


def ask(newsletter: List, email: str = "bea@mail.example", *, minutes: float = 0, name: str = "") -> None:
    subscribing.subscribe(
        newsletter.pk,
        email=email,
        name=name,
        source="sign-up page",
        network="203.0.113.0/24",
        now=NOW + timedelta(minutes=minutes),
    )


def mails_due() -> int:
    return confirming.due(now=NOW + timedelta(days=1)).count()


def test_a_request_is_written_down_with_proof_and_a_mail_is_due(garden: List) -> None:
    ask(garden, "Bea@Mail.Example", name="Bea")
    subscription = Subscription.objects.get()
    assert (subscription.state, subscription.subscriber.email_key) == ("pending", "bea@mail.example")
    assert subscription.subscriber.name == "Bea"
    proof = ConsentRecord.objects.get()
    assert (proof.kind, proof.text, proof.network) == ("requested", garden.consent_text, "203.0.113.0/24")
    assert mails_due() == 1


def test_a_name_is_one_line(garden: List) -> None:
    ask(garden, name=" Bea\r\nBcc: cat@mail.example ")
    assert Subscriber.objects.get().name == "Bea Bcc: cat@mail.example"


def test_a_bad_address_and_an_unknown_list_are_refused(garden: List) -> None:
    with pytest.raises(InvalidAddress):
        ask(garden, "bea@")
    with pytest.raises(subscribing.UnknownList):
        subscribing.subscribe(garden.pk + 1, email="bea@mail.example", source="", now=NOW)
    assert not Subscriber.objects.exists()


def test_asking_again_within_ten_minutes_sends_nothing_more(garden: List) -> None:
    ask(garden)
    Subscription.objects.update(confirmation_sent_at=NOW)
    ask(garden, minutes=9)
    assert mails_due() == 0
    ask(garden, minutes=11)
    assert mails_due() == 1


def test_one_address_gets_three_mails_a_day_over_all_lists(garden: List, sender: SenderIdentity) -> None:
    lists = [List.objects.create(slug=f"l{i}", name=f"L{i}", sender=sender) for i in range(5)]
    for newsletter in [garden, *lists]:
        ask(newsletter)
    assert mails_due() == 3
    for hour in range(1, 24):
        ask(garden, minutes=60 * hour)
    assert ConsentRecord.objects.count() == 3
    ask(garden, minutes=24 * 60 + 1)
    assert ConsentRecord.objects.count() == 4


def test_nothing_changes_for_somebody_active(garden: List, reader: Reader) -> None:
    ask(garden, "ann@mail.example", name="Somebody Else")
    reader.subscriber.refresh_from_db()
    assert (reader.state, reader.subscriber.name, reader.proofs) == ("active", "Ann", [])
    assert mails_due() == 0


def test_who_unsubscribed_stays_so_until_they_confirm(garden: List, reader: Reader) -> None:
    Subscription.objects.update(state="unsubscribed")
    ask(garden, "ann@mail.example")
    assert reader.state == "unsubscribed"
    assert mails_due() == 1


def test_a_suppressed_address_gets_the_same_silence(garden: List) -> None:
    suppressing.suppress("bea@mail.example", reason="complaint", source="", now=NOW)
    ask(garden)
    assert not Subscriber.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_requests_at_the_same_moment_make_one_person_and_one_mail(garden: List) -> None:
    def once(_number: int) -> None:
        try:
            ask(garden)
        finally:
            connection.close()
            close_old_connections()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(once, range(6)))
    assert Subscriber.objects.count() == Subscription.objects.count() == ConsentRecord.objects.count() == 1
