"""Whom a list would stop mailing, and whom it must not judge.

The rule (HygienePolicy): at least `min_campaigns` issues were delivered and had their time since the last sign of a
person, *and* at least `min_days` went by; both are multiplied by `engaged_factor` for somebody who ever read. A sign is
a human open or click, or an action such as confirming. What machines fetched neither rescues nor removes anybody.

Nobody is judged where silence would not mean anything: each such reason is counted and shown.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

from django.conf import settings
from django.db import connection
from django.utils.translation import gettext_lazy as _

from subscribers.hygiene import opportunities
from subscribers.hygiene.errors import HygieneError
from subscribers.hygiene.opportunities import Opportunities
from subscribers.models import HygienePolicy, List

# Why somebody is not judged, in the order in which the reasons are looked for.
HELD_BACK = {
    "no_consent": _("They do not want their reading to be tracked, so their silence means nothing."),
    "protected": _("They are protected: hygiene never stops mailing them."),
    "unsettled": _("Something of theirs came in just now and is not decided yet."),
    "no_tracked_campaign": _("No issue of this list was tracked, so nobody could be seen reading."),
    "nobody_seen": _("Nobody on this list was seen reading for a long time; that speaks about the tracking, not them."),
    "too_new": _("They subscribed too short a time ago."),
    "short_history": _("What is known of them does not reach back far enough."),
    "tracking_broken": _("Tracking did not work for a part of the time in question."),
    "too_few_issues": _("They got too few issues since they were last seen."),
}

# Registry: reason → people who must not be judged on a list at a moment (subscriber ids). Upper apps fill it in.
protections: dict[str, Callable[[int, datetime], Collection[int]]] = {}

_FAR = datetime(9999, 1, 1, tzinfo=UTC)  # PostgreSQL wants at least one threshold

# One pass over the list's active people. `person` gathers what is known, `weighed` the figures that the rule looks at,
# `judged` the verdict; the last part returns the people to remove, and one row with a count for each verdict. OFFSET 0
# keeps the planner from writing each expression out wherever its name is used (2.5 times as slow).
JUDGE = """
WITH list AS MATERIALIZED (  -- the arrays, read once and not again for every person
    SELECT %(sent)s::timestamptz[] AS sent, %(times)s::timestamptz[] AS times, %(masks)s::varbit[] AS masks,
           %(passed)s::integer[] AS passed, %(closed)s::varbit AS closed
), held AS (
    SELECT DISTINCT ON (subscriber_id) subscriber_id, reason
      FROM unnest(%(held_ids)s::bigint[], %(held_reasons)s::text[]) AS h (subscriber_id, reason)
), person AS (
    SELECT u.id, u.subscriber_id, u.created_at, u.state_since, r.email, r.tracking_consent, r.is_protected, held.reason,
           e.opened_at, e.clicked_at, e.acted_at,
           bits_and(coalesce(e.delivered, B''), list.closed) AS got,
           coalesce(e.delivered, B'') AS delivered, coalesce(e.engaged, B'') AS engaged,
           coalesce(bits_last(e.engaged), 0) AS last_read
      FROM list CROSS JOIN subscribers_subscription u
      JOIN subscribers_subscriber r ON r.id = u.subscriber_id AND r.suppressed_at IS NULL
      LEFT JOIN subscribers_engagement e ON e.subscription_id = u.id
      LEFT JOIN held ON held.subscriber_id = u.subscriber_id
     WHERE u.list_id = %(list)s AND u.state = 'active'
    OFFSET 0
), seen AS (
    SELECT person.*,
           greatest(opened_at, clicked_at, list.sent[last_read]) AS read_at,
           greatest(opened_at, clicked_at, acted_at, list.sent[last_read]) AS sign_at,
           list.sent[strpos(got::text, '1')] AS first_at,
           -- Who lets us keep only a date is measured from the end of that day, or from when they allowed it.
           CASE WHEN tracking_consent = 'hygiene' THEN greatest(created_at, (
               SELECT max(c.at) FROM subscribers_consentrecord c
                WHERE c.subscriber_id = person.subscriber_id AND c.kind = 'tracking')) END AS dated_from
      FROM person, list
    OFFSET 0
), scaled AS (
    SELECT *,
           greatest(sign_at, dated_from) AS dated_since,
           read_at IS NOT NULL OR acted_at > first_at AS ever_read,
           CASE WHEN read_at IS NOT NULL OR acted_at > first_at THEN %(long_issues)s ELSE %(issues)s END AS need_issues,
           %(at)s - CASE WHEN read_at IS NOT NULL OR acted_at > first_at
                         THEN %(long_window)s::interval ELSE %(window)s::interval END AS window_start
      FROM seen
    OFFSET 0
), weighed AS (
    SELECT scaled.*,
           CASE WHEN tracking_consent = 'hygiene'
                THEN %(opportunities)s - width_bucket(dated_since + interval '1 day', list.times)
                ELSE bit_count(bits_and(got, list.masks[1 + greatest(
                         coalesce(width_bucket(sign_at, list.times), 0),
                         coalesce(list.passed[last_read], 0))]))
           END AS silent
      FROM scaled, list
    OFFSET 0
), judged AS MATERIALIZED (
    SELECT *, CASE
        WHEN tracking_consent = 'none' THEN 'no_consent'
        WHEN is_protected THEN 'protected'
        WHEN reason IS NOT NULL THEN reason
        WHEN sign_at > window_start THEN 'reading'
        WHEN %(opportunities)s = 0 THEN 'no_tracked_campaign'
        WHEN %(nobody_seen)s THEN 'nobody_seen'
        WHEN greatest(created_at, dated_from) > window_start THEN 'too_new'
        WHEN tracking_consent = 'full' AND first_at > window_start THEN 'short_history'
        WHEN %(broken_at)s::timestamptz > window_start THEN 'tracking_broken'
        WHEN silent < need_issues THEN 'too_few_issues'
        ELSE 'remove' END AS verdict
      FROM weighed
)
SELECT verdict, NULL::bigint AS id, NULL::bigint AS subscriber_id, NULL AS email, NULL::timestamptz AS created_at,
       NULL::timestamptz AS state_since, NULL AS tracking_consent, NULL::timestamptz AS opened_at,
       NULL::timestamptz AS clicked_at, NULL::timestamptz AS acted_at, NULL::timestamptz AS first_at,
       NULL::timestamptz AS since, NULL::boolean AS ever_read, count(*) AS silent, NULL AS delivered, NULL AS engaged
  FROM judged GROUP BY verdict
UNION ALL
(SELECT verdict, id, subscriber_id, email, created_at, state_since, tracking_consent, opened_at, clicked_at, acted_at,
        first_at, CASE WHEN tracking_consent = 'hygiene' THEN dated_since ELSE coalesce(sign_at, first_at) END,
        ever_read, silent, delivered::text, engaged::text
   FROM judged WHERE verdict = 'remove'
  -- The most certain first, since the cap takes from the top; of whom only a date is known, little is certain.
  ORDER BY tracking_consent = 'hygiene', silent DESC, 12, id)
"""

# Whether anybody on the list was seen reading after a moment.
ANYBODY_SEEN = """
SELECT EXISTS (
    SELECT FROM subscribers_engagement e JOIN subscribers_subscription u ON u.id = e.subscription_id
     WHERE u.list_id = %s AND greatest(e.opened_at, e.clicked_at) > %s)
"""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody whom the policy would stop mailing, with all that speaks for it."""

    subscription_id: int
    subscriber_id: int
    email: str
    created_at: datetime
    state_since: datetime
    tracking_consent: str
    opened_at: datetime | None
    clicked_at: datetime | None
    acted_at: datetime | None
    first_at: datetime | None  # when the first issue that counts was sent to them
    since: datetime  # silent since: the last sign, or else the first issue
    ever_read: bool
    silent: int  # issues since then
    delivered: str
    engaged: str


@dataclass(frozen=True)
class Judgements:
    """What the policy of a list says at a moment. Everybody active is in `judged` or in one reason of `held_back`."""

    judged: int
    remove: list[Person]  # the most certain first
    held_back: dict[str, int]
    policy: dict[str, Any]
    opportunities: Opportunities

    @property
    def active(self) -> int:
        """Everybody whom the list mails."""
        return self.judged + sum(self.held_back.values())


def policy_of(list_id: int) -> HygienePolicy:
    """The policy of a list, or the default one, unstored, one. Raises HygieneError without such a list."""
    found = HygienePolicy.objects.filter(list_id=list_id).first()
    if found is None and not List.objects.filter(pk=list_id).exists():
        raise HygieneError("There is no such list.")
    return found or HygienePolicy(list_id=list_id)


def frozen(policy: HygienePolicy) -> dict[str, Any]:
    """The figures of a policy that decide about people, as they are kept with a run."""
    return {
        "min_campaigns": policy.min_campaigns,
        "min_days": policy.min_days,
        "engaged_factor": float(policy.engaged_factor),
        "long_campaigns": ceil(policy.min_campaigns * float(policy.engaged_factor)),
        "long_days": ceil(policy.min_days * float(policy.engaged_factor)),
    }


def judge(list_id: int, *, at: datetime) -> Judgements:
    """Judge everybody active on a list by its policy, as of a moment. Changes nothing. Raises HygieneError."""
    rule = frozen(policy_of(list_id))
    chances = opportunities.at(list_id, at)
    counts: dict[str, int] = {}
    people: list[Person] = []
    with connection.cursor() as cursor:
        cursor.execute(JUDGE, _parameters(list_id, at, rule, chances))
        for verdict, *facts in cursor:
            if facts[0] is None:
                counts[verdict] = facts[12]
            else:
                people.append(Person(*facts))
    judged = counts.pop("reading", 0) + counts.pop("remove", 0)
    order = list(HELD_BACK)
    held_back = dict(sorted(counts.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1))
    return Judgements(judged, people, held_back, rule, chances)


def newest_evidence(list_id: int) -> datetime | None:
    """The moment of the last thing known about anybody on a list: a sign, or an issue that went out."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT max(greatest(e.opened_at, e.clicked_at, e.acted_at)) FROM subscribers_engagement e"
            " JOIN subscribers_subscription u ON u.id = e.subscription_id WHERE u.list_id = %s",
            [list_id],
        )
        sign = cursor.fetchone()[0]
    moments = [sign] if sign else []
    return max([*moments, *(issue.sent_at for issue in opportunities.issues_of_list(list_id))], default=None)


def _parameters(list_id: int, at: datetime, rule: dict[str, Any], chances: Opportunities) -> dict[str, Any]:
    times = [issue.sent_at for issue in chances.issues]
    by_number = {issue.number: issue.sent_at for issue in chances.issues}
    long_window = timedelta(days=rule["long_days"])
    held = [(pk, reason) for reason, people in protections.items() for pk in people(list_id, at)]
    return {
        "list": list_id,
        "at": at,
        "closed": chances.closed_mask,
        "masks": chances.masks_after,
        "passed": chances.passed,
        "sent": [by_number.get(number) for number in range(1, chances.width + 1)],
        "times": times or [_FAR],
        "opportunities": len(times),
        "issues": rule["min_campaigns"],
        "long_issues": rule["long_campaigns"],
        "window": timedelta(days=rule["min_days"]),
        "long_window": long_window,
        "nobody_seen": not _anybody_seen(list_id, at - long_window - timedelta(hours=settings.OPPORTUNITY_HOURS)),
        "broken_at": max((issue.sent_at for issue in chances.broken), default=None),
        "held_ids": [pk for pk, _reason in held],
        "held_reasons": [reason for _pk, reason in held],
    }


def _anybody_seen(list_id: int, after: datetime) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(ANYBODY_SEEN, [list_id, after])
        return bool(cursor.fetchone()[0])
