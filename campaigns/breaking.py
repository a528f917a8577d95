"""Circuit breakers: a campaign is paused, with the reason, before bad luck becomes a bad name.

It pauses at K failures of the transport or sender in a row, and at a share of bounces or complaints past the setting.
What is counted stands in one row a campaign (SendingHealth), to which each batch adds what it saw, so that all workers
count together. Resuming accepts the numbers as they are then: only what comes after is judged.
"""

import logging
from datetime import datetime
from typing import NamedTuple

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.utils.translation import gettext as _

from campaigns.errors import CampaignError
from newsletter.mailing.transports.base import Report, Result, TransportError

log = logging.getLogger(__name__)

TEXT_LIMIT = 160
# Enhanced codes (RFC 3463) that speak of us, though they answered a recipient: the sender's address, a server in
# trouble, a policy. Not 4.7.x: greylisting is everyday.
GENERAL_CODES = ("5.1.7", "5.1.8", "4.3.", "5.3.", "5.7.")
# Reply codes without an enhanced one: the server goes (421), or wants or refuses a login (RFC 4954).
GENERAL_REPLIES = frozenset({"421", "454", "530", "534", "535", "538"})

# Adds what a part of a batch saw. An acceptance ends the row of failures before it.
ADD = """
INSERT INTO campaigns_sendinghealth AS health (campaign_id, accepted, refused, failures, last_failure)
VALUES (%(campaign)s, %(accepted)s, %(refused)s, %(failures)s, %(text)s)
ON CONFLICT (campaign_id) DO UPDATE SET
    accepted = health.accepted + excluded.accepted, refused = health.refused + excluded.refused,
    failures = CASE WHEN excluded.accepted > 0 THEN 0 ELSE health.failures END + excluded.failures,
    last_failure = CASE WHEN excluded.failures > 0 THEN excluded.last_failure ELSE health.last_failure END
"""

# Campaigns that are being sent, with what came since somebody last resumed them.
JUDGED = """
SELECT campaign.id, health.failures, health.last_failure,
       health.accepted - health.seen_accepted, health.refused - health.seen_refused,
       greatest(coalesce(figures.bounced, 0) - health.seen_bounced, 0),
       greatest(coalesce(figures.complained, 0) - health.seen_complained, 0)
FROM campaigns_campaign AS campaign
JOIN campaigns_sendinghealth AS health ON health.campaign_id = campaign.id
LEFT JOIN campaigns_campaignfigures AS figures ON figures.campaign_id = campaign.id
WHERE campaign.state = 'sending' AND (%(campaign)s::bigint IS NULL OR campaign.id = %(campaign)s::bigint)
"""

# All that was counted so far is known and accepted.
ACCEPT = """
UPDATE campaigns_sendinghealth AS health
SET failures = 0, seen_accepted = health.accepted, seen_refused = health.refused,
    seen_bounced = coalesce(figures.bounced, 0), seen_complained = coalesce(figures.complained, 0)
FROM campaigns_campaign AS campaign
LEFT JOIN campaigns_campaignfigures AS figures ON figures.campaign_id = campaign.id
WHERE health.campaign_id = %(campaign)s AND campaign.id = health.campaign_id
"""


def is_failure(report: Report) -> bool:
    """Whether a report speaks of the transport, the sender or the mail, not of one mailbox."""
    if report.result is Result.UNKNOWN:
        return True  # the connection was lost before the answer
    if report.result not in {Result.FAILED, Result.DEFERRED}:
        return False
    if "greylist" in report.text.lower() or "graylist" in report.text.lower():
        return False
    return report.is_general or report.code in GENERAL_REPLIES or report.code.startswith(GENERAL_CODES)


class Strain:
    """What a batch under way sees go wrong, until it is added to the campaign's row."""

    def __init__(self, campaign_id: int) -> None:
        self._campaign_id = campaign_id
        self._failures = 0  # in a row, up to now
        self._text = ""
        self._refused = 0
        self._accepted = 0  # of the batch, at the last failure
        self._added = 0  # of them stand in the campaign's row

    def note(self, report: Report, *, accepted: int) -> bool:
        """Count what was not accepted, of a batch that has seen so many acceptances; whether it must stop now."""
        if not is_failure(report):
            # 5.6.x: the mail could not be made for this person; their mailbox never heard of it.
            self._refused += report.result is Result.FAILED and not report.code.startswith("5.6.")
            return False
        return self._failed(report.text or report.code, accepted=accepted)

    def ended(self, error: TransportError, *, accepted: int) -> None:
        """Count a call that the transport gave up. Being asked to wait is no failure."""
        if error.retry_after is None:
            self._failed(str(error), accepted=accepted)

    def _failed(self, text: str, *, accepted: int) -> bool:
        self._failures = self._failures + 1 if accepted == self._accepted else 1
        self._accepted = accepted
        self._text = " ".join(text.split())[:TEXT_LIMIT]
        return bool(0 < settings.BREAKER_FAILURES <= self._failures)

    def add(self, *, accepted: int, now: datetime) -> None:
        """Add what was seen since the last time to the campaign's row, and pause the campaign if it is too much."""
        if accepted > self._accepted:
            self._failures = 0
        seen = {"accepted": accepted - self._added, "refused": self._refused, "failures": self._failures}
        if not any(seen.values()):
            return
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET LOCAL synchronous_commit = off")  # a loss costs a little of the count
                cursor.execute(ADD, {**seen, "campaign": self._campaign_id, "text": self._text})
        except (OperationalError, InterfaceError) as error:
            log.warning("campaign %s: what went wrong is counted later: %s", self._campaign_id, error)
            connection.close()
            return
        self._accepted = self._added = accepted
        self._refused = self._failures = 0
        check(self._campaign_id, now=now)


class _Seen(NamedTuple):
    """A row of JUDGED."""

    campaign_id: int
    failures: int
    last_failure: str
    accepted: int
    refused: int
    bounced: int
    complained: int


def check(campaign_id: int | None = None, *, now: datetime) -> list[int]:
    """Pause a campaign, or each that is being sent, if too much went wrong; those that this call paused."""
    with connection.cursor() as cursor:
        cursor.execute(JUDGED, {"campaign": campaign_id})
        rows = [_Seen(*row) for row in cursor.fetchall()]
    return [seen.campaign_id for seen in rows if (reason := _reason(seen)) and _pause(seen.campaign_id, reason, now)]


def accept(campaign_id: int) -> None:
    """Somebody resumes: judge only what comes from now on."""
    with connection.cursor() as cursor:
        cursor.execute(ACCEPT, {"campaign": campaign_id})


def _reason(seen: _Seen) -> str:
    """Why a campaign must pause; empty if it need not."""
    sent, bounces = seen.accepted + seen.refused, seen.refused + seen.bounced
    if 0 < settings.BREAKER_FAILURES <= seen.failures:
        return _("Paused by itself: sending failed %(count)s times in a row. The last answer: %(text)s") % {
            "count": seen.failures,
            "text": seen.last_failure,
        }
    if _is_past(bounces, sent, percent=settings.BREAKER_BOUNCE_PERCENT, after=settings.BREAKER_BOUNCE_AFTER):
        return _(
            "Paused by itself: %(count)s of %(sent)s mails bounced, which is more than %(percent)s %%. "
            "Look at where these addresses came from before you go on."
        ) % {"count": f"{bounces:,}", "sent": f"{sent:,}", "percent": f"{settings.BREAKER_BOUNCE_PERCENT:g}"}
    if _is_past(
        seen.complained, sent, percent=settings.BREAKER_COMPLAINT_PERCENT, after=settings.BREAKER_COMPLAINT_AFTER
    ):
        return _(
            "Paused by itself: %(count)s people of %(sent)s reported this mail as spam, which is more than "
            "%(percent)s %%. Receivers will soon hold it against you."
        ) % {
            "count": f"{seen.complained:,}",
            "sent": f"{sent:,}",
            "percent": f"{settings.BREAKER_COMPLAINT_PERCENT:g}",
        }
    return ""


def _is_past(part: int, whole: int, *, percent: float, after: int) -> bool:
    """Whether a share is past its limit, once there is enough to judge by; a limit of 0 is none."""
    return percent > 0 and whole >= max(after, 1) and 100 * part > percent * whole


def _pause(campaign_id: int, reason: str, now: datetime) -> bool:
    from campaigns import scheduling  # which resumes through this module

    try:
        scheduling.pause(campaign_id, reason=reason, now=now)
    except CampaignError:
        return False  # somebody else was faster
    log.warning("campaign %s: %s", campaign_id, reason)
    return True
