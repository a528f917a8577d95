"""When a campaign has ended: its opportunities go to hygiene, those in doubt are counted, and its ledger gets the index
by person. Rows are the queue here too: `closed_at` is empty until all of it is done, and the sweep finds what was lost.
"""

from datetime import datetime

from django.db import connection
from django.db.models import Exists, Max

from campaigns import doubting, telling
from campaigns.freezing import CAMPAIGNS_A_PARTITION
from campaigns.models import Batch, Campaign, CampaignState, Delivery, DeliveryState, EditorEvent, Outcome
from subscribers import engagement

SLICE = 50_000  # people a transaction
_LOCK = 7_260_411  # any number that no other advisory lock of this product uses as its class


def due() -> list[int]:
    """Campaigns that have been sent and not been closed yet."""
    sent = Campaign.objects.filter(state=CampaignState.SENT, closed_at=None, origin=Campaign.Origin.HERE)
    return list(sent.values_list("pk", flat=True))


def close(campaign_id: int, *, now: datetime) -> bool:
    """Do what is owed; False while another process does it. Safe to repeat: bits that are set stay set."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", [_LOCK, campaign_id])
        if not cursor.fetchone()[0]:
            return False
    try:
        newest = Batch.objects.filter(campaign_id=campaign_id).aggregate(newest=Max("pk"))["newest"] or 0
        _close(campaign_id)
        _note(campaign_id, now=now)
        # Not if somebody has sent again to a few meanwhile: those are owed their opportunity too.
        Campaign.objects.filter(
            ~Exists(Batch.objects.filter(campaign_id=campaign_id, pk__gt=newest)),
            pk=campaign_id,
            state=CampaignState.SENT,
            closed_at=None,
        ).update(closed_at=now)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s, %s)", [_LOCK, campaign_id])
    return True


def _note(campaign_id: int, *, now: datetime) -> None:
    """Let editors be told that it is finished; a second end, after a repeat to a few, tells nobody anything new."""
    campaign = Campaign.objects.get(pk=campaign_id)
    if campaign.finished_at and now - campaign.finished_at < telling.FRESH:
        telling.note(campaign_id, EditorEvent.Kind.FINISHED, now=now)


def _close(campaign_id: int) -> None:
    campaign = Campaign.objects.get(pk=campaign_id)
    doubting.recount(campaign_id)
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
