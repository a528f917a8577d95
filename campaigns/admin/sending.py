"""The way out of the house: the checklist, the last question, and the moves of a campaign; each one a POST."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_POST

from campaigns import preflight, scheduling
from campaigns.admin import presenting
from campaigns.admin.forms import TYPED_NUMBER_FROM, ScheduleForm, SendNowForm, fingerprint
from campaigns.errors import CampaignError
from campaigns.models import Campaign, CampaignState
from subscribers import audience

# People come and go while an editor reads; a difference up to the greater of the two needs no second question.
FEW_MORE, FEW_MORE_PERCENT = 20, 2
# In the order of the checklist: what stops the send comes first.
LEVELS = {"blocker": 0, "warning": 1, "ok": 2}


@dataclass(frozen=True)
class Action:
    """A button that moves a campaign: the states that show it, its words, and the question asked before."""

    states: frozenset[str]
    label: str | Promise
    icon: str
    done: str | Promise
    question: str | Promise = ""
    is_danger: bool = False


S = CampaignState
ACTIONS: dict[str, Action] = {
    "unschedule": Action(
        frozenset({S.SCHEDULED}), gettext_lazy("Back to draft"), "undo", gettext_lazy("It is a draft again.")
    ),
    "pause": Action(
        frozenset({S.SENDING}), gettext_lazy("Pause"), "pause", gettext_lazy("Paused: no further mail goes out.")
    ),
    "resume": Action(frozenset({S.PAUSED}), gettext_lazy("Resume"), "play_arrow", gettext_lazy("Sending goes on.")),
    "cancel": Action(
        frozenset({S.SCHEDULED, S.SENDING, S.PAUSED}),
        gettext_lazy("Cancel"),
        "cancel",
        gettext_lazy("Cancelled. Whoever has not got the mail yet will not get it."),
        question=gettext_lazy("Cancel this campaign for good? What has been sent cannot be called back."),
        is_danger=True,
    ),
}


def may_send(request: HttpRequest) -> bool:
    """Whether this person may let mail go out, tests included."""
    return request.user.has_perm("campaigns.send_campaign")


def findings(campaign: Campaign) -> list[preflight.Finding]:
    """The checklist of a campaign, worst first."""
    return sorted(preflight.check(campaign), key=lambda finding: LEVELS[finding.level])


def page(request: HttpRequest, model_admin: Any, campaign: Campaign) -> dict[str, Any]:
    """What every page about one campaign shows: its title, its state and the moves that are legal now."""
    return {
        "title": campaign.subject,
        "opts": model_admin.opts,
        "original": campaign,  # the breadcrumb's last part
        "campaign": campaign,
        "badge": presenting.badge(campaign),
        "when": presenting.when(campaign),
        "has_report": presenting.has_report(campaign),
        "in_doubt": presenting.figures_of(campaign).in_doubt,
        "may_send": may_send(request),
        "may_copy": model_admin.has_add_permission(request),
        "time_zone": settings.TIME_ZONE,
        "actions": _actions(campaign) if may_send(request) else [],
    }


def _actions(campaign: Campaign) -> list[tuple[str, Action]]:
    """The moves of the page's head. About to leave, the one that matters stands beside the countdown."""
    if presenting.seconds_held(campaign) or presenting.is_starting(campaign):
        return []
    return [(name, action) for name, action in ACTIONS.items() if campaign.state in action.states]


def campaign_of(request: HttpRequest, model_admin: Any, campaign_id: int) -> Campaign:
    """The campaign that a page is about. Raises Http404, or PermissionDenied for who may not see it."""
    campaign = get_object_or_404(Campaign.objects.select_related("list", "sender", "layout", "figures"), pk=campaign_id)
    if not model_admin.has_view_permission(request, campaign):
        raise PermissionDenied
    return campaign


@require_GET
def checks(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """The checklist alone, for the composer's panel."""
    campaign = campaign_of(request, model_admin, campaign_id)
    return render(request, "admin/campaigns/campaign/_checks.html", {"findings": findings(campaign)})


@require_GET
def review(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """The last look at a draft: the checklist, who gets it, and then send now or schedule."""
    campaign = campaign_of(request, model_admin, campaign_id)
    if campaign.state != CampaignState.DRAFT:
        return redirect("admin:campaigns_campaign_change", campaign.pk)
    return _review_page(request, model_admin, campaign)


def _review_page(
    request: HttpRequest,
    model_admin: Any,
    campaign: Campaign,
    *,
    send_form: SendNowForm | None = None,
    schedule_form: ScheduleForm | None = None,
) -> HttpResponse:
    people = audience.count(campaign.list_id)
    listed = findings(campaign)
    content = fingerprint(campaign)
    refused = bool(send_form or schedule_form)
    return render(
        request,
        "admin/campaigns/campaign/review.html",
        {
            **model_admin.admin_site.each_context(request),
            **page(request, model_admin, campaign),
            "title": _("Review and send"),
            "people": people,
            "findings": listed,
            "blocked": any(finding.level == "blocker" for finding in listed),
            "hold_seconds": settings.UNDO_SEND_SECONDS,
            "must_type": people.recipients >= TYPED_NUMBER_FROM,
            "send_form": send_form or SendNowForm(initial={"shown": people.recipients, "content": content}),
            "schedule_form": schedule_form or ScheduleForm(initial={"content": content}),
        },
        status=400 if refused else 200,
    )


def _refused_as_changed(request: HttpRequest, campaign: Campaign, content: str) -> bool:
    """Whether the draft is no longer what the review page showed; says so."""
    if content == fingerprint(campaign):
        return False
    messages.error(
        request, _("Nothing was sent: the campaign was changed since this page was shown. Look at it again.")
    )
    return True


def _refused_as_grown(request: HttpRequest, campaign: Campaign, shown: int) -> bool:
    """Whether the list is no longer about as long as the review page showed (an import has run); says so."""
    now = audience.count(campaign.list_id).recipients
    if abs(now - shown) <= max(FEW_MORE, shown * FEW_MORE_PERCENT // 100):
        return False
    messages.error(request, _("Nothing was sent: the list has changed a lot since this page was shown. Look again."))
    return True


@require_POST
def send_now(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """Let it go, if it is still what the page showed and whoever pressed knows to how many."""
    campaign = campaign_of(request, model_admin, campaign_id)
    if not may_send(request):
        raise PermissionDenied
    form = SendNowForm(request.POST)
    if not form.is_valid():
        return _review_page(request, model_admin, campaign, send_form=form)
    if _refused_as_changed(request, campaign, form.cleaned_data["content"]) or _refused_as_grown(
        request, campaign, form.cleaned_data["shown"]
    ):
        return redirect("admin:campaigns_campaign_review", campaign.pk)
    hold = timedelta(seconds=settings.UNDO_SEND_SECONDS)
    return _do(
        request,
        campaign,
        lambda: scheduling.send_now(campaign.pk, actor=request.user.get_username(), hold=hold, now=timezone.now()),
        "" if hold else _("It is on its way."),  # the countdown says it better
    )


@require_POST
def schedule(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """Set the hour."""
    campaign = campaign_of(request, model_admin, campaign_id)
    if not may_send(request):
        raise PermissionDenied
    form = ScheduleForm(request.POST)
    if not form.is_valid():
        return _review_page(request, model_admin, campaign, schedule_form=form)
    if _refused_as_changed(request, campaign, form.cleaned_data["content"]):
        return redirect("admin:campaigns_campaign_review", campaign.pk)
    at, hour = form.cleaned_data["at"], form.cleaned_data["local_time"]
    actor = request.user.get_username()
    return _do(
        request,
        campaign,
        lambda: scheduling.schedule(campaign.pk, at, actor=actor, local_time=hour, now=timezone.now()),
        _("Scheduled. Until then it can be turned back into a draft."),
    )


@require_POST
def act(request: HttpRequest, model_admin: Any, campaign_id: int, action: str) -> HttpResponse:
    """Unschedule, pause, resume or cancel; the domain decides whether the state allows it."""
    campaign = campaign_of(request, model_admin, campaign_id)
    if not may_send(request):
        raise PermissionDenied
    if action not in ACTIONS:
        raise Http404
    now, actor = timezone.now(), request.user.get_username()
    moves: dict[str, Callable[[], Any]] = {
        "unschedule": lambda: scheduling.unschedule(campaign.pk, actor=actor, now=now),
        "pause": lambda: scheduling.pause(
            campaign.pk, reason=_("Paused by %(who)s.") % {"who": actor}, actor=actor, now=now
        ),
        "resume": lambda: scheduling.resume(campaign.pk, actor=actor, now=now),
        "cancel": lambda: scheduling.cancel(campaign.pk, actor=actor, now=now),
    }
    return _do(request, campaign, moves[action], str(ACTIONS[action].done))


def _do(request: HttpRequest, campaign: Campaign, move: Callable[[], Any], done: str) -> HttpResponse:
    """Make a move and say how it went; a refusal is a sentence of the domain's."""
    try:
        move()
    except CampaignError as error:
        messages.error(request, str(error))
    else:
        if done:
            messages.success(request, done)
    return redirect("admin:campaigns_campaign_change", campaign.pk)
