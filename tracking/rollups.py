"""What the campaign report shows beyond the figures: clicks by link, and signals by hour.

Counted from the campaign's events by their index; the figures themselves are kept up to date by ingest.
"""

from django.db import connection

from campaigns.reporting import LinkClicks, Moment

_LINKS = """
SELECT l.index, l.url,
       count(DISTINCT e.subscriber_id),
       count(DISTINCT e.subscriber_id) FILTER (WHERE e.verdict = 1)
  FROM campaigns_link l
  LEFT JOIN tracking_event e ON e.campaign_id = l.campaign_id AND e.link = l.index AND e.kind = 2
 WHERE l.campaign_id = %s
 GROUP BY l.index, l.url ORDER BY l.index
"""

# Each delivery once a kind: at its first human event, or if it has none at its first.
_HOURS = """
SELECT date_trunc('hour', at, 'UTC') AS hour,
       count(*) FILTER (WHERE kind = 1 AND human), count(*) FILTER (WHERE kind = 1 AND NOT human),
       count(*) FILTER (WHERE kind = 2 AND human), count(*) FILTER (WHERE kind = 2 AND NOT human)
  FROM (SELECT kind, bool_or(verdict = 1) AS human,
               coalesce(min(at) FILTER (WHERE verdict = 1), min(at)) AS at
          FROM tracking_event WHERE campaign_id = %s AND kind IN (1, 2)
         GROUP BY subscriber_id, kind) AS delivery
 GROUP BY 1 ORDER BY 1
"""


def clicks_by_link(campaign_id: int) -> list[LinkClicks]:
    """The links of a campaign with the people who followed each."""
    with connection.cursor() as cursor:
        cursor.execute(_LINKS, [campaign_id])
        return [LinkClicks(*row) for row in cursor.fetchall()]


def signals_over_time(campaign_id: int) -> list[Moment]:
    """First opens and clicks by hour (UTC)."""
    with connection.cursor() as cursor:
        cursor.execute(_HOURS, [campaign_id])
        return [Moment(*row) for row in cursor.fetchall()]
