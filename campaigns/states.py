"""The legal moves of campaigns and deliveries, and the one way to make them: a conditional UPDATE (promise 8)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from campaigns.models import Campaign, CampaignState, DeliveryState

S = CampaignState
CAMPAIGN_MOVES: Mapping[CampaignState, frozenset[CampaignState]] = MappingProxyType(
    {
        S.DRAFT: frozenset({S.SCHEDULED, S.SENDING}),
        S.SCHEDULED: frozenset({S.DRAFT, S.SENDING, S.CANCELLED}),
        S.SENDING: frozenset({S.PAUSED, S.SENT, S.CANCELLED}),
        S.PAUSED: frozenset({S.SENDING, S.CANCELLED, S.SENT}),
        S.SENT: frozenset({S.SENDING}),  # an editor sends again to those in doubt (doubting.py)
        S.CANCELLED: frozenset(),
    }
)

D = DeliveryState
DELIVERY_MOVES: Mapping[DeliveryState, frozenset[DeliveryState]] = MappingProxyType(
    {
        D.QUEUED: frozenset({D.SENDING, D.SKIPPED}),
        D.DEFERRED: frozenset({D.SENDING, D.SKIPPED, D.FAILED}),
        D.SENDING: frozenset({D.ACCEPTED, D.FAILED, D.DEFERRED, D.QUEUED, D.UNKNOWN}),
        D.UNKNOWN: frozenset({D.ACCEPTED, D.FAILED, D.QUEUED}),
        D.ACCEPTED: frozenset(),
        D.FAILED: frozenset(),
        D.SKIPPED: frozenset(),
    }
)


def move(campaign_id: int, *, to: CampaignState, from_: tuple[CampaignState, ...], **updates: Any) -> bool:
    """Move a campaign from one of the named states; whether this call was the one that did.

    Raises ValueError for a move that the table does not know: a programmer's mistake, not a race.
    """
    for state in from_:
        if to not in CAMPAIGN_MOVES[state]:
            raise ValueError(f"no campaign goes from {state} to {to}")
    return Campaign.objects.filter(pk=campaign_id, state__in=from_).update(state=to, **updates) == 1
