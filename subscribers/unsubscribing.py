"""Leaving a list, by one click or by the page, and taking it back. Always by POST, never by a GET (promise 3)."""

from collections.abc import Callable
from datetime import datetime, timedelta

from django.db import transaction

from subscribers import engagement
from subscribers.models import ConsentRecord, Subscription


def _no_campaigns(campaign_id: int) -> int | None:
    """What stands here until the campaigns app has come up."""
    return None


# What upper apps know or want to know; they fill these in AppConfig.ready().
list_of_campaign: Callable[[int], int | None] = _no_campaigns
on_unsubscribed: list[Callable[[int, int], None]] = []  # called with campaign id and subscriber id
on_resubscribed: list[Callable[[int, int], None]] = []

# Long enough for somebody who clicked in haste; short enough that an old, forwarded mail revives nobody.
UNDO_WITHIN = timedelta(days=1)

TOLD = "Unsubscribed; no further issue of this newsletter is sent."
TOLD_UNDONE = "Took the unsubscribing back; the newsletter comes again."


def unsubscribe(
    *, list_id: int, subscriber_id: int, campaign_id: int | None, source: str, network: str = "", now: datetime
) -> bool:
    """End a subscription. True if this call changed it; repeating is harmless.

    A link to confirm that was mailed before is dead from now on.
    """
    with transaction.atomic():
        moved = (
            Subscription.objects.filter(list_id=list_id, subscriber_id=subscriber_id)
            .exclude(state=Subscription.State.UNSUBSCRIBED)
            .update(
                state=Subscription.State.UNSUBSCRIBED,
                state_since=now,
                requested_at=None,
                unsubscribed_by=campaign_id,
            )
        )
        if not moved:
            return False
        ConsentRecord.objects.create(
            subscriber_id=subscriber_id,
            list_id=list_id,
            kind=ConsentRecord.Kind.UNSUBSCRIBED,
            text=TOLD,
            source=source,
            network=network,
            at=now,
        )
        if campaign_id is not None:
            for tell in on_unsubscribed:
                tell(campaign_id, subscriber_id)
    return True


def undo(
    *, list_id: int, subscriber_id: int, campaign_id: int | None, source: str, network: str = "", now: datetime
) -> bool:
    """Take back what the same campaign's link did within the last day. True if this call changed it."""
    with transaction.atomic():
        undone = Subscription.objects.filter(
            list_id=list_id,
            subscriber_id=subscriber_id,
            state=Subscription.State.UNSUBSCRIBED,
            unsubscribed_by=campaign_id,
            state_since__gt=now - UNDO_WITHIN,
            subscriber__suppressed_at=None,
        ).update(state=Subscription.State.ACTIVE, state_since=now, unsubscribed_by=None)
        if not undone:
            return False
        ConsentRecord.objects.create(
            subscriber_id=subscriber_id,
            list_id=list_id,
            kind=ConsentRecord.Kind.RESUBSCRIBED,
            text=TOLD_UNDONE,
            source=source,
            network=network,
            at=now,
        )
        engagement.record_action(Subscription.objects.get(list_id=list_id, subscriber_id=subscriber_id).pk, now)
        if campaign_id is not None:
            for tell in on_resubscribed:
                tell(campaign_id, subscriber_id)
    return True


def can_undo(subscription: Subscription, *, campaign_id: int, now: datetime) -> bool:
    """Whether `undo` with this campaign's link would bring the subscription back."""
    return (
        subscription.state == Subscription.State.UNSUBSCRIBED
        and subscription.unsubscribed_by == campaign_id
        and subscription.state_since > now - UNDO_WITHIN
    )


def mailed(campaign_id: int, subscriber_id: int) -> Subscription | None:
    """The subscription that a campaign's mail belongs to; None when the campaign or the person is gone."""
    list_id = list_of_campaign(campaign_id)
    if list_id is None:
        return None
    found = Subscription.objects.filter(list_id=list_id, subscriber_id=subscriber_id)
    return found.select_related("list__sender", "subscriber").first()
