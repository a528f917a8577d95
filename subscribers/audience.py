"""Who receives a campaign: one statement at the freeze, and the same conditions again as a batch leaves (promise 2)."""

from dataclasses import dataclass

from django.db import connection

# Written once, used by the freeze and by the last check before the wire.
ELIGIBLE = "subscription.state = 'active' AND subscriber.suppressed_at IS NULL"

COUNT_AUDIENCE = f"""
SELECT count(*) FILTER (WHERE {ELIGIBLE}),
       count(*) FILTER (WHERE subscription.state = 'pending'),
       count(*) FILTER (WHERE subscription.state = 'unsubscribed'),
       count(*) FILTER (WHERE subscription.state = 'pruned'),
       count(*) FILTER (WHERE subscription.state = 'active' AND subscriber.suppressed_at IS NOT NULL)
FROM subscribers_subscription AS subscription
JOIN subscribers_subscriber AS subscriber ON subscriber.id = subscription.subscriber_id
WHERE subscription.list_id = %s
"""


@dataclass(frozen=True)
class Audience:
    """How many of a list would be mailed now, and why the others would not."""

    recipients: int
    pending: int
    unsubscribed: int
    pruned: int
    suppressed: int


def count(list_id: int) -> Audience:
    """The audience of a list as it stands now."""
    with connection.cursor() as cursor:
        cursor.execute(COUNT_AUDIENCE, [list_id])
        return Audience(*cursor.fetchone())
