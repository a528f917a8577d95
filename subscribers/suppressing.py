"""Addresses that are never mailed again, known by a keyed hash only, so that it outlives a person's data."""

import hmac
from collections.abc import Iterable
from datetime import datetime

from django.conf import settings
from django.db import transaction

from subscribers.models import AuditEntry, Subscriber, Suppression

# Who asked to be erased has no data here any more and did not ask to be mailed; only they can come back, by signing up.
FOR_GOOD = frozenset({Suppression.Reason.ERASURE})
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


class CannotLift(Exception):
    """The text is a sentence for a person."""


def lift(address_key: str, *, why: str, actor: str) -> None:
    """Let an address be mailed again, on the lists to which it is subscribed. Raises CannotLift.

    Nobody is subscribed by it: whoever unsubscribed stays unsubscribed. The audit log keeps who did it and why, and no
    address.
    """
    digest = address_hash(address_key)
    with transaction.atomic():
        suppression = Suppression.objects.select_for_update().filter(address_hash=digest).first()
        if suppression is None:
            raise CannotLift("This address is not suppressed.")
        if suppression.reason in FOR_GOOD:
            raise CannotLift("This person asked to be erased, so the suppression stays.")
        details = {"why": why, "reason": suppression.reason, "since": suppression.since.isoformat()}
        suppression.delete()
        Subscriber.objects.filter(email_key=address_key).update(suppressed_at=None)
        AuditEntry.objects.create(
            actor=actor, action="suppression.lift", subject=f"address {digest.hex()[:12]}", details=details
        )


def suppressed_among(keys: Iterable[str]) -> set[str]:
    """Those of these normalised addresses that must not be mailed."""
    key_of = {address_hash(key): key for key in keys}
    found = Suppression.objects.filter(address_hash__in=key_of).values_list("address_hash", flat=True)
    return {key_of[bytes(digest)] for digest in found}


def is_suppressed(key: str) -> bool:
    return Suppression.objects.filter(address_hash=address_hash(key)).exists()
