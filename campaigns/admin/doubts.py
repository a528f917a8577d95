"""Recipients in doubt: who, since when, what is known, and the two things that an editor can do about them."""

from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_POST

from campaigns import doubting
from campaigns.admin import presenting, sending
from campaigns.admin.forms import DoubtForm
from campaigns.admin.sending import campaign_of
from campaigns.doubting import Doubt
from campaigns.errors import CampaignError
from campaigns.models import CampaignState
from subscribers.models import Subscriber

A_PAGE = 50


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    doubt: Doubt
    person: Subscriber | None  # None once the person has been erased


@require_GET
def doubts(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """Everybody in doubt, page by page."""
    campaign = campaign_of(request, model_admin, campaign_id)
    if not presenting.has_report(campaign):
        return redirect("admin:campaigns_campaign_change", campaign.pk)
    after = request.GET.get("after", "")
    found = doubting.listed(campaign.pk, after=int(after) if after.isdecimal() else 0, limit=A_PAGE + 1)
    rows = found[:A_PAGE]
    may_see = request.user.has_perm("subscribers.view_subscriber")
    people = Subscriber.objects.in_bulk([doubt.subscriber_id for doubt in rows]) if may_see else {}
    number = doubting.recount(campaign.pk)
    context = {
        **model_admin.admin_site.each_context(request),
        **sending.page(request, model_admin, campaign),
        "number": number,
        "in_doubt": number,
        "rows": [Row(doubt, people.get(doubt.subscriber_id)) for doubt in rows],
        "following": rows[-1].subscriber_id if len(found) > A_PAGE else None,
        "is_first_page": not after,
        "may_see_people": may_see,
        "may_resend": campaign.state != CampaignState.CANCELLED,
    }
    return render(request, "admin/campaigns/campaign/doubts.html", context)


@require_POST
def decide(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """Send again or leave it at that, for everybody whom the page showed or for those ticked."""
    campaign = campaign_of(request, model_admin, campaign_id)
    if not sending.may_send(request):
        raise PermissionDenied
    form = DoubtForm(request.POST)
    if not form.is_valid():
        messages.error(request, " ".join(str(error) for errors in form.errors.values() for error in errors))
        return redirect("admin:campaigns_campaign_doubts", campaign.pk)
    chosen = form.cleaned_data
    people = None if chosen["whom"] == "all" else chosen["people"]
    actor = request.user.get_username()
    try:
        if chosen["do"] == "resend":
            number = doubting.resend(campaign.pk, people=people, most=chosen["shown"], actor=actor, now=timezone.now())
            done = ngettext("%(n)s person is sent the mail again.", "%(n)s people are sent the mail again.", number)
        else:
            number = doubting.let_be(campaign.pk, people=people, most=chosen["shown"], actor=actor)
            done = ngettext("%(n)s recipient is left at that.", "%(n)s recipients are left at that.", number)
    except CampaignError as error:
        messages.error(request, str(error))
        return redirect("admin:campaigns_campaign_doubts", campaign.pk)
    if number:
        messages.success(request, done % {"n": presenting.number(number)})
    else:
        messages.info(request, _("Nothing to do: it has been decided already."))
    page = "doubts" if doubting.in_doubt(campaign.pk).exists() else "report"
    return redirect(f"admin:campaigns_campaign_{page}", campaign.pk)
