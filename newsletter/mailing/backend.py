"""Django's own mail (confirmations, messages to editors) by the SMTP servers of EMAIL_URL, signed where we sign."""

import smtplib
import ssl
from typing import Any

from django.conf import settings
from django.core.mail.backends import smtp

from newsletter.env import EmailUrl
from newsletter.mailing.transports.smtp_opening import port_of, tls_context


class _SigningSmtp(smtplib.SMTP):
    """Puts the signature in front as a message leaves."""

    def sendmail(self, from_addr: str, to_addrs: Any, msg: Any, *args: Any, **kwargs: Any) -> Any:
        if settings.DKIM_KEYS and isinstance(msg, bytes):
            msg = settings.DKIM_KEYS.signed(msg)
        return super().sendmail(from_addr, to_addrs, msg, *args, **kwargs)


class _SigningSmtps(_SigningSmtp, smtplib.SMTP_SSL):
    """The same over TLS from the start."""


class EmailBackend(smtp.EmailBackend):
    """The first server of EMAIL_URL, or the next one where it cannot be reached."""

    _server: EmailUrl

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._choose(settings.MAIL_TRANSPORT.servers[0])
        super().__init__(*args, **{**self._named(), **kwargs})

    def open(self) -> bool | None:
        """Open a connection to the first server that gives one. Raises what the last one raised."""
        *rest, last = settings.MAIL_TRANSPORT.servers
        if self.connection is None:
            for server in rest:
                self._choose(server)
                try:
                    if super().open():
                        return True
                except (OSError, smtplib.SMTPException):
                    continue
            self._choose(last)
        return super().open()

    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        return _SigningSmtps if self.use_ssl else _SigningSmtp

    @property
    def ssl_context(self) -> ssl.SSLContext:
        return tls_context(self._server)

    def _choose(self, server: EmailUrl) -> None:
        self._server = server
        vars(self).update(self._named())

    def _named(self) -> dict[str, Any]:
        """The server by the names of Django's backend."""
        return {
            "host": self._server.host or "127.0.0.1",
            "port": port_of(self._server),
            "username": self._server.username,
            "password": self._server.password,
            "use_ssl": self._server.scheme == "smtps",
            "use_tls": self._server.flag("starttls"),
        }
