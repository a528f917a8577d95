"""Merge tags: a small, safe part of Liquid, and how tags are lifted out of a source and put back.

Editors are not programmers with a shell (promise 7): no tag reaches anything but the values that it is given, and what
a tag may compute is bounded. Lifting comes before every Markdown, MJML, CSS and text step, because those mangle tags
(CSS inlining moves a loop out of a table, Markdown breaks quotes); a lifted tag is one opaque word.
"""

import html
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote, urlsplit

from liquid import Environment
from liquid.builtin.filters.array import join
from liquid.builtin.filters.string import replace
from liquid.exceptions import FilterValueError, LiquidError
from liquid.filter import with_environment
from liquid.stringify import to_liquid_string

RANGE_LIMIT = 1_000
OUTPUT_LIMIT = 200_000  # bytes that one tag or block may print

TAG = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_RANGE = re.compile(r"\(([^()]*?)\.\.([^()]*?)\)")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_TAG_NAME = re.compile(r"\{%-?\s*(\w+|#)")
_ROOT = re.compile(r"\{\{-?\s*([A-Za-z_][\w-]*)\s*-?\}\}")

BLOCK_STARTS = frozenset({"if", "unless", "case", "for", "comment"})
BLOCK_ENDS = frozenset({f"end{name}" for name in BLOCK_STARTS})
_FILTERS = """
    abs append capitalize ceil compact concat date default divided_by downcase first floor join last lstrip map minus
    modulo plus prepend remove remove_first replace replace_first reverse round rstrip size slice sort sort_natural
    split strip strip_html strip_newlines times truncate truncatewords uniq upcase where
"""
ALLOWED_FILTERS = frozenset(_FILTERS.split())


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
    "_line": one_line,
}


def _bounded_replace(value: Any, old: Any, new: Any = "") -> Any:
    """`replace`, refused before a few of them in a row make gigabytes."""
    text, old, new = (to_liquid_string(one, autoescape=False) for one in (value, old, new))
    _check_size(len(text) + text.count(old) * len(new))
    return replace(text, old, new)


@with_environment
def _bounded_join(value: Any, separator: Any = " ", *, environment: Environment) -> Any:
    """`join`, bounded in the same way: what it joins is bounded already, its joints are not."""
    if isinstance(value, list | tuple | str | range):
        _check_size(len(value) * len(to_liquid_string(separator, autoescape=False)))
    return join(value, separator, environment=environment)


def _check_size(characters: int) -> None:
    if characters > OUTPUT_LIMIT:
        raise FilterValueError(f"it makes more than {OUTPUT_LIMIT} characters", token=None)


class _Bounded(Environment):
    loop_iteration_limit = RANGE_LIMIT
    output_stream_limit = OUTPUT_LIMIT
    local_namespace_limit = OUTPUT_LIMIT
    context_depth_limit = 10
    block_nesting_limit = 10
    suppress_blank_control_flow_blocks = False

    def setup_tags_and_filters(self, *, extra: bool = False) -> None:
        super().setup_tags_and_filters(extra=False)
        self.filters = {name: func for name, func in self.filters.items() if name in ALLOWED_FILTERS}
        self.filters.update(replace=_bounded_replace, join=_bounded_join)
        allowed = BLOCK_STARTS | {"break", "continue", "#", "content", "output", "illegal"}
        self.tags = {name: tag for name, tag in self.tags.items() if name in allowed}


class _Compiled(_Bounded):
    def setup_tags_and_filters(self, *, extra: bool = False) -> None:
        super().setup_tags_and_filters(extra=extra)
        self.filters.update(ESCAPES)


@cache
def editors_environment() -> Environment:
    """What an editor may write."""
    return _Bounded()


@cache
def compiled_environment() -> Environment:
    """What a compiled mail is rendered with: the editor's tags, each with its escape."""
    return _Compiled()


def check(source: str, *, where: str) -> frozenset[str]:
    """The names that the tags of a source use. Raises MergeTagError with a sentence that names the place."""
    for tag in TAG.finditer(source):
        _check_ranges(tag.group(), where=where)
    bare = TAG.sub("", source)
    for opened, closed in (("{{", "}}"), ("{%", "%}")):
        if opened in bare:
            raise MergeTagError(f"A merge tag in the {where} is opened with {opened} but never closed with {closed}.")
    try:
        template = editors_environment().from_string(source)
        for name in template.filter_names():
            if name not in ALLOWED_FILTERS:
                raise MergeTagError(f"The merge tags of the {where} use a filter that does not exist: {name}.")
        return frozenset(str(path).split(".")[0].split("[")[0] for path in template.global_variable_paths())
    except LiquidError as error:
        line = source.count("\n", 0, error.token.start_index) + 1 if error.token else 1
        reason = str(error).splitlines()[0]
        raise MergeTagError(f"A merge tag in the {where} (line {line}) cannot be read: {reason}.") from error


def _check_ranges(tag: str, *, where: str) -> None:
    """Ranges only between two plain numbers, at most a thousand apart: (1..20000000) would build gigabytes."""
    for start, end in _RANGE.findall(_QUOTED.sub("''", tag)):
        if not (start.strip().isdigit() and end.strip().isdigit()) or int(end) - int(start) > RANGE_LIMIT:
            raise MergeTagError(
                f"The range ({start}..{end}) in the {where} is too long; write two numbers at most {RANGE_LIMIT} apart."
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
        return TAG.sub(lambda found: self.put(found.group()), source)
