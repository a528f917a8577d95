"""What a person changes by the link of a mail, and the proof that is kept of it."""

from typing import Any

import pytest
from django.test import Client

from subscribers import preferences
from subscribers.models import ConsentRecord, Engagement, List, SenderIdentity, Subscription
from tests.conftest import NOW
from tests.subscribers.conftest import Reader

pytestmark = pytest.mark.django_db


@pytest.fixture
def orchard(sender: SenderIdentity) -> List:
    return List.objects.create(slug="orchard", name="The Orchard", sender=sender)


def change(reader: Reader, **changes: Any) -> bool:
    facts = {"name": "Ann", "language": "", "tracking_consent": "full", "lists": {reader.subscription.list_id}}
    origin = preferences.Origin("preference page", reader.campaign.pk, "203.0.113.0/24")
    return preferences.change(reader.subscriber.pk, preferences.Choice(**{**facts, **changes}), origin=origin, now=NOW)


def test_the_page_shows_the_address_masked_and_no_private_list_of_others(
    browser_client: Client, reader: Reader, orchard: List, sender: SenderIdentity
) -> None:
    List.objects.create(slug="staff", name="Staff only", sender=sender, is_public=False)
    page = browser_client.get(f"/p/{reader.token}").content.decode()
    assert "a•••@mail.example" in page
    assert "ann@mail.example" not in page
    assert "The Orchard" in page
    assert "Staff only" not in page


def test_saving_the_page_changes_what_was_chosen(browser_client: Client, reader: Reader, orchard: List) -> None:
    form = {"name": "Anne", "language": "en", "tracking_consent": "none", "lists": [orchard.pk]}
    page = browser_client.post(f"/p/{reader.token}", form)
    assert b"Saved." in page.content
    reader.subscriber.refresh_from_db()
    assert (reader.subscriber.name, reader.subscriber.language) == ("Anne", "en")
    assert reader.subscriber.tracking_consent == "none"
    assert reader.state == "unsubscribed"
    assert Subscription.objects.get(list=orchard).state == "active"
    assert sorted(reader.proofs) == ["confirmed", "tracking", "unsubscribed"]


def test_nothing_chosen_anew_leaves_no_trace(reader: Reader) -> None:
    assert not change(reader)
    assert reader.proofs == []


def test_the_proof_holds_what_they_were_told(reader: Reader) -> None:
    assert change(reader, tracking_consent="hygiene")
    proof = ConsentRecord.objects.get()
    assert proof.text.startswith("Only the date of the last open: ")
    assert proof.network == "203.0.113.0/24"


def test_withdrawing_consent_forgets_what_was_recorded(reader: Reader) -> None:
    Engagement.objects.create(subscription=reader.subscription, delivered="11", engaged="01", opened_at=NOW)
    change(reader, tracking_consent="none")
    assert not Engagement.objects.filter(opened_at__isnull=False).exists()


def test_a_list_that_is_not_offered_cannot_be_joined(reader: Reader, sender: SenderIdentity) -> None:
    staff = List.objects.create(slug="staff", name="Staff only", sender=sender, is_public=False)
    assert not change(reader, lists={reader.subscription.list_id, staff.pk})
    assert not Subscription.objects.filter(list=staff).exists()


def test_the_form_says_what_is_wrong_and_keeps_what_was_typed(browser_client: Client, reader: Reader) -> None:
    form = {"name": "x" * 201, "language": "tlh", "tracking_consent": "all", "lists": ["9999"]}
    page = browser_client.post(f"/p/{reader.token}", form)
    assert page.status_code == 422
    assert b"x" * 201 in page.content
    assert reader.state == "active"


def test_somebody_unknown_has_no_preferences() -> None:
    with pytest.raises(preferences.UnknownSubscriber):
        preferences.load(12345)
