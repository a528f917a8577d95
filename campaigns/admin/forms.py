"""The admin's forms. They clean what people type and change nothing: views hand the result to a domain function."""

import hashlib
import json
from typing import Any, cast

from django import forms
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.http import QueryDict
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from campaigns.models import Campaign, CampaignState
from newsletter.mailing.bounds import too_large
from subscribers.models import List

CONTENT_FIELDS = ("list", "sender", "subject", "preheader", "layout", "format", "body")
# From so many recipients on, the editor types the number before the mail goes out.
TYPED_NUMBER_FROM = 1_001
MOST_TEST_ADDRESSES = 10


def fingerprint(campaign: Campaign) -> str:
    """A digest of what a reader would get, so that a page can tell whether somebody changed it meanwhile."""
    content = [
        campaign.list_id,
        campaign.sender_id,
        campaign.layout_id,
        campaign.subject,
        campaign.preheader,
        campaign.format,
        campaign.body,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]


class CampaignForm(forms.ModelForm[Campaign]):
    """A draft's content. A colleague's newer version, or a campaign that has left meanwhile, is an error in place."""

    loaded = forms.CharField(required=False, widget=forms.HiddenInput)

    class Meta:
        model = Campaign
        fields = CONTENT_FIELDS
        widgets = {
            "list": forms.Select(attrs={"class": "nl-input"}),
            "sender": forms.Select(attrs={"class": "nl-input"}),
            "layout": forms.Select(attrs={"class": "nl-input"}),
            "subject": forms.TextInput(attrs={"class": "nl-input nl-input-large", "autocomplete": "off"}),
            "preheader": forms.TextInput(attrs={"class": "nl-input", "autocomplete": "off"}),
            "format": forms.RadioSelect,
            "body": forms.Textarea(attrs={"class": "nl-source", "rows": 22, "spellcheck": "true"}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["sender"].empty_label = _("The list’s")  # type: ignore[attr-defined]
        self.fields["format"].required = False
        self.fields["layout"].empty_label = _("Plain letter")  # type: ignore[attr-defined]
        if not self.instance.pk and "list" not in self.initial:
            self.initial["list"] = List.objects.values_list("pk", flat=True).first()
        if self.instance.pk:
            self.initial["loaded"] = fingerprint(self.instance)

    def clean_format(self) -> str:
        # A page that was opened before there was a choice sends none.
        return str(self.cleaned_data["format"] or Campaign.Format.MARKDOWN)

    def clean_body(self) -> str:
        body = str(self.cleaned_data["body"])
        if sentence := too_large(body, what=str(_("The text"))):
            raise ValidationError(sentence)
        return body

    def clean_subject(self) -> str:
        return " ".join(str(self.cleaned_data["subject"]).split())

    def clean_preheader(self) -> str:
        return " ".join(str(self.cleaned_data["preheader"]).split())

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if self.instance.pk:
            self._refuse_collision()
        return cleaned

    def _refuse_collision(self) -> None:
        """Raise ValidationError if the stored draft is no longer what this page was opened with.

        The row stays locked until the admin's transaction has saved it.
        """
        stored = Campaign.objects.select_for_update(of=("self",)).get(pk=self.instance.pk)
        if stored.state != CampaignState.DRAFT:
            raise ValidationError(_("This campaign is no longer a draft, so nothing was saved. Your text is below."))
        now = fingerprint(stored)
        if self.cleaned_data.get("loaded") not in {"", None, now}:
            self.data = {**self.data.dict(), "loaded": now}  # type: ignore[attr-defined]
            raise ValidationError(
                _(
                    "Somebody else has saved this campaign since you opened it. Your text is below, not yet saved; "
                    "pressing Save again replaces their version with yours."
                )
            )

    def save(self, commit: bool = True) -> Campaign:
        """Store the content and nothing else: a campaign's state is never written from a form."""
        if self.instance.pk and commit:
            self.instance.save(update_fields=CONTENT_FIELDS)
            return self.instance
        return super().save(commit=commit)


class AddressesField(forms.CharField):
    """Some e-mail addresses, by comma, semicolon or blank."""

    def clean(self, value: Any) -> list[str]:
        addresses = str(super().clean(value)).replace(",", " ").replace(";", " ").split()
        for address in addresses:
            try:
                validate_email(address)
            except ValidationError as error:
                raise ValidationError(
                    _("“%(address)s” is not an e-mail address."), params={"address": address}
                ) from error
        if len(addresses) > MOST_TEST_ADDRESSES:
            raise ValidationError(_("A test goes to %(most)s addresses at most."), params={"most": MOST_TEST_ADDRESSES})
        return addresses


class TestSendForm(forms.Form):
    """Where a test goes."""

    __test__ = False  # not a test class, whatever its name says to pytest
    test_addresses = AddressesField(
        label=_("Send a test to"), error_messages={"required": _("Say where the test goes.")}
    )


class SendNowForm(forms.Form):
    """The last question before mail goes out: the same content and the same number as the page showed."""

    shown = forms.IntegerField(widget=forms.HiddenInput, min_value=1)
    content = forms.CharField(widget=forms.HiddenInput)
    typed = forms.CharField(label=_("Type the number of recipients to confirm"), required=False)

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean() or {}
        shown = cleaned.get("shown") or 0
        typed = "".join(character for character in str(cleaned.get("typed", "")) if character.isdigit())
        if shown >= TYPED_NUMBER_FROM and typed != str(shown):
            self.add_error("typed", _("Nothing was sent: the number typed is not the number of recipients."))
        return cleaned


class DoubtForm(forms.Form):
    """What happens with recipients in doubt: all that the page showed, or those ticked."""

    do = forms.ChoiceField(choices=[("resend", ""), ("let_be", "")])
    whom = forms.ChoiceField(choices=[("all", ""), ("chosen", "")])
    shown = forms.IntegerField(min_value=1)
    people = forms.TypedMultipleChoiceField(coerce=int, required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Whoever is not in doubt is passed over by the domain: any number may be asked for.
        asked = cast(QueryDict, self.data).getlist("people")
        ticked = [(one, one) for one in asked if one.isdecimal() and len(one) < 19]
        cast(forms.ChoiceField, self.fields["people"]).choices = ticked

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean() or {}
        if cleaned.get("whom") == "chosen" and not cleaned.get("people"):
            raise ValidationError(_("Nothing was done: nobody was ticked."))
        return cleaned


class ScheduleForm(forms.Form):
    """When a campaign leaves, in the site's time zone."""

    content = forms.CharField(widget=forms.HiddenInput)
    at = forms.DateTimeField(
        label=_("Send at"),
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "class": "nl-input"}, format="%Y-%m-%dT%H:%M"),
        error_messages={"required": _("Say when it should be sent.")},
    )
    local_time = forms.TimeField(
        label=_("Hour where they live"),
        required=False,
        widget=forms.TimeInput(attrs={"type": "time", "class": "nl-input"}, format="%H:%M"),
    )

    def clean_at(self) -> Any:
        at = self.cleaned_data["at"]
        if at <= timezone.now():
            raise ValidationError(_("This moment is in the past; choose one that is still to come."))
        return at
