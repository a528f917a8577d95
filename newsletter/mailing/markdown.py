"""Markdown as MJML blocks."""

import html
import re
from collections.abc import Iterator
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from newsletter.mailing.mergetags import Lifted

_BLOCK_PARAGRAPH = re.compile(r"<p>(\s*(?:qz[0-9a-f]{8}x\d+zq\s*)+)</p>")


def unwrap_blocks(page: str, lifted: Lifted) -> str:
    """`{% if x %}` alone on its line became a paragraph of its own; take the paragraph away."""

    def unwrap(found: re.Match[str]) -> str:
        words = lifted.pattern.findall(found.group(1))
        return found.group(1) if all(lifted.tags[int(word)].startswith("{%") for word in words) else found.group()

    return _BLOCK_PARAGRAPH.sub(unwrap, page)


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
                rendered = unwrap_blocks(rendered, lifted)
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
