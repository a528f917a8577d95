"""What an MJML or HTML source may hold, checked tag by tag, so that a refusal can name the tag and its line.

mrml lets unknown tags and scripts pass in silence, and writes attribute values into CSS as they are. So MJML's tags and
places are an allow-list, and values are held to what an attribute may hold. A source is checked with its merge tags
lifted out.
"""

import re
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


REFUSED_TAGS = _words(
    "script iframe frame frameset object embed applet form input textarea select base svg math portal"
)
_VOID = _words("area br col embed hr img input link meta param source track wbr")
_SECTIONS = frozenset({"mj-section", "mj-wrapper", "mj-hero"})
_BLOCKS = _words(
    "mj-text mj-button mj-image mj-divider mj-spacer mj-table mj-social mj-navbar mj-accordion mj-carousel"
)
_IN_HEAD = _words("mj-attributes mj-breakpoint mj-font mj-preview mj-style mj-title")
_ANYWHERE = frozenset({"mj-raw"})
# Where a tag may stand; whatever stands in <mj-attributes> is a default and not checked.
_PARENTS: dict[str, frozenset[str]] = {
    "mjml": frozenset({""}),
    **{tag: frozenset({"mjml"}) for tag in ("mj-head", "mj-body")},
    **{tag: frozenset({"mj-head"}) for tag in _IN_HEAD},
    **{tag: frozenset({"mj-attributes"}) for tag in ("mj-all", "mj-class")},
    **{tag: frozenset({"", "mj-body", "mj-wrapper"}) for tag in _SECTIONS},
    "mj-group": frozenset({"mj-section"}),
    "mj-column": frozenset({"mj-section", "mj-group"}),
    **{tag: frozenset({"", "mj-column", "mj-hero"}) for tag in _BLOCKS},
    "mj-social-element": frozenset({"mj-social"}),
    "mj-navbar-link": frozenset({"mj-navbar"}),
    "mj-accordion-element": frozenset({"mj-accordion"}),
    "mj-accordion-title": frozenset({"mj-accordion-element"}),
    "mj-accordion-text": frozenset({"mj-accordion-element"}),
    "mj-carousel-image": frozenset({"mj-carousel"}),
}
_HOLDS_TEXT = _words(
    "mj-text mj-button mj-table mj-raw mj-preview mj-style mj-title mj-navbar-link mj-social-element "
    "mj-accordion-title mj-accordion-text"
)
_ADDRESSES = _words("href src action background background-url poster cite data formaction thumbnails-src")
_SCHEMES = frozenset({"http", "https", "mailto", "tel", "sms", "cid"})
_ACTIVE_SCHEMES = frozenset({"javascript", "vbscript", "data", "file"})
_FREE_TEXT = frozenset({"alt", "title", "name", "content", "class", "css-class", "mj-class", "rel", "path", "owa"})
_SCHEME = re.compile(r"([a-z][a-z0-9+.\-]*):", re.IGNORECASE)
_IN_CSS = re.compile(r"[;{}<>\\\"]|/\*|url\s*\(|expression\s*\(", re.IGNORECASE)
_IN_CSS_ADDRESS = re.compile(r"[;{}<>\\\"'()]")
_ACTIVE_CSS = re.compile(r"expression\s*\(|javascript\s*:|-moz-binding|behavior\s*:", re.IGNORECASE)
_REMOTE_CSS = re.compile(r"@import\b|@font-face\b", re.IGNORECASE)
# Whose pictures MJML fetches from its makers' servers unless told otherwise, and by which attribute it is told.
_ICONS = {"mj-social-element": "src", "mj-accordion": "icon-wrapped-url", "mj-carousel": "left-icon"}
REMOTE_NOTE = "Web fonts and style sheets from elsewhere are left out; a mail must not load them."
# The same for what came out at the end, whatever a parser made of the source.
ACTIVE = re.compile(
    r"<(?:script|iframe|frame|frameset|object|embed|applet|form|base|svg|math|portal)[\s/>]|<[a-z][^<>]*\son[a-z]+\s*=\"",
    re.IGNORECASE,
)


class CompileError(Exception):
    """A source that cannot become a mail; the text is a sentence for the editor."""


@dataclass(frozen=True)
class Element:
    """A tag that is open: its name, where it begins, and where what it holds begins (offsets in the source)."""

    tag: str
    start: int
    inside: int
    line: int


@dataclass
class Vetted:
    """What was seen: the elements that stand at the top, and what an editor should know."""

    top: list[Element] = field(default_factory=list)
    first: dict[str, Element] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)
    # What encloses the place that was looked for, from outside in, and where the enclosing section ends.
    around: list[Element] = field(default_factory=list)
    place: int = -1
    section_end: int = -1


def vet(source: str, *, what: str, word: re.Pattern[str], is_mjml: bool, place: str = "") -> Vetted:
    """Check a source, which sentences call `what`; `place` is a word whose surroundings are wanted.

    Raises CompileError.
    """
    parser = _Vetter(source, what=what, word=word, is_mjml=is_mjml, place=place)
    parser.feed(source)
    parser.close()
    parser.end()
    return parser.vetted


def _is_structure(tag: str) -> bool:
    """Whether only other MJML may stand in this tag ("" is outside of all)."""
    return not tag or (tag in _PARENTS and tag not in _HOLDS_TEXT)


class _Vetter(HTMLParser):
    def __init__(self, source: str, *, what: str, word: re.Pattern[str], is_mjml: bool, place: str) -> None:
        super().__init__(convert_charrefs=False)
        self.vetted = Vetted()
        self._source, self._what, self._word, self._is_mjml, self._place = source, what, word, is_mjml, place
        self._open: list[Element] = []
        self._lines = [0, *(found.end() for found in re.finditer("\n", source))]

    # What HTMLParser calls ------------------------------------------------------------------------------------

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = self._element(tag, attrs)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._element(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self._is_mjml or tag in _VOID:
            while not self._is_mjml and self._open and self._open[-1].tag != tag and self._knows(tag):
                self._open.pop()
            if self._open and self._open[-1].tag == tag:
                self._open.pop()
            return
        if not self._open:
            raise self._error(f"</{tag}> closes nothing")
        if self._open[-1].tag != tag:
            raise self._error(f"</{tag}> closes <{self._open[-1].tag}> of line {self._open[-1].line}")
        closed = self._open.pop()
        around = self.vetted.around
        if self.vetted.section_end < 0 and any(closed == element for element in around) and tag == "mj-section":
            self.vetted.section_end = self._source.index(">", self._offset()) + 1

    def handle_data(self, data: str) -> None:
        parent = self._open[-1].tag if self._open else ""
        if parent in {"style", "mj-style"}:
            self._check_css(data)
        elif self._is_mjml and "<" in data:
            raise self._error("a bare “<” stands in the text, write &lt;")
        elif self._is_mjml and _is_structure(parent) and self._word.sub("", data).strip():
            where = f"directly in <{parent}>" if parent else "outside of MJML’s blocks"
            raise self._error(f"a text stands {where}, put it into <mj-text>")
        if self._place and self.vetted.place < 0 and self._place in data:
            self.vetted.place = self._source.index(self._place, self._offset())
            self.vetted.around = list(self._open)

    def handle_comment(self, data: str) -> None:
        # What Outlook alone reads is mail too.
        if data.lstrip().startswith("[if"):
            inner = re.sub(r"\A\s*\[if[^\]]*\]>|<!\[endif\]\Z", "", data)
            for tag in re.findall(r"<\s*([a-z][\w:-]*)", inner, re.IGNORECASE):
                self._check_tag(tag.lower())

    def unknown_decl(self, data: str) -> None:
        if self._is_mjml:
            raise self._error("a section of the kind <![…]> cannot be used")

    def end(self) -> None:
        """Raise CompileError if something was left open."""
        if self._is_mjml and self._open:
            left = self._open[-1]
            raise CompileError(f"{self._what} is not valid MJML: <{left.tag}> (line {left.line}) is never closed.")

    # The rules ------------------------------------------------------------------------------------------------

    def _element(self, tag: str, attrs: list[tuple[str, str | None]]) -> Element:
        self._check_tag(tag)
        if self._is_mjml:
            self._check_place(tag)
        for name, value in attrs:
            self._check_attribute(tag, name, value or "")
        start = self._offset()
        inside = start + len(self.get_starttag_text() or "")
        element = Element(tag, start, inside, self.getpos()[0])
        if not self._open:
            self.vetted.top.append(element)
        self.vetted.first.setdefault(tag, element)
        values = dict(attrs)
        if tag == "mj-font" or (tag == "link" and "stylesheet" in (values.get("rel") or "").lower()):
            self.vetted.notes.add(REMOTE_NOTE)
        icon = _ICONS.get(tag)
        if icon and not values.get(icon):
            self.vetted.notes.add(
                f"The icons of <{tag}> come from another company’s server; give them a “{icon}” of your own."
            )
        if tag == "meta" and (values.get("http-equiv") or "").lower() == "refresh":
            raise self._refused("<meta http-equiv=refresh>")
        return element

    def _check_tag(self, tag: str) -> None:
        if tag in REFUSED_TAGS:
            raise self._refused(f"<{tag}>")
        if tag == "mj-include":
            raise self._error("<mj-include> cannot load other files here")
        if tag.startswith("mj") and self._is_mjml and tag not in _PARENTS and tag not in _ANYWHERE:
            raise self._error(f"there is no <{tag}> in MJML")
        if tag.startswith("mj-") and not self._is_mjml:
            raise self._error(f"<{tag}> is MJML, not HTML")

    def _check_place(self, tag: str) -> None:
        parent = self._open[-1].tag if self._open else ""
        if parent == "mj-attributes" or tag in _ANYWHERE or parent in _ANYWHERE:
            return
        if tag in _PARENTS:
            if parent not in _PARENTS[tag]:
                where = f"stand in <{parent}>" if parent else "stand by itself"
                belongs = ", ".join(f"<{name}>" for name in sorted(_PARENTS[tag]) if name)
                raise self._error(f"<{tag}> cannot {where}, it belongs into {belongs or 'nothing'}")
        elif _is_structure(parent):
            where = f"directly in <{parent}>" if parent else "outside of MJML’s blocks"
            raise self._error(f"<{tag}> stands {where}, put it into <mj-text>")

    def _check_attribute(self, tag: str, name: str, value: str) -> None:
        if self._word.search(name):
            raise self._error(f"a merge tag stands between the attributes of <{tag}>, put it into a value")
        if name.startswith("on"):
            raise self._refused(f"the event handler “{name}”")
        plain = re.sub(r"[\x00-\x20]+", "", unescape(value))
        if name in _ADDRESSES:
            self._check_address(plain)
        if name == "style" and _ACTIVE_CSS.search(plain):
            raise self._refused("CSS that runs code")
        if self._is_mjml and tag.startswith("mj-") and name not in _FREE_TEXT:
            forbidden = _IN_CSS_ADDRESS if name == "background-url" else None if name in _ADDRESSES else _IN_CSS
            found = forbidden.search(value) if forbidden else None
            if found:
                raise self._error(f"the value of “{name}” in <{tag}> holds “{found.group()}”, which it may not")

    def _check_address(self, address: str) -> None:
        """Its kind; a merge tag in it may end a branch of a condition, and another address follow."""
        parts = self._word.sub("\0", address).split("\0")
        found = [(_SCHEME.match("".join(parts)), _SCHEMES.__contains__)]
        found += [(_SCHEME.match(part), lambda kind: kind not in _ACTIVE_SCHEMES) for part in parts[1:]]
        for scheme, is_allowed in found:
            if scheme and not is_allowed(scheme.group(1).lower()):
                raise self._refused(f"an address of the kind “{scheme.group(1).lower()}:”")

    def _check_css(self, css: str) -> None:
        if self._word.search(css):
            raise self._error("a merge tag stands in a style sheet, put it into the text")
        if _ACTIVE_CSS.search(css):
            raise self._refused("CSS that runs code")
        if _REMOTE_CSS.search(css):
            self.vetted.notes.add(REMOTE_NOTE)

    def _knows(self, tag: str) -> bool:
        return any(element.tag == tag for element in self._open)

    def _offset(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def _error(self, reason: str) -> CompileError:
        line = self.getpos()[0]
        kind = "MJML" if self._is_mjml else "HTML"
        return CompileError(f"{self._what} is not valid {kind} (line {line}): {reason}.")

    def _refused(self, thing: str) -> CompileError:
        return CompileError(f"{self._what} holds {thing} (line {self.getpos()[0]}), which mail clients refuse.")
