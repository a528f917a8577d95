"""What the demo's mail server received, as a mail client reads it. Nothing in a mail is trusted."""

import email
import email.policy
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.utils import parseaddr
from http.client import HTTPException
from typing import Any
from zlib import crc32

from newsletter.mailserver import Mailbox, Message

PAGE = 50
SCAN_LIMIT = 5_000  # messages that one page of a search looks at; "older" goes on from there
ANSWER_SECONDS = 10


class OneClickFailed(Exception):
    """The text is a sentence for whoever pressed the button."""


@dataclass(frozen=True)
class Envelope:
    """A line of the list."""

    id: int
    received_at: datetime
    sender: str  # a name, or else the address
    recipient: str
    subject: str

    @property
    def initial(self) -> str:
        """Of the sender; an article says nothing."""
        return _initial(self.sender.removeprefix("The "))

    @property
    def face(self) -> str:
        return _initial(self.recipient)

    @property
    def hue(self) -> int:
        """One of four colours, always the same for a recipient."""
        return crc32(self.recipient.encode()) % 4


def _initial(text: str) -> str:
    return next((letter.upper() for letter in text if letter.isalnum()), "?")


@dataclass(frozen=True)
class Page:
    """A page of the list, newest first; `older` is the id to go on from, None at the end."""

    envelopes: list[Envelope]
    older: int | None
    total: int


@dataclass(frozen=True)
class Mail:
    """One message, opened."""

    envelope: Envelope
    sender_email: str
    headers: list[tuple[str, str]]
    html: str
    text: str
    size: int
    unsubscribe_url: str  # "" where the mail offers no one-click unsubscribing


def page(mailbox: Mailbox, *, search: str = "", before: int | None = None) -> Page:
    """The messages before an id, newest first, whose recipient or subject contains the search text."""
    total = len(mailbox)
    start = min(before or total + 1, total + 1)
    found: list[Envelope] = []
    oldest = start
    for message in _backwards(mailbox, start):
        line = envelope(message)
        oldest = message.id
        if _matches(line, message, search):
            found.append(line)
        if len(found) == PAGE or start - oldest >= SCAN_LIMIT:
            break
    return Page(found, oldest if oldest > 1 else None, total)


def _backwards(mailbox: Mailbox, before: int) -> Iterator[Message]:
    """One by one, by id: mails that stream in meanwhile shift nothing."""
    for message_id in range(before - 1, 0, -1):
        message = mailbox.get(message_id)
        if message:
            yield message


def _matches(line: Envelope, message: Message, search: str) -> bool:
    wanted = search.strip().casefold()
    texts = (line.subject, line.recipient, *message.rcpt_tos)
    return not wanted or any(wanted in text.casefold() for text in texts)


def envelope(message: Message) -> Envelope:
    """The line of a message; reads its headers only."""
    headers = BytesHeaderParser().parsebytes(message.raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    name, address = parseaddr(_decoded(headers["From"]))
    return Envelope(
        id=message.id,
        received_at=message.received_at,
        sender=name or address or message.mail_from or "?",
        recipient=", ".join(message.rcpt_tos),
        subject=_decoded(headers["Subject"]),
    )


def _decoded(value: object) -> str:
    """A header as text, whatever was made of it."""
    try:
        return " ".join(str(make_header(decode_header(str(value or "")))).split())
    except (LookupError, ValueError, MessageError):
        return str(value)


def open_mail(message: Message) -> Mail:
    """A message with its parts. A mail that cannot be parsed shows what can be."""
    parsed = email.message_from_bytes(message.raw, policy=email.policy.default)
    # Through the generic parser, since the modern one raises at some malformed headers.
    raw_headers = BytesHeaderParser().parsebytes(message.raw)
    headers = [(name, _decoded(value)) for name, value in raw_headers.items()]
    return Mail(
        envelope=envelope(message),
        sender_email=parseaddr(_decoded(raw_headers["From"]))[1],
        headers=headers,
        html=_part(parsed, "html"),
        text=_part(parsed, "plain"),
        size=message.size,
        unsubscribe_url=_one_click_url({name.lower(): value for name, value in headers}),
    )


def _part(parsed: EmailMessage, subtype: str) -> str:
    for part in parsed.walk():
        if part.get_content_type() != f"text/{subtype}" or part.is_multipart():
            continue
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            try:
                return payload.decode(part.get_content_charset() or "utf-8", "replace")
            except LookupError:  # a charset that nobody knows
                return payload.decode("utf-8", "replace")
    return ""


def _one_click_url(headers: dict[str, str]) -> str:
    """The HTTP address of a List-Unsubscribe header that RFC 8058 allows to be posted to."""
    if headers.get("list-unsubscribe-post", "").replace(" ", "").lower() != "list-unsubscribe=one-click":
        return ""
    for entry in headers.get("list-unsubscribe", "").split(","):
        url = entry.strip().strip("<>").strip()
        if url.startswith(("https://", "http://")):
            return url
    return ""


def unsubscribe(mail: Mail, *, site_url: str) -> int:
    """Do what a mailbox provider does at one click (RFC 8058): POST without cookies; gives the status.

    Only this installation's own address is posted to, wherever a mail points. Raises OneClickFailed.
    """
    if not mail.unsubscribe_url:
        raise OneClickFailed("This mail offers no one-click unsubscribing.")
    if not mail.unsubscribe_url.startswith(f"{site_url}/"):
        raise OneClickFailed("This mail’s unsubscribe address does not belong to this site, so nothing was sent.")
    request = urllib.request.Request(  # noqa: S310  http(s) only, checked above
        mail.unsubscribe_url,
        data=b"List-Unsubscribe=One-Click",
        headers={"Content-Type": "application/x-www-form-urlencoded", "User-Agent": "demo inbox"},
        method="POST",
    )
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=ANSWER_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        raise OneClickFailed(f"The site answered {error.code} {error.reason}.") from error
    except (OSError, HTTPException) as error:
        raise OneClickFailed("The site did not answer.") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """RFC 8058: the answer must not be a redirect."""

    def redirect_request(self, *_: Any) -> None:
        return None
