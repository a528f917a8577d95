"""What a merge tag may cost. Each limit holds for an editor's preview and for every recipient alike.

python-liquid's own limits leave holes: its loop limit is per nest, not in total, and a filter may multiply. So one
account of steps (`Work`) is kept for a recipient's whole mail: filters pay by the size of what they are given, loops
by their length and by what stands in them. A step is about a microsecond at worst.
"""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TextIO

from liquid import BoundTemplate, Environment, RenderContext
from liquid.ast import Node
from liquid.builtin.filters.array import concat, join, uniq
from liquid.builtin.filters.string import replace
from liquid.builtin.tags.for_tag import ForNode, ForTag
from liquid.exceptions import FilterValueError, ResourceLimitError
from liquid.filter import with_environment
from liquid.stringify import to_liquid_string

RANGE_LIMIT = 1_000
OUTPUT_LIMIT = 200_000  # bytes that one tag or block may print
VALUE_LIMIT = 10_000  # bytes of one attribute of a subscriber
WORK_LIMIT = 500_000  # steps that one recipient's merge tags may take together
TAG_LIMIT = 1_000  # characters of one merge tag
TAGS_LIMIT = 1_000  # merge tags of one source
SOURCE_LIMIT = 1_000_000  # bytes of a text or a layout
PAGE_LIMIT = 2_000_000  # bytes of the HTML that they may become; Gmail shows 102 KB of it
MESSAGE_LIMIT = 10_000_000  # bytes of one message; many servers take no more
NODE_STEPS = 10

BLOCK_STARTS = frozenset({"if", "unless", "case", "for", "comment"})
BLOCK_ENDS = frozenset({f"end{name}" for name in BLOCK_STARTS})
INNER_TAGS = frozenset({"else", "elsif", "when", "break", "continue", "#"})
_FILTERS = """
    abs append capitalize ceil compact concat date default divided_by downcase first floor join last lstrip map minus
    modulo plus prepend remove remove_first replace replace_first reverse round rstrip size slice sort sort_natural
    split strip strip_html strip_newlines times truncate truncatewords uniq upcase where
"""
ALLOWED_FILTERS = frozenset(_FILTERS.split())


# Values ------------------------------------------------------------------------------------------------------


def is_too_long(value: str) -> bool:
    """Whether an attribute's text is past what a subscriber may hold."""
    return len(value) > VALUE_LIMIT // 4 and len(value.encode("utf-8", "replace")) > VALUE_LIMIT


def too_large(source: str, *, what: str) -> str:
    """A sentence where a text or a layout is past what can become a mail, else empty."""
    size = len(source.encode("utf-8", "replace"))
    if size <= SOURCE_LIMIT:
        return ""
    return f"{what} has {size / 1_000_000:.1f} MB; more than {SOURCE_LIMIT // 1_000_000} MB cannot become a mail."


def bounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """A subscriber's attributes as merge tags may see them: longer texts are cut, longer lists are left out."""
    return {name: _bounded(value) for name, value in values.items()}


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace")[:VALUE_LIMIT].decode("utf-8", "ignore") if is_too_long(value) else value
    if isinstance(value, (list, dict)) and is_too_long(json.dumps(value, ensure_ascii=False)):
        return ""
    return value


def read_values(stored: str) -> dict[str, Any]:
    """Attributes as the database stores them (a JSON object), bounded; costs next to nothing for everyday ones."""
    if stored == "{}":
        return {}
    values = json.loads(stored)
    if not isinstance(values, dict):
        return {}
    return bounded(values) if len(stored) > VALUE_LIMIT // 4 else values


# Work --------------------------------------------------------------------------------------------------------


class Work:
    """Steps left for one recipient."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = WORK_LIMIT

    def spend(self, steps: int) -> None:
        """Raise ResourceLimitError when there are not so many left."""
        self.left -= steps
        if self.left < 0:
            raise ResourceLimitError("the merge tags of this mail have too much to do", token=None)


_SIZES_A_STEP = 4  # characters or items that a filter handles in one step


class Values(dict[str, Any]):
    """The values of one recipient, and the steps that their mail may still take."""

    @cached_property
    def work(self) -> Work:
        """Made for the first tag that costs anything; most mails have none."""
        return Work()


class _Context(RenderContext):
    """A render that pays for its filters and loops."""

    __slots__ = ("round_steps", "work")

    def __init__(self, template: BoundTemplate, *, globals: Mapping[str, object] | None = None, **more: Any) -> None:
        super().__init__(template, globals=globals, **more)
        self.work = globals.work if isinstance(globals, Values) else Work()
        self.round_steps = NODE_STEPS

    def filter(self, name: str, token: Any) -> Callable[..., object]:
        function, work = super().filter(name, token), self.work

        def paid(value: Any, *arguments: Any, **named: Any) -> object:
            size = len(value) if isinstance(value, (str, list, tuple, dict, range)) else 0
            work.spend(1 + size // _SIZES_A_STEP)
            return function(value, *arguments, **named)

        return paid

    def loop(self, namespace: Mapping[str, object], forloop: Any) -> Any:
        self.work.spend(forloop.length * self.round_steps)
        return super().loop(namespace, forloop)


class _ForNode(ForNode):
    """A loop that pays for all its rounds before the first."""

    __slots__ = ()

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        context.round_steps = NODE_STEPS * (1 + _nodes(self.block))  # type: ignore[attr-defined]
        return super().render_to_output(context, buffer)


class _ForTag(ForTag):
    node_class = _ForNode


def _nodes(node: Node) -> int:
    """How many nodes stand below this one; those of loops within pay for themselves."""
    children = list(node.children(None, include_partials=False))  # type: ignore[arg-type]
    return len(children) + sum(_nodes(child) for child in children if not isinstance(child, ForNode))


class _Template(BoundTemplate):
    context_class = _Context


def render(template: BoundTemplate, values: Mapping[str, Any]) -> str:
    """Fill a template in on the account of these values (see Values). Raises LiquidError past a limit."""
    buffer = template._get_buffer()
    template.render_with_context(_Context(template, globals=values), buffer)
    return buffer.getvalue()


# The language ------------------------------------------------------------------------------------------------


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


def _bounded_uniq(value: Any, *key: Any) -> Any:
    """`uniq`, which compares each with all before it."""
    if isinstance(value, list) and not key and all(isinstance(item, str) for item in value):
        return list(dict.fromkeys(value))
    if isinstance(value, list | tuple | str | range):
        _check_size(len(value) ** 2)
    return uniq(value, *key)


def _forgiving_concat(value: Any, other: Any) -> Any:
    """`concat`, where a field that nobody has is an empty list."""
    return concat(value, other if isinstance(other, list | tuple | range) else [])


def _check_size(characters: int) -> None:
    if characters > OUTPUT_LIMIT:
        raise FilterValueError(f"it makes more than {OUTPUT_LIMIT} characters", token=None)


class Bounded(Environment):
    """The part of Liquid that editors may write."""

    template_class = _Template
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
        self.filters.update(uniq=_bounded_uniq, concat=_forgiving_concat)
        self.add_tag(_ForTag)
        allowed = BLOCK_STARTS | {"break", "continue", "#", "content", "output", "illegal"}
        self.tags = {name: tag for name, tag in self.tags.items() if name in allowed}
