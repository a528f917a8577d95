"""What the sender's domain and the mail server say: DNS records, and a test mail through the real transport."""

from email.utils import formataddr, make_msgid
from smtplib import SMTPException, SMTPRecipientsRefused, SMTPResponseException

from anymail.exceptions import AnymailError
from django.conf import settings
from django.core.mail import EmailMessage
from django.utils.translation import gettext as _

from newsletter import dns
from newsletter.dns import Record
from newsletter.mailing.headers import address_domain
from subscribers import validating
from subscribers.models import SenderIdentity


class NotSent(Exception):
    """A test mail did not leave; one sentence why."""


def records(sender: SenderIdentity, *, selector: str = "", refresh: bool = False) -> list[Record]:
    """How SPF, DKIM, DMARC and MX of a sender's domain stand for the transport that is set."""
    transport = settings.MAIL_TRANSPORT
    return dns.check_domain(
        sender.domain,
        selector=selector,
        transport=transport.scheme,
        smtp_host=" ".join(server.host for server in transport.servers) if transport.is_smtp else "",
        refresh=refresh,
    )


def send_test(sender: SenderIdentity, to: str) -> str:
    """Send a short test mail as this sender and give the address it went to. Raises NotSent."""
    try:
        address = validating.normalise(to).email
    except validating.InvalidAddress as error:
        raise NotSent(str(error)) from error
    message = EmailMessage(
        subject=_("It works: a test from %(name)s") % {"name": sender.name},
        body=_(
            "This mail took the way that your newsletter will take.\n\n"
            "If it lies in the spam folder, look at the DNS records on %(site)s/setup/domain/ first."
        )
        % {"site": settings.SITE_URL},
        from_email=formataddr((sender.name, sender.email)),
        to=[address],
        headers={"Auto-Submitted": "auto-generated", "Message-ID": make_msgid(domain=address_domain(sender.email))},
    )
    try:
        message.send()
    except (SMTPException, OSError, AnymailError) as error:
        raise NotSent(_("The mail server did not take it: %(why)s") % {"why": _one_line(error)}) from error
    return address


def _one_line(error: Exception) -> str:
    """What the server said, without Python's quotes around it."""
    if isinstance(error, SMTPRecipientsRefused) and error.recipients:
        code, words = next(iter(error.recipients.values()))
        text = f"{code} {words.decode(errors='replace')}"
    elif isinstance(error, SMTPResponseException):
        said = error.smtp_error
        text = f"{error.smtp_code} {said.decode(errors='replace') if isinstance(said, bytes) else said}"
    else:
        text = str(error)
    return " ".join(text.split())[:300] or type(error).__name__
