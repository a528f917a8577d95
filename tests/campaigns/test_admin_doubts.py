"""The page of recipients in doubt: who may see and decide, and what a second press does."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from campaigns import doubting
from campaigns.models import Campaign, CampaignState, Delivery, DeliveryState
from subscribers.models import AuditEntry, List, Subscriber
from tests.campaigns.test_admin_composing import Draft, page, said
from tests.conftest import NOW

pytestmark = pytest.mark.django_db


@pytest.fixture
def people(garden: List, subscribe: Callable[..., list[Subscriber]]) -> list[Subscriber]:
    return subscribe(garden, 60)


@pytest.fixture
def doubtful(people: list[Subscriber], launched: Draft) -> Campaign:
    """A campaign whose 60 recipients are all in doubt."""
    campaign = launched()
    Delivery.objects.filter(campaign_id=campaign.pk).update(state=DeliveryState.UNKNOWN, sent_at=NOW)
    Campaign.objects.filter(pk=campaign.pk).update(state=CampaignState.SENT, finished_at=NOW)
    doubting.recount(campaign.pk)
    return campaign


def decision(**changed: object) -> dict[str, object]:
    return {"do": "resend", "whom": "all", "shown": 60, **changed}


def test_the_page_lists_them_and_is_reached_from_report_and_first_page(
    admin_client: Client, doubtful: Campaign, people: list[Subscriber]
) -> None:
    first = admin_client.get(page("doubts", doubtful.pk))
    html = first.content.decode()
    assert "60 recipients are in doubt" in html
    assert people[0].email in html
    assert doubting.WORKER_ENDED in html
    assert len(first.context["rows"]) == 50
    assert (
        len(admin_client.get(page("doubts", doubtful.pk), {"after": first.context["following"]}).context["rows"]) == 10
    )
    for place in (page("report", doubtful.pk), reverse("admin:index")):
        assert page("doubts", doubtful.pk) in admin_client.get(place).content.decode()


def test_send_again_is_one_decision_however_often_it_is_pressed(admin_client: Client, doubtful: Campaign) -> None:
    first = admin_client.post(page("decide", doubtful.pk), decision(), follow=True)
    assert "60 people are sent the mail again." in said(first)
    assert first.redirect_chain[-1][0] == page("report", doubtful.pk)
    second = admin_client.post(page("decide", doubtful.pk), decision(), follow=True)
    assert "decided already" in said(second)
    assert AuditEntry.objects.get(action="campaign.doubt_resend").actor == "admin"
    doubtful.refresh_from_db()
    assert doubtful.state == CampaignState.SENDING


def test_those_ticked_are_left_at_that(admin_client: Client, doubtful: Campaign, people: list[Subscriber]) -> None:
    ticked = decision(do="let_be", whom="chosen", people=[people[0].pk, people[3].pk])
    response = admin_client.post(page("decide", doubtful.pk), ticked, follow=True)
    assert "2 recipients are left at that." in said(response)
    assert response.redirect_chain[-1][0] == page("doubts", doubtful.pk)
    assert response.context["number"] == 58
    html = admin_client.get(page("recipients", doubtful.pk)).content.decode()
    assert "nobody asks any more" in html


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"whom": "chosen"}, "nobody was ticked"),
        ({"do": "explode"}, "valid choice"),
        ({"whom": "chosen", "people": ["1 OR 1", "9" * 30]}, "valid choice"),
        ({"shown": 59}, "more recipients are in doubt now"),
    ],
)
def test_a_form_that_says_too_little_or_too_much_moves_nobody(
    admin_client: Client, doubtful: Campaign, changed: dict[str, object], sentence: str
) -> None:
    response = admin_client.post(page("decide", doubtful.pk), decision(**changed), follow=True)
    assert sentence in said(response)
    assert doubting.in_doubt(doubtful.pk).count() == 60


def test_a_cancelled_campaign_offers_no_second_mail(admin_client: Client, doubtful: Campaign) -> None:
    Campaign.objects.filter(pk=doubtful.pk).update(state=CampaignState.CANCELLED)
    assert 'value="resend"' not in admin_client.get(page("doubts", doubtful.pk)).content.decode()
    response = admin_client.post(page("decide", doubtful.pk), decision(), follow=True)
    assert "the campaign is cancelled" in said(response)


def test_who_may_not_send_sees_no_address_and_no_button(client: Client, doubtful: Campaign) -> None:
    user = User.objects.create_user("analyst", "analyst@shed.example", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_campaign"))
    client.force_login(user)
    html = client.get(page("doubts", doubtful.pk)).content.decode()
    assert "@mail.example" not in html
    assert page("decide", doubtful.pk) not in html.partition("<table")[0].partition("nl-option")[2]
    assert client.post(page("decide", doubtful.pk), decision()).status_code == 403
    assert doubting.in_doubt(doubtful.pk).count() == 60


def test_nobody_in_doubt_is_a_calm_page(admin_client: Client, people: list[Subscriber], launched: Draft) -> None:
    assert "Nobody is in doubt" in admin_client.get(page("doubts", launched().pk)).content.decode()
