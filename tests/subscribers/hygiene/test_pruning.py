"""Preview, run, undo: what was shown is what happens, it happens once, and it can be taken back."""

import os
import pickle
import signal
import subprocess
import sys
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subscribers import engagement
from subscribers.engagement import Sign
from subscribers.hygiene import pruning
from subscribers.hygiene.errors import HygieneError
from subscribers.models import AuditEntry, HygieneEntry, HygienePolicy, HygieneRun, List, Subscription, TrackingConsent
from tests.subscribers.hygiene.building import START, Letters, make_list, subscribe

SILENT = tuple(f"silent{n}" for n in range(6))
ACTIVE, PRUNED = Subscription.State.ACTIVE, Subscription.State.PRUNED
Outcome = HygieneEntry.Outcome


def make_letters(slug: str = "weekly", *, start: datetime = START) -> Letters:
    """A weekly with one reader, one lapsed reader and six people who never read; the cap is no obstacle."""
    letters = Letters.weekly(make_list(slug), 30, start=start)
    HygienePolicy.objects.create(list=letters.to, cap_percent=90)
    reader, lapsed = subscribe(letters.to, "reader", "lapsed", since=start)
    letters.deliver([reader, lapsed, *subscribe(letters.to, *SILENT, since=start)])
    letters.read(reader, *range(1, 31))
    letters.read(lapsed, 3)
    return letters


@pytest.fixture
def letters(db: None) -> Letters:
    return make_letters()


def names(run: HygieneRun, outcome: str) -> set[str]:
    return {entry.subscription.subscriber.email for entry in run.entries.filter(outcome=outcome)}


def states(letters: Letters) -> list[tuple[int, str, datetime]]:
    found = Subscription.objects.filter(list=letters.to).order_by("pk")
    return list(found.values_list("pk", "state", "state_since"))


def approved_run(letters: Letters) -> HygieneRun:
    seen = pruning.preview(letters.to.pk, at=letters.end)
    return pruning.run(letters.to.pk, at=letters.end, approve=seen.pk)


def test_a_preview_changes_nothing_and_says_why(letters: Letters) -> None:
    before = states(letters)
    made = pruning.preview(letters.to.pk, at=letters.end, actor="ann")
    assert states(letters) == before
    assert (made.judged, made.removed, made.asked, made.state) == (8, 7, 0, HygieneRun.State.OPEN)
    entry = made.entries.get(subscription__subscriber__email="silent0@example.org")
    assert entry.reason == ("Got 30 issues since 6 January 2025; none was ever opened or clicked by a person.")
    assert (entry.action, entry.outcome) == ("remove", Outcome.PROPOSED)
    assert entry.evidence["strip"] == "s" * 30


def test_the_run_removes_exactly_the_names_of_its_preview(letters: Letters) -> None:
    seen = pruning.preview(letters.to.pk, at=letters.end)
    made = pruning.run(letters.to.pk, at=letters.end, approve=seen.pk, actor="ann")
    assert names(made, Outcome.DONE) == names(seen, Outcome.PROPOSED)
    assert (made.state, made.removed, made.spared, made.preview) == (HygieneRun.State.DONE, 7, 0, seen)
    assert Subscription.objects.filter(state=PRUNED, state_since=letters.end).count() == 7
    assert {entry.action for entry in AuditEntry.objects.all()} == {"hygiene.preview", "hygiene.run", "hygiene.done"}


def test_undo_is_the_identity_and_may_be_repeated(letters: Letters) -> None:
    before = states(letters)
    made = approved_run(letters)
    assert pruning.undo(made.pk) == 7
    assert states(letters) == before
    assert pruning.undo(made.pk) == 0
    made.refresh_from_db()
    assert made.state == HygieneRun.State.UNDONE
    assert names(made, Outcome.DONE) == set()


def test_undo_leaves_alone_who_left_or_came_back(letters: Letters) -> None:
    made = approved_run(letters)
    left, back = Subscription.objects.filter(state=PRUNED).order_by("pk")[:2]
    Subscription.objects.filter(pk=left.pk).update(state=Subscription.State.UNSUBSCRIBED)
    Subscription.objects.filter(pk=back.pk).update(state=ACTIVE, state_since=letters.end + timedelta(days=1))
    assert pruning.undo(made.pk) == 5
    left.refresh_from_db()
    back.refresh_from_db()
    assert (left.state, back.state_since) == (Subscription.State.UNSUBSCRIBED, letters.end + timedelta(days=1))


def test_undo_leaves_what_a_later_run_removed(letters: Letters) -> None:
    first = approved_run(letters)
    Subscription.objects.filter(list=letters.to).update(state=ACTIVE)  # all of them came back by themselves
    second = pruning.run(letters.to.pk, at=letters.end)
    assert second.removed == 7
    assert pruning.undo(first.pk) == 0
    assert pruning.undo(second.pk) == 7


def test_the_first_run_needs_an_approved_preview(letters: Letters) -> None:
    for direct in (False, True):
        with pytest.raises(HygieneError, match="preview that a person has approved"):
            pruning.run(letters.to.pk, at=letters.end, direct=direct)
    first = approved_run(letters)
    assert pruning.run(letters.to.pk, at=letters.end).removed == 0  # later runs go without
    pruning.undo(first.pk)
    pruning.undo(HygieneRun.objects.latest("pk").pk)
    with pytest.raises(HygieneError, match="approved"):  # but not after one was found wrong
        pruning.run(letters.to.pk, at=letters.end)


def test_a_direct_run_judges_anew(letters: Letters) -> None:
    early = pruning.preview(letters.to.pk, at=letters.sent_at(10))
    assert early.removed == 0
    assert pruning.run(letters.to.pk, at=letters.end, approve=early.pk, direct=True).removed == 7


def test_a_preview_is_carried_out_once_in_time_and_on_its_own_list(letters: Letters) -> None:
    other = make_letters("other")
    seen = pruning.preview(letters.to.pk, at=letters.end)

    def run_it(at: datetime = letters.end) -> None:
        pruning.run(letters.to.pk, at=at, approve=seen.pk)

    with pytest.raises(HygieneError, match="belongs to another list"):
        pruning.run(other.to.pk, at=letters.end, approve=seen.pk)
    with pytest.raises(HygieneError, match="There is no preview 0"):
        pruning.run(letters.to.pk, at=letters.end, approve=0)
    made = HygieneRun.objects.filter(pk=seen.pk)
    made.update(created_at=timezone.now() - timedelta(days=15))
    with pytest.raises(HygieneError, match="more than 14 days old"):
        run_it()
    made.update(created_at=timezone.now(), at=letters.end + timedelta(hours=1))
    with pytest.raises(HygieneError, match="later moment"):
        run_it()
    made.update(at=letters.end)
    HygienePolicy.objects.filter(list=letters.to).update(min_days=30)
    with pytest.raises(HygieneError, match="policy was changed"):
        run_it()
    HygienePolicy.objects.filter(list=letters.to).update(min_days=90)
    run_it()
    with pytest.raises(HygieneError, match="already carried out"):
        run_it()


def test_who_read_since_the_preview_is_spared(letters: Letters) -> None:
    seen = pruning.preview(letters.to.pk, at=letters.end)
    woken = Subscription.objects.get(subscriber__email="silent0@example.org")
    later = letters.end + timedelta(hours=1)
    engagement.record_signs([Sign(letters.to.pk, 30, woken.subscriber_id, "click", later)])
    made = pruning.run(letters.to.pk, at=later, approve=seen.pk)
    assert (made.removed, made.spared) == (6, 1)
    assert names(made, Outcome.SPARED) == {"silent0@example.org"}


def test_who_reads_while_the_run_is_under_way_is_spared(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = pruning.preview(letters.to.pk, at=letters.end)
    woken = Subscription.objects.get(subscriber__email="silent0@example.org")
    carry_out = pruning._carry_out

    def read_first(made: HygieneRun) -> HygieneRun:
        letters.read(woken, 30)
        return carry_out(made)

    monkeypatch.setattr(pruning, "_carry_out", read_first)
    made = pruning.run(letters.to.pk, at=letters.end, approve=seen.pk)
    assert (made.removed, made.spared) == (6, 1)


def test_judging_with_hindsight_is_refused(letters: Letters) -> None:
    seen = pruning.preview(letters.to.pk, at=letters.sent_at(29))
    with pytest.raises(HygieneError, match="Evidence from 2025-07-28"):
        pruning.run(letters.to.pk, at=letters.sent_at(29), approve=seen.pk)


def test_the_cap_takes_the_most_certain_and_says_who_waits(letters: Letters) -> None:
    seen = pruning.preview(letters.to.pk, at=letters.end)
    made = pruning.run(letters.to.pk, at=letters.end, approve=seen.pk, cap=75)
    assert (made.removed, made.spared) == (6, 1)
    assert names(made, Outcome.DONE) == {f"{name}@example.org" for name in SILENT}  # the lapsed reader waits
    assert made.message.startswith("1 more qualify and wait: a run removes at most 75 %")


def test_on_a_list_of_eight_the_default_cap_lets_nobody_go(letters: Letters) -> None:
    HygienePolicy.objects.filter(list=letters.to).update(cap_percent=5)
    made = approved_run(letters)
    assert (made.removed, made.spared) == (0, 7)


@pytest.mark.parametrize("cap", [-1, 101, float("nan")])
def test_a_cap_that_is_no_percentage_is_refused(letters: Letters, cap: float) -> None:
    seen = pruning.preview(letters.to.pk, at=letters.end)
    with pytest.raises(HygieneError, match="from 0 to 100"):
        pruning.run(letters.to.pk, at=letters.end, approve=seen.pk, cap=cap)


def test_the_schedule_previews_until_somebody_approves_then_runs_weekly(letters: Letters) -> None:
    at, week = letters.end, timedelta(days=7)
    seen = pruning.run_scheduled(letters.to.pk, now=at)
    assert seen is not None
    assert (seen.kind, pruning.run_scheduled(letters.to.pk, now=at + timedelta(hours=1))) == ("preview", None)
    again = pruning.run_scheduled(letters.to.pk, now=at + week)
    assert again is not None
    assert again.kind == "preview"
    with pytest.raises(HygieneError, match="replaced by a newer one"):
        pruning.run(letters.to.pk, at=at + week, approve=seen.pk)
    pruning.run(letters.to.pk, at=at + week, approve=again.pk)
    assert pruning.run_scheduled(letters.to.pk, now=at + week * 2 - timedelta(hours=1)) is None
    made = pruning.run_scheduled(letters.to.pk, now=at + week * 2)
    assert made is not None
    assert made.kind == "run"
    HygienePolicy.objects.update(is_scheduled=False)
    assert pruning.run_scheduled(letters.to.pk, now=at + week * 4) is None


@pytest.mark.django_db(transaction=True)
def test_two_runs_at_once_remove_nobody_twice() -> None:
    letters = make_letters()
    seen = pruning.preview(letters.to.pk, at=letters.end)

    def run_it(_: int) -> str:
        try:
            return str(pruning.run(letters.to.pk, at=letters.end, approve=seen.pk).removed)
        except HygieneError as error:
            return str(error)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(run_it, range(4)))
    assert answers.count("7") == 1
    refusals = {"Another hygiene run is working on this list just now.", f"Preview {seen.pk} was already carried out."}
    assert {answer for answer in answers if answer != "7"} <= refusals
    assert HygieneEntry.objects.filter(outcome=Outcome.DONE).count() == 7
    assert HygieneRun.objects.filter(kind="run").count() == 1


RUN_IN_SLICES_OF_ONE = """
import base64, pickle, sys
import django
django.setup()
from subscribers.hygiene import opportunities, pruning
at, issues, list_id, preview = pickle.loads(base64.b64decode(sys.argv[1]))
opportunities.issues_of_list = lambda _: issues
pruning.SLICE = 1
pruning.run(list_id, at=at, approve=preview)
"""


@pytest.mark.django_db(transaction=True)
def test_a_killed_run_is_carried_on_where_it_ended() -> None:
    from tests.engines import engines

    letters = make_letters()
    seen = pruning.preview(letters.to.pk, at=letters.end)
    facts = b64encode(pickle.dumps((letters.end, letters.issues, letters.to.pk, seen.pk))).decode()
    database = connection.settings_dict["NAME"]
    environment = {
        **os.environ,
        "DATABASE_URL": engines.postgres.url(database),
        "DJANGO_SETTINGS_MODULE": "newsletter.settings",
    }
    with engines.postgres.connect(database) as held, held.transaction():
        # The last person of the run is locked, so the process waits there with the others done.
        last = seen.entries.order_by("-subscription_id")[0].subscription_id
        held.execute("SELECT FROM subscribers_subscription WHERE id = %s FOR NO KEY UPDATE", [last])
        process = subprocess.Popen([sys.executable, "-c", RUN_IN_SLICES_OF_ONE, facts], env=environment)
        while Subscription.objects.filter(state=PRUNED).count() != 6:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    broken = HygieneRun.objects.get(kind="run")
    assert broken.state == HygieneRun.State.RUNNING
    # PostgreSQL notices the dead connection, and with it falls the lock.
    while True:
        try:
            made = pruning.run(letters.to.pk, at=letters.end, approve=seen.pk)
            break
        except HygieneError as error:
            assert "just now" in str(error)  # noqa: PT017
    assert (made.pk, made.state, made.removed, made.spared) == (broken.pk, HygieneRun.State.DONE, 7, 0)


person = st.tuples(
    st.sampled_from(TrackingConsent.values), st.booleans(), st.integers(0, 29), st.lists(st.integers(1, 30), max_size=3)
)


@pytest.mark.django_db
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(people=st.lists(person, min_size=1, max_size=8), cap=st.integers(0, 100))
def test_whatever_the_list_preview_equals_run_and_undo_is_the_identity(
    people: list[tuple[str, bool, int, list[int]]], cap: int
) -> None:
    letters = make_letters(f"weekly-{List.objects.count()}")
    for n, (consent, is_protected, first, read) in enumerate(people):
        (one,) = subscribe(letters.to, f"{letters.to.pk}-{n}", consent=consent, protected=is_protected)
        letters.deliver([one], range(first + 1, 31))
        letters.read(one, *read)
    before = states(letters)
    seen = pruning.preview(letters.to.pk, at=letters.end)
    made = pruning.run(letters.to.pk, at=letters.end, approve=seen.pk, cap=cap)
    removed = names(made, Outcome.DONE)
    assert removed <= names(seen, Outcome.PROPOSED)
    assert made.removed + made.spared == seen.removed
    assert len(removed) == made.removed <= len(before) * cap / 100
    pruned = Subscription.objects.filter(list=letters.to, state=PRUNED)
    assert not pruned.filter(subscriber__is_protected=True).exists()
    assert not pruned.filter(subscriber__tracking_consent="none").exists()
    assert pruning.undo(made.pk) == made.removed
    assert states(letters) == before
