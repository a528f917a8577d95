"""Hygiene in the admin: the rule, the preview with its names, approval and undo, each by the right people only."""

from types import SimpleNamespace

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from subscribers.admin import hygiene
from subscribers.hygiene import explaining, pruning
from subscribers.models import HygienePolicy, HygieneRun, Subscription
from tests.subscribers.hygiene.building import Letters
from tests.subscribers.hygiene.test_pruning import SILENT, make_letters

pytestmark = pytest.mark.django_db


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Letters:
    made = make_letters()
    monkeypatch.setattr(hygiene, "timezone", SimpleNamespace(now=lambda: made.end))
    return made


def page(name: str, *arguments: int) -> str:
    return reverse(f"admin:subscribers_hygienerun_{name}", args=arguments)


def a_preview(letters: Letters) -> HygieneRun:
    return pruning.preview(letters.to.pk, at=letters.end)


def test_a_list_without_any_run_says_what_a_preview_is(letters: Letters, admin_client: Client) -> None:
    overview = admin_client.get(page("changelist"))
    assert overview.headers["Location"] == page("list", letters.to.pk)  # one list only
    shown = admin_client.get(page("list", letters.to.pk)).content.decode()
    assert "A preview only looks" in shown
    assert "The first run needs your approval" in shown


def test_a_preview_is_made_and_shows_names_reasons_and_who_is_not_judged(
    letters: Letters, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        explaining, "machine_fetches", lambda list_id, people: {one: {30: "a", 29: "m"} for one in people}
    )
    made = admin_client.post(page("preview", letters.to.pk))
    run = HygieneRun.objects.get()
    assert made.headers["Location"] == page("change", run.pk)
    assert run.created_by == "admin"
    shown = admin_client.get(page("change", a_preview(letters).pk)).content.decode()
    assert "7 of 8 people would no longer be mailed" in shown
    assert "1 was fetched by Apple Mail, which proves nothing either way." in shown
    assert "Last opened an issue on 20 January 2025. Got 27 issues since" in shown
    assert "Stop mailing 7 people" in shown


def test_approval_needs_the_box_and_the_count_that_was_shown(letters: Letters, admin_client: Client) -> None:
    seen = a_preview(letters)
    for answer in ({"count": "7"}, {"count": "6", "seen": "1"}, {}):
        admin_client.post(page("approve", seen.pk), answer)
        assert not HygieneRun.objects.filter(kind="run").exists()
    done = admin_client.post(page("approve", seen.pk), {"count": "7", "seen": "1"}, follow=True)
    assert "7 people are no longer mailed." in done.content.decode()
    again = admin_client.post(page("approve", seen.pk), {"count": "7", "seen": "1"}, follow=True)
    assert "was already carried out" in again.content.decode()


def test_a_run_is_undone(letters: Letters, admin_client: Client) -> None:
    made = pruning.run(letters.to.pk, at=letters.end, approve=a_preview(letters).pk)
    assert "Undo this run" in admin_client.get(page("change", made.pk)).content.decode()
    undone = admin_client.post(page("undo", made.pk), follow=True).content.decode()
    assert "7 people are mailed again." in undone
    assert "Undo this run" not in undone
    assert not Subscription.objects.filter(state="pruned").exists()


def test_names_can_be_searched(letters: Letters, admin_client: Client) -> None:
    seen = a_preview(letters)
    found = admin_client.get(page("change", seen.pk), {"q": "SILENT3"}).content.decode()
    assert "silent3@example.org" in found
    assert "silent4@example.org" not in found
    assert "Nobody with that address" in admin_client.get(page("change", seen.pk), {"q": "%"}).content.decode()


def test_the_rule_is_changed_and_makes_open_previews_out_of_date(letters: Letters, admin_client: Client) -> None:
    seen = a_preview(letters)
    rule = {"min_campaigns": "10", "min_days": "120", "engaged_factor": "2", "cap_percent": "5", "is_scheduled": "on"}
    assert (
        "Ensure this value"
        in admin_client.post(page("list", letters.to.pk), {**rule, "min_days": "0"}).content.decode()
    )
    saved = admin_client.post(page("list", letters.to.pk), rule, follow=True).content.decode()
    assert "The policy was saved" in saved
    assert "out of date" in saved
    assert HygienePolicy.objects.get().min_days == 120
    assert "policy was changed" in admin_client.get(page("change", seen.pk)).content.decode()


def test_the_cap_is_told_before_anybody_approves(letters: Letters, admin_client: Client) -> None:
    HygienePolicy.objects.update(cap_percent=50)
    seen = a_preview(letters)
    shown = admin_client.get(page("change", seen.pk)).content.decode()
    assert "This run takes the <strong>4</strong> most certain. 3 wait" in shown
    HygienePolicy.objects.update(cap_percent=5)
    assert "which is less than one" in admin_client.get(page("change", seen.pk)).content.decode()


def test_who_may_only_look_changes_nothing(letters: Letters, client: Client) -> None:
    seen = a_preview(letters)
    looker = User.objects.create_user("looker", is_staff=True)
    looker.user_permissions.add(Permission.objects.get(codename="view_hygienerun"))
    client.force_login(looker)
    shown = client.get(page("change", seen.pk)).content.decode()
    assert SILENT[0] in shown
    assert "Stop mailing 7" not in shown
    for address in (page("approve", seen.pk), page("undo", seen.pk), page("preview", letters.to.pk)):
        assert client.post(address, {"count": "7", "seen": "1"}).status_code == 403
        assert client.get(address).status_code == 405
    assert client.post(page("list", letters.to.pk), {}).status_code == 403
    client.force_login(User.objects.create_user("other", is_staff=True))
    for address in (page("changelist"), page("list", letters.to.pk), page("change", seen.pk)):
        assert client.get(address).status_code == 403
