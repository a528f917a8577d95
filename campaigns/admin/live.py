"""The part of a report that moves by itself: the countdown before a campaign leaves, its progress, what holds it up.

The page asks for it as JSON: numbers to put in place, and whole parts only when the campaign has come to another phase,
so that nothing that somebody is about to press moves under their finger.
"""

import hashlib
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import Promise, SimpleLazyObject
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_GET, require_POST

from campaigns import limiting, progressing, refusals, reporting, retargeting
from campaigns.admin import presenting, sending
from campaigns.admin.sending import campaign_of
from campaigns.errors import CampaignError
from campaigns.models import Campaign, CampaignState, FormerTarget
from campaigns.progressing import Progress

STATE_WORDS: dict[str, str | Promise] = {
    "queued": gettext_lazy("waiting for their turn"),
    "deferred": gettext_lazy("put off by the receiving server; tried again"),
    "sending": gettext_lazy("being sent now"),
    "accepted": gettext_lazy("taken by the receiving server"),
    "failed": gettext_lazy("refused for good"),
    "skipped": gettext_lazy("left out: unsubscribed, suppressed or pruned since the start"),
    "unknown": gettext_lazy("unknown: the connection broke before the answer"),
}
# Phases in which the page asks again: something may happen by itself, or by a colleague's hand.
MOVING = {"held", "starting", "sending", "again", "retrying", "paused"}


def phase(campaign: Campaign, progress: Progress) -> str:
    """What the page is about just now."""
    if campaign.state == CampaignState.SCHEDULED:
        return "held" if presenting.seconds_held(campaign) else "starting"
    if campaign.state == CampaignState.PAUSED:
        return "paused"
    if campaign.state != CampaignState.SENDING:
        return "ended"
    if progress.retries:
        return "retrying"
    return "again" if campaign.finished_at else "sending"


def context(request: HttpRequest, campaign: Campaign) -> dict[str, Any]:
    """What the moving parts of the page show."""
    progress = progressing.progress(campaign.pk, now=timezone.now())
    deliveries = progress.status["deliveries"]
    now = phase(campaign, progress)
    return {
        "campaign": campaign,
        "progress": progress,
        "phase": now,
        "card_says_it": now == "paused",
        "phase_key": _key(campaign, now),
        "is_moving": now in MOVING,
        "held": presenting.seconds_held(campaign),
        "hold_seconds": settings.UNDO_SEND_SECONDS,
        "done": progress.done,
        "figures": presenting.funnel(campaign, progress.status),
        "speed": speed(progress),
        "pace": pace(progress) if campaign.state == CampaignState.SENDING else "",
        "waits": limiting.throttling_note(campaign, now=timezone.now()),
        "retries": _retries(progress),
        "states": [
            {"name": name, "count": deliveries.get(name, 0), "words": words}
            for name, words in STATE_WORDS.items()
            if deliveries.get(name, 0)
        ],
        "links": SimpleLazyObject(lambda: _links(campaign.pk)),  # most polls show none
        "may_retarget": sending.may_send(request),
        "hits": {"opens": progress.status["opens"]["hits"], "clicks": progress.status["clicks"]["hits"]},
        "causes": refusals.causes(campaign.pk, with_addresses=request.user.has_perm("subscribers.view_subscriber")),
        "may_see_people": request.user.has_perm("subscribers.view_subscriber"),
    }


@require_GET
def progress(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """The moving parts as JSON; `key` is the phase that the page shows."""
    campaign = campaign_of(request, model_admin, campaign_id)
    shown = context(request, campaign)
    answer: dict[str, Any] = {
        "state": campaign.state,
        "key": shown["phase_key"],
        "is_moving": shown["is_moving"],
        "is_elsewhere": not presenting.has_report(campaign),
        "leaves_in": round(shown["held"], 1),
        "done": shown["done"],
        "audience": campaign.audience,
        "words": {
            "done": presenting.number(shown["done"]),
            "audience": presenting.number(campaign.audience),
            "speed": shown["speed"],
            "pace": shown["pace"],
            "waits": shown["waits"],
            "retries": shown["retries"],
        },
        "figures": {
            figure.name: {
                "value": presenting.number(figure.value),
                "share": figure.share,
                "raw": None if figure.raw is None else presenting.number(figure.raw),
            }
            for figure in shown["figures"]
        },
        "tables": _rendered(request, ("states", "causes"), shown),
    }
    if request.GET.get("key") != shown["phase_key"]:
        whole = {**shown, **sending.page(request, model_admin, campaign), "tab": "report"}
        answer["parts"] = _rendered(request, ("head", "live", "links"), whole)
    response = JsonResponse(answer)
    response["Cache-Control"] = "no-store"
    return response


def _rendered(request: HttpRequest, names: tuple[str, ...], shown: dict[str, Any]) -> dict[str, str]:
    return {name: render_to_string(f"admin/campaigns/campaign/_{name}.html", shown, request=request) for name in names}


def _key(campaign: Campaign, now: str) -> str:
    said = f"{campaign.state}|{now}|{campaign.state_reason}|{campaign.audience}"
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def speed(progress: Progress) -> str:
    """How fast mail leaves: "812 a second"."""
    if progress.rate >= 1:
        return _("%(n)s a second") % {"n": presenting.number(round(progress.rate))}
    if progress.rate:
        return _("%(n)s a minute") % {"n": presenting.number(max(round(progress.rate * 60), 1))}
    return ""


def pace(progress: Progress) -> str:
    """The time left, or why nothing moves."""
    if progress.seconds_left:
        return _("%(time)s left") % {"time": span(progress.seconds_left)}
    if not progress.waiting:
        return ""
    if progress.is_worked_on:
        return _("a worker has it; the receiving servers are slow to answer")
    if progress.goes_on_at:
        return _("goes on at %(at)s") % {"at": _clock(progress.goes_on_at)}
    return _("waiting for a worker")


def span(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 60:
        return _("less than a minute")
    minutes = round(seconds / 60)
    if minutes < 90:
        return ngettext("about %(n)s minute", "about %(n)s minutes", minutes) % {"n": minutes}
    hours = round(seconds / 3600)
    if hours < 48:
        return ngettext("about %(n)s hour", "about %(n)s hours", hours) % {"n": hours}
    days = round(seconds / 86_400)
    return ngettext("about %(n)s day", "about %(n)s days", days) % {"n": days}


def _retries(progress: Progress) -> str:
    if progress.retries is None:
        return ""
    words = ngettext(
        "%(n)s recipient was put off by the receiving server. Next attempt at %(next)s, the last by %(until)s.",
        "%(n)s recipients were put off by their servers. Next attempt at %(next)s, the last by %(until)s.",
        progress.retries.people,
    )
    return words % {
        "n": presenting.number(progress.retries.people),
        "next": _clock(progress.retries.next_at),
        "until": _clock(progress.retries.until),
    }


def _clock(moment: datetime) -> str:
    """The hour, and the day when it is not today."""
    at = timezone.localtime(moment)
    return date_format(at, "H:i" if at.date() == timezone.localdate() else "H:i, D j M")


def _links(campaign_id: int) -> list[dict[str, Any]]:
    """The links with their figures, and where they led before somebody changed them."""
    former: dict[int, list[FormerTarget]] = {}
    for target in FormerTarget.objects.filter(link__campaign_id=campaign_id).select_related("link"):
        former.setdefault(target.link.index, []).append(target)
    return [{"clicks": link, "former": former.get(link.index, [])} for link in reporting.clicks_by_link(campaign_id)]


@require_POST
def retarget(request: HttpRequest, model_admin: Any, campaign_id: int, index: int) -> HttpResponse:
    """Let a link of a sent mail lead elsewhere."""
    campaign = campaign_of(request, model_admin, campaign_id)
    if not sending.may_send(request):
        raise PermissionDenied
    url, shown = request.POST.get("url", ""), request.POST.get("shown", "")
    actor = request.user.get_username()
    try:
        retargeting.retarget(campaign.pk, index, url, shown=shown, actor=actor, now=timezone.now())
    except CampaignError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, _("From now on this link leads to %(url)s.") % {"url": url.strip()})
    return redirect("admin:campaigns_campaign_report", campaign.pk)
