"""Addresses that a mail server refuses for good while a campaign is sent: never mailed again, on any list."""

import logging
from collections.abc import Iterable
from datetime import datetime

from newsletter.mailing.bounces import BounceClass, classify
from newsletter.mailing.transports.base import Report, Result
from subscribers import suppressing
from subscribers.models import Subscriber, Suppression
from subscribers.suppressing import Unwanted

log = logging.getLogger(__name__)

FEW = 5  # dead addresses that prove nothing about the server that says so


def dead(reports: Iterable[Report]) -> dict[int, str]:
    """The people whose address or domain does not exist, by the enhanced code, with that code."""
    return {
        report.key.subscriber_id: report.code
        for report in reports
        if report.result is Result.FAILED and classify(report.code, report.text) is BounceClass.HARD
    }


def suppress(people: dict[int, str], *, before: int, taken: int, now: datetime) -> None:
    """Suppress these dead addresses. Safe to repeat.

    A server that has called more addresses dead (`before` these) than it took is more likely wrong about all of them.
    """
    if before + len(people) > max(FEW, taken):
        log.warning("a server calls %s more addresses dead and took %s: nobody is suppressed", len(people), taken)
        return
    found = Subscriber.objects.filter(pk__in=people, suppressed_at=None).values_list("pk", "email_key")
    suppressing.suppress_all(
        (Unwanted(key, f"refused {people[person_id]}", now) for person_id, key in found),
        reason=Suppression.Reason.BOUNCE,
    )
