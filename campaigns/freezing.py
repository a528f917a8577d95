"""The freeze: from an audience as it stands to ledger rows and batches, in one transaction.

From here on nobody new is added; who leaves meanwhile is skipped as their batch goes out (promise 2).
"""

import functools
from collections.abc import Callable
from datetime import datetime, time
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F

from campaigns import local_hours
from campaigns.models import Campaign, CampaignFigures, CampaignState, CompiledRevision, Link
from newsletter.mailing.compiling import Compiled
from subscribers.audience import ELIGIBLE
from subscribers.models import List

# Campaigns in one partition of the ledger: few partitions for the planner, small enough to drop.
CAMPAIGNS_A_PARTITION = 64

# A batch costs its worker some 2 ms beside its mails, so large ones are cheaper; but a small campaign must not be one
# batch that leaves all workers but one without work.
BATCHES_AT_LEAST = 32
LEAST_IN_A_BATCH = 100

# Filled by upper apps (tracking publishes the links to the edge); called after the freeze is committed.
on_frozen: list[Callable[[int], None]] = []


def _statement(*, turn: str = "%(now)s::timestamptz", order: str = "", hours: str = "") -> str:
    """The freeze: one row a recipient in the order of the key, one batch a slice of those whose turn is the same.

    A slice has at most `size` people. The batches' ids are drawn first, so that the rows find theirs by a hash join on
    the slice.
    """
    return f"""
WITH audience AS MATERIALIZED (
    SELECT subscription.subscriber_id, {turn} AS turn,
           (row_number() OVER ({order} ORDER BY subscription.subscriber_id) - 1)
             / least(%(size)s, greatest(%(least)s, count(*) OVER () / {BATCHES_AT_LEAST})) AS slice
    FROM subscribers_subscription AS subscription
    JOIN subscribers_subscriber AS subscriber ON subscriber.id = subscription.subscriber_id
    {hours}
    WHERE subscription.list_id = %(list)s AND {ELIGIBLE}
), slices AS MATERIALIZED (
    SELECT turn, slice, first_id, last_id, nextval(pg_get_serial_sequence('campaigns_batch', 'id')) AS batch_id
    FROM (SELECT turn, slice, min(subscriber_id) AS first_id, max(subscriber_id) AS last_id
          FROM audience GROUP BY turn, slice ORDER BY turn, slice) AS grouped
), batches AS (
    INSERT INTO campaigns_batch (id, campaign_id, first_id, last_id, state, not_before)
    SELECT batch_id, %(campaign)s, first_id, last_id, 'ready', turn FROM slices
)
INSERT INTO campaigns_delivery (campaign_id, subscriber_id, batch_id)
SELECT %(campaign)s, audience.subscriber_id, slices.batch_id FROM audience JOIN slices USING (turn, slice)
"""


FREEZE = _statement()
# The same where each time zone has its own turn; who moved to another one since the zones were read goes by the home's.
FREEZE_BY_HOUR = _statement(
    turn="coalesce(hours.turn, %(home)s::timestamptz)",
    order="PARTITION BY coalesce(hours.turn, %(home)s::timestamptz)",
    hours="""LEFT JOIN unnest(%(zones)s::text[], %(turns)s::timestamptz[]) AS hours (zone, turn)
      ON hours.zone = subscriber.time_zone""",
)
ZONES = """
SELECT DISTINCT subscriber.time_zone FROM subscribers_subscription AS subscription
JOIN subscribers_subscriber AS subscriber ON subscriber.id = subscription.subscriber_id
WHERE subscription.list_id = %s
"""


def ensure_partition(campaign_id: int) -> None:
    """Make the ledger's partition for this campaign if it is not there.

    It is made apart and attached, so that running campaigns are not locked out.
    """
    slot = campaign_id // CAMPAIGNS_A_PARTITION
    name = _partition(campaign_id)
    lower, upper = slot * CAMPAIGNS_A_PARTITION, (slot + 1) * CAMPAIGNS_A_PARTITION
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", [name])
        if cursor.fetchone()[0]:
            return
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [name])
        # Read as rows: to_regclass would answer from this connection's memory of a moment ago.
        cursor.execute(
            "SELECT FROM pg_class WHERE relname = %s AND relnamespace = current_schema()::regnamespace", [name]
        )
        if cursor.fetchone() is not None:
            return
        cursor.execute(f"CREATE TABLE {name} (LIKE campaigns_delivery INCLUDING ALL) WITH (fillfactor = 70)")
        cursor.execute(f"ALTER TABLE campaigns_delivery ATTACH PARTITION {name} FOR VALUES FROM ({lower}) TO ({upper})")


def _partition(campaign_id: int) -> str:
    return f"campaigns_delivery_p{campaign_id // CAMPAIGNS_A_PARTITION}"


def next_number(list_id: int) -> int:
    """The next issue number of a list; the row's lock makes numbers gapless within committed freezes."""
    List.objects.filter(pk=list_id).update(issues=F("issues") + 1)
    return List.objects.values_list("issues", flat=True).get(pk=list_id)


def freeze(campaign: Campaign, compiled: Compiled, *, batch_size: int, now: datetime) -> int | None:
    """Store the revision, links, ledger and batches of a campaign whose turn it is; the number of recipients.

    None when another process froze it first: the conditional UPDATE decides.
    """
    ensure_partition(campaign.pk)
    with transaction.atomic():
        # The same schedule that was compiled: one that was undone, and perhaps rewritten and sent anew, is another.
        moved = Campaign.objects.filter(
            pk=campaign.pk, state=CampaignState.SCHEDULED, scheduled_at=campaign.scheduled_at, started_at=None
        ).update(state=CampaignState.SENDING, started_at=now, state_reason="")
        if not moved:
            return None
        CompiledRevision.objects.create(campaign=campaign, content=compiled.to_json())
        Link.objects.bulk_create(
            [Link(campaign=campaign, index=index, url=url) for index, url in enumerate(compiled.links)]
        )
        CampaignFigures.objects.get_or_create(campaign=campaign)
        with connection.cursor() as cursor:
            people: dict[str, Any] = {"campaign": campaign.pk, "list": campaign.list_id, "now": now}
            people |= {"size": batch_size, "least": LEAST_IN_A_BATCH}
            if campaign.local_time is None:
                cursor.execute(FREEZE, people)
            else:
                cursor.execute(FREEZE_BY_HOUR, {**people, **_hours(cursor, campaign, campaign.local_time, now)})
            recipients: int = cursor.rowcount
            # Fresh rows have no statistics, and a planner that guesses reads the whole campaign for a window of it.
            cursor.execute(f"ANALYZE {_partition(campaign.pk)}")
        number = next_number(campaign.list_id)
        Campaign.objects.filter(pk=campaign.pk).update(audience=recipients, number=number)
        for publish in on_frozen:
            transaction.on_commit(functools.partial(publish, campaign.pk))
    return recipients


def _hours(cursor: Any, campaign: Campaign, hour: time, now: datetime) -> dict[str, Any]:
    """When each time zone of a list has its turn, as parameters of FREEZE_BY_HOUR."""
    cursor.execute(ZONES, [campaign.list_id])
    zones = {zone for (zone,) in cursor.fetchall()} | {""}
    turns = local_hours.turns(zones, start=campaign.scheduled_at or now, hour=hour, home=settings.TIME_ZONE, now=now)
    return {"zones": list(turns), "turns": list(turns.values()), "home": turns[""]}
