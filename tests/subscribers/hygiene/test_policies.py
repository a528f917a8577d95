"""Who is judged, who is not, and why."""

from dataclasses import replace
from datetime import timedelta

import pytest

from subscribers import engagement
from subscribers.hygiene import policies
from subscribers.hygiene.policies import judge
from subscribers.models import ConsentRecord, HygienePolicy, Subscriber, Subscription, TrackingConsent
from tests.subscribers.hygiene.building import START, Letters, make_list, subscribe

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def letters() -> Letters:
    """Thirty weeks of a weekly list that somebody reads, so that silence means something."""
    made = Letters.weekly(make_list(), 30)
    reader = subscribe(made.to, "reader")
    made.deliver(reader)
    made.read(reader[0], *range(1, 31))
    return made


def removed(letters: Letters, *, at_week: int | None = None) -> list[str]:
    at = letters.end if at_week is None else letters.sent_at(at_week) + 4 * DAY
    return [person.email.partition("@")[0] for person in judge(letters.to.pk, at=at).remove]


def test_who_never_read_goes_after_enough_issues_and_days(letters: Letters) -> None:
    letters.deliver(subscribe(letters.to, "silent"))
    assert removed(letters, at_week=13) == []  # 88 days since the first issue
    assert removed(letters, at_week=14) == ["silent"]


def test_issues_too_few_hold_back_even_after_many_days(letters: Letters) -> None:
    letters.deliver(subscribe(letters.to, "rarely"), range(1, 8))
    found = judge(letters.to.pk, at=letters.end)
    assert (found.remove, found.held_back) == ([], {"too_few_issues": 1})
    assert found.judged == 1


def test_who_once_read_gets_half_as_long_again(letters: Letters) -> None:
    (lapsed,) = subscribe(letters.to, "lapsed")
    letters.deliver([lapsed])
    letters.read(lapsed, 1)
    assert removed(letters, at_week=19) == []  # 130 days
    assert removed(letters, at_week=20) == ["lapsed"]


def test_any_sign_within_the_window_keeps(letters: Letters) -> None:
    opened, late, acted = subscribe(letters.to, "opened", "late", "acted")
    letters.deliver([opened, late, acted])
    letters.read(opened, 20)
    # Reading the first issue half a year late is reading.
    engagement.record_signs(
        [engagement.Sign(letters.to.pk, 1, late.subscriber_id, "click", letters.sent_at(25))],
    )
    engagement.record_action(acted.pk, letters.sent_at(25))
    found = judge(letters.to.pk, at=letters.end)
    assert (found.judged, found.remove, found.held_back) == (4, [], {})


def test_an_issue_counts_only_after_its_time_to_be_read(letters: Letters) -> None:
    HygienePolicy.objects.create(list=letters.to, min_campaigns=8, min_days=1)
    letters.deliver(subscribe(letters.to, "silent"))
    sent = letters.sent_at(8)
    assert judge(letters.to.pk, at=sent + timedelta(hours=71)).remove == []
    assert len(judge(letters.to.pk, at=sent + timedelta(hours=72)).remove) == 1


def test_bounced_issues_are_no_opportunity(letters: Letters) -> None:
    (bouncing,) = subscribe(letters.to, "bouncing")
    letters.deliver([bouncing], range(1, 10))
    assert removed(letters) == ["bouncing"]
    engagement.clear_delivered(letters.to.pk, 5, [bouncing.subscriber_id])
    engagement.clear_delivered(letters.to.pk, 6, [bouncing.subscriber_id])
    assert removed(letters) == []


def test_imported_yesterday_nobody_is_judged(letters: Letters) -> None:
    people = subscribe(letters.to, "a", "b", "c", since=letters.end)
    Subscription.objects.filter(pk__in=[one.pk for one in people]).update(created_at=letters.end - DAY)
    found = judge(letters.to.pk, at=letters.end)
    assert (found.remove, found.held_back) == ([], {"too_new": 3})


def test_a_history_that_begins_within_the_window_does_not_cover_it(letters: Letters) -> None:
    letters.deliver(subscribe(letters.to, "old-address"), range(20, 31))
    found = judge(letters.to.pk, at=letters.end)
    assert (found.remove, found.held_back) == ([], {"short_history": 1})


def test_the_protected_and_those_who_gave_no_consent_are_never_judged(letters: Letters) -> None:
    (protected,) = subscribe(letters.to, "friend", protected=True)
    subscribe(letters.to, "private", consent=TrackingConsent.NONE)
    letters.deliver([protected])
    assert judge(letters.to.pk, at=letters.end).held_back == {"no_consent": 1, "protected": 1}


def test_suppressed_people_are_not_on_the_list_any_more(letters: Letters) -> None:
    letters.deliver(subscribe(letters.to, "gone"))
    Subscriber.objects.filter(email="gone@example.org").update(suppressed_at=START)
    found = judge(letters.to.pk, at=letters.end)
    assert (found.active, found.remove) == (1, [])


def test_upper_apps_may_protect(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    (silent,) = subscribe(letters.to, "silent")
    letters.deliver([silent])
    monkeypatch.setitem(policies.protections, "unsettled", lambda list_id, at: {silent.subscriber_id})
    found = judge(letters.to.pk, at=letters.end)
    assert (found.remove, found.held_back) == ([], {"unsettled": 1})


def test_with_consent_to_the_date_only_the_date_decides(letters: Letters) -> None:
    opened, never, lately = subscribe(letters.to, "opened", "never", "lately", consent=TrackingConsent.HYGIENE)
    letters.read(opened, 1)
    letters.read(lately, 25)
    assert sorted(removed(letters)) == ["never", "opened"]
    assert removed(letters, at_week=18) == ["never"]
    # Before they allowed the date to be kept, nothing could be seen.
    ConsentRecord.objects.create(subscriber=never.subscriber, kind=ConsentRecord.Kind.TRACKING, at=letters.sent_at(25))
    assert removed(letters) == ["opened"]


def test_a_list_on_which_nobody_is_ever_seen_removes_nobody() -> None:
    """All images blocked, or Apple's prefetch only: the silence is the tracking's."""
    letters = Letters.weekly(make_list(), 30)
    letters.deliver(subscribe(letters.to, *(f"p{n}" for n in range(10))))
    found = judge(letters.to.pk, at=letters.end)
    assert (found.judged, found.remove, found.held_back) == (0, [], {"nobody_seen": 10})


def test_an_untracked_list_removes_nobody(letters: Letters) -> None:
    letters.deliver(subscribe(letters.to, "silent"))
    letters.issues[:] = [replace(issue, tracked=False) for issue in letters.issues]
    assert "no_tracked_campaign" in judge(letters.to.pk, at=letters.end).held_back


def test_a_month_without_tracking_holds_everybody_back(letters: Letters) -> None:
    letters.deliver(subscribe(letters.to, "silent"))
    letters.issues[:] = [
        replace(issue, delivered=1000, seen=3 if issue.number in range(24, 28) else 400) for issue in letters.issues
    ]
    found = judge(letters.to.pk, at=letters.end)
    assert (found.remove, found.held_back) == ([], {"tracking_broken": 1})


def test_broken_tracking_long_ago_is_no_opportunity_and_no_obstacle(letters: Letters) -> None:
    letters.deliver(subscribe(letters.to, "silent"))
    letters.issues[:] = [
        replace(issue, delivered=1000, seen=3 if issue.number < 5 else 400) for issue in letters.issues
    ]
    assert [person.silent for person in judge(letters.to.pk, at=letters.end).remove] == [26]


def test_the_most_certain_come_first(letters: Letters) -> None:
    long_gone, lapsed = subscribe(letters.to, "long-gone", "lapsed")
    letters.deliver([long_gone, lapsed])
    letters.read(lapsed, 5)
    assert removed(letters) == ["long-gone", "lapsed"]


def test_two_lists_do_not_mix(letters: Letters) -> None:
    other = Letters.weekly(make_list("other"), 30)
    letters.deliver(subscribe(letters.to, "both"))
    (elsewhere,) = subscribe(other.to, "both")
    other.deliver([elsewhere])
    other.read(elsewhere, 30)
    assert removed(letters) == ["both"]
    assert removed(other) == []
