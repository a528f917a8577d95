"""The ways out of the house behind one seam (base.Transport), chosen by EMAIL_URL."""

from functools import cache

from django.conf import settings

from newsletter.env import EmailUrl
from newsletter.mailing.transports.base import Transport
from newsletter.mailing.transports.esp import EspTransport
from newsletter.mailing.transports.smtp import SmtpTransport


def transport_for(url: EmailUrl) -> Transport:
    """The transport that an EMAIL_URL names."""
    return SmtpTransport(url) if url.is_smtp else EspTransport(url)


@cache
def transport() -> Transport:
    """This process's transport; its connections are kept over tasks."""
    return transport_for(settings.MAIL_TRANSPORT)
