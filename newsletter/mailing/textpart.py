"""The text part of a mail from its HTML, equal in meaning: a link is its words and its address, a picture its words."""

import html
import re

from inscriptis import get_text

# In the normal form of HTML: every value is in double quotes, where “>” may stand as it is.
_REST = r"(?:[^>\"]|\"[^\"]*\")*"
_NOT_TEXT = re.compile(r"<!--.*?-->|<(head|style|title)\b.*?</\1>", re.IGNORECASE | re.DOTALL)
_UNSEEN = re.compile(
    r"<(div|span|p|td|tr|table)\s[^>]*?style=\"[^\"]*display:\s*none[^\"]*\"[^>]*>.*?</\1>", re.IGNORECASE | re.DOTALL
)
_PICTURE = re.compile(rf"<img\s(?:{_REST}?\s)?alt=\"([^\"]+)\"{_REST}>", re.IGNORECASE)
_ANCHOR = re.compile(rf"<a\s(?:{_REST}?\s)?href=\"([^\"]*)\"{_REST}>(.*?)</a>", re.IGNORECASE | re.DOTALL)
_DATA_TABLE = re.compile(r"<table\b(?![^>]*role=\"presentation\")[^>]*>.*?</table>", re.IGNORECASE | re.DOTALL)
_CELL_BREAK = re.compile(r"</t[dh]>\s*<t[dh]\b[^>]*>", re.IGNORECASE)
# Layout is many boxes in boxes; a run of their ends and beginnings is one break.
_BOXES = re.compile(
    rf"(?:\s*</?(?:table|thead|tbody|tfoot|tr|td|th|div|center|section|article)(?:\s{_REST})?>\s*)+", re.IGNORECASE
)
_ATTRIBUTES = re.compile(rf"<([a-z][a-z0-9]*)\s{_REST}>", re.IGNORECASE)


def to_text(page: str, *, has_layout_tables: bool = False) -> str:
    """The text part, equal in meaning to the HTML. With layout tables, only a table with headings is one of data."""
    page = _UNSEEN.sub("", _NOT_TEXT.sub("", page))
    page = _PICTURE.sub(r"[\1]", page)
    page = _ANCHOR.sub(_anchor_as_text, page)
    page = _DATA_TABLE.sub(
        lambda found: found.group() if has_layout_tables and "<th" not in found.group() else _in_columns(found.group()),
        page,
    )
    page = _ATTRIBUTES.sub(r"<\1>", _BOXES.sub("</div><div>", page))
    lines = [line.strip() for line in get_text(f"<html><body><div>{page}</div></body></html>").splitlines()]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return text + "\n"


def _in_columns(table: str) -> str:
    """A table of data, row by row."""
    return f"<p>{_CELL_BREAK.sub(' | ', table)}</p>"


def _anchor_as_text(found: re.Match[str]) -> str:
    href, words = html.unescape(found.group(1)), found.group(2)
    if href.startswith("#") or html.unescape(words).strip() == href:
        return words
    return f"{words} &lt;{html.escape(href)}&gt;"
