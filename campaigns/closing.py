"""When a campaign has ended: its opportunities go to hygiene, and its ledger gets the index by person."""

from django.db import connection

from campaigns.freezing import CAMPAIGNS_A_PARTITION
from campaigns.models import Campaign, Delivery, DeliveryState, Outcome
from subscribers import engagement

SLICE = 50_000  # people a transaction


def close(campaign_id: int) -> None:
    """Write down who was sent this issue. Safe to repeat: a bit that is set stays set."""
    campaign = Campaign.objects.get(pk=campaign_id)
    if campaign.number is None:
        return
    accepted = Delivery.objects.filter(campaign_id=campaign_id, state=DeliveryState.ACCEPTED).exclude(
        outcome=Outcome.BOUNCED
    )
    last = 0
    while True:
        people = list(
            accepted.filter(subscriber_id__gt=last)
            .order_by("subscriber_id")
            .values_list("subscriber_id", flat=True)[:SLICE]
        )
        if not people:
            break
        engagement.record_delivered(campaign.list_id, campaign.number, people)
        last = people[-1]
    index_by_person(campaign_id)


def index_by_person(campaign_id: int) -> None:
    """The index (subscriber, campaign) of a partition, made when its first campaign has ended, not while it is sent."""
    partition = f"campaigns_delivery_p{campaign_id // CAMPAIGNS_A_PARTITION}"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE INDEX IF NOT EXISTS {partition}_person ON {partition} (subscriber_id, campaign_id)")
