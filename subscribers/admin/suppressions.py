"""Suppressed addresses. Only their hash is kept, so a search needs the whole address."""

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from subscribers import suppressing, validating
from subscribers.forms import AddressField
from subscribers.models import Suppression

if TYPE_CHECKING:  # unfold has no types; its classes are these
    from django.contrib.admin import ModelAdmin
else:
    from unfold.admin import ModelAdmin


class SuppressForm(forms.ModelForm[Suppression]):
    """An address typed in, and why."""

    address = AddressField(
        label=gettext_lazy("E-mail address"),
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off", "inputmode": "email"}),
        help_text=gettext_lazy("No list mails it again until somebody lifts this. It is kept as a hash only."),
    )

    class Meta:
        model = Suppression
        fields = ("source",)
        labels = {"source": gettext_lazy("Why, or who asked")}


def lift(request: HttpRequest, model_admin: Any) -> HttpResponse:
    """Let an address be mailed again."""
    if not request.user.has_perm("subscribers.delete_suppression"):
        raise PermissionDenied
    form = LiftForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        key = validating.normalise(form.cleaned_data["address"]).key
        try:
            suppressing.lift(key, why=form.cleaned_data["why"], actor=request.user.get_username())
        except suppressing.CannotLift as error:
            form.add_error("address", str(error))
        else:
            messages.success(request, _("The address may be mailed again, on the lists it is subscribed to."))
            return redirect("admin:subscribers_suppression_changelist")
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "title": _("Lift a suppression"),
        "form": form,
    }
    status = 400 if form.errors else 200
    return render(request, "admin/subscribers/suppression/lift.html", context, status=status)


class LiftForm(forms.Form):
    """Whose suppression is lifted, and why; typing the address is the confirmation, since only its hash is known."""

    address = AddressField(
        label=gettext_lazy("E-mail address"),
        widget=forms.EmailInput(attrs={"class": "nl-input", "autocomplete": "off"}),
    )
    why = forms.CharField(
        label=gettext_lazy("Why, or who asked"),
        max_length=200,
        widget=forms.TextInput(attrs={"class": "nl-input", "autocomplete": "off"}),
        error_messages={"required": gettext_lazy("Say why; it is kept in the audit log.")},
    )
    agreed = forms.BooleanField(
        label=gettext_lazy("The person wants our mail again, or the address was suppressed by mistake."),
        error_messages={"required": gettext_lazy("Tick this if it is so; otherwise the address stays suppressed.")},
    )


@admin.register(Suppression)
class SuppressionAdmin(ModelAdmin[Suppression]):
    """Shown, searched by a whole address, and added to; never changed, and lifted only by typing the address."""

    list_display = ("fingerprint", "reason", "source", "since")
    list_filter = ("reason",)
    search_fields = ("source",)
    search_help_text = gettext_lazy("A whole address, to see whether it is suppressed")
    ordering = ("-since",)
    show_full_result_count = False
    actions = None
    list_before_template = "admin/subscribers/suppression/before_list.html"
    custom_urls = (("lift/", "subscribers_suppression_lift", lift),)
    fields = ("fingerprint", "reason", "source", "since")
    readonly_fields = ("fingerprint", "reason", "since")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = {} if obj else {"form": SuppressForm}
        return super().get_form(request, obj, change, **form, **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.readonly_fields if obj else ()

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_fieldsets(request, obj) if obj else ((None, {"fields": ("address", "source")}),)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        try:
            key = validating.normalise(search_term).key
        except validating.InvalidAddress:
            return super().get_search_results(request, queryset, search_term)
        return queryset.filter(address_hash=suppressing.address_hash(key)), False

    def save_model(self, request: HttpRequest, obj: Suppression, form: Any, change: bool) -> None:
        key = validating.normalise(form.cleaned_data["address"]).key
        suppressing.suppress(
            key,
            reason=Suppression.Reason.MANUAL,
            source=form.cleaned_data["source"] or request.user.get_username(),
            now=timezone.now(),
        )
        obj.pk = Suppression.objects.get(address_hash=suppressing.address_hash(key)).pk
        obj.refresh_from_db()

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @display(description=gettext_lazy("Fingerprint of the address"))
    def fingerprint(self, suppression: Suppression) -> str:
        return bytes(suppression.address_hash).hex()[:12]
