"""Source to segments and slots, once a campaign: what every recipient shares is worked out here and never again.

Order: lift merge tags → Markdown to MJML blocks → layout → MJML to HTML → CSS inlined → links and pixel → text part
from the HTML → put the tags back with the escape that their place asks for → pieces. A text may as well be MJML or HTML
from the beginning. A piece is a literal string or a slot:

    ["link", 3]        a tracked link; its target stands in `links` (["link", 3, "text"] where it stands in plain text)
    ["pixel"]          the open pixel, or nothing where the person is not tracked
    ["control", "u"]   the person's unsubscribe ("u"), preferences ("p") or web version ("w") address
    ["liquid", src]    a merge tag or a whole `{% if %}…{% endif %}` block, rendered for each recipient
"""

import html
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

from liquid.exceptions import LiquidError

from newsletter.mailing import bounds, mergetags, mjml
from newsletter.mailing.mergetags import Lifted, MergeTagError
from newsletter.mailing.styling import styled
from newsletter.mailing.textpart import to_text
from newsletter.mailing.vetting import ACTIVE, CompileError, vet

__all__ = ["FORMATS", "CompileError", "Compiled", "Piece", "Source", "compile_source", "needs_layout"]

FORMATS = ("markdown", "mjml", "html")

Piece = str | list[Any]

CONTROL_TAGS = {"unsubscribe_url": "u", "preferences_url": "p", "web_url": "w"}
# What the layout and the text may name beside the subscriber's own attributes.
SUBSCRIBER_TAGS = frozenset({"name", "first_name", "email", "language", "fields"})
_SYSTEM_TAGS = frozenset({"content", *CONTROL_TAGS})

_LINK = re.compile(
    r"(<(?:a|area|v:roundrect|v:rect)(?:\s+[\w:-]+(?:=\"[^\"]*\")?)*?\s+href=\")([^\"]*)(\")", re.IGNORECASE
)
_URL_BEFORE = re.compile(r"https?://[^\s<>]*\Z")
_ATTRIBUTE = re.compile(r"\s([\w:-]+)\Z")
_ADDRESSES = frozenset({"href", "src", "background", "action", "poster", "srcset", "cite", "data", "xlink:href"})
_BRANCHES = frozenset({"else", "elsif", "when"})
_FURTHEST = 10_000  # characters of an address before the merge tag in it
HIDDEN = "display:none;font-size:1px;line-height:1px;max-height:0;max-width:0;opacity:0;overflow:hidden;"


@dataclass(frozen=True)
class Source:
    """What an editor wrote and what the list says about itself.

    `constants` are values that are the same for every recipient (list_name, sender_name, postal_address, language …).
    `fields` are the attribute names that subscribers have; other names in merge tags are warned about.
    """

    subject: str
    body: str
    layout: str
    preheader: str = ""
    constants: Mapping[str, str] = field(default_factory=dict)
    fields: frozenset[str] = frozenset()
    format: str = "markdown"


@dataclass(frozen=True)
class Compiled:
    """A mail ready to be filled in: pieces by part, link targets, and what was odd."""

    subject: list[Piece]
    html: list[Piece]
    text: list[Piece]
    links: list[str]
    constants: dict[str, str]
    headers: dict[str, str] = field(default_factory=dict)
    date: str = ""
    warnings: list[str] = field(default_factory=list)  # fields that nobody has
    notes: list[str] = field(default_factory=list)  # what was left out, or comes from elsewhere
    preheader: list[Piece] = field(default_factory=list)  # as it stands in the HTML too; for previews

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def without_controls(self) -> "Compiled":
        """The same mail with `#` where unsubscribe, preferences and web version led (for pages that get forwarded)."""

        def strip(pieces: list[Piece]) -> list[Piece]:
            return ["#" if isinstance(piece, list) and piece[0] == "control" else piece for piece in pieces]

        return replace(self, html=strip(self.html), text=strip(self.text))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Compiled":
        return cls(**content)


def needs_layout(format_name: str, body: str) -> bool:
    """Whether a text stands in a layout: not if it is a page of its own."""
    return format_name == "markdown" or (format_name == "mjml" and not mjml.is_document(body))


def compile_source(
    source: Source, *, headers: Mapping[str, str] | None = None, date: datetime | None = None
) -> Compiled:
    """Compile a campaign. Raises CompileError with a sentence; what is odd but sendable lands in `warnings`."""
    used = _check(source)
    lifted = Lifted()
    constants = {**source.constants, "subject": source.subject}
    page, notes = _to_html(source, lifted)
    if ACTIVE.search(page):
        raise CompileError("The mail would hold a script, a form or an event handler, which mail clients refuse.")
    if len(page.encode("utf-8", "replace")) > bounds.PAGE_LIMIT:
        raise CompileError(f"The mail would have more than {bounds.PAGE_LIMIT // 1_000_000} MB of HTML; shorten it.")
    page, links = _mark_links(page, lifted)
    text = to_text(page, has_layout_tables=source.format == "html")
    page = _mark_pixel(page, lifted)
    return Compiled(
        subject=_pieces(lifted.lift(source.subject), lifted, _line_escape, constants),
        html=_pieces(page, lifted, partial(_html_escape, lifted), constants),
        text=_pieces(text, lifted, _plain_escape, constants),
        links=links,
        constants=dict(source.constants),
        headers=dict(headers or {}),
        date=_date_header(date or datetime.now(UTC)),
        warnings=_warnings(source, used),
        notes=sorted(notes),
        preheader=_pieces(lifted.lift(source.preheader), lifted, _line_escape, constants),
    )


def _check(source: Source) -> frozenset[str]:
    if source.format not in FORMATS:
        raise CompileError(f"A text cannot be of the kind “{source.format}”.")
    parts = {"subject": source.subject, "preheader": source.preheader, "text": source.body, "layout": source.layout}
    if not needs_layout(source.format, source.body):
        del parts["layout"]
    for where, text in parts.items():
        if sentence := bounds.too_large(text, what=f"The {where}"):
            raise CompileError(sentence)
    try:
        return frozenset().union(*(mergetags.check(text, where=where) for where, text in parts.items()))
    except MergeTagError as error:
        raise CompileError(str(error)) from error


def _warnings(source: Source, used: frozenset[str]) -> list[str]:
    known = SUBSCRIBER_TAGS | _SYSTEM_TAGS | source.fields | set(source.constants) | {"subject", "preheader"}
    known |= {f"fields.{name}" for name in source.fields}
    return [f"No subscriber has a field named “{name}”; it will be empty." for name in sorted(used - known)]


def _to_html(source: Source, lifted: Lifted) -> tuple[str, set[str]]:
    """HTML with words where merge tags stand, and what the editor should know. Raises CompileError."""
    preheader = html.escape(lifted.lift(source.preheader), quote=True)

    def placing(tag: str) -> str:
        name = mergetags.simple_name(tag)
        if name == "preheader":
            return preheader
        # Constants are put in before MJML is compiled: some stand where only plain text may (mj-title, lang).
        if name in source.constants:
            return html.escape(source.constants[name], quote=True)
        return lifted.put(tag)

    if source.format == "html":
        return _raw_page(source.body, lifted, placing, preheader=preheader)
    if source.format == "mjml" and mjml.is_document(source.body):
        language = source.constants.get("language", "")
        document, notes = mjml.document(source.body, lifted, placing, preheader=preheader, language=language)
        what = "The text"
    else:
        is_markdown = source.format == "markdown"
        document, notes = mjml.in_layout(source.body, source.layout, lifted, placing, is_markdown=is_markdown)
        what = "The layout" if is_markdown else "The text in its layout"
    page = mjml.to_html(document, lifted, what=what)
    return styled(page, lifted, own=mjml.OWN_STYLE), notes


def _raw_page(body: str, lifted: Lifted, placing: mjml.Placing, *, preheader: str) -> tuple[str, set[str]]:
    """An HTML page that an editor wrote, as it is but for its style sheets."""
    has_preheader = any(mergetags.simple_name(body[start:end]) == "preheader" for start, end in mergetags.spans(body))
    page = mergetags.substitute(body, placing)
    notes = vet(page, what="The text", word=lifted.pattern, is_mjml=False).notes
    page = styled(page, lifted)
    if not page[:9].lower().startswith("<!doctype"):
        page = f"<!DOCTYPE html>{page}"
    if preheader and not has_preheader:
        hidden = f'<div style="{HIDDEN}">{preheader}</div>'
        page = re.sub(r"<body\b[^>]*>", lambda found: found.group() + hidden, page, count=1)
    return page, notes


# Links, pixel, text ------------------------------------------------------------------------------------------


def _mark_links(page: str, lifted: Lifted) -> tuple[str, list[str]]:
    """Tracked links become slots by index; a link whose address holds a merge tag stays as it is."""
    links: list[str] = []

    def mark(found: re.Match[str]) -> str:
        target = html.unescape(found.group(2)).strip()
        if lifted.pattern.search(target) or not target.lower().startswith(("http://", "https://")):
            return found.group()
        if target not in links:
            links.append(target)
        return found.group(1) + lifted.put(f"[link {links.index(target)}]") + found.group(3)

    return _LINK.sub(mark, page), links


def _mark_pixel(page: str, lifted: Lifted) -> str:
    place = page.rfind("</body>")
    word = lifted.put("[pixel]")
    return page[:place] + word + page[place:] if place >= 0 else page + word


# Pieces ------------------------------------------------------------------------------------------------------


def _line_escape(_text: str, _start: int, _end: int) -> str:
    return "_line"


def _plain_escape(text: str, start: int, end: int) -> str:
    if text[start - 1 : start] == "<" and text[end : end + 1] == ">":
        return "_plainurl"  # an address as to_text writes it
    return "_urlpart" if _URL_BEFORE.search(text, max(0, start - 2_000), start) else "_plain"


def _html_escape(lifted: Lifted, page: str, start: int, _end: int) -> str:
    """The escape for a tag at this place: inside an href or src it becomes part of a URL, elsewhere text.

    In the normal form every value is in double quotes, and no value holds one.
    """
    opened = page.rfind('="', max(0, start - _FURTHEST), start)
    if opened < 0 or '"' in page[opened + 2 : start]:
        return "_html"
    attribute = _ATTRIBUTE.search(page[max(0, opened - 40) : opened])
    if not attribute or attribute.group(1).lower() not in _ADDRESSES:
        return "_html"
    return "_urlpart" if _has_begun(page[opened + 2 : start], lifted) else "_url"


def _has_begun(address: str, lifted: Lifted) -> bool:
    """Whether an address has begun before a tag in it; each branch of a condition begins where the condition does."""
    has_begun = False
    conditions: list[tuple[bool, bool]] = []  # whether it had begun before each that is open, or had in a branch of it
    place = 0
    for found in lifted.pattern.finditer(address):
        has_begun |= bool(address[place : found.start()].strip())
        place = found.end()
        name = mergetags.name_of_block(lifted.tags[int(found.group(1))])
        if name in bounds.BLOCK_STARTS:
            conditions.append((has_begun, has_begun))
        elif name in bounds.BLOCK_ENDS and conditions:
            has_begun |= conditions.pop()[1]
        elif name in _BRANCHES and conditions:
            before, in_a_branch = conditions[-1]
            conditions[-1] = (before, in_a_branch or has_begun)
            has_begun = before
        elif not name:
            has_begun = True
    return has_begun or bool(address[place:].strip())


def _pieces(text: str, lifted: Lifted, escape: Any, constants: Mapping[str, str]) -> list[Piece]:
    """Literals and slots. A block (`{% if %}` … `{% endif %}`) is one slot with all that stands in it."""
    pieces: list[Piece] = []
    block: list[str] = []
    tags: list[str] = []  # those of the block
    depth = 0
    place = 0
    for found in lifted.pattern.finditer(text):
        literal = text[place : found.start()]
        place = found.end()
        tag = lifted.tags[int(found.group(1))]
        name = mergetags.name_of_block(tag)
        if depth:
            block.append(literal)
        elif literal:
            pieces.append(literal)
        if name in bounds.BLOCK_STARTS:
            depth += 1
        if depth:
            block.append(_as_liquid(tag, escape(text, *found.span())))
            tags.append(block[-1])
            if name in bounds.BLOCK_ENDS:
                depth -= 1
                if not depth:
                    pieces.append(_checked(["liquid", _whole_block(block, tags)]))
                    block, tags = [], []
        elif not name:
            pieces.append(_checked(_slot(tag, escape(text, *found.span()), constants)))
        elif name != "#":
            raise CompileError(f"{{% {name} %}} stands before the tag that it belongs to; put both at one level.")
    if depth:
        raise CompileError(_UNBALANCED)
    pieces.append(text[place:])
    return _joined(pieces)


_UNBALANCED = "A condition or a loop begins in one element and ends in another; put both its ends at one level."


def _whole_block(parts: list[str], tags: list[str]) -> str:
    """A block as one text, in which nothing but its tags is Liquid: a text may have become braces (&#123;) since."""
    block = "".join(parts)
    if [block[start:end] for start, end in mergetags.spans(block)] != tags:
        raise CompileError("A text within a condition or a loop holds {{ or {% that is no merge tag; leave it out.")
    return block


def _checked(piece: Piece) -> Piece:
    """The piece, if it still is what Liquid can read: HTML may have moved one end of a block."""
    if isinstance(piece, list) and piece[0] == "liquid" and not _is_readable(piece[1]):
        raise CompileError(_UNBALANCED)
    return piece


@lru_cache(maxsize=1024)
def _is_readable(source: str) -> bool:
    try:
        mergetags.compiled_environment().from_string(source)
    except LiquidError:
        return False
    return True


def _slot(tag: str, escape: str, constants: Mapping[str, str]) -> Piece:
    if tag == "[pixel]":
        return ["pixel"]
    if tag.startswith("[link "):
        return ["link", int(tag[6:-1]), "text"] if escape == "_plainurl" else ["link", int(tag[6:-1])]
    name = mergetags.simple_name(tag)
    if name in CONTROL_TAGS:
        return ["control", CONTROL_TAGS[name]]
    if name in constants and not mergetags.has_tag(constants[name]):
        return mergetags.ESCAPES[escape](constants[name])
    return ["liquid", _as_liquid(tag, escape)]


def _as_liquid(tag: str, escape: str) -> str:
    """A tag as it stands in a compiled slot: what it prints is escaped for its place."""
    if tag == "[pixel]":
        return "{{ _pixel }}"
    if tag.startswith("[link "):
        links = "_text_links" if escape == "_plainurl" else "_links"
        return f"{{{{ {links}[{tag[6:-1]}] }}}}"
    if tag.startswith("{%"):
        return tag
    if mergetags.simple_name(tag) in CONTROL_TAGS:
        return tag
    body = tag[2:-2].strip("-").strip()
    return f"{{{{ {body} | {escape} }}}}"


def _joined(pieces: list[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece != "":
            joined.append(piece)
    return joined


def _date_header(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
