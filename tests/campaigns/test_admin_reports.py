"""Reports over HTTP: every figure with its meaning, progress as JSON, recipients by key; and the admin's first page."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from campaigns import reporting
from campaigns.admin import presenting, reports
from campaigns.models import (
    Campaign,
    CampaignFigures,
    CampaignState,
    Delivery,
    DeliveryError,
    DeliveryState,
    Outcome,
)
from subscribers.models import HygieneRun, ImportRun, List, Subscriber
from tests.campaigns.test_admin_composing import Draft, page
from tests.conftest import NOW

pytestmark = pytest.mark.django_db

Subscribe = Callable[..., list[Subscriber]]


@pytest.fixture
def sent(launched: Draft, garden: List, subscribe: Subscribe) -> Campaign:
    """A campaign to 60 people: one refused, one bounced, one opened and clicked, the rest accepted."""
    people = subscribe(garden, 60)
    campaign = launched()
    rows = Delivery.objects.filter(campaign_id=campaign.pk)
    rows.update(state=DeliveryState.ACCEPTED, sent_at=NOW)
    rows.filter(subscriber_id=people[0].pk).update(state=DeliveryState.FAILED)
    rows.filter(subscriber_id=people[1].pk).update(outcome=Outcome.BOUNCED)
    rows.filter(subscriber_id=people[2].pk).update(opened_at=NOW, clicked_at=NOW, seen=3)
    DeliveryError.objects.create(
        campaign_id=campaign.pk, subscriber_id=people[0].pk, code="5.1.1", text="550 no such user", is_permanent=True
    )
    CampaignFigures.objects.filter(pk=campaign.pk).update(
        opens_raw=9, opens_human=1, open_hits=12, clicks_raw=4, clicks_human=1, click_hits=40, bounced=1
    )
    return campaign


def test_the_report_shows_figures_for_people_and_raw_beside_them(admin_client: Client, sent: Campaign) -> None:
    response = admin_client.get(page("report", sent.pk))
    figures = {figure.name: figure for figure in response.context["figures"]}
    assert figures["recipients"].value == 60
    assert (figures["accepted"].value, figures["arrived"].value, figures["bounced"].value) == (59, 58, 1)
    assert (figures["opened"].value, figures["opened"].raw, figures["opened"].share) == (1, 9, "1.7 %")
    assert (figures["clicked"].value, figures["clicked"].raw) == (1, 4)
    assert all(figure.counts for figure in figures.values())
    html = response.content.decode()
    assert "550 no such user" in html
    assert "https://weather.example/?a=1&amp;b=2" in html


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (0, 0, "–"),
        (0, 9, "0 %"),
        (1, 9_000, "< 0.1 %"),
        (1, 60, "1.7 %"),
        (1, 3, "33 %"),
        (1844, 1847, "99.8 %"),
        (9_999, 10_000, "99.9 %"),
        (7, 7, "100 %"),
    ],
)
def test_a_share_says_all_or_nothing_only_when_it_is(part: int, whole: int, words: str) -> None:
    assert presenting.share(part, whole) == words


def test_the_chart_fills_hours_in_which_nothing_was_opened(sent: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    later = NOW + timedelta(hours=3)
    moments = [reporting.Moment(NOW, 10, 5, 0, 0), reporting.Moment(later, 5, 0, 0, 0)]
    monkeypatch.setattr(reporting, "time_source", lambda _campaign_id: moments)
    hours = reports.opens_by_hour(sent)
    assert [(hour.human, hour.machine) for hour in hours] == [(10, 5), (0, 0), (0, 0), (5, 0)]
    assert [hour.human_percent for hour in hours] == [66.7, 0.0, 0.0, 33.3]


def test_progress_is_json_for_the_pages_script(admin_client: Client, sent: Campaign) -> None:
    now = admin_client.get(page("progress", sent.pk)).json()
    assert (now["state"], now["done"], now["audience"]) == ("sending", 60, 60)
    assert now["figures"]["opened"] == {"value": "1", "share": "1.7 %", "raw": "9"}


def test_recipients_are_paged_by_key_and_found_by_address(admin_client: Client, sent: Campaign) -> None:
    first = admin_client.get(page("recipients", sent.pk))
    assert len(first.context["rows"]) == 50
    second = admin_client.get(page("recipients", sent.pk), {"after": first.context["following"]})
    assert (len(second.context["rows"]), second.context["following"]) == (10, None)
    seen = {row.person.pk for row in [*first.context["rows"], *second.context["rows"]] if row.person}
    assert len(seen) == 60
    found = admin_client.get(page("recipients", sent.pk), {"q": "Reader41@"})
    assert [row.person.email for row in found.context["rows"]] == ["reader41@mail.example"]


@pytest.mark.parametrize(
    ("show", "number"),
    [("opened", 1), ("clicked", 1), ("failed", 1), ("bounced", 1), ("waiting", 0), ("unknown", 0), ("nonsense", 50)],
)
def test_recipients_can_be_narrowed(admin_client: Client, sent: Campaign, show: str, number: int) -> None:
    assert len(admin_client.get(page("recipients", sent.pk), {"show": show}).context["rows"]) == number


def test_a_forged_place_in_the_list_is_the_beginning(admin_client: Client, sent: Campaign) -> None:
    assert len(admin_client.get(page("recipients", sent.pk), {"after": "' OR 1=1"}).context["rows"]) == 50


def test_an_analyst_sees_figures_but_no_addresses(client: Client, sent: Campaign) -> None:
    user = User.objects.create_user("analyst", "analyst@shed.example", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_campaign"))
    client.force_login(user)
    report = client.get(page("report", sent.pk))
    assert report.status_code == 200
    assert page("recipients", sent.pk) not in report.content.decode()
    assert client.get(page("recipients", sent.pk)).status_code == 403
    assert page("act", sent.pk, "cancel") not in report.content.decode()


def test_the_list_of_campaigns_shows_human_figures_with_raw_beside(admin_client: Client, sent: Campaign) -> None:
    html = admin_client.get(page("changelist")).content.decode()
    assert "Sending" in html
    assert "9 raw" in html
    assert "issue 1" in html


# The first page -------------------------------------------------------------------------------------------------


def test_an_empty_installation_says_what_to_do_first(admin_client: Client) -> None:
    html = admin_client.get(reverse("admin:index")).content.decode()
    assert "Three steps to your first issue" in html
    assert reverse("admin:subscribers_list_add") in html
    assert admin_client.get(page("changelist")).status_code == 200


def test_the_composer_opens_before_there_is_a_list(admin_client: Client) -> None:
    assert admin_client.get(page("add")).status_code == 200


def test_the_first_page_shows_what_waits_for_somebody(admin_client: Client, sent: Campaign, garden: List) -> None:
    Campaign.objects.filter(pk=sent.pk).update(state=CampaignState.PAUSED, state_reason="Too many bounces.")
    CampaignFigures.objects.filter(pk=sent.pk).update(in_doubt=1)
    ImportRun.objects.create(list=garden, file="x.csv", state=ImportRun.State.FAILED, message="No column “email”.")
    HygieneRun.objects.create(list=garden, kind="preview", state="open", at=NOW, judged=60, removed=7)
    html = admin_client.get(reverse("admin:index")).content.decode()
    for words in ("Too many bounces.", "1 mail in doubt", "No column “email”.", "7 people would no longer be mailed"):
        assert words in html


def test_the_first_page_follows_a_campaign_from_sending_to_sent(
    admin_client: Client, sent: Campaign, draft: Draft
) -> None:
    draft(subject="Next week")
    going = admin_client.get(reverse("admin:index")).context
    assert [(line["campaign"].pk, line["done"]) for line in going["sending"]] == [(sent.pk, 60)]
    assert [line["campaign"].subject for line in going["drafts"]] == ["Next week"]
    Campaign.objects.filter(pk=sent.pk).update(state=CampaignState.SENT, finished_at=NOW)
    gone = admin_client.get(reverse("admin:index")).context
    assert [(line["campaign"].pk, line["opened"]) for line in gone["latest"]] == [(sent.pk, "1.7 %")]
    assert [(size.active, size.joined) for size in gone["lists"]] == [(60, 60)]


def test_somebody_without_rights_sees_an_empty_first_page(client: Client, sent: Campaign) -> None:
    client.force_login(User.objects.create_user("guest", "guest@shed.example", is_staff=True))
    html = client.get(reverse("admin:index")).content.decode()
    assert sent.subject not in html
    assert "60" not in html.partition("<main")[2]
