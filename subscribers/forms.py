"""What people may type into the public pages."""

from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from subscribers import preferences, validating
from subscribers.models import TrackingConsent


class AddressField(forms.CharField):
    """An e-mail address, judged as everywhere else; its value is the text that was typed."""

    widget = forms.EmailInput

    def clean(self, value: Any) -> str:
        text = str(super().clean(value))
        try:
            validating.normalise(text)
        except validating.InvalidAddress as error:
            raise forms.ValidationError(str(error)) from error
        return text


class SignUpForm(forms.Form):
    """An address, perhaps a name, and a field that only programs fill in."""

    email = AddressField(
        label=gettext_lazy("E-mail address"),
        error_messages={"required": gettext_lazy("Please enter an e-mail address.")},
        # "text" would bring up the wrong keyboard, browsers' own check the wrong words (the form is novalidate).
        widget=forms.EmailInput(attrs={"autocomplete": "email", "inputmode": "email", "spellcheck": "false"}),
    )
    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=200,
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
    )
    # No word that a browser would fill in by itself.
    topic = forms.CharField(
        label=gettext_lazy("Leave this empty"),
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "off", "tabindex": "-1"}),
    )

    @property
    def is_from_a_program(self) -> bool:
        """Whether the field that people cannot see was filled in."""
        return bool(self.cleaned_data.get("topic"))


class PreferencesForm(forms.Form):
    """A person's choices."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=200,
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
    )
    language = forms.ChoiceField(label=gettext_lazy("Language"), required=False)
    tracking_consent = forms.ChoiceField(
        label=gettext_lazy("What we may learn from your reading"),
        choices=TrackingConsent.choices,
        widget=forms.RadioSelect,
    )
    lists = forms.TypedMultipleChoiceField(
        label=gettext_lazy("Newsletters"), coerce=int, required=False, widget=forms.CheckboxSelectMultiple
    )

    def __init__(self, data: Any, *, current: preferences.Preferences) -> None:
        subscriber = current.subscriber
        initial = {
            "name": subscriber.name,
            "language": subscriber.language,
            "tracking_consent": subscriber.tracking_consent,
            "lists": sorted(current.chosen),
        }
        super().__init__(data, initial=initial)
        self.current = current
        self._choices("language", [("", _("No preference")), *preferences.languages(subscriber)])
        self._choices("lists", [(each.pk, each.name) for each in current.lists])

    def _choices(self, name: str, choices: list[tuple[Any, str]]) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices

    @property
    def choice(self) -> preferences.Choice:
        """What was asked for; only of a valid form."""
        found = self.cleaned_data
        return preferences.Choice(
            name=found["name"],
            language=found["language"],
            tracking_consent=found["tracking_consent"],
            lists=frozenset(found["lists"]),
        )
