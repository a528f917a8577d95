"""Values into slots: what one recipient costs. Prepared once a revision and process, then a join for each person."""

import functools
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from newsletter.mailing import bounds, mergetags
from newsletter.mailing.compiling import CONTROL_TAGS, Compiled, Piece
from newsletter.mailing.headers import (
    address_domain,
    mailbox,
    needs_smtputf8,
    unstructured,
    wire_address,
    wired_mailbox,
)
from newsletter.mailing.letter import MESSAGE_ID, SUBJECT, TO, Hole, Letter, encoded_part
from newsletter.mailing.slots import Context, PersonalizeError, slot_of
from newsletter.mailing.tokens import DeliveryKey, DeliverySigner, DeliveryTokens, Keyring


class Recipient(NamedTuple):
    """What a merge tag may reach of one person, and how they may be tracked."""

    key: DeliveryKey
    email: str
    name: str = ""
    language: str = ""
    fields: Mapping[str, Any] = MappingProxyType({})
    is_tracked: bool = True


@dataclass(frozen=True)
class Addresses:
    """Where the public pages and the edge live."""

    site: str
    edge: str


class Message(NamedTuple):
    """One recipient's mail, ready for the wire."""

    key: DeliveryKey
    mail_from: str
    rcpt_to: str
    content: bytes
    needs_smtputf8: bool = False


@dataclass(frozen=True)
class Rendered:
    """One recipient's mail as a preview or a web page shows it."""

    subject: str
    html: str
    text: str


# The names by which a block knows the mail's links, and whether it stands in the text part.
_LINKS_IN_TEXT = {"_links": False, "_text_links": True}


class Personalizer:
    """A compiled mail with its literals encoded, waiting for people. `sign` gives the header that signs a message."""

    def __init__(
        self,
        compiled: Compiled,
        *,
        keyring: Keyring,
        addresses: Addresses,
        mail_from: str,
        boundary: str,
        sign: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.compiled = compiled
        self._signer = DeliverySigner(keyring)
        self._addresses = addresses
        self._boundary = boundary
        self._sign = sign
        local, _, domain = mail_from.rpartition("@")
        # VERP: the envelope sender tells whose mail bounced (MAIL.md).
        self._mail_from = (f"{local}+", f"@{domain}") if compiled.headers.get("verp") else None
        self._plain_mail_from = mail_from
        lines = {"subject": compiled.subject, "preheader": compiled.preheader}
        # What conditions and filters may name of them; one with tags of its own is filled in for each recipient.
        self._lines = {name: "".join(map(str, line)) for name, line in lines.items() if line and _is_static(line)}
        static = self._lines.get("subject", "")
        self._subject = unstructured(static, name="Subject") if _is_static(compiled.subject) else None
        self._tracked = self._encode(tracked=True)
        self._untracked = self._encode(tracked=False)

    # One recipient ---------------------------------------------------------------------------------------------

    def message(self, recipient: Recipient, *, is_signed: bool = True) -> Message:
        """The mail of one recipient as bytes with CRLF line ends. Raises PersonalizeError or HeaderError."""
        tokens = self._signer.tokens(recipient.key)
        context = self._context(recipient, tokens)
        address = wire_address(recipient.email)
        letter = self._tracked if recipient.is_tracked else self._untracked
        parts = letter.parts.copy()
        parts[TO] = wired_mailbox(recipient.name, address, header="To")
        parts[SUBJECT] = self._subject or unstructured(str(context["subject"]), name="Subject")
        parts[MESSAGE_ID] = tokens.message_id.encode("ascii")
        track, control = tokens.track.encode("ascii"), tokens.control.encode("ascii")
        for place in letter.tracks:
            parts[place] = track
        for place in letter.controls:
            parts[place] = control
        for slot, places in letter.slots:
            value = slot.quoted(context)
            for place in places:
                parts[place] = value
        content = b"".join(parts)
        if len(content) > bounds.MESSAGE_LIMIT:
            raise PersonalizeError(f"The mail would have {len(content) // 1_000_000} MB for this recipient.")
        if self._sign is not None and is_signed:
            content = self._sign(content) + content
        sender = self._mail_from
        return Message(
            recipient.key,
            f"{sender[0]}{tokens.return_path}{sender[1]}" if sender else self._plain_mail_from,
            address,
            content,
            needs_smtputf8(address),
        )

    def rendered(self, recipient: Recipient, *, with_pixel: bool = False) -> Rendered:
        """The mail as text and HTML, for previews and the web version. Raises PersonalizeError."""
        tokens = self._signer.tokens(recipient.key)
        context = self._context(recipient, tokens)
        return Rendered(
            subject=mergetags.one_line(self._fill(self.compiled.subject, recipient, tokens, context, with_pixel)),
            html=self._fill(self.compiled.html, recipient, tokens, context, with_pixel),
            text=self._fill(self.compiled.text, recipient, tokens, context, with_pixel),
        )

    def _fill(
        self, pieces: list[Piece], recipient: Recipient, tokens: DeliveryTokens, context: Context, with_pixel: bool
    ) -> str:
        filled: list[str] = []
        for piece in pieces:
            if isinstance(piece, str):
                filled.append(piece)
            elif piece[0] == "liquid":
                filled.append(slot_of(piece[1]).text(context))
            elif piece[0] == "control":
                filled.append(f"{self._addresses.site}/{piece[1]}/{tokens.control}")
            elif piece[0] == "link":
                filled.append(self._link(piece[1], tokens, tracked=recipient.is_tracked, in_text=_in_text(piece)))
            elif with_pixel:
                filled.append(self._pixel(tokens, tracked=recipient.is_tracked))
        return "".join(filled)

    def _link(self, index: int, tokens: DeliveryTokens, *, tracked: bool, in_text: bool) -> str:
        if tracked:
            return f"{self._addresses.edge}/c/{tokens.track}/{index}"
        return self._target(index, in_text=in_text)

    def target(self, link: list[Any]) -> str:
        """Where a tracked link leads, as it stands in the mail of somebody who is not tracked."""
        return self._target(link[1], in_text=_in_text(link))

    def _target(self, index: int, *, in_text: bool) -> str:
        target = self.compiled.links[index]
        return target if in_text else html.escape(target, quote=True)

    def _pixel(self, tokens: DeliveryTokens, *, tracked: bool) -> str:
        return PIXEL.format(f"{self._addresses.edge}/o/{tokens.track}.gif") if tracked else ""

    def _context(self, recipient: Recipient, tokens: DeliveryTokens) -> Context:
        fields, name = recipient.fields, recipient.name
        context = Context(fields)
        context.update(self.compiled.constants)
        context.update(self._lines)
        context["name"] = name
        context["first_name"] = name.partition(" ")[0]
        context["email"] = recipient.email
        context["language"] = recipient.language
        context["fields"] = fields
        for tag in self._named_in_blocks:
            context[tag] = self._in_block(tag, recipient, tokens)
        if self._fills_preheader:
            context["preheader"] = self._fill(self.compiled.preheader, recipient, tokens, context, False)
        if self._subject is None:
            context["subject"] = self._fill(self.compiled.subject, recipient, tokens, context, False)
        return context

    @functools.cached_property
    def _named_in_blocks(self) -> tuple[str, ...]:
        """The addresses that blocks of this mail name; elsewhere they are pieces of their own."""
        names = (*CONTROL_TAGS, *_LINKS_IN_TEXT)
        return tuple(name for name in names if any(name in source for source in self._sources()))

    def _in_block(self, tag: str, recipient: Recipient, tokens: DeliveryTokens) -> "str | _Links":
        if tag in CONTROL_TAGS:
            site = self._addresses.site
            return f"{site}/{CONTROL_TAGS[tag]}/{tokens.control}" if site else "#"  # a page that may be forwarded
        return _Links(self, tokens, tracked=recipient.is_tracked, in_text=_LINKS_IN_TEXT[tag])

    @functools.cached_property
    def _fills_preheader(self) -> bool:
        return not _is_static(self.compiled.preheader) and any("preheader" in source for source in self._sources())

    def _sources(self) -> Iterator[str]:
        """The merge tags and blocks of the mail."""
        for part in (self.compiled.subject, self.compiled.html, self.compiled.text):
            yield from (piece[1] for piece in part if isinstance(piece, list) and piece[0] == "liquid")

    def unsubscribe_url(self, recipient: Recipient) -> str:
        """The one-click address of a recipient."""
        return f"{self._addresses.site}/u/{self._signer.tokens(recipient.key).control}"

    @property
    def addresses(self) -> Addresses:
        return self._addresses

    def message_id(self, recipient: Recipient) -> str:
        """The Message-ID of a recipient's mail, the same at every attempt, without its angle brackets."""
        domain = address_domain(self.compiled.headers["sender_email"])
        return f"{self._signer.tokens(recipient.key).message_id}@{domain}"

    def filler(self, sources: Sequence[str]) -> Callable[[Recipient], tuple[DeliveryTokens, str, list[str]]]:
        """For whoever lays the mail out differently: a recipient's tokens, subject, and values of these merge tags.

        What it returns raises PersonalizeError.
        """
        slots = [slot_of(source).text for source in sources]

        def fill(recipient: Recipient) -> tuple[DeliveryTokens, str, list[str]]:
            tokens = self._signer.tokens(recipient.key)
            context = self._context(recipient, tokens)
            return tokens, str(context.get("subject", "")), [text(context) for text in slots]

        return fill

    # Headers -----------------------------------------------------------------------------------------------------

    def _static_headers(self) -> bytes:
        of = self.compiled.headers
        lines = [mailbox(of["sender_name"], of["sender_email"], header="From")]
        if of.get("reply_to"):
            lines.append(mailbox("", of["reply_to"], header="Reply-To"))
        lines += [
            f"Date: {self.compiled.date}".encode("ascii"),
            of["list_id"].encode("ascii"),
            f"Feedback-ID: {of['feedback_id']}".encode("ascii"),
            b"Precedence: bulk",
            b"List-Unsubscribe-Post: List-Unsubscribe=One-Click",
            b"MIME-Version: 1.0",
            f'Content-Type: multipart/alternative;\r\n boundary="{self._boundary}"'.encode("ascii"),
        ]
        return b"\r\n".join(lines) + b"\r\n"

    def _encode(self, *, tracked: bool) -> Letter:
        """The whole mail as encoded literals and holes."""
        mime = f"--{self._boundary}\r\nContent-Type: text/{{}}; charset=utf-8\r\n"
        mime += "Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        domain = address_domain(self.compiled.headers["sender_email"])
        unsubscribe = f"@{domain}>\r\nList-Unsubscribe: <{self._addresses.site}/u/"
        encoded: list[bytes | Hole] = [
            self._static_headers(),
            "to",
            b"\r\n",
            "subject",
            b"\r\nMessage-ID: <",
            "message id",
            unsubscribe.encode("ascii"),
            "control",
            b">\r\n\r\n" + mime.format("plain").encode("ascii"),
        ]
        encoded += encoded_part(self._flat(self.compiled.text, tracked=tracked))
        encoded.append(b"\r\n" + mime.format("html").encode("ascii"))
        encoded += encoded_part(self._flat(self.compiled.html, tracked=tracked))
        encoded.append(f"\r\n--{self._boundary}--\r\n".encode("ascii"))
        return Letter.of(encoded)

    def _flat(self, pieces: list[Piece], *, tracked: bool) -> list[tuple[str, Any]]:
        """Pieces with addresses taken apart: a link is a literal, a token and a literal."""
        flat: list[tuple[str, Any]] = []
        for piece in pieces:
            if isinstance(piece, str):
                flat.append(("literal", piece))
            elif piece[0] == "liquid":
                flat.append(("hole", slot_of(piece[1])))
            elif piece[0] == "control":
                flat += [("literal", f"{self._addresses.site}/{piece[1]}/"), ("hole", "control")]
            elif piece[0] == "link" and tracked:
                flat += [("literal", f"{self._addresses.edge}/c/"), ("hole", "track"), ("literal", f"/{piece[1]}")]
            elif piece[0] == "link":
                flat.append(("literal", self.target(piece)))
            elif tracked:
                before, after = PIXEL.split("{}")
                flat += [
                    ("literal", f"{before}{self._addresses.edge}/o/"),
                    ("hole", "track"),
                    ("literal", f".gif{after}"),
                ]
        return flat


PIXEL = '<img src="{}" width="1" height="1" alt="" style="display:block;border:0;width:1px;height:1px">'


def _is_static(line: list[Piece]) -> bool:
    return all(isinstance(piece, str) for piece in line)


def _in_text(link: list[Any]) -> bool:
    """Whether a tracked link stands in plain text, where its target is not escaped."""
    return len(link) > 2


class _Links:
    """Tracked links inside a Liquid block, made only when the block prints one."""

    def __init__(self, personalizer: Personalizer, tokens: DeliveryTokens, *, tracked: bool, in_text: bool) -> None:
        self._link = functools.partial(personalizer._link, tokens=tokens, tracked=tracked, in_text=in_text)

    def __getitem__(self, index: int) -> str:
        if not isinstance(index, int):
            raise KeyError(index)  # an editor who guessed the name
        return self._link(index)

    def __str__(self) -> str:
        return ""
