"""The keyring of this installation."""

from functools import cache
from typing import TYPE_CHECKING

from django.conf import settings

from newsletter.mailing.tokens import Keyring

if TYPE_CHECKING:
    from newsletter.mailing.signing import Signer


@cache
def keyring() -> Keyring:
    """The keys of TOKEN_KEYS."""
    return Keyring.parse(list(settings.TOKEN_KEYS))


def signer(domain: str) -> "Signer | None":
    """Signs mail from a domain (A-labels) by DKIM; None where its mail server does that."""
    return settings.DKIM_KEYS.signer(domain) if settings.DKIM_KEYS else None
