"""The composer's views: the live preview, whom to preview as, the mail as it stands, a copy of it."""

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_POST

from campaigns import composing
from campaigns.admin import presenting, sending
from campaigns.admin.forms import CONTENT_FIELDS, CampaignForm
from campaigns.admin.framing import framed
from campaigns.errors import CampaignError
from campaigns.models import Campaign
from subscribers.models import Subscriber

MOST_SUGGESTIONS = 8

# What the toolbar's menu offers, and in words what a reader gets.
MERGE_TAGS = [
    ("{{ name | default: 'friend' }}", gettext_lazy("Name, or “friend”")),
    ("{{ first_name | default: 'friend' }}", gettext_lazy("First name, or “friend”")),
    ("{{ email }}", gettext_lazy("E-mail address")),
    ("{{ list_name }}", gettext_lazy("Name of the list")),
    ("{{ web_url }}", gettext_lazy("Link to the web version")),
    ("{{ preferences_url }}", gettext_lazy("Link to the preferences")),
    ("{{ unsubscribe_url }}", gettext_lazy("Link to unsubscribe")),
]


def preview_data(
    campaign: Campaign, *, subscriber_id: int | None = None, mjml: str | None = None, dark: bool = False
) -> dict[str, Any]:
    """The preview as the page's script and its templates take it; `error` is a sentence instead of a mail."""
    try:
        shown = composing.preview(campaign, subscriber_id=subscriber_id, layout_mjml=mjml)
    except CampaignError as error:
        return {"error": str(error)}
    return {
        "subject": shown.subject,
        "preheader": shown.preheader,
        "sender": campaign.from_identity.name,
        "document": framed(shown.html, dark=dark),
        "text": shown.text,
        "warnings": list(shown.warnings),
    }


def context(request: HttpRequest, model_admin: Any, object_id: str | None) -> dict[str, Any]:
    """What the composer's template needs besides the form."""
    campaign = model_admin.get_object(request, object_id) if object_id else None
    return {
        "is_fullwidth": "1",
        "campaign": campaign,
        "merge_tags": [*MERGE_TAGS, *_fields(campaign)],
        "may_send": sending.may_send(request),
        "may_see_people": request.user.has_perm("subscribers.view_subscriber"),
        "preview": preview_data(campaign) if campaign and request.method == "GET" else None,
        "findings": sending.findings(campaign) if campaign and request.method == "GET" else [],
        "test_addresses": request.POST.get("test_addresses") or getattr(request.user, "email", ""),
    }


def _fields(campaign: Campaign | None) -> list[tuple[str, str]]:
    """Merge tags for what is known of this list's subscribers besides their names."""
    if campaign is None:
        return []
    names = [name for name in sorted(composing.field_names(campaign.list_id)) if name.isidentifier()]
    return [(f"{{{{ {name} }}}}", name) for name in names]


@require_POST
def preview(request: HttpRequest, model_admin: Any) -> HttpResponse:
    """What the reader would see of the text that is being typed; stores nothing."""
    if not (model_admin.has_change_permission(request) or model_admin.has_add_permission(request)):
        raise PermissionDenied
    form = CampaignForm(request.POST)
    form.is_valid()  # an unfinished draft is no error here: what is clean is shown
    cleaned = form.cleaned_data
    if not cleaned.get("list"):
        return JsonResponse({"error": _("Choose a list first: its sender and footer are part of the mail.")})
    draft = Campaign(**{name: cleaned[name] for name in CONTENT_FIELDS if name in cleaned})
    return JsonResponse(preview_data(draft, subscriber_id=_chosen_reader(request), dark="preview_dark" in request.POST))


def _chosen_reader(request: HttpRequest) -> int | None:
    """The subscriber whom the preview is for, by the address in the search box."""
    address = request.POST.get("preview_as", "").strip()
    if not address or not request.user.has_perm("subscribers.view_subscriber"):
        return None
    return Subscriber.objects.filter(email_key=address.casefold()).values_list("pk", flat=True).first()


@require_GET
def people(request: HttpRequest, model_admin: Any) -> HttpResponse:
    """Some subscribers whose address begins with what was typed, for "preview as"."""
    if not request.user.has_perm("subscribers.view_subscriber"):
        raise PermissionDenied
    typed = request.GET.get("q", "").strip().casefold()
    matching = Subscriber.objects.filter(email_key__startswith=typed) if typed else Subscriber.objects.none()
    found = matching.order_by("email_key")[:MOST_SUGGESTIONS]
    return JsonResponse({"people": [{"email": person.email, "name": person.name} for person in found]})


@require_GET
def mail(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """The mail as it is, to read; a campaign that has left can no longer be changed."""
    campaign = get_object_or_404(presenting.with_figures(Campaign.objects.all()), pk=campaign_id)
    if not model_admin.has_view_permission(request, campaign):
        raise PermissionDenied
    return render(
        request,
        "admin/campaigns/campaign/mail.html",
        {
            **model_admin.admin_site.each_context(request),
            **sending.page(request, model_admin, campaign),
            "preview": preview_data(campaign),
        },
    )


@require_POST
def copy(request: HttpRequest, model_admin: Any, campaign_id: int) -> HttpResponse:
    """A new draft with the content of this campaign."""
    if not model_admin.has_add_permission(request):
        raise PermissionDenied
    source = get_object_or_404(Campaign.objects.select_related("list"), pk=campaign_id)
    user = request.user if request.user.is_authenticated else None
    draft = composing.create(
        list=source.list,
        subject=source.subject,
        body=source.body,
        preheader=source.preheader,
        layout=source.layout,
        format=source.format,
        created_by=user,
    )
    messages.success(request, _("This is a new draft with the text of “%(subject)s”.") % {"subject": source.subject})
    return redirect("admin:campaigns_campaign_change", draft.pk)
