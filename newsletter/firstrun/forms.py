"""The questions of the first run."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from newsletter.firstrun import founding
from newsletter.firstrun.founding import Answers, BadAnswer


class FirstRunForm(forms.Form):
    """Everything on one page; what is wrong is said beside its field."""

    token = forms.CharField(
        label=gettext_lazy("Set-up token"),
        help_text=gettext_lazy("It stands in the log of the web process, or is what you set as SETUP_TOKEN."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "autocapitalize": "none"}),
    )
    owner_email = forms.CharField(
        label=gettext_lazy("Your e-mail address"),
        help_text=gettext_lazy("You log in with it."),
        widget=forms.EmailInput(attrs={"autocomplete": "email"}),
    )
    password = forms.CharField(
        label=gettext_lazy("A password"),
        strip=False,
        help_text=gettext_lazy("At least eight characters, and not a common one."),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    list_name = forms.CharField(
        label=gettext_lazy("Name of the newsletter"),
        max_length=120,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    sender_email = forms.CharField(
        label=gettext_lazy("Its mail comes from"),
        help_text=gettext_lazy("An address at a domain whose DNS you can change, such as letter@example.org."),
        widget=forms.EmailInput(attrs={"autocomplete": "off"}),
    )
    postal_address = forms.CharField(
        label=gettext_lazy("Postal address"),
        max_length=300,
        help_text=gettext_lazy("It stands below every mail; many laws want it there."),
        widget=forms.TextInput(attrs={"autocomplete": "street-address"}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            field.error_messages["required"] = _("Please fill this in.")

    def clean_token(self) -> str:
        token = str(self.cleaned_data["token"])
        if not founding.is_setup_token(token):
            raise ValidationError(_("That is not the token of this installation."))
        return token

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if not self.errors:
            try:
                founding.check_password(cleaned["owner_email"], cleaned["password"])
            except BadAnswer as error:
                self.add_error(error.name, str(error))
        return cleaned

    def answers(self) -> Answers:
        """What was answered; call it when the form is valid."""
        return Answers(**{name: value for name, value in self.cleaned_data.items() if name != "token"})
