"""Deliveries in doubt: a worker or a connection ended before the server's answer; nobody can say what came of them.

They stay `unknown` until a reader, a bounce or a provider proves that they arrived, or an editor decides: send again
(unknown → queued, in a batch of its own) or leave it at that (they stay unknown and ask no more). Nothing here is done
by itself: the promise is that nobody is mailed twice unless somebody said so.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet

from campaigns import states, telling
from campaigns.errors import CampaignError
from campaigns.models import (
    Batch,
    Campaign,
    CampaignState,
    Delivery,
    DeliveryError,
    DeliveryState,
    EditorEvent,
    SkipReason,
)
from subscribers.models import AuditEntry
from subscribers.tasks import enqueue

S = CampaignState
IDS_IN_AUDIT = 200
WORKER_ENDED = "The worker ended while this message was on the wire; the server’s answer was not written down."

# The figure that the first page reads, counted anew: one pass over the campaign's part of the ledger.
RECOUNT = f"""
INSERT INTO campaigns_campaignfigures AS figures (campaign_id, in_doubt)
SELECT %(campaign)s, count(*) FROM campaigns_delivery
 WHERE campaign_id = %(campaign)s AND state = {DeliveryState.UNKNOWN} AND reason IS NULL
ON CONFLICT (campaign_id) DO UPDATE SET in_doubt = excluded.in_doubt
RETURNING in_doubt
"""


@dataclass(frozen=True)
class Doubt:
    """One recipient in doubt: who, since when, and what is known."""

    subscriber_id: int
    since: datetime | None
    known: str


def in_doubt(campaign_id: int) -> QuerySet[Delivery]:
    """The deliveries of a campaign that wait for an editor's decision."""
    return Delivery.objects.filter(campaign_id=campaign_id, state=DeliveryState.UNKNOWN, reason=None)


def recount(campaign_id: int) -> int:
    """Count them, and keep the number with the campaign's figures."""
    with connection.cursor() as cursor:
        cursor.execute(RECOUNT, {"campaign": campaign_id})
        (people,) = cursor.fetchone()
    return int(people)


def recount_open(*, now: datetime) -> None:
    """Count anew in the campaigns whose workers may just have died: those with an open batch; editors are told."""
    open_states = (Batch.State.READY, Batch.State.LEASED, Batch.State.ASIDE)
    campaigns = Batch.objects.filter(state__in=open_states).order_by().values_list("campaign_id", flat=True).distinct()
    for campaign_id in campaigns:
        if recount(campaign_id):
            telling.note(campaign_id, EditorEvent.Kind.DOUBT, now=now)


def listed(campaign_id: int, *, after: int = 0, limit: int) -> list[Doubt]:
    """Those in doubt in the order of the key, from the one after `after` on."""
    rows = list(in_doubt(campaign_id).filter(subscriber_id__gt=after).order_by("subscriber_id")[:limit])
    said: dict[int, DeliveryError] = {}
    people = [row.subscriber_id for row in rows]
    for error in DeliveryError.objects.filter(campaign_id=campaign_id, subscriber_id__in=people).order_by("pk"):
        said[error.subscriber_id] = error
    return [_doubt(row, said.get(row.subscriber_id)) for row in rows]


def _doubt(row: Delivery, said: DeliveryError | None) -> Doubt:
    # What a server said before the attempt that is in doubt (it put the mail off) tells nothing of it.
    if said is None or (row.sent_at and said.at < row.sent_at):
        return Doubt(row.subscriber_id, row.sent_at, WORKER_ENDED)
    return Doubt(row.subscriber_id, said.at, said.text)


def resend(
    campaign_id: int, *, people: Collection[int] | None = None, most: int | None = None, actor: str, now: datetime
) -> int:
    """Queue recipients in doubt once more, all or those named; how many. Raises CampaignError.

    Whoever had the mail already gets it twice, and knows it by the same Message-ID. Repeating it changes nothing: only
    rows in doubt move. Unsubscribed and suppressed people are left out as the batch goes out. `most` is how many the
    editor was shown: more than that are not sent to.
    """
    with transaction.atomic():
        campaign = _locked(campaign_id)
        if campaign.state not in {S.SENT, S.SENDING, S.PAUSED}:
            raise CampaignError(f"Nobody can be sent this again: the campaign is {campaign.get_state_display()}.")
        chosen = _chosen(campaign_id, people, most)
        for start in range(0, len(chosen), settings.BATCH_SIZE):
            _queue(campaign_id, chosen[start : start + settings.BATCH_SIZE], now=now)
        if chosen:
            if campaign.state == S.SENT:
                states.move(campaign_id, to=S.SENDING, from_=(S.SENT,), closed_at=None, state_reason="")
            _decided(campaign_id, "campaign.doubt_resend", chosen, actor)
            from campaigns.tasks import sweep

            transaction.on_commit(lambda: enqueue(sweep))
    return len(chosen)


def let_be(campaign_id: int, *, people: Collection[int] | None = None, most: int | None = None, actor: str) -> int:
    """Ask no more about recipients in doubt, all or those named; how many. Raises CampaignError.

    They stay unknown, are not mailed again and count neither as delivered nor as failed, so that hygiene holds nothing
    against them. A later open, click or bounce still proves that the mail had arrived.
    """
    with transaction.atomic():
        _locked(campaign_id)
        chosen = _chosen(campaign_id, people, most)
        in_doubt(campaign_id).filter(subscriber_id__in=chosen).update(reason=SkipReason.LEFT_IN_DOUBT)
        if chosen:
            _decided(campaign_id, "campaign.doubt_close", chosen, actor)
    return len(chosen)


def _locked(campaign_id: int) -> Campaign:
    """The campaign, held until the end of the transaction, so that it does not end or get cancelled meanwhile."""
    campaign = Campaign.objects.select_for_update(of=("self",)).filter(pk=campaign_id).first()
    if campaign is None:
        raise CampaignError(f"There is no campaign {campaign_id}.")
    return campaign


def _chosen(campaign_id: int, people: Collection[int] | None, most: int | None) -> list[int]:
    """Those in doubt now that the editor meant; their rows stay locked."""
    rows = in_doubt(campaign_id)
    if people is not None:
        rows = rows.filter(subscriber_id__in=people)
    chosen = list(
        rows.select_for_update(of=("self",)).order_by("subscriber_id").values_list("subscriber_id", flat=True)
    )
    if most is not None and len(chosen) > most:
        raise CampaignError("Nothing was done: more recipients are in doubt now than this page showed. Look again.")
    return chosen


def _queue(campaign_id: int, people: Sequence[int], *, now: datetime) -> None:
    batch = Batch.objects.create(campaign_id=campaign_id, first_id=people[0], last_id=people[-1], not_before=now)
    # Without its lease nothing that the old worker says later can move the row.
    in_doubt(campaign_id).filter(subscriber_id__in=people).update(
        state=DeliveryState.QUEUED, batch_id=batch.pk, lease=None, sent_at=None
    )


def _decided(campaign_id: int, action: str, people: Sequence[int], actor: str) -> None:
    recount(campaign_id)
    AuditEntry.objects.create(
        actor=actor,
        action=action,
        subject=f"campaign {campaign_id}",
        details={"people": len(people), "subscribers": list(people[:IDS_IN_AUDIT])},
    )
