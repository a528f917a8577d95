"""How a batch keeps to the limits: who of it may go now, and where the others wait.

Nobody waits in a worker. Whoever may not go yet is moved to a batch of their group that is due when there is room, so
that other groups and other campaigns go on.
"""

from collections import deque
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection, transaction

from campaigns import limiting
from campaigns.batching import Lease
from campaigns.models import Batch, DeliveryState
from newsletter.mailing import throttling
from newsletter.mailing.throttling import LARGEST_WINDOW, Grant, Group, Rules, Throttle, Unavailable

AWAY = timedelta(seconds=5)  # how long batches wait when the throttle's server does not answer

# Who of a batch waits, with the domain of their address; that of somebody who is gone is NULL.
WAITING = f"""
SELECT delivery.subscriber_id, substring(subscriber.email_key FROM '[^@]*$')
FROM campaigns_delivery AS delivery LEFT JOIN subscribers_subscriber AS subscriber ON subscriber.id = subscriber_id
WHERE delivery.campaign_id = %(campaign)s AND delivery.subscriber_id BETWEEN %(first)s AND %(last)s
  AND delivery.batch_id = %(batch)s
  AND (delivery.state = {DeliveryState.QUEUED}
       OR delivery.state = {DeliveryState.DEFERRED} AND delivery.lease IS DISTINCT FROM %(lease)s)
ORDER BY delivery.subscriber_id
"""

# People whose group has no room go to its batch; only while this lease still holds theirs.
SET_ASIDE = f"""
UPDATE campaigns_delivery SET batch_id = %(to)s
WHERE campaign_id = %(campaign)s AND subscriber_id = ANY(%(ids)s::bigint[]) AND batch_id = %(batch)s
  AND state IN ({DeliveryState.QUEUED}, {DeliveryState.DEFERRED})
  AND EXISTS (SELECT FROM campaigns_batch WHERE id = %(batch)s AND lease = %(lease)s AND state = 'leased')
"""


class _Waits(NamedTuple):
    """People of a group that has no room."""

    people: list[int]
    until: datetime
    grant: Grant


def pace(lease: Lease) -> "Pace | None":
    """The pace of a batch; None, at the cost of one look, if nothing is limited."""
    rules = limiting.rules_of(lease.campaign_id)
    return Pace(lease, rules, throttle=limiting.throttle()) if rules else None


class Pace:
    """Who of a batch may go, window by window, and who has to wait because their group has no room."""

    def __init__(self, lease: Lease, rules: Rules, *, throttle: Throttle) -> None:
        self._lease = lease
        self._throttle = throttle
        self._waiting: dict[Group, deque[int]] = {}
        self._aside: dict[Group, _Waits] = {}
        self._granted: dict[int, Group] = {}
        self._used: set[int] = set()
        self._asked_at: datetime | None = None  # of which day the counters are that gave what was granted last
        self._is_out = False  # people were let go of whom nobody has said yet that they went
        self.is_away = False
        with connection.cursor() as cursor:
            cursor.execute(WAITING, _parameters(lease))
            for subscriber_id, domain in cursor.fetchall():
                group = rules.group(domain) if domain else ()
                self._waiting.setdefault(group, deque()).append(subscriber_id)

    def next(self, *, now: datetime) -> list[int]:
        """The next people who may go, in the order of the key; none when nobody of the batch may."""
        wants = self._wants()
        if not wants:
            return []
        self._asked_at = now
        try:
            grants = self._throttle.take(wants, now=now)
        except Unavailable:
            self.is_away = True
            return []
        people: list[int] = []
        for group, grant in grants.items():
            queue = self._waiting[group]
            mine = [queue.popleft() for _ in range(grant.now)]
            people += mine
            if group:
                self._granted.update(dict.fromkeys(mine, group))
            if grant.more_at:
                self._aside[group] = _Waits(list(queue), grant.more_at, grant)
                queue.clear()
            if not queue:
                del self._waiting[group]
        self._is_out = bool(people)
        # A window of nobody is no end of the batch while another group still waits to be asked for.
        return sorted(people) if people or not self._waiting else self.next(now=now)

    def went(self, subscriber_ids: list[int]) -> None:
        """Of those let go last, these used what they were granted."""
        self._is_out = False
        self._used.update(subscriber_ids)

    def came_back(self, subscriber_id: int) -> None:
        """Nothing was sent to this person after all."""
        self._used.discard(subscriber_id)

    def _wants(self) -> dict[Group, int]:
        """A window of each group, a hundred in all; those with limits first, as their windows are small."""
        wants: dict[Group, int] = {}
        room = LARGEST_WINDOW
        for group, queue in sorted(self._waiting.items(), key=lambda item: throttling.window(item[0])):
            want = min(throttling.window(group), len(queue), room)
            if want:
                wants[group] = want
                room -= want
        return wants

    def close(self, *, is_interrupted: bool, now: datetime) -> bool:
        """Give back what was not used and set aside who has to wait; whether the batch itself waits now, given back.

        It does where all that is left of it are people of one group, and where the throttle's server is away.
        """
        unused: dict[Group, int] = {}
        for subscriber_id, group in self._granted.items():
            if subscriber_id not in self._used:
                unused[group] = unused.get(group, 0) + 1
        if unused:
            self._throttle.give_back(unused, now=self._asked_at or now)
        if self.is_away and not is_interrupted:
            return _wait(self._lease, "", until=now + AWAY)
        aside = {group: waits for group, waits in self._aside.items() if waits.people}
        if any(not waits.grant.is_day_spent for waits in aside.values()):
            limiting.say_that_somebody_waits()
        # Whoever was let go and never went (the campaign was paused) stays in the batch and waits for nobody's limit.
        if len(aside) == 1 and not self._waiting and not self._is_out and not is_interrupted:
            ((group, waits),) = aside.items()
            _wait_together(self._lease.campaign_id, group, waits.grant)
            return _wait(self._lease, throttling.label(group), until=waits.until)
        for group, waits in aside.items():
            _set_aside(self._lease, group, waits)
            _wait_together(self._lease.campaign_id, group, waits.grant)
        return False


def _wait(lease: Lease, throttle: str, *, until: datetime) -> bool:
    """Give a batch back until there is room; whether it was still ours."""
    return bool(
        Batch.objects.filter(pk=lease.batch_id, lease=lease.number, state=Batch.State.LEASED).update(
            state=Batch.State.READY, leased_until=None, enqueued_at=None, not_before=until, throttle=throttle
        )
    )


def _set_aside(lease: Lease, group: Group, waits: _Waits) -> None:
    """Move people to a batch of their group."""
    with transaction.atomic(), connection.cursor() as cursor:
        batch = Batch.objects.create(
            campaign_id=lease.campaign_id,
            first_id=waits.people[0],
            last_id=waits.people[-1],
            not_before=waits.until,
            throttle=throttling.label(group),
        )
        cursor.execute(SET_ASIDE, {**_parameters(lease), "to": batch.pk, "ids": waits.people})
        if not cursor.rowcount:
            batch.delete()


def _wait_together(campaign_id: int, group: Group, grant: Grant) -> None:
    """When a day's mails are spent, no other batch of the group needs to find that out by itself."""
    if grant.is_day_spent and grant.more_at:
        Batch.objects.filter(
            campaign_id=campaign_id,
            throttle=throttling.label(group),
            state=Batch.State.READY,
            not_before__lt=grant.more_at,
        ).update(not_before=grant.more_at)


def _parameters(lease: Lease) -> dict[str, Any]:
    return {
        "batch": lease.batch_id,
        "lease": lease.number,
        "campaign": lease.campaign_id,
        "first": lease.first_id,
        "last": lease.last_id,
    }
