"""The admin's first page: what goes out, what waits for somebody, how the last issues did, and how the lists grow.

Everything here is one small query over indexed rows or figures that others keep up to date; nobody scans events.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Count, Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _

from campaigns import progressing
from campaigns.admin import attention, presenting
from campaigns.admin.attention import Notice
from campaigns.models import Campaign, CampaignState
from newsletter.navigation import admin_page
from subscribers.models import HygieneRun, ImportRun, List, Subscription

LATEST = 5
FRESH = timedelta(days=1)  # so long a finished campaign is pointed out
GROWTH_DAYS = 30
FAILED_IMPORT_DAYS = 14


@dataclass(frozen=True)
class ListSize:
    """A list with its active subscribers, and who came and went in the last days."""

    list: List
    active: int
    joined: int
    left: int
    link: str


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the first page's content to the admin's context, as far as this person may see it."""
    may_write = request.user.has_perm("campaigns.view_campaign")
    may_see_lists = request.user.has_perm("subscribers.view_list")
    now = timezone.now()
    lists = list_sizes(now) if may_see_lists else []
    context.update(
        {
            "title": _("Overview"),
            "sending": sending() if may_write else [],
            "scheduled": scheduled() if may_write else [],
            "drafts": drafts() if may_write else [],
            "latest": latest() if may_write else [],
            "notices": [*attention.notices()] if may_write else [],
            "lists": lists,
            "growth_days": GROWTH_DAYS,
            "time_zone": settings.TIME_ZONE,
            "may_write": may_write,
            "may_see_lists": may_see_lists,
            "write_link": _add_page(request, "campaigns", "campaign"),
            "import_link": _add_page(request, "subscribers", "importrun"),
            "list_link": _add_page(request, "subscribers", "list"),
        }
    )
    if request.user.has_perm("subscribers.view_hygienerun"):
        context["notices"] += _hygiene_notices()
    if request.user.has_perm("subscribers.view_importrun"):
        context["notices"] += _import_notices(now)
    context["is_new"] = may_write and not (context["latest"] or context["sending"] or context["scheduled"])
    context["has_people"] = any(size.active for size in lists)
    return context


def _add_page(request: HttpRequest, app: str, model: str) -> str:
    """Where something new is made, empty for people who may not."""
    return admin_page(f"{app}_{model}_add") if request.user.has_perm(f"{app}.add_{model}") else ""


def sending() -> list[dict[str, Any]]:
    """The campaigns that are going out, with how far they are."""
    lines = []
    for campaign in presenting.with_figures(Campaign.objects.filter(state=CampaignState.SENDING)):
        done = progressing.progress(campaign.pk, now=timezone.now()).done
        lines.append({"campaign": campaign, "done": done, "link": admin_page("campaigns_campaign_report", campaign.pk)})
    return lines


def scheduled() -> list[dict[str, Any]]:
    """The campaigns that leave by themselves, the next one first."""
    waiting = Campaign.objects.filter(state=CampaignState.SCHEDULED).select_related("list").order_by("scheduled_at")
    # The change page leads on: to the countdown of one that is about to leave, to the mail of any other.
    return [
        {"campaign": campaign, "link": admin_page("campaigns_campaign_change", campaign.pk)} for campaign in waiting
    ]


def drafts() -> list[dict[str, Any]]:
    """The newest campaigns that are still being written."""
    newest = Campaign.objects.filter(state=CampaignState.DRAFT).select_related("list").order_by("-pk")[:LATEST]
    return [{"campaign": campaign, "link": admin_page("campaigns_campaign_change", campaign.pk)} for campaign in newest]


def latest() -> list[dict[str, Any]]:
    """The campaigns that went out last, with the figures that people compare."""
    gone = Campaign.objects.filter(state=CampaignState.SENT).order_by("-finished_at", "-pk")
    return [
        {
            "campaign": campaign,
            "link": admin_page("campaigns_campaign_report", campaign.pk),
            "figures": presenting.figures_of(campaign),
            "opened": presenting.share(presenting.figures_of(campaign).opens_human, campaign.audience),
            "is_fresh": bool(campaign.finished_at and campaign.finished_at > timezone.now() - FRESH),
            "clicked": presenting.share(presenting.figures_of(campaign).clicks_human, campaign.audience),
        }
        for campaign in presenting.with_figures(gone)[:LATEST]
    ]


def list_sizes(now: datetime) -> list[ListSize]:
    """Every list with its size and its growth, from one pass over the subscriptions."""
    since = now - timedelta(days=GROWTH_DAYS)
    gone = (Subscription.State.UNSUBSCRIBED, Subscription.State.PRUNED)
    counted = {
        row["list_id"]: row
        for row in Subscription.objects.values("list_id").annotate(
            active=Count("pk", filter=Q(state=Subscription.State.ACTIVE, subscriber__suppressed_at=None)),
            joined=Count("pk", filter=Q(created_at__gte=since) & ~Q(state=Subscription.State.PENDING)),
            left=Count("pk", filter=Q(state__in=gone, state_since__gte=since)),
        )
    }
    sizes = []
    for newsletter in List.objects.all():
        row = counted.get(newsletter.pk)
        active, joined, left = (row["active"], row["joined"], row["left"]) if row else (0, 0, 0)
        sizes.append(ListSize(newsletter, active, joined, left, admin_page("subscribers_list_change", newsletter.pk)))
    return sizes


def _hygiene_notices() -> list[Notice]:
    waiting = HygieneRun.objects.filter(kind=HygieneRun.Kind.PREVIEW, state=HygieneRun.State.OPEN, removed__gt=0)
    return [
        Notice(
            _("Hygiene of “%s” waits for your approval") % run.list,
            _("%(remove)s people would no longer be mailed, of %(judged)s judged.")
            % {"remove": presenting.number(run.removed), "judged": presenting.number(run.judged)},
            admin_page("subscribers_hygienerun_change", run.pk),
            _("See whom and why"),
        )
        for run in waiting.select_related("list")[:LATEST]
    ]


def _import_notices(now: datetime) -> list[Notice]:
    failed = ImportRun.objects.filter(
        state=ImportRun.State.FAILED, created_at__gte=now - timedelta(days=FAILED_IMPORT_DAYS)
    )
    return [
        Notice(
            _("An import into “%s” was refused") % run.list,
            run.message,
            admin_page("subscribers_importrun_change", run.pk),
            _("Look at it"),
        )
        for run in failed.select_related("list")[:LATEST]
    ]
