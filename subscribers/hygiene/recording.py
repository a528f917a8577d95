"""The rows in which a preview or run stands: itself, an entry a person with the evidence frozen, and the audit log."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db import connection
from django.utils.translation import gettext as _

from subscribers.hygiene import explaining
from subscribers.hygiene.policies import Judgements, Person
from subscribers.models import AuditEntry, HygieneEntry, HygieneRun, List

SLICE = 5_000  # people written at a time
Action, Outcome = HygieneEntry.Action, HygieneEntry.Outcome

COPY_ENTRIES = """
COPY subscribers_hygieneentry (run_id, subscription_id, action, outcome, reason, evidence) FROM STDIN
"""


def record(
    list_id: int, kind: str, state: str, *, at: datetime, found: Judgements, actor: str, **more: Any
) -> HygieneRun:
    """Write down a preview or run with what was judged, and who asked for it."""
    made = HygieneRun.objects.create(
        list_id=list_id,
        kind=kind,
        state=state,
        at=at,
        policy=found.policy,
        judged=found.judged,
        held_back=found.held_back,
        created_by=actor,
        **more,
    )
    audit(actor, f"hygiene.{kind}", made, {"judged": found.judged, "removable": len(found.remove)})
    return made


def write_entries(made: HygieneRun, found: Judgements, people: Sequence[Person]) -> None:
    """Freeze the evidence of each person, by COPY, in slices that bound the memory."""
    for start in range(0, len(people), SLICE):
        some = people[start : start + SLICE]
        fetches = explaining.machine_fetches(made.list_id, [person.subscriber_id for person in some])
        rows = (
            (
                made.pk,
                person.subscription_id,
                Action.REMOVE.value,
                Outcome.PROPOSED.value,
                *explaining.explained(person, found.opportunities, fetches.get(person.subscriber_id, {})),
            )
            for person in some
        )
        _copy(rows)


def refresh_statistics() -> None:
    """Tell the planner what was just written: it takes a run that it does not know for one row, ten times as slow."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE subscribers_hygieneentry")


def write_spared(made: HygieneRun, subscriptions: Sequence[int]) -> None:
    """People of the preview who no longer qualify: they read, left, or are held back now."""
    why = _("No longer qualifies since the preview.")
    _copy((made.pk, pk, Action.REMOVE.value, Outcome.SPARED.value, why, "{}") for pk in subscriptions)


def _copy(rows: Iterator[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor, cursor.copy(COPY_ENTRIES) as copy:
        for row in rows:
            copy.write_row(row)


def audit(actor: str, action: str, about: HygieneRun, details: dict[str, Any]) -> None:
    """Say in the audit log who did what about which run."""
    subject = f"{List.objects.values_list('slug', flat=True).get(pk=about.list_id)} #{about.pk}"
    AuditEntry.objects.create(actor=actor, action=action, subject=subject, details=details)
