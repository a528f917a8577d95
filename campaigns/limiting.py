"""Limits as configured: what holds for a campaign, which waiting batches are handed out, and why it takes its time.

Of the batches that wait for a limit (pacing.py) only as many are handed out as its rate can feed, so that thousands of
them cost nothing. Without limits all of this is one look at a tuple.
"""

import contextlib
import math
import random
import time
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import redis
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Max, Min
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from redis.backoff import NoBackoff
from redis.retry import Retry

from campaigns import local_hours
from campaigns.batching import ENQUEUE_AGAIN, ENQUEUE_AT_ONCE
from campaigns.models import Batch, Campaign, CampaignState, SendingLimit
from newsletter.mailing.throttling import Limit, Rules, Throttle, WarmUp

REFRESH_SECONDS = 3.0  # how old a process's copy of the limits may be
LANE = 250.0  # mails a second for which one batch of a group is handed out
ALL_LANES = 50  # batches handed out of a group whose limits are gone
# While this key lives, somebody waits for a rate and workers look several times a second (newsletter/celery.py).
WAITING_KEY = "throttle:waiting"
WAITING_SECONDS = 15
TICK_KEY, TICK_MS = "throttle:tick", 200
LONGEST_RATE_WAIT = timedelta(seconds=60)  # for a rate one waits a few seconds; whoever waits longer waits for a day
LAST_ZONE = "Etc/GMT+12"  # where a day comes last

# Of each group of each campaign so many batches as its lanes hold, those under way among them. The outer conditions
# are asked again by a second sweep that waited for this one's rows.
DUE = """
UPDATE campaigns_batch SET enqueued_at = %(now)s
WHERE id IN (
    SELECT ranked.id FROM (
        SELECT batch.id, batch.throttle, is_under_way, row_number() OVER (
                   PARTITION BY batch.campaign_id, batch.throttle ORDER BY is_under_way DESC, batch.id) AS place
        FROM campaigns_batch AS batch
        JOIN campaigns_campaign AS campaign ON campaign.id = batch.campaign_id AND campaign.state = 'sending',
        LATERAL (SELECT batch.state = 'leased' OR coalesce(batch.enqueued_at >= %(again)s, false) AS is_under_way) AS _
        WHERE batch.state IN ('ready', 'leased') AND batch.not_before <= %(now)s AND batch.throttle <> ''
    ) AS ranked
    LEFT JOIN unnest(%(groups)s::text[], %(lanes)s::int[]) AS wide (throttle, lanes) USING (throttle)
    WHERE NOT is_under_way AND place <= coalesce(wide.lanes, %(all_lanes)s)
    LIMIT %(limit)s
) AND state = 'ready' AND (enqueued_at IS NULL OR enqueued_at < %(again)s)
RETURNING id
"""


# Limits ----------------------------------------------------------------------------------------------------------


class _Copy:
    """A process's copy of the limits."""

    def __init__(self) -> None:
        self.limits: tuple[tuple[int | None, Limit], ...] = ()  # sender, limit
        self.rules: dict[int | None, Rules] = {}
        self.read_at = -math.inf  # time.monotonic()


_copy = _Copy()


def loaded() -> _Copy:
    """The limits as they stood a few seconds ago at most."""
    if time.monotonic() - _copy.read_at > REFRESH_SECONDS:
        limits = tuple((row.sender_id, as_limit(row)) for row in SendingLimit.objects.order_by("pk"))
        if limits != _copy.limits:
            _copy.limits, _copy.rules = limits, {}
        _copy.read_at = time.monotonic()
    return _copy


def forget() -> None:
    """Read the limits anew at the next look."""
    _copy.read_at = -math.inf


def as_limit(row: SendingLimit) -> Limit:
    warm_up = None
    if row.warm_up_start:
        warm_up = WarmUp(row.warm_up_start, first=row.warm_up_first, growth=row.warm_up_growth)
    return Limit(
        key=str(row.pk),
        name=row.name,
        domains=tuple(row.domains.split()),
        per_second=float(row.per_second) if row.per_second else None,
        per_day=row.per_day,
        warm_up=warm_up,
    )


def rules_of(campaign_id: int) -> Rules | None:
    """What holds for a campaign; None, at the cost of one look, if nothing is limited."""
    current = loaded()
    if not current.limits:
        return None
    sender = Campaign.objects.select_related("list").only("sender_id", "list__sender_id").get(pk=campaign_id)
    return _rules(current, sender.sender_id or sender.list.sender_id)


def _rules(current: _Copy, sender_id: int) -> Rules | None:
    if sender_id not in current.rules:
        own = tuple(limit for only, limit in current.limits if only in {None, sender_id})
        current.rules[sender_id] = Rules(own)
    rules = current.rules[sender_id]
    return rules if rules.limits else None


@cache
def server() -> "redis.Redis":
    """The Valkey of the streams: it evicts nothing and outlives a restart, as the day's counters must."""
    # One try: whoever asks comes again by themselves, and a worker's clock must not stand still.
    once = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(settings.STREAM_URL, socket_timeout=1, socket_connect_timeout=1, retry=once)


def throttle() -> Throttle:
    return Throttle(server(), zone=ZoneInfo(settings.TIME_ZONE))


# Handing out -----------------------------------------------------------------------------------------------------


def due(*, now: datetime) -> list[int]:
    """Batches of groups that a message should be sent for now, in any order, so that no campaign is always first."""
    groups = list(
        Batch.objects.filter(state=Batch.State.READY, not_before__lte=now)
        .exclude(throttle="")
        .values_list("throttle", flat=True)
        .distinct()
    )
    if not groups:
        return []
    limits = {limit.key: limit for _, limit in loaded().limits}
    parameters: dict[str, Any] = {
        "now": now,
        "again": now - ENQUEUE_AGAIN,
        "limit": ENQUEUE_AT_ONCE,
        "groups": groups,
        "lanes": [_lanes([limits[key] for key in group.split("+") if key in limits]) for group in groups],
        "all_lanes": ALL_LANES,
    }
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(DUE, parameters)
        batches = [batch_id for (batch_id,) in cursor.fetchall()]
    random.shuffle(batches)
    return batches


def _lanes(limits: list[Limit]) -> int:
    """How many batches of a group its rate can feed at once."""
    rates = [limit.per_second for limit in limits if limit.per_second]
    return max(1, math.ceil(min(rates) / LANE)) if rates else ALL_LANES


def reconsider(*, now: datetime) -> None:
    """The limits have changed: whoever waits because of one asks again."""
    forget()
    Batch.objects.filter(state=Batch.State.READY).exclude(throttle="").update(
        not_before=now, enqueued_at=None, throttle=""
    )


def are_there_any() -> bool:
    """Whether anything is limited."""
    return bool(loaded().limits)


def say_that_somebody_waits() -> None:
    """Let the workers' clocks look often for a while (newsletter/celery.py)."""
    with contextlib.suppress(redis.RedisError):
        server().set(WAITING_KEY, 1, ex=WAITING_SECONDS)


def is_somebody_waiting() -> bool:
    """Whether somebody waits for a rate and nobody else has said so in the last moment. Raises redis.RedisError."""
    return bool(server().exists(WAITING_KEY)) and bool(server().set(TICK_KEY, 1, nx=True, px=TICK_MS))


# In words --------------------------------------------------------------------------------------------------------


def throttling_note(campaign: Campaign, *, now: datetime) -> str:
    """Why a campaign that is being sent takes its time, for its editor; empty if it does not."""
    if campaign.state != CampaignState.SENDING:
        return ""
    ready = Batch.objects.filter(campaign=campaign, state=Batch.State.READY)
    groups = ready.exclude(throttle="").values_list("throttle").annotate(at=Min("not_before")).order_by("throttle")
    rows = {str(row.pk): row for row in SendingLimit.objects.all()}
    sentences = [
        _why([as_limit(rows[key]) for key in group.split("+") if key in rows], at=at, now=now) for group, at in groups
    ]
    sentences.append(_hours_to_come(campaign, now=now))
    return " ".join(dict.fromkeys(sentence for sentence in sentences if sentence))


def _why(limits: list[Limit], *, at: datetime, now: datetime) -> str:
    day = now.astimezone(ZoneInfo(settings.TIME_ZONE)).date()
    caps = {limit: cap for limit in limits if (cap := limit.cap(day)) is not None}
    if at - now > LONGEST_RATE_WAIT and caps:
        tight = min(caps, key=lambda limit: caps[limit])
        return _("Today’s %(count)s mails of “%(limit)s” are sent; the others follow from %(at)s on.") % {
            "count": number_format(caps[tight], force_grouping=True),
            "limit": tight.name,
            "at": date_format(timezone.localtime(at), "j M Y, H:i"),
        }
    rates = {limit: limit.per_second for limit in limits if limit.per_second}
    if not rates:
        return ""
    slow = min(rates, key=lambda limit: rates[limit])
    return _("“%(limit)s” lets %(rate)s mails a second go, so some people wait for their turn.") % {
        "limit": slow.name,
        "rate": number_format(rates[slow], 2).rstrip("0").rstrip("."),
    }


def _hours_to_come(campaign: Campaign, *, now: datetime) -> str:
    """Whose hour has not come yet; a retry after the last zone's hour is none of them."""
    if campaign.local_time is None or campaign.scheduled_at is None:
        return ""
    last = local_hours.turns(
        [LAST_ZONE], start=campaign.scheduled_at, hour=campaign.local_time, home=settings.TIME_ZONE, now=now
    )[LAST_ZONE]
    ahead = Batch.objects.filter(
        campaign=campaign, state=Batch.State.READY, throttle="", not_before__gt=now, not_before__lte=last
    ).aggregate(at=Max("not_before"))["at"]
    if ahead is None:
        return ""
    return _("Others get it at %(hour)s where they live, the last of them at %(at)s here.") % {
        "hour": campaign.local_time.strftime("%H:%M"),
        "at": date_format(timezone.localtime(ahead), "j M Y, H:i"),
    }
