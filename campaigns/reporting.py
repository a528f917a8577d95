"""What became of a campaign: its figures, and the one place where tracking writes them down.

Figures count distinct deliveries: *raw* any event, *human* at least one human event; hits stand beside them. They move
with the ledger's rows in one statement, so that nobody ever scans events for a report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import F

from campaigns import breaking
from campaigns.models import Campaign, CampaignFigures, Delivery, DeliveryState, Outcome

# By SMTP nobody says that a mail arrived; accepted without a bounce for so long counts as delivered.
DELIVERED_AFTER_HOURS = 72


class Signal(NamedTuple):
    """All that tracking knows of one delivery, after today's verdicts."""

    campaign_id: int
    subscriber_id: int
    seen: int  # bits Delivery.SEEN_OPEN and SEEN_CLICK: any event, human or not
    opened_at: datetime | None  # first human open; None takes an earlier one back
    clicked_at: datetime | None
    open_hits: int  # more since the last call
    click_hits: int


@dataclass(frozen=True)
class LinkClicks:
    """One link of a campaign: in how many deliveries it was followed by anything, and by a person."""

    index: int
    url: str
    raw: int
    human: int


@dataclass(frozen=True)
class Moment:
    """First opens and clicks of deliveries within an hour."""

    hour: datetime
    opens_human: int
    opens_machine: int
    clicks_human: int
    clicks_machine: int


def _nothing(_campaign_id: int) -> list[Any]:
    """What stands here until the tracking app has come up."""
    return []


# What only tracking can count; TrackingConfig.ready fills these.
link_source: Callable[[int], list[LinkClicks]] = _nothing
time_source: Callable[[int], list[Moment]] = _nothing


def clicks_by_link(campaign_id: int) -> list[LinkClicks]:
    """The links of a campaign in the order of the mail, with the deliveries in which each was followed."""
    return link_source(campaign_id)


def signals_over_time(campaign_id: int) -> list[Moment]:
    """Opens and clicks by hour, human and machine apart, in order; hours without any are left out."""
    return time_source(campaign_id)


class Part(NamedTuple):
    """The deliveries of a campaign in one state and with one outcome."""

    state: str  # by its name, "accepted"
    outcome: Outcome
    is_old: bool  # accepted so long ago that no bounce is expected
    people: int
    recent: int  # accepted since the moment asked for
    attempts: int  # of the one tried least


# One pass over the campaign's part of the ledger.
_LEDGER = """
SELECT state, outcome, coalesce(sent_at < now() - make_interval(hours => %s), false), count(*),
       count(*) FILTER (WHERE sent_at > %s), min(attempts)
  FROM campaigns_delivery WHERE campaign_id = %s GROUP BY 1, 2, 3
"""


def ledger(campaign_id: int, *, since: datetime | None = None) -> list[Part]:
    """A campaign's deliveries, counted; `recent` are those accepted after `since`."""
    with connection.cursor() as cursor:
        cursor.execute(_LEDGER, [DELIVERED_AFTER_HOURS, since, campaign_id])
        rows = cursor.fetchall()
    return [Part(DeliveryState(state).name.lower(), Outcome(outcome), *rest) for state, outcome, *rest in rows]


def deliveries_by_state(campaign_id: int) -> dict[str, int]:
    """How many deliveries are in each state that occurs, by the state's name ("accepted")."""
    counts: dict[str, int] = {}
    for part in ledger(campaign_id):
        counts[part.state] = counts.get(part.state, 0) + part.people
    return counts


def status(campaign_id: int, parts: Sequence[Part] | None = None) -> dict[str, Any]:
    """Where a campaign stands, as `campaign_status --json` prints it. Raises Campaign.DoesNotExist.

    `parts` are what `ledger` has just counted, for callers that need more of it.
    """
    campaign = Campaign.objects.only("state").get(pk=campaign_id)
    figures = CampaignFigures.objects.filter(pk=campaign_id).first() or CampaignFigures()
    deliveries: dict[str, int] = {}
    outcomes = {"delivered": 0, "bounced": 0, "complained": 0}
    for part in ledger(campaign_id) if parts is None else parts:
        deliveries[part.state] = deliveries.get(part.state, 0) + part.people
        outcome = part.outcome
        if outcome is Outcome.NONE and part.is_old and part.state == DeliveryState.ACCEPTED.name.lower():
            outcome = Outcome.DELIVERED
        if outcome is not Outcome.NONE:
            outcomes[outcome.name.lower()] += part.people
    return {
        "state": str(campaign.state),
        "deliveries": deliveries,
        "outcomes": outcomes,
        "opens": {"raw": figures.opens_raw, "human": figures.opens_human, "hits": figures.open_hits},
        "clicks": {"raw": figures.clicks_raw, "human": figures.clicks_human, "hits": figures.click_hits},
        "unsubscribed": figures.unsubscribed,
    }


# Writing ---------------------------------------------------------------------------------------------------------

_MAKE_FIGURES = """
INSERT INTO campaigns_campaignfigures (campaign_id)
SELECT id FROM campaigns_campaign WHERE id = ANY(%s) ORDER BY id
ON CONFLICT (campaign_id) DO NOTHING
"""

# Ledger rows and figures together: rows are locked in the order of their key, the figures' change is the difference
# between the rows before and after. A person who reads proves that a delivery in doubt arrived (unknown → accepted).
_RECORD = """
WITH signal AS (
    SELECT * FROM unnest(%(campaign)s::bigint[], %(subscriber)s::bigint[], %(seen)s::smallint[],
                         %(opened)s::timestamptz[], %(clicked)s::timestamptz[],
                         %(opens)s::bigint[], %(clicks)s::bigint[])
        AS s (campaign_id, subscriber_id, seen, opened_at, clicked_at, open_hits, click_hits)
), held AS MATERIALIZED (
    SELECT d.campaign_id, d.subscriber_id, d.seen, d.opened_at, d.clicked_at,
           d.state = %(unknown)s AND d.reason IS NULL AS in_doubt
      FROM campaigns_delivery d JOIN signal USING (campaign_id, subscriber_id)
     WHERE d.campaign_id = ANY(%(campaigns)s)
     ORDER BY d.campaign_id, d.subscriber_id FOR UPDATE OF d
), moved AS (
    UPDATE campaigns_delivery d
       SET seen = d.seen | s.seen, opened_at = s.opened_at, clicked_at = s.clicked_at,
           state = CASE WHEN d.state = %(unknown)s AND coalesce(s.opened_at, s.clicked_at) IS NOT NULL
                        THEN %(accepted)s ELSE d.state END
      FROM signal s JOIN held USING (campaign_id, subscriber_id)
     WHERE d.campaign_id = s.campaign_id AND d.subscriber_id = s.subscriber_id
       AND d.campaign_id = ANY(%(campaigns)s)
       AND (d.seen | s.seen, s.opened_at, s.clicked_at) IS DISTINCT FROM (d.seen, d.opened_at, d.clicked_at)
), change AS (
    SELECT campaign_id,
           count(*) FILTER (WHERE s.seen & 1 = 1 AND h.seen & 1 = 0) AS opens_raw,
           count(*) FILTER (WHERE s.seen & 2 = 2 AND h.seen & 2 = 0) AS clicks_raw,
           count(s.opened_at) - count(h.opened_at) AS opens_human,
           count(s.clicked_at) - count(h.clicked_at) AS clicks_human,
           sum(s.open_hits) AS open_hits, sum(s.click_hits) AS click_hits,
           count(*) FILTER (WHERE h.in_doubt AND coalesce(s.opened_at, s.clicked_at) IS NOT NULL) AS proved
      FROM signal s JOIN held h USING (campaign_id, subscriber_id)
     GROUP BY campaign_id
), locked AS MATERIALIZED (
    SELECT campaign_id FROM campaigns_campaignfigures
     WHERE campaign_id IN (SELECT campaign_id FROM change) ORDER BY campaign_id FOR UPDATE
)
UPDATE campaigns_campaignfigures f
   SET opens_raw = f.opens_raw + c.opens_raw, opens_human = greatest(f.opens_human + c.opens_human, 0),
       clicks_raw = f.clicks_raw + c.clicks_raw, clicks_human = greatest(f.clicks_human + c.clicks_human, 0),
       open_hits = f.open_hits + c.open_hits, click_hits = f.click_hits + c.click_hits,
       in_doubt = greatest(f.in_doubt - c.proved, 0)
  FROM change c JOIN locked USING (campaign_id) WHERE f.campaign_id = c.campaign_id
"""


def record_signals(signals: Sequence[Signal]) -> None:
    """Write down what was seen of deliveries, at most one signal each, and move the campaigns' figures with them.

    Figures may go down: a signal without `opened_at` takes back that a person opened. Deliveries that are not in the
    ledger are passed over.
    """
    if not signals:
        return
    names = ("campaign", "subscriber", "seen", "opened", "clicked", "opens", "clicks")
    columns: dict[str, Any] = {
        name: list(column) for name, column in zip(names, zip(*signals, strict=True), strict=True)
    }
    columns["campaigns"] = sorted(set(columns["campaign"]))
    columns |= {"unknown": DeliveryState.UNKNOWN.value, "accepted": DeliveryState.ACCEPTED.value}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_MAKE_FIGURES, [columns["campaigns"]])
        cursor.execute(_RECORD, columns)


# What may come after what: a bounce overrides "delivered" (servers accept first), a complaint overrides both.
_OUTCOME_FROM = {
    Outcome.DELIVERED: (Outcome.NONE,),
    Outcome.BOUNCED: (Outcome.NONE, Outcome.DELIVERED),
    Outcome.COMPLAINED: (Outcome.NONE, Outcome.DELIVERED, Outcome.BOUNCED),
}
_OUTCOME_FIGURES = {Outcome.BOUNCED: "bounced", Outcome.COMPLAINED: "complained"}


def record_outcome(campaign_id: int, subscriber_id: int, outcome: Outcome) -> bool:
    """Note what came of a delivery after a server accepted it; whether this call changed it. Harmless when repeated."""
    with transaction.atomic():
        row = Delivery.objects.filter(campaign_id=campaign_id, subscriber_id=subscriber_id)
        # Any word of a provider shows that it had taken a delivery that was in doubt.
        if row.filter(state=DeliveryState.UNKNOWN, reason=None).update(state=DeliveryState.ACCEPTED):
            CampaignFigures.objects.filter(pk=campaign_id, in_doubt__gt=0).update(in_doubt=F("in_doubt") - 1)
        row.filter(state=DeliveryState.UNKNOWN).update(state=DeliveryState.ACCEPTED)
        if not row.filter(outcome__in=_OUTCOME_FROM[outcome]).update(outcome=outcome):
            return False
        figure = _OUTCOME_FIGURES.get(outcome)
        if figure:
            CampaignFigures.objects.get_or_create(campaign_id=campaign_id)
            CampaignFigures.objects.filter(campaign_id=campaign_id).update(**{figure: F(figure) + 1})
    if figure:
        breaking.check(campaign_id, now=datetime.now(UTC))
    return True
