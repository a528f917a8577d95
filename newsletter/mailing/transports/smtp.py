"""SMTP over a kept connection."""

import re
import smtplib
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from newsletter.env import EmailUrl
from newsletter.mailing.headers import HeaderError
from newsletter.mailing.personalizing import Message, PersonalizeError, Personalizer, Recipient
from newsletter.mailing.transports.base import Report, Result, TransportError

_ENHANCED = re.compile(r"^([245]\.\d{1,3}\.\d{1,3})\b")
CONNECT_SECONDS = 30
REPLY_SECONDS = 600  # RFC 5321, 4.5.3.2.6: the answer to the final dot


def status_code(code: int, text: str) -> str:
    """The enhanced status code that a reply begins with, else the reply code itself."""
    found = _ENHANCED.match(text.strip())
    return found.group(1) if found else str(code)


class SmtpTransport:
    """One server, one connection, kept until it fails or is closed."""

    def __init__(self, url: EmailUrl) -> None:
        self._url = url
        self._connection: smtplib.SMTP | None = None

    def deliver(
        self, personalizer: Personalizer, recipients: Sequence[Recipient], *, until: datetime
    ) -> Iterator[Report]:
        self._connect()
        for index, recipient in enumerate(recipients):
            if datetime.now(UTC) >= until:
                yield from (Report(late.key, Result.NOT_SENT) for late in recipients[index:])
                return
            try:
                message = personalizer.message(recipient)
            except (PersonalizeError, HeaderError) as error:
                yield Report(recipient.key, Result.FAILED, "5.6.0", str(error))
                continue
            try:
                report = self._send(message)
            except TransportError:
                # The connection went away and cannot be had again: the rest was never begun.
                yield from (Report(late.key, Result.NOT_SENT) for late in recipients[index:])
                return
            yield report

    def close(self) -> None:
        if self._connection:
            try:
                self._connection.quit()
            except (OSError, smtplib.SMTPException):
                self._connection.close()
        self._connection = None

    def _connect(self) -> smtplib.SMTP:
        if self._connection:
            return self._connection
        host, port = self._url.host or "127.0.0.1", self._url.port
        try:
            if self._url.scheme == "smtps":
                connection: smtplib.SMTP = smtplib.SMTP_SSL(
                    host, port or 465, timeout=CONNECT_SECONDS, context=ssl.create_default_context()
                )
            else:
                connection = smtplib.SMTP(host, port or 25, timeout=CONNECT_SECONDS)
            if self._url.flag("starttls"):
                connection.starttls(context=ssl.create_default_context())
            connection.ehlo_or_helo_if_needed()
            if self._url.username:
                connection.login(self._url.username, self._url.password)
        except (OSError, smtplib.SMTPException) as error:
            raise TransportError(f"The mail server {host} cannot be used: {error}") from error
        assert connection.sock is not None
        connection.sock.settimeout(REPLY_SECONDS)
        self._connection = connection
        return connection

    def _send(self, message: Message) -> Report:
        """One message in one dialogue. The delivery promise: only a failure after the body's write began is UNKNOWN."""
        final_dot_begun = False
        connection = self._connect()
        if message.needs_smtputf8 and not connection.has_extn("smtputf8"):
            return Report(message.key, Result.FAILED, "5.6.7", "The mail server takes no such address (SMTPUTF8).")
        try:
            refusal = self._envelope(connection, message)
            if refusal:
                return refusal
            final_dot_begun = True
            # Literals are encoded so that no line starts with a dot: nothing to stuff.
            connection.send(message.content + b".\r\n")
            code, reply = connection.getreply()
        except (OSError, smtplib.SMTPException) as error:
            self._drop()
            result = Result.UNKNOWN if final_dot_begun else Result.NOT_SENT
            return Report(message.key, result, "", f"The connection was lost: {error}")
        return Report(message.key, Result.ACCEPTED) if code == 250 else self._refused(message, code, reply)

    def _envelope(self, connection: smtplib.SMTP, message: Message) -> Report | None:
        """MAIL, RCPT and DATA; the refusal, if there is one."""
        options = ["BODY=8BITMIME"] if connection.has_extn("8bitmime") else []
        if message.needs_smtputf8:
            options.append("SMTPUTF8")
        connection.command_encoding = "utf-8" if message.needs_smtputf8 else "ascii"
        code, reply = connection.mail(message.mail_from, options)
        if code == 250:
            code, reply = connection.rcpt(message.rcpt_to)
        if code in {250, 251}:
            code, reply = connection.docmd("DATA")
        if code == 354:
            return None
        report = self._refused(message, code, reply)
        if self._connection:
            connection.rset()
        return report

    def _refused(self, message: Message, code: int, reply: bytes) -> Report:
        text = reply.decode("utf-8", "replace").replace("\n", " ")[:500]
        if code == 421 or code < 0:
            self._drop()
        result = Result.FAILED if 500 <= code < 600 else Result.DEFERRED
        return Report(message.key, result, status_code(code, text), f"{code} {text}")

    def _drop(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None
