"""Making a list, with the sender whom its mail comes from."""

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_slug
from django.db import transaction
from django.utils.translation import gettext as _

from subscribers import validating
from subscribers.models import List, SenderIdentity


class BadList(ValueError):
    """A list cannot be made so; one sentence for a person."""


def create_list(slug: str, *, name: str, sender: str = "", postal_address: str = "") -> tuple[List, bool]:
    """A list and whether this call made it; one that is there already stays as it is. Raises BadList.

    `sender` is an address (DEFAULT_FROM_EMAIL without one); a sender identity of that address is used or made, with the
    postal address that is given or else that of the house's first sender who has one. Preflight asks for a missing one.
    """
    found = List.objects.filter(slug=slug).first()
    if found:
        return found, False
    try:
        validate_slug(slug)
        sender = validating.normalise(sender).email if sender else settings.DEFAULT_FROM_EMAIL
    except ValidationError as error:
        raise BadList(_("A list's short name holds only letters, digits, hyphens and underscores.")) from error
    except validating.InvalidAddress as error:
        raise BadList(
            _("%(sender)s cannot send: %(why)s") % {"sender": " ".join(sender.split()), "why": error}
        ) from error
    name = " ".join(name.split())
    if not name or len(name) > 120 or len(slug) > 50:
        raise BadList(_("A list needs a name of up to 120 and a short name of up to 50 characters."))
    with transaction.atomic():
        identity = SenderIdentity.objects.filter(email__iexact=sender).order_by("pk").first()
        if identity is None:
            postal_address = " ".join(postal_address.split()) or _postal_address_of_the_house()
            identity = SenderIdentity.objects.create(name=name, email=sender, postal_address=postal_address)
        return List.objects.get_or_create(slug=slug, defaults={"name": name, "sender": identity})


def _postal_address_of_the_house() -> str:
    known = SenderIdentity.objects.exclude(postal_address="").order_by("pk")
    return known.values_list("postal_address", flat=True).first() or ""
