"""What an editor may do with a campaign: send, schedule, pause, resume, cancel; and its launch when it is due."""

from collections.abc import Collection
from datetime import datetime, time, timedelta

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Q

from campaigns import batching, breaking, composing, freezing, preflight, states, telling
from campaigns.errors import Busy, CampaignError, NotReady, WrongState
from campaigns.models import Batch, Campaign, CampaignState, Delivery, DeliveryState, EditorEvent, SkipReason
from subscribers.models import AuditEntry
from subscribers.tasks import enqueue

S = CampaignState
FURTHEST = timedelta(days=36_525)  # a hundred years; a time beyond them is a slip of the hand


def send_now(
    campaign_id: int,
    *,
    actor: str = "",
    overrides: Collection[str] = (),
    hold: timedelta = timedelta(0),
    now: datetime,
) -> None:
    """Queue a campaign; workers launch and send it after `hold`, until which it can be undone. Raises CampaignError."""
    schedule(campaign_id, now + hold, actor=actor, overrides=overrides, now=now)


def schedule(
    campaign_id: int,
    at: datetime,
    *,
    actor: str = "",
    overrides: Collection[str] = (),
    local_time: time | None = None,
    now: datetime,
) -> None:
    """Let a campaign go out at a time. Raises NotReady with preflight's blockers, WrongState, or CampaignError.

    `overrides` are codes of blockers that may pass; they are kept with the campaign and stand in the audit log. With a
    `local_time` each reader gets it at that hour where they live, on the day of `at`; where it has passed, at `at`.
    """
    campaign = get(campaign_id)
    if campaign.origin == Campaign.Origin.IMPORTED:
        raise WrongState("This campaign was brought from another platform as a record; it cannot be sent from here.")
    if campaign.state != S.DRAFT:
        raise _wrong(campaign, "sent or scheduled")
    if at < now:
        raise CampaignError("The time lies in the past.")
    if at - now > FURTHEST:
        raise CampaignError("The time lies more than a hundred years ahead.")
    blockers = preflight.blockers(preflight.check(campaign), overrides=overrides)
    if blockers:
        raise NotReady(blockers)
    with transaction.atomic():
        updates = {
            "scheduled_at": at,
            "scheduled_by": actor,
            "state_reason": "",
            "overrides": sorted(overrides),
            "local_time": local_time,
        }
        if not states.move(campaign_id, to=S.SCHEDULED, from_=(S.DRAFT,), **updates):
            raise _wrong(campaign, "sent or scheduled")
        details = {"at": at.isoformat(), "overrides": " ".join(sorted(overrides))}
        if local_time:
            details["local_time"] = local_time.isoformat("minutes")
        _audit(actor, "campaign.schedule", campaign, **details)
        if at <= now:
            from campaigns.tasks import launch

            transaction.on_commit(lambda: enqueue(launch, campaign_id))


def unschedule(campaign_id: int, *, actor: str = "", now: datetime) -> None:
    """Make a scheduled campaign a draft again. Raises WrongState once it has begun."""
    campaign = get(campaign_id)
    if not states.move(campaign_id, to=S.DRAFT, from_=(S.SCHEDULED,), scheduled_at=None):
        campaign.refresh_from_db(fields=["state"])
        if campaign.state == S.SENDING:
            raise WrongState("Too late to undo: it is on its way already. Pausing or cancelling it stops the rest.")
        raise _wrong(campaign, "taken back")
    _audit(actor, "campaign.unschedule", campaign)


def launch(campaign_id: int, *, now: datetime) -> bool:
    """Freeze and start a scheduled campaign whose time has come; whether this call did it.

    Safe to call any number of times from anywhere: the freeze's conditional UPDATE lets one through. What forbids
    sending by now makes it a draft again, with the reason.
    """
    campaign = Campaign.objects.select_related("list__sender", "layout", "sender").filter(
        Q(scheduled_at__lte=now), pk=campaign_id, state=S.SCHEDULED
    )
    found = campaign.first()
    if found is None:
        return False
    findings = preflight.check(found)
    if any(finding.code == preflight.BUSY for finding in findings):
        return False  # it stays scheduled, and the sweep comes again
    blockers = preflight.blockers(findings, overrides=found.overrides)
    if blockers:
        reason = " ".join(blockers)[:300]
        with transaction.atomic():
            if states.move(campaign_id, to=S.DRAFT, from_=(S.SCHEDULED,), scheduled_at=None, state_reason=reason):
                telling.note(campaign_id, EditorEvent.Kind.REFUSED, key=now.isoformat(), text=reason, now=now)
        return False
    try:
        compiled = composing.compile_campaign(found, now=now)
    except Busy:
        return False
    return freezing.freeze(found, compiled, batch_size=settings.BATCH_SIZE, now=now) is not None


def due(*, now: datetime) -> list[int]:
    """Scheduled campaigns whose time has come."""
    return list(Campaign.objects.filter(state=S.SCHEDULED, scheduled_at__lte=now).values_list("pk", flat=True))


def pause(campaign_id: int, *, reason: str, actor: str = "", now: datetime) -> None:
    """Stop handing out windows; what is on the wire ends. Raises WrongState.

    Editors are told unless one of them did it: an `actor` who is nobody's user name is the system.
    """
    campaign = get(campaign_id)
    with transaction.atomic():
        if not states.move(campaign_id, to=S.PAUSED, from_=(S.SENDING,), state_reason=reason[:300]):
            raise _wrong(campaign, "paused")
        if not User.objects.filter(username=actor).exists():
            telling.note(campaign_id, EditorEvent.Kind.PAUSED, key=now.isoformat(), text=reason, now=now)
        _audit(actor or "system", "campaign.pause", campaign, reason=reason)


def resume(campaign_id: int, *, actor: str = "", now: datetime) -> None:
    """Go on with a paused campaign, and with what was set aside of it. Raises WrongState."""
    campaign = get(campaign_id)
    with transaction.atomic():
        if not states.move(campaign_id, to=S.SENDING, from_=(S.PAUSED,), state_reason=""):
            raise _wrong(campaign, "resumed")
        _audit(actor, "campaign.resume", campaign)
        breaking.accept(campaign_id)
        for batch in batching.set_aside(campaign_id):
            batching.release(batch.pk, now=now)
        Batch.objects.filter(campaign_id=campaign_id, state=Batch.State.READY).update(enqueued_at=None)
        from campaigns.tasks import sweep

        transaction.on_commit(lambda: enqueue(sweep))


def cancel(campaign_id: int, *, actor: str = "", now: datetime) -> None:
    """Send no more of a campaign; who was not mailed is skipped, who was stays as they are. Raises WrongState.

    One that had been sent and is sent again to a few is sent, as before; only the few are skipped.
    """
    campaign = get(campaign_id)
    with transaction.atomic():
        if campaign.finished_at:
            moved = states.move(campaign_id, to=S.SENT, from_=(S.SENDING, S.PAUSED), state_reason="")
        else:
            open_states = (S.SCHEDULED, S.SENDING, S.PAUSED)
            moved = states.move(campaign_id, to=S.CANCELLED, from_=open_states, finished_at=now)
        if not moved:
            raise _wrong(campaign, "cancelled")
        # Leased batches end by themselves: a window is only handed out while the campaign is sending.
        Batch.objects.filter(campaign_id=campaign_id, state=Batch.State.READY).update(state=Batch.State.DONE)
        skip_rest(campaign_id)
        _audit(actor, "campaign.cancel", campaign)


def skip_rest(campaign_id: int) -> int:
    """Skip whoever of a cancelled campaign still waits; the number of people."""
    waiting = (DeliveryState.QUEUED, DeliveryState.DEFERRED)
    return Delivery.objects.filter(campaign_id=campaign_id, state__in=waiting).update(
        state=DeliveryState.SKIPPED, reason=SkipReason.CANCELLED
    )


def get(campaign_id: int) -> Campaign:
    """A campaign with what composing needs. Raises CampaignError when there is none."""
    try:
        return Campaign.objects.select_related("list__sender", "layout", "sender").get(pk=campaign_id)
    except Campaign.DoesNotExist as error:
        raise CampaignError(f"There is no campaign {campaign_id}.") from error


def _wrong(campaign: Campaign, what: str) -> WrongState:
    state = Campaign.objects.values_list("state", flat=True).get(pk=campaign.pk)
    return WrongState(f"This campaign cannot be {what}: it is {CampaignState(state).label}.")


def _audit(actor: str, action: str, campaign: Campaign, **details: str) -> None:
    AuditEntry.objects.create(actor=actor, action=action, subject=f"campaign {campaign.pk}", details=details)
