"""Source to segments and slots, once a campaign: what every recipient shares is worked out here and never again.

Order: lift merge tags → Markdown to MJML blocks → layout → MJML to HTML → links and pixel → text part from the HTML →
put the tags back with the escape that their place asks for → pieces. A piece is a literal string or a slot:

    ["link", 3]        a tracked link; its target stands in `links`
    ["pixel"]          the open pixel, or nothing where the person is not tracked
    ["control", "u"]   the person's unsubscribe ("u"), preferences ("p") or web version ("w") address
    ["liquid", src]    a merge tag or a whole `{% if %}…{% endif %}` block, rendered for each recipient
"""

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import mrml
from inscriptis import get_text
from markdown_it import MarkdownIt
from markdown_it.token import Token

from newsletter.mailing import bounds, mergetags
from newsletter.mailing.mergetags import Lifted, MergeTagError

Piece = str | list[Any]

CONTROL_TAGS = {"unsubscribe_url": "u", "preferences_url": "p", "web_url": "w"}
# What the layout and the text may name beside the subscriber's own attributes.
SUBSCRIBER_TAGS = frozenset({"name", "first_name", "email", "language", "fields"})
_SYSTEM_TAGS = frozenset({"content", *CONTROL_TAGS})

_UNSAFE = re.compile(
    r"<\s*/?\s*(script|iframe|object|embed|form|base|link|svg|mj-html-script)\b|\son\w+\s*=|(?:javascript|vbscript|data)\s*:",
    re.IGNORECASE,
)
_ANCHOR_HREF = re.compile(r"(<a\s[^>]*?href=\")([^\"]*)(\")", re.IGNORECASE)
_ANCHOR = re.compile(r"<a\s[^>]*?href=\"([^\"]*)\"[^>]*>(.*?)</a>", re.IGNORECASE | re.DOTALL)
_BLOCK_PARAGRAPH = re.compile(r"<p>((?:\s*qz[0-9a-f]{8}x\d+zq\s*)+)</p>")
_TABLE_TAGS = re.compile(r"<(/?)(?:table|tbody|tr|td|th)\b[^>]*>", re.IGNORECASE)
_DATA_TABLE = re.compile(r"<table\b(?![^>]*role=\"presentation\")[^>]*>.*?</table>", re.IGNORECASE | re.DOTALL)
_CELL_BREAK = re.compile(r"</t[dh]>\s*<t[dh]\b[^>]*>", re.IGNORECASE)
_URL_BEFORE = re.compile(r"https?://[^\s<>]*\Z")
_NOT_TEXT = re.compile(
    r"<!--.*?-->|<head\b.*?</head>|<div style=\"display:none;.*?</div>|<style\b.*?</style>", re.IGNORECASE | re.DOTALL
)


class CompileError(Exception):
    """A source that cannot become a mail; the text is a sentence for the editor."""


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
    warnings: list[str] = field(default_factory=list)

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


def compile_source(
    source: Source, *, headers: Mapping[str, str] | None = None, date: datetime | None = None
) -> Compiled:
    """Compile a campaign. Raises CompileError with a sentence; what is odd but sendable lands in `warnings`."""
    used = _check(source)
    lifted = Lifted()
    constants = {**source.constants, "subject": source.subject}
    page = _to_html(source, lifted, constants)
    page, links = _mark_links(page, lifted)
    text = to_text(page)
    page = _mark_pixel(page, lifted)
    return Compiled(
        subject=_pieces(lifted.lift(source.subject), lifted, _line_escape, constants),
        html=_pieces(page, lifted, _html_escape, constants),
        text=_pieces(text, lifted, _plain_escape, constants),
        links=links,
        constants=dict(source.constants),
        headers=dict(headers or {}),
        date=_date_header(date or datetime.now(UTC)),
        warnings=_warnings(source, used),
    )


def _check(source: Source) -> frozenset[str]:
    if _UNSAFE.search(source.layout):
        raise CompileError("The layout holds a script, a form or an event handler; mail clients refuse such mail.")
    parts = {"subject": source.subject, "preheader": source.preheader, "text": source.body, "layout": source.layout}
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


def _to_html(source: Source, lifted: Lifted, constants: Mapping[str, str]) -> str:
    blocks = markdown_to_mjml(lifted.lift(source.body), lifted)
    lifted_preheader = html.escape(lifted.lift(source.preheader), quote=True)

    def place(tag: str) -> str:
        name = mergetags.simple_name(tag)
        if name == "content":
            return blocks
        if name == "preheader":
            return lifted_preheader
        # Constants are put in before the layout is compiled: some stand where only plain text may (mj-title, lang).
        if name in source.constants:
            return html.escape(source.constants[name], quote=True)
        return lifted.put(tag)

    mjml = mergetags.substitute(source.layout, place)
    try:
        output = mrml.to_html(
            mjml,
            parser_options=mrml.ParserOptions(include_loader=mrml.noop_loader()),
            render_options=mrml.RenderOptions(fonts={}),
        )
    except OSError as error:
        raise CompileError(f"The layout is not valid MJML: {_first_line(error)}.") from error
    return _unwrap_blocks(output.content, lifted)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["it cannot be parsed"]
    return lines[0].rstrip(".")


def _unwrap_blocks(page: str, lifted: Lifted) -> str:
    """`{% if x %}` alone on its line became a paragraph of its own; take the paragraph away."""

    def unwrap(found: re.Match[str]) -> str:
        words = lifted.pattern.findall(found.group(1))
        return found.group(1) if all(lifted.tags[int(word)].startswith("{%") for word in words) else found.group()

    return _BLOCK_PARAGRAPH.sub(unwrap, page)


# Markdown --------------------------------------------------------------------------------------------------


@cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False, "xhtmlOut": True}).enable("table").enable("strikethrough")


def markdown_to_mjml(source: str, lifted: Lifted | None = None) -> str:
    """Markdown as MJML blocks: text, and of their own: an image, a rule, a button (`[Read on](https://… "button")`)."""
    markdown = _markdown()
    blocks: list[str] = []
    prose: list[Token] = []

    def flush() -> None:
        if prose:
            rendered = markdown.renderer.render(prose, markdown.options, {})
            if lifted:
                rendered = _unwrap_blocks(rendered, lifted)
            blocks.append(f"<mj-text>{rendered}</mj-text>")
            prose.clear()

    for group in _top_level(markdown.parse(source)):
        special = _special_block(group)
        if special:
            flush()
            blocks.append(special)
        else:
            prose.extend(group)
    flush()
    return "\n".join(blocks)


def _top_level(tokens: list[Token]) -> Iterator[list[Token]]:
    group: list[Token] = []
    for token in tokens:
        group.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield group
            group = []


def _special_block(group: list[Token]) -> str:
    """MJML for a paragraph that is one button or one image, or for a rule; empty for prose."""
    if group[0].type == "hr":
        return "<mj-divider />"
    if group[0].type != "paragraph_open" or not group[1].children:
        return ""
    children = group[1].children
    first = children[0]
    if first.type == "image" and len(children) == 1:
        alt, src = html.escape(first.content, quote=True), html.escape(str(first.attrGet("src") or ""), quote=True)
        return f'<mj-image src="{src}" alt="{alt}" />'
    is_button = first.type == "link_open" and str(first.attrGet("title") or "").lower() == "button"
    if is_button and [child.type for child in children].count("link_open") == 1 and children[-1].type == "link_close":
        label = html.escape("".join(child.content for child in children[1:-1]))
        href = html.escape(str(first.attrGet("href") or ""), quote=True)
        return f'<mj-button href="{href}">{label}</mj-button>'
    return ""


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

    return _ANCHOR_HREF.sub(mark, page), links


def _mark_pixel(page: str, lifted: Lifted) -> str:
    place = page.rfind("</body>")
    word = lifted.put("[pixel]")
    return page[:place] + word + page[place:] if place >= 0 else page + word


def to_text(page: str) -> str:
    """The text part, equal in meaning to the HTML: a link is its words and its address."""
    page = _NOT_TEXT.sub("", page)
    page = _ANCHOR.sub(_anchor_as_text, page)
    page = _DATA_TABLE.sub(lambda found: f"<p>{_CELL_BREAK.sub(' | ', found.group())}</p>", page)
    page = _TABLE_TAGS.sub(lambda found: f"<{found.group(1)}div>", page)
    lines = [line.strip() for line in get_text(f"<html><body>{page}</body></html>").splitlines()]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return text + "\n"


def _anchor_as_text(found: re.Match[str]) -> str:
    href, words = html.unescape(found.group(1)), found.group(2)
    return words if html.unescape(words).strip() == href else f"{words} &lt;{html.escape(href)}&gt;"


# Pieces ------------------------------------------------------------------------------------------------------


def _line_escape(_text: str, _start: int) -> str:
    return "_line"


def _plain_escape(text: str, start: int) -> str:
    return "_urlpart" if _URL_BEFORE.search(text, max(0, start - 2_000), start) else "_plain"


def _html_escape(page: str, start: int) -> str:
    """The escape for a tag at this place: inside an href or src it becomes part of a URL, elsewhere text."""
    opened = page.rfind("<", 0, start)
    if opened < 0 or page.rfind(">", 0, start) > opened:
        return "_html"
    attribute = re.search(r"([\w-]+)\s*=\s*\"([^\"]*)$", page[opened:start])
    if not attribute or attribute.group(1).lower() not in {"href", "src", "background", "action"}:
        return "_html"
    return "_urlpart" if attribute.group(2) else "_url"


def _pieces(text: str, lifted: Lifted, escape: Any, constants: Mapping[str, str]) -> list[Piece]:
    """Literals and slots. A block (`{% if %}` … `{% endif %}`) is one slot with all that stands in it."""
    pieces: list[Piece] = []
    block: list[str] = []
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
            block.append(_as_liquid(tag, escape(text, found.start())))
            if name in bounds.BLOCK_ENDS:
                depth -= 1
                if not depth:
                    pieces.append(["liquid", "".join(block)])
                    block = []
        elif not name:
            pieces.append(_slot(tag, escape(text, found.start()), constants))
    pieces.append(text[place:])
    return _joined(pieces)


def _slot(tag: str, escape: str, constants: Mapping[str, str]) -> Piece:
    if tag == "[pixel]":
        return ["pixel"]
    if tag.startswith("[link "):
        return ["link", int(tag[6:-1])]
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
        return f"{{{{ _links[{tag[6:-1]}] }}}}"
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
