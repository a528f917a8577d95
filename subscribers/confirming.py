"""Double opt-in: the mail with the link, and the POST behind it that makes a subscription active.

Rows are the queue: a mail is due while `requested_at` is set and `confirmation_sent_at` is empty.
"""

import contextlib
import logging
import smtplib
from collections.abc import Iterator
from datetime import datetime, timedelta
from email.utils import formataddr, make_msgid
from urllib.parse import urlsplit

from anymail.exceptions import AnymailError, AnymailInvalidAddress, AnymailRecipientsRefused
from django.conf import settings
from django.core.mail import EmailMultiAlternatives, get_connection
from django.core.mail.backends.base import BaseEmailBackend
from django.db import transaction
from django.db.models import QuerySet
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import translation
from django.utils.translation import gettext as _

from newsletter.mailing.headers import address_domain
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import BadToken, confirmation_token, read_confirmation
from subscribers import engagement
from subscribers.models import ConsentRecord, Subscription

log = logging.getLogger(__name__)

LIFETIME = timedelta(days=settings.CONFIRMATION_DAYS)
_UNCONFIRMED = (Subscription.State.PENDING, Subscription.State.UNSUBSCRIBED, Subscription.State.PRUNED)
_FAILURES_IN_A_ROW = 5  # after which a mail server is left alone until the next sweep


class ConfirmationDelayed(Exception):
    """The mail could not be handed over now; it is due again."""


def look(token: str, *, now: datetime) -> Subscription:
    """The subscription that a link would confirm or has confirmed. Changes nothing. Raises BadToken."""
    subscription_id, issued = read_confirmation(keyring(), token, now=now, lifetime=LIFETIME)
    found = _with_names().filter(pk=subscription_id, subscriber__suppressed_at=None).first()
    if found is None or not (_is_open(found, issued) or found.state == Subscription.State.ACTIVE):
        raise BadToken
    return found


def confirm(token: str, *, source: str = "confirmation link", network: str = "", now: datetime) -> Subscription:
    """Make the subscription of a link active, once; the same link again finds it active and changes nothing.

    Raises BadToken for a link that is forged, too old, or made before the person's last unsubscribing.
    """
    subscription = look(token, now=now)
    if subscription.state == Subscription.State.ACTIVE:
        return subscription
    with transaction.atomic():
        # Who unsubscribes in this very moment empties requested_at, and no row matches.
        moved = Subscription.objects.filter(
            pk=subscription.pk, state__in=_UNCONFIRMED, requested_at=subscription.requested_at
        ).update(
            state=Subscription.State.ACTIVE,
            state_since=now,
            requested_at=None,
            unsubscribed_by=None,
        )
        if moved:
            ConsentRecord.objects.create(
                subscriber=subscription.subscriber,
                list=subscription.list,
                kind=ConsentRecord.Kind.CONFIRMED,
                text=subscription.list.consent_text,
                source=source,
                network=network,
                at=now,
            )
            # Only a person confirms: who comes back after a hygiene run is not judged by the silence before.
            engagement.record_action(subscription.pk, now)
    return look(token, now=now)


def send_confirmation(subscription_id: int, *, now: datetime) -> bool:
    """Send the mail of one request if it is due. True if a mail server took it.

    The claim comes before the sending, so nobody is mailed twice. A process that dies in between costs this mail; the
    person can ask again after ten minutes. Raises ConfirmationDelayed when the mail server was not to be had.
    """
    with _mail_server() as mail:
        return _send(subscription_id, mail, now)


def due(*, now: datetime) -> QuerySet[Subscription]:
    """Subscriptions whose confirmation mail is owed and whose link would still work."""
    return Subscription.objects.filter(
        state__in=_UNCONFIRMED,
        confirmation_sent_at=None,
        requested_at__gt=now - LIFETIME,
        subscriber__suppressed_at=None,
    )


def send_due(*, limit: int, now: datetime) -> int:
    """Send up to `limit` owed mails over one connection; how many were sent. Raises ConfirmationDelayed."""
    waiting = list(due(now=now).order_by("requested_at").values_list("pk", flat=True)[:limit])
    if not waiting:
        return 0
    sent = failures = 0
    with _mail_server() as mail:
        for subscription_id in waiting:
            try:
                sent += _send(subscription_id, mail, now)
                failures = 0
            except ConfirmationDelayed:
                failures += 1
                if failures == _FAILURES_IN_A_ROW:
                    raise
    return sent


@contextlib.contextmanager
def _mail_server() -> Iterator[BaseEmailBackend]:
    mail = get_connection()
    try:
        mail.open()
    except (OSError, smtplib.SMTPException) as error:
        raise ConfirmationDelayed(_("The mail server cannot be reached: %(why)s") % {"why": error}) from error
    try:
        yield mail
    finally:
        with contextlib.suppress(OSError, smtplib.SMTPException):
            mail.close()


def _send(subscription_id: int, mail: BaseEmailBackend, now: datetime) -> bool:
    if not due(now=now).filter(pk=subscription_id).update(confirmation_sent_at=now):
        return False
    subscription = _with_names().get(pk=subscription_id)
    try:
        message(subscription, mail, now=now).send()
    except (OSError, smtplib.SMTPException, AnymailError) as error:
        if _is_permanent(error):
            log.warning("confirmation for subscription %s was refused: %s", subscription_id, error)
            return False
        Subscription.objects.filter(pk=subscription_id, confirmation_sent_at=now).update(confirmation_sent_at=None)
        raise ConfirmationDelayed(_("The mail server took no confirmation mail: %(why)s") % {"why": error}) from error
    return True


def _is_permanent(error: Exception) -> bool:
    """Whether a server said no for good (5xx to every recipient); anything else is tried again."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code >= 500 for code, _reply in error.recipients.values())
    if isinstance(error, smtplib.SMTPResponseException):
        return 500 <= error.smtp_code < 600
    return isinstance(error, AnymailRecipientsRefused | AnymailInvalidAddress)


def message(subscription: Subscription, mail: BaseEmailBackend | None, *, now: datetime) -> EmailMultiAlternatives:
    """The confirmation mail: text and HTML, from the list's sender. It never quotes what a stranger may have typed."""
    newsletter, sender = subscription.list, subscription.list.sender
    token = confirmation_token(keyring(), subscription.pk, now)
    facts = {
        "list": newsletter,
        "sender": sender,
        "email": subscription.subscriber.email,
        "link": settings.SITE_URL + reverse("subscribers:confirm", args=[token]),
        "site": urlsplit(settings.SITE_URL).netloc,
        "days": settings.CONFIRMATION_DAYS,
    }
    with translation.override(subscription.subscriber.language or newsletter.language):
        message = EmailMultiAlternatives(
            subject=_("Please confirm: %(list)s") % {"list": newsletter.name},
            body=render_to_string("mail/confirmation.txt", facts),
            from_email=formataddr((sender.name, sender.email)),
            to=[subscription.subscriber.email],
            reply_to=[sender.reply_to] if sender.reply_to else None,
            # RFC 3834: no holiday notice shall answer this.
            headers={
                "Auto-Submitted": "auto-generated",
                "X-Auto-Response-Suppress": "All",
                # At the sender's domain; the name of this machine, Django's choice, may be "localhost".
                "Message-ID": make_msgid(domain=address_domain(sender.email)),
            },
            connection=mail,
        )
        message.attach_alternative(render_to_string("mail/confirmation.html", facts), "text/html")
    return message


def _is_open(subscription: Subscription, issued: datetime) -> bool:
    requested = subscription.requested_at  # tokens count whole seconds
    return requested is not None and issued >= requested.replace(microsecond=0)


def _with_names() -> QuerySet[Subscription]:
    return Subscription.objects.select_related("subscriber", "list__sender")
