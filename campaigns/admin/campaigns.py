"""The list of campaigns and the composer; what else happens to a campaign stands in sending.py and reports.py."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.admin import ModelAdmin
from unfold.decorators import display

from campaigns import composing
from campaigns.admin import attention, composer, doubts, live, mails, presenting, reports, sending
from campaigns.admin.forms import CampaignForm, TestSendForm
from campaigns.errors import CampaignError
from campaigns.models import Campaign, CampaignState


@admin.register(Campaign)
class CampaignAdmin(ModelAdmin):
    """Drafts open in the composer, everything that has left the house in its report."""

    list_display = ("campaign", "shown_state", "when", "audience_size", "opened", "clicked")
    list_display_links = ("campaign",)
    list_filter = ("state", "list")
    search_fields = ("subject",)
    search_help_text = gettext_lazy("Search subjects")
    list_per_page = 50
    actions = None
    list_fullwidth = True
    change_list_template = "admin/campaigns/campaign/list.html"
    list_before_template = "admin/campaigns/campaign/before_list.html"
    change_form_template = "admin/campaigns/campaign/composer.html"
    custom_urls = (
        ("preview/", "campaigns_campaign_preview", composer.preview),
        ("mails/", "campaigns_campaign_mails", mails.mails),
        ("people/", "campaigns_campaign_people", composer.people),
        ("<int:campaign_id>/mail/", "campaigns_campaign_mail", composer.mail),
        ("<int:campaign_id>/checks/", "campaigns_campaign_checks", sending.checks),
        ("<int:campaign_id>/review/", "campaigns_campaign_review", sending.review),
        ("<int:campaign_id>/send/", "campaigns_campaign_send", sending.send_now),
        ("<int:campaign_id>/schedule/", "campaigns_campaign_schedule", sending.schedule),
        ("<int:campaign_id>/act/<slug:action>/", "campaigns_campaign_act", sending.act),
        ("<int:campaign_id>/copy/", "campaigns_campaign_copy", composer.copy),
        ("<int:campaign_id>/report/", "campaigns_campaign_report", reports.report),
        ("<int:campaign_id>/progress/", "campaigns_campaign_progress", live.progress),
        ("<int:campaign_id>/links/<int:index>/", "campaigns_campaign_retarget", live.retarget),
        ("<int:campaign_id>/recipients/", "campaigns_campaign_recipients", reports.recipients),
        ("<int:campaign_id>/doubts/", "campaigns_campaign_doubts", doubts.doubts),
        ("<int:campaign_id>/doubts/decide/", "campaigns_campaign_decide", doubts.decide),
    )

    # The list --------------------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> QuerySet[Campaign]:
        return presenting.with_figures(super().get_queryset(request))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, below what waits for somebody."""
        waiting = {"notices": [*attention.notices()]}
        response: HttpResponse = super().changelist_view(request, {**waiting, **(extra_context or {})})
        return response

    @display(description=gettext_lazy("Campaign"), header=True)
    def campaign(self, campaign: Campaign) -> list[str]:
        issue = _("%(list)s · issue %(number)s") if campaign.number else "%(list)s"
        return [campaign.subject, issue % {"list": campaign.list, "number": campaign.number}]

    @display(description=gettext_lazy("State"))
    def shown_state(self, campaign: Campaign) -> str:
        return presenting.badge(campaign)

    @display(description=gettext_lazy("When"))
    def when(self, campaign: Campaign) -> str:
        return presenting.when(campaign)

    @display(description=gettext_lazy("Recipients"))
    def audience_size(self, campaign: Campaign) -> str:
        return presenting.number(campaign.audience) if campaign.started_at else presenting.NOTHING

    @display(description=gettext_lazy("Opened"))
    def opened(self, campaign: Campaign) -> str:
        figures = presenting.figures_of(campaign)
        return presenting.human_and_raw(campaign, figures.opens_human, figures.opens_raw)

    @display(description=gettext_lazy("Clicked"))
    def clicked(self, campaign: Campaign) -> str:
        figures = presenting.figures_of(campaign)
        return presenting.human_and_raw(campaign, figures.clicks_human, figures.clicks_raw)

    # Who may do what --------------------------------------------------------------------------------------

    def has_delete_permission(self, request: HttpRequest, obj: Campaign | None = None) -> bool:
        """Only drafts may be deleted: what was sent is part of the record."""
        allowed = super().has_delete_permission(request, obj)
        return allowed and (obj is None or obj.state == CampaignState.DRAFT)

    # The composer -----------------------------------------------------------------------------------------

    def get_form(
        self, request: HttpRequest, obj: Campaign | None = None, change: bool = False, **kwargs: Any
    ) -> type[CampaignForm]:
        return CampaignForm

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The composer for a draft; anything else is read-only and has a page of its own.

        A POST goes through whatever the state: the form says in place that it came too late, and the text is kept.
        """
        campaign = self.get_object(request, object_id)
        writable = campaign is None or (
            campaign.state == CampaignState.DRAFT and self.has_change_permission(request, campaign)
        )
        if campaign is not None and request.method == "GET" and not writable:
            page = "report" if presenting.has_report(campaign) else "mail"
            return redirect(f"admin:campaigns_campaign_{page}", campaign.pk)
        response: HttpResponse = super().change_view(request, object_id, form_url, extra_context)
        return response

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Save, and only when the save has committed do what the pressed button says besides."""
        context = {**(extra_context or {}), **composer.context(request, self, object_id)}
        response: HttpResponse = super().changeform_view(request, object_id, form_url, context)
        saved = getattr(request, "saved_campaign", None)
        if saved is None:
            return response
        if "_test" in request.POST:
            self._send_test(request, saved)
        if "_review" in request.POST:
            return redirect("admin:campaigns_campaign_review", saved.pk)
        return redirect("admin:campaigns_campaign_change", saved.pk)

    def save_model(self, request: HttpRequest, obj: Campaign, form: Any, change: bool) -> None:
        if not change and request.user.is_authenticated:
            obj.created_by = request.user
        form.save() if change else obj.save()

    def response_add(self, request: HttpRequest, obj: Campaign, post_url_continue: str | None = None) -> HttpResponse:
        return self.response_change(request, obj)

    def response_change(self, request: HttpRequest, obj: Campaign) -> HttpResponse:
        request.saved_campaign = obj  # type: ignore[attr-defined]  # read by changeform_view once this has committed
        if "_review" not in request.POST:
            messages.success(request, _("Saved."))
        return HttpResponseRedirect(reverse("admin:campaigns_campaign_change", args=[obj.pk]))

    def _send_test(self, request: HttpRequest, campaign: Campaign) -> None:
        if not sending.may_send(request):
            messages.error(request, _("You may write campaigns but not send mail, so no test was sent."))
            return
        form = TestSendForm(request.POST)
        if not form.is_valid():
            messages.error(request, " ".join(str(error) for error in form.errors["test_addresses"]))
            return
        addresses = form.cleaned_data["test_addresses"]
        try:
            composing.send_test(campaign.pk, addresses)
        except CampaignError as error:
            messages.error(request, str(error))
        else:
            messages.success(request, _("A test is on its way to %(to)s.") % {"to": ", ".join(addresses)})
