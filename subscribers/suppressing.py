"""Addresses that are never mailed again, known by a keyed hash only, so that it outlives a person's data."""

import hmac
from collections.abc import Iterable
from datetime import datetime

from django.conf import settings
from django.db import transaction

from subscribers.models import Subscriber, Suppression

KEY_VERSION = 1  # of SUPPRESSION_KEY, which cannot be rotated: the addresses are gone


def address_hash(key: str) -> bytes:
    """HMAC-SHA256 of a normalised address (Address.key) under SUPPRESSION_KEY; 32 bytes."""
    return hmac.digest(settings.SUPPRESSION_KEY.encode(), key.encode(), "sha256")


def suppress(address_key: str, *, reason: str, source: str, now: datetime) -> bool:
    """Never mail this address again, on any list. True if it was not suppressed before; repeating is harmless.

    `reason` is one of Suppression.Reason; `source` says in a few words who or what asked for it.
    """
    with transaction.atomic():
        _suppression, is_new = Suppression.objects.get_or_create(
            address_hash=address_hash(address_key),
            defaults={"reason": reason, "source": source[:120], "key_version": KEY_VERSION, "since": now},
        )
        Subscriber.objects.filter(email_key=address_key, suppressed_at=None).update(suppressed_at=now)
    return is_new


def suppressed_among(keys: Iterable[str]) -> set[str]:
    """Those of these normalised addresses that must not be mailed."""
    key_of = {address_hash(key): key for key in keys}
    found = Suppression.objects.filter(address_hash__in=key_of).values_list("address_hash", flat=True)
    return {key_of[bytes(digest)] for digest in found}


def is_suppressed(key: str) -> bool:
    return Suppression.objects.filter(address_hash=address_hash(key)).exists()
