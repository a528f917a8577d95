"""How far a campaign is: counted once for everybody who looks, with its speed, its time left, and what holds it up.

Counting is one pass over the campaign's part of the ledger: 200 ms for a million recipients.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Max, Min, Q

from campaigns import reporting, sharing
from campaigns.delivering import RETRY_DELAYS
from campaigns.models import Batch, Campaign, CampaignState

RATE_SECONDS = 20  # the speed is that of the last so many seconds
# Nothing more will happen to these rows while the campaign is being sent.
SETTLED = ("accepted", "failed", "skipped", "unknown")


@dataclass(frozen=True)
class Retries:
    """Nothing is left of a campaign but recipients whose servers put them off: how many, next and last attempt."""

    people: int
    next_at: datetime
    until: datetime


@dataclass(frozen=True)
class Progress:
    """Where a campaign stands: `reporting.status`, and how fast it moves."""

    status: dict[str, Any]
    rate: float  # messages accepted a second, of late
    retries: Retries | None = None
    goes_on_at: datetime | None = None  # nothing is due before
    is_worked_on: bool = False  # some worker holds a batch

    @property
    def done(self) -> int:
        """Recipients to whom nothing more will happen."""
        return sum(self.status["deliveries"].get(state, 0) for state in SETTLED)

    @property
    def waiting(self) -> int:
        """Recipients whose first attempt has not ended."""
        return sum(self.status["deliveries"].get(state, 0) for state in ("queued", "sending"))

    @property
    def seconds_left(self) -> float | None:
        """At this speed, until the last first attempt; None when it does not move."""
        return self.waiting / self.rate if self.rate else None


def progress(campaign_id: int, *, now: datetime) -> Progress:
    """Where a campaign stands, at most some seconds old. Raises Campaign.DoesNotExist."""
    found = sharing.shared(f"campaigns:progress:{campaign_id}", lambda: count(campaign_id, now=now))
    # The state is as it is now: pages turn by it.
    state = Campaign.objects.values_list("state", flat=True).get(pk=campaign_id)
    return replace(found, status={**found.status, "state": str(state)})


def count(campaign_id: int, *, now: datetime) -> Progress:
    """Where a campaign stands this moment, counted. Raises Campaign.DoesNotExist."""
    parts = reporting.ledger(campaign_id, since=now - timedelta(seconds=RATE_SECONDS))
    status = reporting.status(campaign_id, parts)
    campaign = Campaign.objects.only("started_at", "state").get(pk=campaign_id)
    if campaign.state not in {CampaignState.SENDING, CampaignState.PAUSED}:
        return Progress(status, 0.0)
    sent_for = (now - campaign.started_at).total_seconds() if campaign.started_at else RATE_SECONDS
    accepted = sum(part.recent for part in parts if part.state == "accepted")
    rate = accepted / min(max(sent_for, 1.0), RATE_SECONDS)
    batches = _batches(campaign_id)
    goes_on_at = batches["next_at"] if batches["next_at"] and batches["next_at"] > now else None
    found = Progress(status, rate, None, goes_on_at, bool(batches["leased"]))
    deferred = status["deliveries"].get("deferred", 0)
    if goes_on_at and deferred and not found.waiting and not found.is_worked_on:
        attempts = min(part.attempts for part in parts if part.state == "deferred")
        left = sum(RETRY_DELAYS[attempts:], timedelta())
        retries = Retries(deferred, goes_on_at, batches["last_at"] + left)
        return Progress(status, 0.0, retries, goes_on_at)
    return found


def only_retries(campaign_id: int, *, now: datetime) -> Retries | None:
    """Whether nothing is left but people who were put off; the ledger is counted only when no batch is due."""
    batches = _batches(campaign_id)
    if batches["leased"] or batches["next_at"] is None or batches["next_at"] <= now:
        return None
    return count(campaign_id, now=now).retries


def _batches(campaign_id: int) -> dict[str, Any]:
    ready = Q(state=Batch.State.READY)
    return Batch.objects.filter(campaign_id=campaign_id).aggregate(
        leased=Count("pk", filter=Q(state=Batch.State.LEASED)),
        next_at=Min("not_before", filter=ready),
        last_at=Max("not_before", filter=ready),
    )
