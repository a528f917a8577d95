"""Sending limits: how much mail may go to whom, a second and a day, and what has gone today."""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextareaWidget

from campaigns import limiting
from campaigns.models import SendingLimit
from newsletter.mailing.throttling import WELL_KNOWN, Unavailable

if TYPE_CHECKING:  # unfold has no types; its classes are these
    from django.contrib.admin import ModelAdmin
else:
    from unfold.admin import ModelAdmin

MOST_DOMAINS = 200
_PATTERN = re.compile(r"(\*\.|[a-z0-9])[a-z0-9.-]*(\.\*|[a-z0-9])")


class LimitForm(forms.ModelForm[SendingLimit]):
    """A limit that limits something."""

    class Meta:
        model = SendingLimit
        fields = (
            "name",
            "domains",
            "sender",
            "per_second",
            "per_day",
            "warm_up_start",
            "warm_up_first",
            "warm_up_growth",
        )
        widgets = {"domains": UnfoldAdminTextareaWidget(attrs={"rows": 5, "spellcheck": "false"})}

    def clean_domains(self) -> str:
        """Lower case, ASCII, each once; `*` may stand at either end."""
        found = dict.fromkeys(_domain(word) for word in str(self.cleaned_data["domains"]).replace(",", " ").split())
        if len(found) > MOST_DOMAINS:
            raise ValidationError(_("At most %(most)s domains."), params={"most": MOST_DOMAINS})
        return "\n".join(found)

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean() or {}
        if not self.errors and not any(cleaned.get(name) for name in ("per_second", "per_day", "warm_up_start")):
            raise ValidationError(_("Nothing is limited yet: give mails a second, mails a day, or a warm-up."))
        return cleaned


def _domain(word: str) -> str:
    """A domain or pattern as addresses have it. Raises ValidationError."""
    plain = word.strip().removeprefix("@").lower()
    try:
        plain = ".".join(part if part.isascii() else part.encode("idna").decode("ascii") for part in plain.split("."))
    except UnicodeError:
        plain = ""
    if not _PATTERN.fullmatch(plain) or "." not in plain or ".." in plain:
        raise ValidationError(
            _("“%(word)s” is not a domain such as gmail.com, hotmail.* or *.example.org."), params={"word": word[:100]}
        )
    return plain


@admin.register(SendingLimit)
class LimitAdmin(ModelAdmin[SendingLimit]):
    """Limits take effect within seconds, in every worker."""

    form = LimitForm
    list_display = ("name", "whom", "rate", "today")
    list_select_related = ("sender",)
    actions = None
    change_form_before_template = "admin/campaigns/sendinglimit/before_form.html"
    list_before_template = "admin/campaigns/sendinglimit/before_list.html"
    readonly_fields = ("plan",)
    fieldsets = (
        (None, {"fields": ("name", "domains", "sender")}),
        (gettext_lazy("At most"), {"fields": (("per_second", "per_day"),)}),
        (
            gettext_lazy("Warm-up of a new sender"),
            {"fields": ("warm_up_start", ("warm_up_first", "warm_up_growth"), "plan")},
        ),
    )

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """`?provider=Gmail` fills in the domains of a big mailbox provider."""
        provider = request.GET.get("provider", "")
        if provider in WELL_KNOWN:
            return {"name": provider, "domains": "\n".join(WELL_KNOWN[provider])}
        return {}

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        context = {**(extra_context or {}), "providers": list(WELL_KNOWN), "is_new": object_id is None}
        response: HttpResponse = super().changeform_view(request, object_id, form_url, context)
        return response

    def save_model(self, request: HttpRequest, obj: SendingLimit, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        transaction.on_commit(lambda: limiting.reconsider(now=timezone.now()))

    def delete_model(self, request: HttpRequest, obj: SendingLimit) -> None:
        super().delete_model(request, obj)
        transaction.on_commit(lambda: limiting.reconsider(now=timezone.now()))

    @display(description=gettext_lazy("Mail to"))
    def whom(self, limit: SendingLimit) -> str:
        domains = limit.domains.split()
        said = ", ".join(domains[:3]) + (", …" if len(domains) > 3 else "") if domains else _("everybody")
        return _("%(domains)s, from %(sender)s") % {"domains": said, "sender": limit.sender} if limit.sender else said

    @display(description=gettext_lazy("At most"))
    def rate(self, limit: SendingLimit) -> str:
        cap = limiting.as_limit(limit).cap(timezone.localdate())
        parts = []
        if limit.per_second:
            parts.append(_("%(number)s a second") % {"number": f"{limit.per_second.normalize():f}"})
        if cap is not None:
            words = _("%(number)s today (warm-up)") if limit.warm_up_start else _("%(number)s a day")
            parts.append(words % {"number": f"{cap:,}"})
        return ", ".join(parts)

    @display(description=gettext_lazy("Sent today"))
    def today(self, limit: SendingLimit) -> str:
        one = limiting.as_limit(limit)
        try:
            return f"{limiting.throttle().sent_today([one], now=timezone.now())[one]:,}"
        except Unavailable:
            return "–"

    @display(description=gettext_lazy("Comes to, a day"))
    def plan(self, limit: SendingLimit) -> str:
        """The first days of a warm-up, so that nobody has to do the sum."""
        if not limit.pk or limit.warm_up_start is None:
            return _("Save to see how a warm-up grows.")
        one, day = limiting.as_limit(limit), limit.warm_up_start
        days = [day + timedelta(days=ahead) for ahead in (0, 1, 2, 3, 7, 14, 21)]
        return " · ".join(f"{date_format(day, 'j M')}: {one.cap(day):,}" for day in days)
