"""Opening an SMTP connection: greeting, TLS and login. It waits; what may not wait runs it in a thread.

What goes wrong is one sentence for the operator, without what a server says to a login: it may quote the user's name.
"""

import smtplib
import ssl
from functools import lru_cache

from django.core.mail.utils import DNS_NAME

from newsletter.env import EmailUrl
from newsletter.mailing.transports.base import TransportError
from newsletter.mailing.transports.smtp_connection import Connection, status_code

CONNECT_SECONDS = 30
_SHOWN = 200  # characters of what a server said


def open_connection(url: EmailUrl) -> Connection:
    """A connection that is greeted, encrypted and logged in as the URL asks. Raises TransportError."""
    try:
        server = _greeted(url)
        try:
            _secure(server, url)
        except BaseException:
            server.close()
            raise
    except (OSError, smtplib.SMTPException) as error:
        raise TransportError(f"The mail server {shown(url)} cannot be used: {reason(error)}.") from error
    assert server.sock is not None
    return Connection(
        server.sock,
        pipelining=server.has_extn("pipelining"),
        eight_bit=server.has_extn("8bitmime"),
        smtputf8=server.has_extn("smtputf8"),
    )


def shown(url: EmailUrl) -> str:
    """A server as sentences and logs name it: without user and password."""
    host = url.host or "127.0.0.1"
    return f"{f'[{host}]' if ':' in host else host}:{port_of(url)}"


def port_of(url: EmailUrl) -> int:
    return url.port or (465 if url.scheme == "smtps" else 25)


def _greeted(url: EmailUrl) -> smtplib.SMTP:
    # The machine's own name is looked up once: without this smtplib asks the DNS for every connection.
    where = {"host": url.host or "127.0.0.1", "port": port_of(url), "local_hostname": DNS_NAME.get_fqdn()}
    if url.scheme == "smtps":
        return smtplib.SMTP_SSL(**where, timeout=CONNECT_SECONDS, context=tls_context(url))
    return smtplib.SMTP(**where, timeout=CONNECT_SECONDS)


def _secure(server: smtplib.SMTP, url: EmailUrl) -> None:
    if url.flag("starttls"):
        code, said = server.starttls(context=tls_context(url))
        if code != 220:
            raise smtplib.SMTPResponseException(code, said)
    server.ehlo_or_helo_if_needed()
    if url.username:
        server.login(url.username, url.password)


def tls_context(url: EmailUrl) -> ssl.SSLContext:
    """Certificates are verified by the system's authorities, or by those of the file `?ca=`. Raises OSError."""
    return _context(url.options.get("ca", ""))


@lru_cache(maxsize=8)
def _context(authorities: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities or None)
    except OSError as error:
        why = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise BadAuthorities(f"the file {authorities} of ?ca= cannot be used ({why})") from error


class BadAuthorities(OSError):
    """The file of authorities is missing or is none; the text is a sentence without its full stop."""


def reason(error: Exception) -> str:
    """Why a connection could not be had, without a full stop."""
    if isinstance(error, smtplib.SMTPException):
        return _said_by_smtp(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return f"its certificate is not trusted ({why}); an authority of your own is named by ?ca=/path/to/file.pem"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails ({error.reason or error}); smtps:// is TLS from the start, ?starttls=1 begins it later"
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_SECONDS} seconds"
    return str(getattr(error, "strerror", None) or error).rstrip(".") or type(error).__name__


def _said_by_smtp(error: smtplib.SMTPException) -> str:
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"it refuses the user name or the password of EMAIL_URL ({status_code(error.smtp_code, _text(error))})"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"it answers “{error.smtp_code} {_text(error)}”"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "it offers no STARTTLS" if "STARTTLS" in str(error) else "it offers no login (AUTH) that is known here"
    if isinstance(error, smtplib.SMTPServerDisconnected):
        if isinstance(error.__context__, TimeoutError):
            return reason(error.__context__)
        return "it ended the connection before it was ready"
    return " ".join(str(error).split())[:_SHOWN]


def _text(error: smtplib.SMTPResponseException) -> str:
    said = error.smtp_error
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    return " ".join(text.split())[:_SHOWN]
