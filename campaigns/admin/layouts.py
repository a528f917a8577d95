"""Layouts: the MJML around a campaign's text, edited beside a preview of it."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST
from unfold.admin import ModelAdmin
from unfold.decorators import display

from campaigns.admin.composer import preview_data
from campaigns.models import Campaign, MailTemplate
from subscribers.models import List, SenderIdentity

SAMPLE_BODY = gettext_lazy(
    "# A heading of the mail\n\nHello {{ name | default: 'friend' }}, this is what a text looks like in this layout: "
    "**bold**, *italic* and [a link](https://example.com/).\n\n- one thing\n- and another\n\n> Something quoted.\n"
)


def sample() -> Campaign:
    """A campaign that is nowhere stored, to show a layout with."""
    newsletter = List.objects.select_related("sender").first()
    if newsletter is None:
        sender = SenderIdentity(name=_("Your newsletter"), email="newsletter@example.org", postal_address=_("1 Street"))
        newsletter = List(slug="sample", name=_("Your newsletter"), sender=sender)
    return Campaign(
        list=newsletter, subject=_("An example"), preheader=_("The line beside the subject"), body=str(SAMPLE_BODY)
    )


class LayoutForm(forms.ModelForm[MailTemplate]):
    """A layout is stored only if a mail can be made with it."""

    class Meta:
        model = MailTemplate
        fields = ("name", "slug", "mjml")
        widgets = {
            "name": forms.TextInput(attrs={"class": "nl-input nl-input-large"}),
            "slug": forms.TextInput(attrs={"class": "nl-input"}),
            "mjml": forms.Textarea(attrs={"class": "nl-source nl-source-code", "rows": 30, "spellcheck": "false"}),
        }

    def clean_mjml(self) -> str:
        mjml = str(self.cleaned_data["mjml"])
        shown = preview_data(sample(), mjml=mjml)
        if "error" in shown:
            raise ValidationError(shown["error"])
        return mjml


@require_POST
def preview(request: HttpRequest, model_admin: Any) -> HttpResponse:
    """A sample mail in the layout that is being typed; stores nothing."""
    if not (model_admin.has_change_permission(request) or model_admin.has_add_permission(request)):
        raise PermissionDenied
    return JsonResponse(preview_data(sample(), mjml=request.POST.get("mjml", ""), dark="preview_dark" in request.POST))


@admin.register(MailTemplate)
class LayoutAdmin(ModelAdmin):
    """Layouts, with the number of campaigns that would look different if one changed."""

    list_display = ("name", "slug", "used_by")
    search_fields = ("name", "slug")
    actions = None
    change_form_template = "admin/campaigns/mailtemplate/layout.html"
    prepopulated_fields = {"slug": ("name",)}
    custom_urls = (("preview/", "campaigns_mailtemplate_preview", preview),)

    def get_queryset(self, request: HttpRequest) -> QuerySet[MailTemplate]:
        layouts: QuerySet[MailTemplate] = super().get_queryset(request)
        return layouts.annotate(campaigns=Count("campaign"))

    @display(description=gettext_lazy("Campaigns"))
    def used_by(self, layout: Any) -> int:
        return int(layout.campaigns)

    def get_form(
        self, request: HttpRequest, obj: MailTemplate | None = None, change: bool = False, **kwargs: Any
    ) -> type[LayoutForm]:
        return LayoutForm

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        layout = self.get_object(request, object_id) if object_id else None
        shown = preview_data(sample(), mjml=layout.mjml) if layout and request.method == "GET" else None
        context = {**(extra_context or {}), "is_fullwidth": "1", "preview": shown}
        response: HttpResponse = super().changeform_view(request, object_id, form_url, context)
        return response
