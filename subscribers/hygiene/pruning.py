"""From judgement to action: preview, run and undo (promise 6: it shows first, asks first, is capped, can be undone).

A run stands in its rows before anybody is touched: one entry a person, with the evidence. Then it works through the
entries in slices, each a transaction of conditional UPDATEs, so that a killed run is carried on where it ended and
nobody is removed twice. At most one run or undo works on a list at a time, under an advisory lock of its connection.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import connection, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from subscribers.hygiene import policies, recording
from subscribers.hygiene.errors import HygieneError
from subscribers.hygiene.policies import Judgements, Person
from subscribers.models import HygieneEntry, HygieneRun

log = logging.getLogger(__name__)

PREVIEW_DAYS = 14  # after which a preview no longer says what a run would do
SCHEDULE = "schedule"  # the actor of what nobody asked for
RUN_EVERY = timedelta(days=7)
SLICE = 10_000  # people a transaction
_LOCK = 7_260_302

Kind, State = HygieneRun.Kind, HygieneRun.State
Action, Outcome = HygieneEntry.Action, HygieneEntry.Outcome

# One slice of a run: whoever is still active and showed no sign since the evidence was frozen is no longer mailed;
# the others are spared. Rows that another process holds are left to it.
REMOVE_SLICE = """
WITH slice AS (
    SELECT id, subscription_id, (evidence->>'sign_at')::timestamptz AS sign_at
      FROM subscribers_hygieneentry
     WHERE run_id = %(run)s AND outcome = 'proposed' AND action = 'remove'
     ORDER BY subscription_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), held AS (
    SELECT slice.id, u.id AS subscription_id FROM slice
      JOIN subscribers_subscription u ON u.id = slice.subscription_id AND u.state = 'active'
      JOIN subscribers_subscriber r ON r.id = u.subscriber_id AND NOT r.is_protected AND r.tracking_consent <> 'none'
      LEFT JOIN subscribers_engagement e ON e.subscription_id = u.id
     WHERE greatest(e.opened_at, e.clicked_at, e.acted_at) IS NOT DISTINCT FROM slice.sign_at
     ORDER BY u.id FOR NO KEY UPDATE OF u
), removed AS (
    UPDATE subscribers_subscription u SET state = 'pruned', state_since = %(at)s
      FROM held WHERE u.id = held.subscription_id AND u.state = 'active'
    RETURNING held.id
)
UPDATE subscribers_hygieneentry entry
   SET outcome = CASE WHEN removed.id IS NULL THEN 'spared' ELSE 'done' END
  FROM slice LEFT JOIN removed ON removed.id = slice.id
 WHERE entry.id = slice.id
"""

# One slice of an undo, by key: whoever is still pruned, and by this run (no later one removed them again), is mailed
# again as before. Who unsubscribed or came back since stays as they are.
RESTORE_SLICE = """
WITH slice AS (
    SELECT id, subscription_id, (evidence->>'state_since')::timestamptz AS state_since
      FROM subscribers_hygieneentry
     WHERE run_id = %(run)s AND outcome = 'done' AND subscription_id > %(after)s
     ORDER BY subscription_id LIMIT %(limit)s FOR UPDATE
), restored AS (
    UPDATE subscribers_subscription u SET state = 'active', state_since = slice.state_since
      FROM slice
     WHERE u.id = slice.subscription_id AND u.state = 'pruned'
       AND NOT EXISTS (SELECT FROM subscribers_hygieneentry later
                        WHERE later.subscription_id = u.id AND later.run_id > %(run)s AND later.outcome = 'done')
    RETURNING slice.id
), noted AS (
    UPDATE subscribers_hygieneentry entry SET outcome = 'restored' FROM restored WHERE entry.id = restored.id
)
SELECT max(subscription_id), (SELECT count(*) FROM restored) FROM slice
"""


class Choice(NamedTuple):
    """Whom a run acts on, and whom it lets go although the preview named them."""

    people: list[Person]
    spared: list[int]  # subscriptions that no longer qualify
    waiting: int  # over the cap


def preview(list_id: int, *, at: datetime | None = None, actor: str = "") -> HygieneRun:
    """Judge a list and write down whom it would stop mailing and why. Nothing else changes. Raises HygieneError.

    `removed` of the preview counts those who would be removed.
    """
    at = at or timezone.now()
    with transaction.atomic():
        found = policies.judge(list_id, at=at)
        made = recording.record(
            list_id, Kind.PREVIEW, State.OPEN, at=at, found=found, actor=actor, removed=len(found.remove)
        )
        recording.write_entries(made, found, found.remove)
    return made


def run(
    list_id: int,
    *,
    at: datetime | None = None,
    approve: int | None = None,
    direct: bool = False,
    cap: float | None = None,
    actor: str = "",
) -> HygieneRun:
    """Stop mailing whom the policy names, at most `cap` percent of the active people (default: the policy's).

    With `approve`, the names are those of that preview without the ones who no longer qualify; a list's first run
    needs it. `direct` takes the names from a judgement of this moment instead. A run that was cut off is carried on,
    and returned, before a new one may begin. Raises HygieneError with a sentence.
    """
    at = at or timezone.now()
    with _alone(list_id):
        unfinished = HygieneRun.objects.filter(list_id=list_id, kind=Kind.RUN, state=State.RUNNING).first()
        if unfinished is None:
            _refuse_hindsight(list_id, at)
            unfinished = _begin(list_id, at=at, approve=approve, direct=direct, cap=cap, actor=actor)
        return _carry_out(unfinished)


def undo(run_id: int, *, actor: str = "") -> int:
    """Mail again everybody whom a run removed and who is still removed by it; how many. Harmless when repeated.

    Raises HygieneError when there is no such run.
    """
    found = HygieneRun.objects.filter(pk=run_id, kind=Kind.RUN).first()
    if found is None:
        raise HygieneError(_("There is no hygiene run %(id)d.") % {"id": run_id})
    with _alone(found.list_id):
        # First, so that a run that was cut off is not carried on after its undoing.
        undone = HygieneRun.objects.filter(pk=run_id).exclude(state=State.UNDONE).update(state=State.UNDONE)
        restored = 0
        after: int | None = 0
        while after is not None:
            with connection.cursor() as cursor:
                cursor.execute(RESTORE_SLICE, {"run": run_id, "after": after, "limit": SLICE})
                after, count = cursor.fetchone()
            restored += count
    if undone or restored:
        recording.audit(actor, "hygiene.undo", found, {"restored": restored})
    return restored


def needs_approval(list_id: int) -> bool:
    """Whether a person must look at a preview first: before a list's first run, and after one was undone."""
    latest = HygieneRun.objects.filter(list_id=list_id, kind=Kind.RUN).order_by("-pk").first()
    return latest is None or latest.state == State.UNDONE


def run_scheduled(list_id: int, *, now: datetime) -> HygieneRun | None:
    """What the schedule owes a list: a preview for a person to approve, or, once one was approved, a weekly run.

    May be called as often as one likes; None when nothing was due.
    """
    runs = HygieneRun.objects.filter(list_id=list_id)
    if runs.filter(kind=Kind.RUN, state=State.RUNNING).exists():
        return run(list_id, at=now, actor=SCHEDULE)
    if not policies.policy_of(list_id).is_scheduled:
        return None
    approval = needs_approval(list_id)
    kind = Kind.PREVIEW if approval else Kind.RUN
    if runs.filter(kind=kind, at__gt=now - RUN_EVERY).exists():
        return None
    if not approval:
        return run(list_id, at=now, actor=SCHEDULE)
    made = preview(list_id, at=now, actor=SCHEDULE)
    older = runs.filter(kind=Kind.PREVIEW, state=State.OPEN, created_by=SCHEDULE).exclude(pk=made.pk)
    older.update(state=State.STOPPED, message=_("Replaced by preview %(id)d.") % {"id": made.pk})
    log.warning("list %s: hygiene preview %s waits for a person's approval", list_id, made.pk)
    return made


def approvable(preview_id: int, *, list_id: int, at: datetime) -> HygieneRun:
    """The preview, if a run may still carry it out. Raises HygieneError with the reason why not."""
    found = HygieneRun.objects.filter(pk=preview_id, kind=Kind.PREVIEW).first()
    facts = {"id": preview_id, "days": PREVIEW_DAYS}
    if found is None:
        raise HygieneError(_("There is no preview %(id)d.") % facts)
    if found.list_id != list_id:
        raise HygieneError(_("Preview %(id)d belongs to another list.") % facts)
    if found.state == State.STOPPED:
        raise HygieneError(_("Preview %(id)d was replaced by a newer one.") % facts)
    if found.state != State.OPEN:
        raise HygieneError(_("Preview %(id)d was already carried out.") % facts)
    if found.created_at < timezone.now() - timedelta(days=PREVIEW_DAYS):
        raise HygieneError(_("Preview %(id)d is more than %(days)d days old; make a new one.") % facts)
    if found.at > at:
        raise HygieneError(_("Preview %(id)d was judged for a later moment than this run.") % facts)
    if found.policy != policies.frozen(policies.policy_of(list_id)):
        raise HygieneError(_("The policy was changed since preview %(id)d; make a new one.") % facts)
    return found


def cap_of(active: int, percent: float) -> int:
    """How many of `active` people a run may remove: never more than the share, so nobody on a very small list."""
    return int(active * percent / 100)


# Beginning -------------------------------------------------------------------------------------------------


def _begin(
    list_id: int, *, at: datetime, approve: int | None, direct: bool, cap: float | None, actor: str
) -> HygieneRun:
    """Judge, choose, and write the run with its entries in one transaction; from here on it can be carried on."""
    if approve is None and needs_approval(list_id):
        raise HygieneError(
            _("This run needs a preview that a person has approved: make one, look at the names, and name it.")
        )
    percent = float(policies.policy_of(list_id).cap_percent) if cap is None else cap
    if not 0 <= percent <= 100:
        raise HygieneError(_("The cap is a percentage from 0 to 100."))
    with transaction.atomic():
        approved = None if approve is None else approvable(approve, list_id=list_id, at=at)
        found = policies.judge(list_id, at=at)
        choice = _choose(found, approved=None if direct else approved, limit=cap_of(found.active, percent))
        if approved and not HygieneRun.objects.filter(pk=approved.pk, state=State.OPEN).update(state=State.DONE):
            raise HygieneError(_("Preview %(id)d was already carried out.") % {"id": approved.pk})
        made = recording.record(
            list_id,
            Kind.RUN,
            State.RUNNING,
            at=at,
            found=found,
            actor=actor,
            preview=approved,
            spared=len(choice.spared) + choice.waiting,
            message=_over_the_cap(choice, percent),
        )
        recording.write_entries(made, found, choice.people)
        recording.write_spared(made, choice.spared)
        if len(choice.people) > SLICE:
            recording.refresh_statistics()
    return made


def _choose(found: Judgements, *, approved: HygieneRun | None, limit: int) -> Choice:
    people, spared = found.remove, []
    if approved is not None:
        named = set(approved.entries.values_list("subscription_id", flat=True))
        people = [person for person in people if person.subscription_id in named]
        spared = sorted(named - {person.subscription_id for person in people})
    return Choice(people[:limit], spared, max(0, len(people) - limit))


def _over_the_cap(choice: Choice, percent: float) -> str:
    if not choice.waiting:
        return ""
    return _("%(n)d more qualify and wait: a run removes at most %(cap)s %% of the active people.") % {
        "n": choice.waiting,
        "cap": f"{percent:g}",
    }


def _refuse_hindsight(list_id: int, at: datetime) -> None:
    newest = policies.newest_evidence(list_id)
    if newest is not None and at < newest:
        raise HygieneError(
            _("Evidence from %(newest)s is known, so a run cannot judge as of %(at)s.")
            % {"newest": newest.isoformat(), "at": at.isoformat()}
        )


# Carrying out ----------------------------------------------------------------------------------------------


def _carry_out(made: HygieneRun) -> HygieneRun:
    """Work through the entries that are left, then close the run with its figures."""
    worked = True
    while worked:
        with connection.cursor() as cursor:
            cursor.execute(REMOVE_SLICE, {"run": made.pk, "at": made.at, "limit": SLICE})
            worked = cursor.rowcount > 0
    with transaction.atomic():
        counted = made.entries.filter(outcome=Outcome.DONE).count()
        refused = made.entries.filter(outcome=Outcome.SPARED).exclude(evidence={}).count()
        closed = HygieneRun.objects.filter(pk=made.pk, state=State.RUNNING).update(
            state=State.DONE, removed=counted, spared=made.spared + refused
        )
        if closed:
            recording.audit(made.created_by, "hygiene.done", made, {"removed": counted})
    made.refresh_from_db()
    return made


@contextmanager
def _alone(list_id: int) -> Iterator[None]:
    """Hold the list's lock, which falls with this process's connection. Raises HygieneError when it is taken."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", [_LOCK, list_id])
        if not cursor.fetchone()[0]:
            raise HygieneError(_("Another hygiene run is working on this list just now."))
    try:
        yield
    finally:
        if not connection.needs_rollback:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s, %s)", [_LOCK, list_id])
