"""What the apps below must ask or tell, but only tracking knows: their registries, filled at start."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from anymail.signals import tracking as reported
from django.db import connection

from campaigns import freezing, reporting, retargeting
from subscribers.hygiene import explaining, policies
from tracking import edge_links, receivers, rollups

# Issues of a list that only machines fetched for somebody; Apple's fetch is told apart, for it shows a delivery.
_MACHINE_FETCHES = """
SELECT e.subscriber_id, c.number, bool_or(e.client = 'apple:mpp' OR e.flags LIKE '%%apple%%')
  FROM campaigns_campaign c
  JOIN tracking_event e ON e.campaign_id = c.id AND e.subscriber_id = ANY(%s) AND e.kind IN (1, 2)
 WHERE c.list_id = %s AND c.number IS NOT NULL
 GROUP BY 1, 2 HAVING NOT bool_or(e.verdict = 1)
"""


def machine_fetches(list_id: int, subscriber_ids: Sequence[int]) -> Mapping[int, Mapping[int, str]]:
    """For each subscriber the issues that machines fetched and no person, with which kind of machine."""
    found: dict[int, dict[int, str]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_MACHINE_FETCHES, [list(subscriber_ids), list_id])
        for subscriber_id, number, is_apple in cursor.fetchall():
            found.setdefault(subscriber_id, {})[number] = explaining.APPLE if is_apple else explaining.MACHINE
    return found


# People with an event of this list whose settling time has not passed; the partial index holds only such events.
_UNSETTLED = """
SELECT DISTINCT e.subscriber_id
  FROM tracking_event e JOIN campaigns_campaign c ON c.id = e.campaign_id
 WHERE NOT e.is_final AND e.at <= %s AND c.list_id = %s
"""


def unsettled(list_id: int, at: datetime) -> set[int]:
    """Subscribers of whom something came in before `at` whose verdict is not final; it bars their removal."""
    with connection.cursor() as cursor:
        cursor.execute(_UNSETTLED, [at, list_id])
        return {row[0] for row in cursor.fetchall()}


def register() -> None:
    """Called once, by TrackingConfig.ready."""
    freezing.on_frozen.append(edge_links.publish)
    retargeting.on_retargeted.append(edge_links.publish)
    reporting.link_source = rollups.clicks_by_link
    reporting.time_source = rollups.signals_over_time
    explaining.machine_fetches = machine_fetches
    policies.protections["unsettled"] = unsettled
    reported.connect(receivers.receive, dispatch_uid="tracking.receivers")
