"""Bits of what was delivered and read, set and cleared by whole sets."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscribers import engagement
from subscribers.engagement import LastSeen, Sign, derive
from subscribers.models import Engagement, TrackingConsent
from tests.subscribers.hygiene.building import START, make_list, subscribe

pytestmark = pytest.mark.django_db
bits = st.text("01", max_size=40)


def test_an_issue_is_delivered_and_read() -> None:
    weekly = make_list(issues=4)
    ann, ben = subscribe(weekly, "ann", "ben")
    engagement.record_delivered(weekly.pk, 2, [ann.subscriber_id, ben.subscriber_id])
    engagement.record_signs([Sign(weekly.pk, 2, ann.subscriber_id, "open", START)])
    engagement.record_signs([Sign(weekly.pk, 2, ann.subscriber_id, "click", START + timedelta(hours=1))])
    read = Engagement.objects.get(pk=ann.pk)
    assert (read.delivered, read.engaged) == ("0100", "0100")
    assert (read.opened_at, read.clicked_at) == (START, START + timedelta(hours=1))
    unread = Engagement.objects.get(pk=ben.pk)
    assert (unread.delivered, unread.engaged, unread.opened_at) == ("0100", "0000", None)


def test_many_signs_of_one_person_in_one_call_and_again() -> None:
    weekly = make_list(issues=3)
    (ann,) = subscribe(weekly, "ann")
    signs = [Sign(weekly.pk, n, ann.subscriber_id, "open", START + timedelta(days=n)) for n in (3, 1, 1)]
    engagement.record_signs(signs)
    engagement.record_signs(signs[1:])
    found = Engagement.objects.get(pk=ann.pk)
    assert (found.engaged, found.opened_at) == ("101", START + timedelta(days=3))


def test_both_strings_grow_with_the_list() -> None:
    weekly = make_list(issues=2)
    (ann,) = subscribe(weekly, "ann")
    engagement.record_signs([Sign(weekly.pk, 1, ann.subscriber_id, "open", START)])
    weekly.issues = 5
    weekly.save()
    engagement.record_delivered(weekly.pk, 4, [ann.subscriber_id])
    found = Engagement.objects.get(pk=ann.pk)
    assert (found.delivered, found.engaged) == ("00010", "10000")


def test_what_is_kept_depends_on_the_consent() -> None:
    weekly = make_list(issues=1)
    (dated,) = subscribe(weekly, "dated", consent=TrackingConsent.HYGIENE)
    (unseen,) = subscribe(weekly, "unseen", consent=TrackingConsent.NONE)
    both = [dated.subscriber_id, unseen.subscriber_id]
    engagement.record_delivered(weekly.pk, 1, both)
    engagement.record_signs([Sign(weekly.pk, 1, one, kind, START) for one in both for kind in ("open", "click")])
    assert not Engagement.objects.filter(pk=unseen.pk).exists()
    found = Engagement.objects.get(pk=dated.pk)
    assert (found.delivered, found.engaged, found.clicked_at) == ("0", "0", None)
    assert found.opened_at == START.replace(hour=0)


def test_withdrawn_consent_forgets() -> None:
    weekly = make_list(issues=1)
    (ann,) = subscribe(weekly, "ann")
    engagement.record_delivered(weekly.pk, 1, [ann.subscriber_id])
    engagement.record_signs([Sign(weekly.pk, 1, ann.subscriber_id, "open", START)])
    engagement.forget(ann.subscriber_id, consent=TrackingConsent.HYGIENE)
    found = Engagement.objects.get(pk=ann.pk)
    assert (found.delivered, found.engaged, found.opened_at) == ("0", "0", START.replace(hour=0))
    engagement.forget(ann.subscriber_id, consent=TrackingConsent.NONE)
    assert not Engagement.objects.exists()


def test_a_late_bounce_clears_one_bit() -> None:
    weekly = make_list(issues=2)
    ann, ben = subscribe(weekly, "ann", "ben")
    for number in (1, 2):
        engagement.record_delivered(weekly.pk, number, [ann.subscriber_id, ben.subscriber_id])
    engagement.clear_delivered(weekly.pk, 1, [ann.subscriber_id])
    engagement.clear_delivered(weekly.pk, 9, [ann.subscriber_id])
    assert [e.delivered for e in Engagement.objects.order_by("pk")] == ["01", "11"]


def test_a_verdict_that_changed_to_machine_takes_its_signs_back() -> None:
    weekly = make_list(issues=3)
    (ann,) = subscribe(weekly, "ann")
    day = timedelta(days=1)
    signs = [Sign(weekly.pk, n, ann.subscriber_id, "open", START + day * n) for n in (1, 2, 3)]
    engagement.record_signs(signs)
    left = LastSeen(START + day, None)
    engagement.withdraw_signs(signs[1:], last={(weekly.pk, ann.subscriber_id): left})
    found = Engagement.objects.get(pk=ann.pk)
    assert (found.engaged, found.opened_at) == ("100", START + day)
    engagement.withdraw_signs(signs[:1], last={})
    found.refresh_from_db()
    assert (found.engaged, found.opened_at) == ("000", None)


def test_an_action_is_a_sign_of_its_own() -> None:
    weekly = make_list(issues=2)
    (ann,) = subscribe(weekly, "ann")
    engagement.record_action(ann.pk, START + timedelta(days=2))
    engagement.record_action(ann.pk, START)
    found = Engagement.objects.get(pk=ann.pk)
    assert (found.engaged, found.acted_at) == ("00", START + timedelta(days=2))


def test_a_history_is_derived() -> None:
    assert derive("1111", "0100", "1110") == (1, 2, 3, 1)
    assert derive("1011", "0001", "1111") == (1, 3, 3, 0)
    assert derive("", "", "111") == (0, 0, 0, 0)


@given(bits, bits, bits)
def test_any_history_is_consistent(delivered: str, engaged: str, closed: str) -> None:
    history = derive(delivered, engaged, closed)
    assert 0 <= history.x <= history.t_x <= history.n <= delivered.count("1")
    assert (history.x == 0) == (history.t_x == 0)
    assert history.silent_streak == history.n - history.t_x
    # More silence never makes more life.
    longer = derive(delivered.ljust(40, "0") + "1", engaged.ljust(40, "0") + "0", closed.ljust(40, "0") + "1")
    assert longer == (history.x, history.t_x, history.n + 1, history.silent_streak + 1)
