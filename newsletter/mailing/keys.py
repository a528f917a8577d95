"""The keyring of this installation."""

from functools import cache

from django.conf import settings

from newsletter.mailing.tokens import Keyring


@cache
def keyring() -> Keyring:
    """The keys of TOKEN_KEYS."""
    return Keyring.parse(list(settings.TOKEN_KEYS))
