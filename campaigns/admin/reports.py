"""What became of a campaign: the report, its figures while it is being sent, and the recipients one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET

from campaigns import reporting
from campaigns.admin import live, presenting, sending
from campaigns.admin.sending import campaign_of
from campaigns.models import Campaign, Delivery, DeliveryState, Outcome, SkipReason
from subscribers.models import Subscriber

RECIPIENTS_A_PAGE = 50
HOURS_SHOWN = 72


@require_GET
def report(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """The figures of a campaign that has begun to leave."""
    campaign = campaign_of(request, model_admin, campaign_id)
    if not presenting.has_report(campaign):
        return redirect("admin:campaigns_campaign_change", campaign.pk)
    shown = live.context(request, campaign)
    hours = opens_by_hour(campaign)
    context = {
        **model_admin.admin_site.each_context(request),
        **sending.page(request, model_admin, campaign),
        **shown,
        "hours": hours,
        "most_in_an_hour": max((hour.human for hour in hours), default=0),
    }
    return render(request, "admin/campaigns/campaign/report.html", context)


@dataclass(frozen=True)
class Hour:
    """One bar of the chart: first opens within an hour, people's at the foot and machines' on top of them."""

    label: str
    human: int
    machine: int
    human_percent: float  # of the highest bar
    machine_percent: float


def opens_by_hour(campaign: Campaign) -> list[Hour]:
    """First opens in each of the first hours, empty hours included; nothing before anything was opened."""
    counted = {moment.hour: moment for moment in reporting.signals_over_time(campaign.pk)}
    opened = [hour for hour, moment in counted.items() if moment.opens_human or moment.opens_machine]
    if not opened:
        return []
    first = min(opened)
    span = min(int((max(opened) - first).total_seconds() // 3600) + 1, HOURS_SHOWN)
    hours = [first + timedelta(hours=offset) for offset in range(span)]
    highest = max(counted[hour].opens_human + counted[hour].opens_machine for hour in hours if hour in counted)
    bars = []
    for hour in hours:
        moment = counted.get(hour)
        human, machine = (moment.opens_human, moment.opens_machine) if moment else (0, 0)
        label = date_format(timezone.localtime(hour), "D j M, H:i")
        bars.append(Hour(label, human, machine, round(100 * human / highest, 1), round(100 * machine / highest, 1)))
    return bars


# Recipients: Delivery has a composite key, which Django 5.2's admin cannot register ------------------------

FILTERS: dict[str, tuple[str | Promise, dict[str, Any]]] = {
    "": (_("All"), {}),
    "opened": (_("Opened"), {"opened_at__isnull": False}),
    "clicked": (_("Clicked"), {"clicked_at__isnull": False}),
    "waiting": (_("Waiting"), {"state__in": (DeliveryState.QUEUED, DeliveryState.DEFERRED, DeliveryState.SENDING)}),
    "failed": (_("Failed"), {"state": DeliveryState.FAILED}),
    "bounced": (_("Bounced"), {"outcome": Outcome.BOUNCED}),
    "skipped": (_("Left out"), {"state": DeliveryState.SKIPPED}),
    "unknown": (_("In doubt"), {"state": DeliveryState.UNKNOWN}),
}


@dataclass(frozen=True)
class Recipient:
    """One line of the table."""

    delivery: Delivery
    person: Subscriber | None  # None once the person has been erased
    state: str
    tone: str
    note: str


def _recipient(delivery: Delivery, person: Subscriber | None) -> Recipient:
    state = DeliveryState(delivery.state)
    tone = {DeliveryState.ACCEPTED: "good", DeliveryState.FAILED: "bad", DeliveryState.UNKNOWN: "warning"}
    outcome = Outcome(delivery.outcome)
    note = SkipReason(delivery.reason).label if delivery.reason else ""
    if outcome in (Outcome.BOUNCED, Outcome.COMPLAINED):
        note = outcome.label
    return Recipient(delivery, person, str(state.label), tone.get(state, "quiet"), str(note))


def _searched(deliveries: QuerySet[Delivery], address: str) -> QuerySet[Delivery]:
    """Only the people whose address begins with what was typed."""
    found = Subscriber.objects.filter(email_key__startswith=address.casefold()).order_by("email_key")
    return deliveries.filter(subscriber_id__in=list(found.values_list("pk", flat=True)[:500]))


def _page(deliveries: QuerySet[Delivery], after: int) -> tuple[Sequence[Delivery], int | None]:
    """A page of the ledger by key, never by offset, and the key that the next one begins after."""
    rows = list(deliveries.filter(subscriber_id__gt=after).order_by("subscriber_id")[: RECIPIENTS_A_PAGE + 1])
    more = len(rows) > RECIPIENTS_A_PAGE
    rows = rows[:RECIPIENTS_A_PAGE]
    return rows, rows[-1].subscriber_id if more else None


@require_GET
def recipients(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """Who was to get the mail and what became of it, person by person."""
    campaign = campaign_of(request, model_admin, campaign_id)
    if not request.user.has_perm("subscribers.view_subscriber"):
        raise PermissionDenied
    chosen = request.GET.get("show", "")
    chosen = chosen if chosen in FILTERS else ""
    address = request.GET.get("q", "").strip()
    after = request.GET.get("after", "")
    deliveries = Delivery.objects.filter(campaign_id=campaign.pk, **FILTERS[chosen][1])
    if address:
        deliveries = _searched(deliveries, address)
    rows, following = _page(deliveries, int(after) if after.isdecimal() else 0)
    people = Subscriber.objects.in_bulk([row.subscriber_id for row in rows])
    context = {
        **model_admin.admin_site.each_context(request),
        **sending.page(request, model_admin, campaign),
        "filters": [(name, label) for name, (label, _condition) in FILTERS.items()],
        "chosen": chosen,
        "address": address,
        "rows": [_recipient(row, people.get(row.subscriber_id)) for row in rows],
        "following": following,
        "is_first_page": not after,
    }
    return render(request, "admin/campaigns/campaign/recipients.html", context)
