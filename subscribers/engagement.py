"""What a subscription received and read, kept as two bit strings over the list's issue numbers.

Everything here is set-based: one statement for any number of people, rows locked in the order of their key, so that
two writers never wait for each other in a circle. Bit 0 (the first character) is issue 1, and both strings are as long
as the list has issues. The person's tracking consent *now* decides what is kept, also for mails sent long ago.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from django.db import connection

from subscribers.models import Engagement, Subscription, TrackingConsent

# Any number that no other advisory lock of this product uses; see hold_numbers.
_NUMBERS_LOCK = 7_260_301


@dataclass(frozen=True, slots=True)
class Sign:
    """A person was seen reading issue `number` of a list: a human open or click at that moment."""

    list_id: int
    number: int
    subscriber_id: int
    kind: Literal["open", "click"]
    at: datetime


class LastSeen(NamedTuple):
    """The last human open and click that are left of somebody on a list; None where none is."""

    opened_at: datetime | None
    clicked_at: datetime | None


class History(NamedTuple):
    """A person's history as the hygiene model reads it: opportunities are issues delivered and closed."""

    x: int  # opportunities with a sign of reading
    t_x: int  # the last of them, counted in opportunities; 0 if there is none
    n: int  # opportunities
    silent_streak: int  # opportunities since the last sign


# One row a person: the union of their signs' bits, and the last of each kind. Who agreed only to the date of the last
# open (HYGIENE.md, Privacy) keeps the day and no bit; who agreed to nothing is left out.
RECORD_SIGNS = """
WITH sign AS (
    SELECT s.*, greatest(l.issues, max(s.number) OVER (PARTITION BY s.list_id)) AS width
      FROM unnest(%s::bigint[], %s::integer[], %s::bigint[], %s::text[], %s::timestamptz[])
           AS s (list_id, number, subscriber_id, kind, at)
      JOIN subscribers_list l ON l.id = s.list_id
), person AS (
    SELECT u.id AS subscription_id, r.tracking_consent, sign.width,
           bit_or(bits_single(sign.number, sign.width)) AS engaged,
           max(sign.at) FILTER (WHERE sign.kind = 'open') AS opened_at,
           max(sign.at) FILTER (WHERE sign.kind = 'click') AS clicked_at
      FROM sign
      JOIN subscribers_subscription u ON u.list_id = sign.list_id AND u.subscriber_id = sign.subscriber_id
      JOIN subscribers_subscriber r ON r.id = u.subscriber_id AND r.tracking_consent <> 'none'
     GROUP BY u.id, r.tracking_consent, sign.width
)
INSERT INTO subscribers_engagement AS e (subscription_id, delivered, engaged, opened_at, clicked_at)
SELECT subscription_id,
       bits_pad(B'', width),
       CASE WHEN tracking_consent = 'full' THEN engaged ELSE bits_pad(B'', width) END,
       CASE WHEN tracking_consent = 'full' THEN opened_at ELSE date_trunc('day', opened_at, 'UTC') END,
       CASE WHEN tracking_consent = 'full' THEN clicked_at END
  FROM person
 ORDER BY subscription_id
ON CONFLICT (subscription_id) DO UPDATE SET
    delivered = bits_pad(e.delivered, length(excluded.engaged)),
    engaged = bits_or(e.engaged, excluded.engaged),
    opened_at = greatest(e.opened_at, excluded.opened_at),
    clicked_at = greatest(e.clicked_at, excluded.clicked_at)
"""

# A mail that was delivered to somebody who may be tracked is one opportunity of seeing them read.
RECORD_DELIVERED = """
INSERT INTO subscribers_engagement AS e (subscription_id, delivered, engaged)
SELECT u.id, bits_single(%(number)s, w.width), bits_pad(B'', w.width)
  FROM subscribers_subscription u
  JOIN subscribers_subscriber r ON r.id = u.subscriber_id AND r.tracking_consent = 'full'
  CROSS JOIN (SELECT greatest(issues, %(number)s) AS width FROM subscribers_list WHERE id = %(list)s) w
 WHERE u.list_id = %(list)s AND u.subscriber_id = ANY(%(subscribers)s)
 ORDER BY u.id
ON CONFLICT (subscription_id) DO UPDATE SET
    delivered = bits_or(e.delivered, excluded.delivered),
    engaged = bits_pad(e.engaged, length(excluded.delivered))
"""

# A bounce after the fact: the mail was no opportunity.
CLEAR_DELIVERED = """
UPDATE subscribers_engagement e SET delivered = bits_clear(e.delivered, %(number)s)
  FROM (SELECT e.subscription_id
          FROM subscribers_engagement e JOIN subscribers_subscription u ON u.id = e.subscription_id
         WHERE u.list_id = %(list)s AND u.subscriber_id = ANY(%(subscribers)s)
         ORDER BY e.subscription_id FOR NO KEY UPDATE OF e) held
 WHERE e.subscription_id = held.subscription_id
"""

# The bits of all withdrawn issues of a person are cleared at once; their dates become what the caller found to be left.
WITHDRAW_SIGNS = """
WITH sign AS (
    SELECT u.id AS subscription_id, s.number, s.opened_at, s.clicked_at
      FROM unnest(%s::bigint[], %s::integer[], %s::bigint[], %s::timestamptz[], %s::timestamptz[])
           AS s (list_id, number, subscriber_id, opened_at, clicked_at)
      JOIN subscribers_subscription u ON u.list_id = s.list_id AND u.subscriber_id = s.subscriber_id
), held AS (
    SELECT e.subscription_id FROM subscribers_engagement e
     WHERE e.subscription_id IN (SELECT subscription_id FROM sign)
     ORDER BY e.subscription_id FOR NO KEY UPDATE
), withdrawn AS (
    SELECT e.subscription_id, max(sign.opened_at) AS opened_at, max(sign.clicked_at) AS clicked_at,
           bit_or(bits_single(sign.number, length(e.engaged))) AS gone
      FROM held JOIN subscribers_engagement e USING (subscription_id) JOIN sign USING (subscription_id)
     WHERE sign.number <= length(e.engaged)
     GROUP BY e.subscription_id
)
UPDATE subscribers_engagement e
   SET engaged = e.engaged & ~ w.gone, opened_at = w.opened_at, clicked_at = w.clicked_at
  FROM withdrawn w WHERE e.subscription_id = w.subscription_id
"""

RECORD_ACTION = """
INSERT INTO subscribers_engagement AS e (subscription_id, delivered, engaged, acted_at)
SELECT u.id, bits_pad(B'', l.issues), bits_pad(B'', l.issues), %s
  FROM subscribers_subscription u JOIN subscribers_list l ON l.id = u.list_id WHERE u.id = %s
ON CONFLICT (subscription_id) DO UPDATE SET acted_at = greatest(e.acted_at, excluded.acted_at)
"""

# Consent to the date only: the day of the last open stays, everything else goes (HYGIENE.md, Privacy).
KEEP_THE_DATE = """
UPDATE subscribers_engagement e
   SET delivered = bits_pad(B'', length(e.delivered)), engaged = bits_pad(B'', length(e.engaged)),
       opened_at = date_trunc('day', e.opened_at, 'UTC'), clicked_at = NULL
  FROM subscribers_subscription u WHERE u.id = e.subscription_id AND u.subscriber_id = %s
"""


def record_signs(signs: Sequence[Sign]) -> None:
    """Note that people were seen reading: sets the engaged bit of each issue and moves the last open and click on.

    Harmless when repeated. Signs of people who are not on the list, or who did not agree to tracking, are dropped.
    """
    if not signs:
        return
    columns = zip(*((s.list_id, s.number, s.subscriber_id, s.kind, s.at) for s in signs), strict=True)
    with connection.cursor() as cursor:
        cursor.execute(RECORD_SIGNS, [list(column) for column in columns])


def withdraw_signs(signs: Sequence[Sign], *, last: Mapping[tuple[int, int], LastSeen]) -> None:
    """Take back signs whose verdict became "machine", once no human event of that issue is left.

    `last` says for each (list_id, subscriber_id) what the last human open and click now are; who is not in it has none.
    """
    if not signs:
        return
    nothing = LastSeen(None, None)
    rows = [(s.list_id, s.number, s.subscriber_id, *last.get((s.list_id, s.subscriber_id), nothing)) for s in signs]
    with connection.cursor() as cursor:
        cursor.execute(WITHDRAW_SIGNS, [list(column) for column in zip(*rows, strict=True)])


def record_delivered(list_id: int, number: int, subscriber_ids: Sequence[int]) -> None:
    """Note that issue `number` reached these people; only those who agreed to tracking in full are noted."""
    if subscriber_ids:
        with connection.cursor() as cursor:
            cursor.execute(RECORD_DELIVERED, {"list": list_id, "number": number, "subscribers": list(subscriber_ids)})


def clear_delivered(list_id: int, number: int, subscriber_ids: Sequence[int]) -> None:
    """Take back that issue `number` reached these people, as after a bounce."""
    if subscriber_ids:
        with connection.cursor() as cursor:
            cursor.execute(CLEAR_DELIVERED, {"list": list_id, "number": number, "subscribers": list(subscriber_ids)})


def record_action(subscription_id: int, at: datetime) -> None:
    """Note what only a person does (a confirmation, a changed preference, "keep me"): the strongest sign of all."""
    with connection.cursor() as cursor:
        cursor.execute(RECORD_ACTION, [at, subscription_id])


def forget(subscriber_id: int, *, consent: str) -> None:
    """Drop what somebody's tracking consent no longer covers, on all lists. Harmless when repeated."""
    if consent == TrackingConsent.HYGIENE:
        with connection.cursor() as cursor:
            cursor.execute(KEEP_THE_DATE, [subscriber_id])
    elif consent == TrackingConsent.NONE:
        mine = Subscription.objects.filter(subscriber_id=subscriber_id)
        Engagement.objects.filter(subscription__in=mine).delete()


def hold_numbers(*, exclusively: bool = False) -> None:
    """Until the end of the transaction, no list's issues change their numbers (an import of older history may do so).

    Whoever reads a campaign's number and writes bits by it calls this first; who renumbers calls it `exclusively`.
    """
    shared = "" if exclusively else "_shared"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT pg_advisory_xact_lock{shared}(%s)", [_NUMBERS_LOCK])


def derive(delivered: str, engaged: str, closed_mask: str) -> History:
    """Read x, t_x, n and the silent streak off the bit strings; only issues in `closed_mask` count. Pure."""
    x = t_x = n = 0
    rows = zip(delivered, engaged.ljust(len(delivered), "0"), closed_mask, strict=False)  # the shortest decides
    for was_delivered, was_engaged, is_closed in rows:
        if was_delivered == "1" and is_closed == "1":
            n += 1
            if was_engaged == "1":
                x, t_x = x + 1, n
    return History(x, t_x, n, n - t_x)
