"""Asking for a newsletter: the request is written down and a confirmation mail becomes due. Nobody is subscribed yet.

A stranger may type anybody's address here, so a request changes nothing that its owner would notice: no name is
overwritten, no state moves, and mails to one address are few (subscription bombing).
"""

from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction

from subscribers import suppressing, tasks, validating
from subscribers.models import ConsentRecord, List, Subscriber

RESEND_AFTER = timedelta(minutes=10)
MAILS_PER_DAY = 3  # to one address, over all lists

# Makes a pending subscription or renews the request of one that is not active. No row comes back for an active one.
# `requested_at` stays the first of a series, so that both of two mails work; an empty `confirmation_sent_at` makes
# the mail due. The state does not move: only the owner's confirmation may do that.
_REQUEST = """
INSERT INTO subscribers_subscription AS s (list_id, subscriber_id, state, state_since, requested_at, source, created_at)
VALUES (%(list)s, %(subscriber)s, 'pending', %(now)s, %(now)s, %(source)s, %(now)s)
ON CONFLICT ON CONSTRAINT subscription_once_per_list DO UPDATE
   SET requested_at = coalesce(s.requested_at, excluded.requested_at), confirmation_sent_at = NULL
 WHERE s.state <> 'active'
RETURNING id
"""


class UnknownList(LookupError):
    """There is no such list, or it takes no sign-ups."""


def subscribe(list_id: int, *, email: str, name: str = "", source: str, network: str = "", now: datetime) -> None:
    """Ask for a list. Known, unknown, active and suppressed addresses all get the same silence.

    Raises InvalidAddress (a sentence for the form) and UnknownList. `network` is kept as proof, so give it truncated.
    """
    address = validating.normalise(email)
    newsletter = List.objects.filter(pk=list_id).first()
    if newsletter is None:
        raise UnknownList
    if suppressing.is_suppressed(address.key):
        return
    with transaction.atomic():
        subscriber = _known_or_new(address, name=" ".join(name.split()), now=now)
        if not _may_mail(subscriber, newsletter, now):
            return
        subscription_id = _request(newsletter, subscriber, source=source, now=now)
        if subscription_id is None:
            return
        ConsentRecord.objects.create(
            subscriber=subscriber,
            list=newsletter,
            kind=ConsentRecord.Kind.REQUESTED,
            text=newsletter.consent_text,
            source=source,
            network=network,
            at=now,
        )
        transaction.on_commit(lambda: tasks.enqueue(tasks.send_confirmation, subscription_id))


def _known_or_new(address: validating.Address, *, name: str, now: datetime) -> Subscriber:
    """The subscriber of an address, locked, so that requests for one address wait for each other."""
    Subscriber.objects.bulk_create(
        [
            Subscriber(
                email=address.email,
                email_key=address.key,
                duplicate_hint=address.duplicate_hint,
                name=name,
                created_at=now,
            )
        ],
        ignore_conflicts=True,
    )
    return Subscriber.objects.select_for_update().get(email_key=address.key)


def _may_mail(subscriber: Subscriber, newsletter: List, now: datetime) -> bool:
    requests = ConsentRecord.objects.filter(
        subscriber=subscriber, kind=ConsentRecord.Kind.REQUESTED, at__gt=now - timedelta(days=1)
    )
    if requests.filter(list=newsletter, at__gt=now - RESEND_AFTER).exists():
        return False
    return requests.count() < MAILS_PER_DAY


def _request(newsletter: List, subscriber: Subscriber, *, source: str, now: datetime) -> int | None:
    parameters: dict[str, Any] = {"list": newsletter.pk, "subscriber": subscriber.pk, "now": now, "source": source[:40]}
    with connection.cursor() as cursor:
        cursor.execute(_REQUEST, parameters)
        row = cursor.fetchone()
    return row[0] if row else None
