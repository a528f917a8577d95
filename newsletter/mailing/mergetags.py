"""Merge tags: a small, safe part of Liquid, and how tags are lifted out of a source and put back.

Editors are not programmers with a shell (promise 7): no tag reaches anything but the values that it is given, and what
a tag may compute is bounded. Lifting comes before every Markdown, MJML, CSS and text step, because those mangle tags
(CSS inlining moves a loop out of a table, Markdown breaks quotes); a lifted tag is one opaque word.
"""

import html
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote, urlsplit

from liquid import Environment
from liquid.ast import Node
from liquid.builtin.expressions.primitive import IntegerLiteral, RangeLiteral
from liquid.exceptions import LiquidError
from liquid.expression import Expression
from liquid.stringify import to_liquid_string

from newsletter.mailing.bounds import (
    ALLOWED_FILTERS,
    BLOCK_ENDS,
    BLOCK_STARTS,
    INNER_TAGS,
    RANGE_LIMIT,
    TAG_LIMIT,
    TAGS_LIMIT,
    Bounded,
)

_OPENED = re.compile(r"\{[{%]")
_TAG_NAME = re.compile(r"\{%-?\s*(\w+|#)")
_ROOT = re.compile(r"\{\{-?\s*([A-Za-z_][\w-]*)\s*-?\}\}")
_BLANKS = re.compile(r"\s{100}")


class MergeTagError(Exception):
    """A merge tag that cannot be used; the text is a sentence for the editor."""


def escape_html(value: Any) -> str:
    """A value as text inside HTML or inside a quoted attribute."""
    return html.escape(to_liquid_string(value, autoescape=False), quote=True)


def escape_url_part(value: Any) -> str:
    """A value as a part of a URL (a path segment or a query value) inside a quoted attribute."""
    return quote(to_liquid_string(value, autoescape=False), safe="")


def escape_whole_url(value: Any) -> str:
    """A value that is a whole URL; anything but http(s) and mailto becomes `#`."""
    text = to_liquid_string(value, autoescape=False).strip()
    try:
        scheme = urlsplit(text).scheme.lower()
    except ValueError:
        scheme = ""
    return html.escape(text, quote=True) if scheme in {"http", "https", "mailto"} else "#"


def plain_url(value: Any) -> str:
    """A value that is a whole URL, in plain text; anything but http(s) and mailto becomes `#`."""
    return plain(html.unescape(escape_whole_url(value)))


def plain(value: Any) -> str:
    """A value as plain text: control characters would end a line of the protocol below, so they become spaces."""
    return _CONTROL.sub(" ", to_liquid_string(value, autoescape=False).replace("\r\n", "\n"))


def one_line(value: Any) -> str:
    """A value for a header: no character that could start another one."""
    return " ".join(_CONTROL.sub(" ", to_liquid_string(value, autoescape=False)).split())


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")
# The escape that a tag gets by where it stands. Editors cannot name these: their tags are checked before.
ESCAPES: Mapping[str, Callable[[Any], str]] = {
    "_html": escape_html,
    "_urlpart": escape_url_part,
    "_url": escape_whole_url,
    "_plain": plain,
    "_plainurl": plain_url,
    "_line": one_line,
}


class _Compiled(Bounded):
    def setup_tags_and_filters(self, *, extra: bool = False) -> None:
        super().setup_tags_and_filters(extra=extra)
        self.filters.update(ESCAPES)


@cache
def editors_environment() -> Environment:
    """What an editor may write."""
    return Bounded()


@cache
def compiled_environment() -> Environment:
    """What a compiled mail is rendered with: the editor's tags, each with its escape."""
    return _Compiled()


def spans(source: str) -> Iterator[tuple[int, int]]:
    """Where merge tags stand, from left to right. Each character is looked at once, whatever is left open."""
    closers = {"{{": "}}", "{%": "%}"}
    place = 0
    while found := _OPENED.search(source, place):
        opener = found.group()
        end = source.find(closers[opener], found.end()) if closers[opener] else -1
        if end < 0:
            closers[opener] = ""  # none follows: not looked for again
            place = found.start() + 1
        else:
            place = end + 2
            yield found.start(), place


def substitute(source: str, put: Callable[[str], str]) -> str:
    """The source with each tag replaced by what `put` makes of it."""
    parts: list[str] = []
    place = 0
    for start, end in spans(source):
        parts += (source[place:start], put(source[start:end]))
        place = end
    return "".join((*parts, source[place:]))


def has_tag(text: str) -> bool:
    return next(spans(text), None) is not None


def check(source: str, *, where: str) -> frozenset[str]:
    """The names that the tags of a source use. Raises MergeTagError with a sentence that names the place."""
    skeleton = _skeleton(source, where=where)
    try:
        template = editors_environment().from_string(skeleton)
        for name in template.filter_names():
            if name not in ALLOWED_FILTERS:
                raise MergeTagError(f"The merge tags of the {where} use a filter that does not exist: {name}.")
        for expression in _expressions(template.nodes):
            _check_range(expression, where=where)
        return frozenset(name for path in template.global_variable_paths() for name in _names(str(path)))
    except LiquidError as error:
        line = skeleton.count("\n", 0, error.token.start_index) + 1 if error.token else 1
        reason = str(error).splitlines()[0]
        raise MergeTagError(f"A merge tag in the {where} (line {line}) cannot be read: {reason}.") from error


def _skeleton(source: str, *, where: str) -> str:
    """The tags alone, on the lines that they stand on, once what Liquid's parser would choke on is refused."""
    kept: list[str] = []
    seen: set[str] = set()  # an output is as good or bad the second time
    place = line = 0
    for number, (start, end) in enumerate(spans(source), start=1):
        tag, literal = source[start:end], source[place:start]
        line += literal.count("\n")
        _check_tag(tag, where=f"{where} (line {line + 1})")
        if number > TAGS_LIMIT:
            raise MergeTagError(f"The {where} holds more than {TAGS_LIMIT:,} merge tags.")
        kept += (_bare(literal, where=where), "x" + "\n" * tag.count("\n") if tag in seen else tag)
        if tag.startswith("{{"):
            seen.add(tag)
        line += tag.count("\n")
        place = end
    return "".join((*kept, _bare(source[place:], where=where)))


def _bare(literal: str, *, where: str) -> str:
    """A text between tags, as short as its lines allow."""
    for opened, closed in (("{{", "}}"), ("{%", "%}")):
        if opened in literal:
            raise MergeTagError(f"A merge tag in the {where} is opened with {opened} but never closed with {closed}.")
    return ("x" if literal.strip() else "") + "\n" * literal.count("\n")


def _check_tag(tag: str, *, where: str) -> None:
    if len(tag) > TAG_LIMIT:
        raise MergeTagError(f"A merge tag in the {where} is longer than {TAG_LIMIT:,} characters.")
    if _BLANKS.search(tag):
        raise MergeTagError(f"A merge tag in the {where} holds a hundred blanks in a row.")
    if tag.startswith("{%"):
        name = name_of_block(tag)
        if name not in BLOCK_STARTS | BLOCK_ENDS | INNER_TAGS:
            raise MergeTagError(f"A merge tag in the {where} cannot be read: there is no {{% {name or '…'} %}}.")


def _names(path: str) -> list[str]:
    """`city` for `city.size`, and both `fields` and `fields.city` for `fields.city`."""
    root, *rest = path.partition("[")[0].split(".")
    return [root, f"fields.{rest[0]}"] if root == "fields" and rest else [root]


def _expressions(nodes: Iterable[Node]) -> Iterator[Expression]:
    waiting: list[Node | Expression] = list(nodes)
    while waiting:
        item = waiting.pop()
        if isinstance(item, Node):
            waiting += item.children(None, include_partials=False)  # type: ignore[arg-type]
            waiting += item.expressions()
        else:
            yield item
            waiting += item.children()


def _check_range(expression: Expression, *, where: str) -> None:
    """Ranges only between two plain numbers, at most a thousand apart: (1..20000000) would build gigabytes."""
    if not isinstance(expression, RangeLiteral):
        return
    start, end = expression.start, expression.stop
    are_numbers = isinstance(start, IntegerLiteral) and isinstance(end, IntegerLiteral)
    if are_numbers and end.value - start.value <= RANGE_LIMIT:  # type: ignore[attr-defined]
        return
    raise MergeTagError(
        f"The range {expression} in the {where} is too long; write two numbers at most {RANGE_LIMIT} apart."
    )


def name_of_block(tag: str) -> str:
    """`if` for `{% if x %}`, empty for an output tag."""
    found = _TAG_NAME.match(tag)
    return found.group(1) if found else ""


def simple_name(tag: str) -> str:
    """`name` for `{{ name }}`, empty for anything more than one name."""
    found = _ROOT.fullmatch(tag)
    return found.group(1) if found else ""


@dataclass
class Lifted:
    """Tags by the opaque words that stand for them."""

    nonce: str = field(default_factory=lambda: secrets.token_hex(4))
    tags: list[str] = field(default_factory=list)

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(rf"qz{self.nonce}x(\d+)zq")

    def put(self, tag: str) -> str:
        """The word that stands for this tag from now on."""
        self.tags.append(tag)
        return f"qz{self.nonce}x{len(self.tags) - 1}zq"

    def lift(self, source: str) -> str:
        """The source with every tag replaced by a word."""
        return substitute(source, self.put)
