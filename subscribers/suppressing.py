"""Addresses that are never mailed again, known by a keyed hash only, so that it outlives a person's data."""

import hmac
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection, transaction

from subscribers.models import AuditEntry, Subscriber, Suppression

# Who asked to be erased has no data here any more and did not ask to be mailed; only they can come back, by signing up.
FOR_GOOD = frozenset({Suppression.Reason.ERASURE})
KEY_VERSION = 1  # of SUPPRESSION_KEY, which cannot be rotated: the addresses are gone


def address_hash(key: str) -> bytes:
    """HMAC-SHA256 of a normalised address (Address.key) under SUPPRESSION_KEY; 32 bytes."""
    return hmac.digest(settings.SUPPRESSION_KEY.encode(), key.encode(), "sha256")


class Unwanted(NamedTuple):
    """An address that is never to be mailed again, why in a few words, and since when."""

    address_key: str  # normalised (Address.key)
    source: str  # who or what asked for it
    since: datetime


# The first word about an address stays. Subscribers are locked by the order of their key: several may do this at once.
_SUPPRESS = """
WITH said AS MATERIALIZED (
    SELECT DISTINCT ON (address_hash) address_hash, email_key, source, since
    FROM unnest(%(hashes)s::bytea[], %(keys)s::text[], %(sources)s::text[], %(since)s::timestamptz[])
        AS one (address_hash, email_key, source, since)
    ORDER BY address_hash, since
), made AS (
    INSERT INTO subscribers_suppression (address_hash, reason, source, key_version, since)
    SELECT address_hash, %(reason)s, left(source, 120), %(version)s, since FROM said ORDER BY address_hash
    ON CONFLICT (address_hash) DO NOTHING RETURNING 1
), held AS MATERIALIZED (
    SELECT subscriber.id, said.since FROM subscribers_subscriber AS subscriber JOIN said USING (email_key)
    WHERE subscriber.suppressed_at IS NULL ORDER BY subscriber.id FOR UPDATE OF subscriber
), marked AS (
    UPDATE subscribers_subscriber AS subscriber SET suppressed_at = held.since FROM held WHERE subscriber.id = held.id
)
SELECT count(*) FROM made
"""


def suppress_all(unwanted: Iterable[Unwanted], *, reason: str) -> int:
    """Never mail these addresses again, on any list; how many were not suppressed before. Repeating is harmless.

    `reason` is one of Suppression.Reason.
    """
    rows = list(unwanted)
    if not rows:
        return 0
    parameters: dict[str, Any] = {
        "hashes": [address_hash(one.address_key) for one in rows],
        "keys": [one.address_key for one in rows],
        "sources": [one.source for one in rows],
        "since": [one.since for one in rows],
        "reason": reason,
        "version": KEY_VERSION,
    }
    with connection.cursor() as cursor:
        cursor.execute(_SUPPRESS, parameters)
        return int(cursor.fetchone()[0])


def suppress(address_key: str, *, reason: str, source: str, now: datetime) -> bool:
    """The same for one address. True if it was not suppressed before."""
    return bool(suppress_all([Unwanted(address_key, source, now)], reason=reason))


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
