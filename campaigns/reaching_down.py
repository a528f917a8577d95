"""What the apps below must ask or tell, but only campaigns know: their registries, filled at start."""

from collections.abc import Sequence

from django.db.models import F, Q

from campaigns.models import Campaign, CampaignFigures, CampaignState
from subscribers import unsubscribing
from subscribers.hygiene import opportunities


def list_of_campaign(campaign_id: int) -> int | None:
    """The list of a campaign, for control tokens, which know only the campaign."""
    return Campaign.objects.filter(pk=campaign_id).values_list("list_id", flat=True).first()


def count_unsubscribe(campaign_id: int, _subscriber_id: int) -> None:
    """One more person left by a link of this campaign."""
    CampaignFigures.objects.filter(campaign_id=campaign_id).update(unsubscribed=F("unsubscribed") + 1)


def uncount_unsubscribe(campaign_id: int, _subscriber_id: int) -> None:
    """Somebody took their leaving back."""
    CampaignFigures.objects.filter(campaign_id=campaign_id, unsubscribed__gt=0).update(
        unsubscribed=F("unsubscribed") - 1
    )


def issues_of_list(list_id: int) -> Sequence[opportunities.Issue]:
    """The issues of a list that went out, in the order of their numbers.

    One that is sent again to a few in doubt stays one of them.
    """
    again = Q(state__in=(CampaignState.SENDING, CampaignState.PAUSED), finished_at__isnull=False)
    rows = (
        Campaign.objects.filter(Q(state=CampaignState.SENT) | again, list_id=list_id, number__isnull=False)
        .order_by("number")
        .values_list("number", "finished_at", "audience", "figures__opens_raw")
    )
    return [
        opportunities.Issue(number=number, sent_at=sent_at, tracked=True, delivered=audience, seen=seen or 0)
        for number, sent_at, audience, seen in rows
        if number is not None and sent_at is not None
    ]


def register() -> None:
    """Called once, by CampaignsConfig.ready."""
    unsubscribing.list_of_campaign = list_of_campaign
    unsubscribing.on_unsubscribed.append(count_unsubscribe)
    unsubscribing.on_resubscribed.append(uncount_unsubscribe)
    opportunities.issues_of_list = issues_of_list
