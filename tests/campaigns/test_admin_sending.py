"""The way out over HTTP: the last question, the hour, and every move with its refusal."""

from collections.abc import Callable
from datetime import datetime, time, timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from campaigns import composing, freezing, scheduling
from campaigns.admin.forms import fingerprint
from campaigns.errors import CampaignError
from campaigns.models import Campaign, CampaignState
from subscribers.models import List, Subscriber
from tests.campaigns.test_admin_composing import Draft, page, said, typed

pytestmark = pytest.mark.django_db

Subscribe = Callable[..., list[Subscriber]]


@pytest.fixture
def ready(draft: Draft, garden: List, subscribe: Subscribe) -> Campaign:
    """A draft that may go out to three people."""
    subscribe(garden, 3)
    return draft()


def answer(campaign: Campaign, shown: int, **more: Any) -> dict[str, Any]:
    return {"shown": shown, "content": fingerprint(campaign), **more}


def state(campaign: Campaign) -> str:
    campaign.refresh_from_db()
    return campaign.state


def test_reviewing_saves_first_and_says_what_goes_to_whom(admin_client: Client, ready: Campaign) -> None:
    sent = typed(ready, subject="Sun again", _review="1")
    response = admin_client.post(page("change", ready.pk), sent, follow=True)
    html = response.content.decode()
    assert response.redirect_chain[-1][0] == page("review", ready.pk)
    assert "Sun again" in html
    assert "Send to 3 people now" in html
    assert "You can undo it for 60 seconds." in html
    assert "The Potting Shed &lt;letters@shed.example&gt;" in html
    assert state(ready) == CampaignState.DRAFT


def test_sending_now_holds_it_for_a_minute_in_which_it_can_be_undone(admin_client: Client, ready: Campaign) -> None:
    response = admin_client.post(page("send", ready.pk), answer(ready, 3), follow=True)
    assert "Leaves in" in response.content.decode()
    assert response.redirect_chain[-1][0] == page("report", ready.pk)
    assert 50 < response.context["held"] <= 60
    assert page("act", ready.pk, "cancel") not in response.content.decode()  # one way back, not three
    assert state(ready) == CampaignState.SCHEDULED
    assert ready.scheduled_by == "admin"
    assert not scheduling.launch(ready.pk, now=timezone.now())

    undone = admin_client.post(page("act", ready.pk, "unschedule"), follow=True)
    assert "It is a draft again." in said(undone)
    assert undone.redirect_chain[-1][0] == page("change", ready.pk)
    assert not scheduling.launch(ready.pk, now=timezone.now() + timedelta(minutes=2))
    assert state(ready) == CampaignState.DRAFT


def test_when_the_time_is_over_it_leaves_and_undo_says_that_it_is_too_late(
    admin_client: Client, ready: Campaign
) -> None:
    admin_client.post(page("send", ready.pk), answer(ready, 3))
    later = timezone.now() + timedelta(seconds=61)
    assert scheduling.due(now=later) == [ready.pk]
    assert scheduling.launch(ready.pk, now=later)
    response = admin_client.post(page("act", ready.pk, "unschedule"), follow=True)
    assert "Too late to undo" in said(response)
    assert state(ready) == CampaignState.SENDING


def test_without_a_hold_it_leaves_at_once(admin_client: Client, ready: Campaign, settings: LazySettings) -> None:
    settings.UNDO_SEND_SECONDS = 0
    response = admin_client.post(page("send", ready.pk), answer(ready, 3), follow=True)
    assert "It is on its way." in said(response)
    assert scheduling.due(now=timezone.now()) == [ready.pk]


def test_what_was_undone_while_a_worker_compiled_it_stays_a_draft(ready: Campaign) -> None:
    scheduling.send_now(ready.pk, now=timezone.now())
    compiled_by_worker = scheduling.get(ready.pk)
    compiled = composing.compile_campaign(compiled_by_worker)
    scheduling.unschedule(ready.pk, now=timezone.now())
    assert freezing.freeze(compiled_by_worker, compiled, batch_size=500, now=timezone.now()) is None
    Campaign.objects.filter(pk=ready.pk).update(body="Rewritten")
    scheduling.send_now(ready.pk, now=timezone.now())
    assert freezing.freeze(compiled_by_worker, compiled, batch_size=500, now=timezone.now()) is None
    assert state(ready) == CampaignState.SCHEDULED


def test_an_imported_issue_says_why_it_cannot_be_sent(ready: Campaign) -> None:
    Campaign.objects.filter(pk=ready.pk).update(origin="imported", state=CampaignState.SENT, body="")
    with pytest.raises(CampaignError, match="brought from another platform"):
        scheduling.send_now(ready.pk, now=timezone.now())


def test_what_was_changed_since_the_question_is_not_sent(admin_client: Client, ready: Campaign) -> None:
    seen = answer(ready, 3)
    Campaign.objects.filter(pk=ready.pk).update(body="half a sent")
    response = admin_client.post(page("send", ready.pk), seen, follow=True)
    assert "changed since this page was shown" in said(response)
    assert state(ready) == CampaignState.DRAFT


@pytest.mark.parametrize("number", ["", "100", "yes"])
def test_over_a_thousand_needs_the_number_typed(
    admin_client: Client, draft: Draft, garden: List, subscribe: Subscribe, number: str
) -> None:
    subscribe(garden, 1001)
    campaign = draft()
    assert "Type 1,001 to confirm" in admin_client.get(page("review", campaign.pk)).content.decode()

    refused = admin_client.post(page("send", campaign.pk), answer(campaign, 1001, typed=number))
    assert refused.status_code == 400
    assert "Nothing was sent" in refused.content.decode()
    assert state(campaign) == CampaignState.DRAFT

    admin_client.post(page("send", campaign.pk), answer(campaign, 1001, typed="1,001"))
    assert state(campaign) == CampaignState.SCHEDULED


def test_a_list_that_has_grown_past_what_was_shown_is_asked_about_again(
    admin_client: Client, ready: Campaign, garden: List, subscribe: Subscribe
) -> None:
    subscribe(garden, 1100, prefix="late")
    response = admin_client.post(page("send", ready.pk), answer(ready, 3), follow=True)
    assert "the list has changed" in said(response)
    assert state(ready) == CampaignState.DRAFT


def test_what_is_red_in_the_checklist_cannot_be_sent(admin_client: Client, draft: Draft) -> None:
    campaign = draft()
    html = admin_client.get(page("review", campaign.pk)).content.decode()
    assert "It cannot be sent yet" in html
    assert page("send", campaign.pk) not in html
    response = admin_client.post(page("send", campaign.pk), answer(campaign, 1), follow=True)
    assert said(response)
    assert state(campaign) == CampaignState.DRAFT


def test_a_campaign_is_scheduled_in_the_sites_time_zone(
    admin_client: Client, ready: Campaign, settings: LazySettings
) -> None:
    settings.TIME_ZONE = "Asia/Tokyo"
    assert "time zone: Asia/Tokyo" in admin_client.get(page("review", ready.pk)).content.decode()
    sent = {"content": fingerprint(ready), "at": "2099-03-01T09:00"}
    admin_client.post(page("schedule", ready.pk), sent)
    assert state(ready) == CampaignState.SCHEDULED
    assert ready.scheduled_at == datetime.fromisoformat("2099-03-01T00:00:00Z")


def test_a_campaign_may_wait_for_an_hour_where_each_reader_lives(admin_client: Client, ready: Campaign) -> None:
    sent = {"content": fingerprint(ready), "at": "2099-03-01T00:30", "local_time": "09:00"}
    response = admin_client.post(page("schedule", ready.pk), sent, follow=True)
    assert "and at 09:00 where each reader lives" in response.content.decode()
    assert state(ready) == CampaignState.SCHEDULED
    assert ready.local_time == time(9)

    admin_client.post(page("act", ready.pk, "unschedule"))
    refused = admin_client.post(page("schedule", ready.pk), {**sent, "local_time": "half past"})
    assert refused.status_code == 400
    assert "Enter a valid time" in refused.content.decode()
    admin_client.post(page("schedule", ready.pk), {**sent, "local_time": ""})
    ready.refresh_from_db()
    assert ready.local_time is None


@pytest.mark.parametrize(
    ("at", "sentence"),
    [("", "Say when"), ("2020-01-01T09:00", "in the past"), ("soon", "valid date")],
)
def test_an_hour_that_cannot_be_is_refused_in_place(
    admin_client: Client, ready: Campaign, at: str, sentence: str
) -> None:
    response = admin_client.post(page("schedule", ready.pk), {"content": fingerprint(ready), "at": at})
    assert response.status_code == 400
    assert sentence in response.content.decode()
    assert state(ready) == CampaignState.DRAFT


S = CampaignState
MOVES = [
    (CampaignState.SCHEDULED, "unschedule", CampaignState.DRAFT),
    (CampaignState.SCHEDULED, "cancel", CampaignState.CANCELLED),
    (CampaignState.SENDING, "pause", CampaignState.PAUSED),
    (CampaignState.SENDING, "cancel", CampaignState.CANCELLED),
    (CampaignState.PAUSED, "resume", CampaignState.SENDING),
    (CampaignState.PAUSED, "cancel", CampaignState.CANCELLED),
]


@pytest.mark.parametrize(("before", "action", "after"), MOVES)
def test_each_legal_move_is_a_button_that_works(
    admin_client: Client, ready: Campaign, before: CampaignState, action: str, after: CampaignState
) -> None:
    now = timezone.now()
    Campaign.objects.filter(pk=ready.pk).update(state=before, scheduled_at=now + timedelta(days=1), started_at=now)
    name = "mail" if before == CampaignState.SCHEDULED else "report"
    assert page("act", ready.pk, action) in admin_client.get(page(name, ready.pk)).content.decode()
    admin_client.post(page("act", ready.pk, action))
    assert state(ready) == after


ILLEGAL = [
    (before, action)
    for before in CampaignState
    for action in ("unschedule", "pause", "resume", "cancel")
    if (before, action) not in {(legal, name) for legal, name, _after in MOVES}
]


@pytest.mark.parametrize(("before", "action"), ILLEGAL)
def test_each_illegal_move_is_a_sentence_and_moves_nothing(
    admin_client: Client, ready: Campaign, before: CampaignState, action: str
) -> None:
    Campaign.objects.filter(pk=ready.pk).update(state=before)
    response = admin_client.post(page("act", ready.pk, action), follow=True)
    refusal = "Too late to undo" if (before, action) == (S.SENDING, "unschedule") else "This campaign cannot be"
    assert refusal in said(response)
    assert page("act", ready.pk, action) not in response.content.decode()
    assert state(ready) == before


def test_an_unknown_action_and_an_unknown_campaign_are_not_found(admin_client: Client, ready: Campaign) -> None:
    assert admin_client.post(page("act", ready.pk, "explode")).status_code == 404
    assert admin_client.post(page("act", ready.pk + 1, "cancel")).status_code == 404
    assert admin_client.get(page("report", ready.pk + 1)).status_code == 404


def test_without_the_right_to_send_nothing_leaves(client: Client, ready: Campaign) -> None:
    user = User.objects.create_user("author", "author@shed.example", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["change_campaign", "view_campaign"]))
    client.force_login(user)
    assert "but not send them" in client.get(page("review", ready.pk)).content.decode()
    assert client.post(page("send", ready.pk), answer(ready, 3)).status_code == 403
    assert client.post(page("schedule", ready.pk), {}).status_code == 403
    assert client.post(page("act", ready.pk, "cancel")).status_code == 403
    assert state(ready) == CampaignState.DRAFT


def test_a_campaign_that_could_not_start_says_why_where_it_is_mended(admin_client: Client, ready: Campaign) -> None:
    Campaign.objects.filter(pk=ready.pk).update(state_reason="The mail has no unsubscribe link.")
    response = admin_client.get(page("report", ready.pk), follow=True)
    assert response.redirect_chain[-1][0] == page("change", ready.pk)
    assert "It was not sent: The mail has no unsubscribe link." in " ".join(response.content.decode().split())
