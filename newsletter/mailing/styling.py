"""CSS into the elements that it is for, since many clients drop style sheets; and HTML in one normal form.

css-inline parses as a browser does: what comes out has double-quoted attributes, closed tags and nothing that a client
could read otherwise. It would move text out of a table, and merge tags with it, so a tag that stands in text goes
through as a comment. What cannot stand in an element (media queries, :hover) stays in the style sheet and is marked
important, because it would lose against what was inlined.
"""

import re
from functools import cache

import css_inline

from newsletter.mailing.mergetags import Lifted
from newsletter.mailing.vetting import CompileError

_STYLE = re.compile(r"<style\b([^>]*)>(.*?)</style>", re.IGNORECASE | re.DOTALL)
_REMOTE = re.compile(r"@import\b[^;{}]*;?|@font-face\s*\{[^{}]*\}", re.IGNORECASE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_BRACES = re.compile(r"([^{}]*)([{}])")
_DECLARATION = re.compile(r"(?:[^;\"'(]|\"[^\"]*\"|'[^']*'|\([^)]*\))+")
_IGNORED = ' data-css-inline="ignore"'


@cache
def _inliner() -> css_inline.CSSInliner:
    return css_inline.CSSInliner(
        keep_style_tags=True, keep_at_rules=True, keep_link_tags=False, load_remote_stylesheets=False
    )


def styled(page: str, lifted: Lifted, *, own: str = "") -> str:
    """A page with its style sheets inlined, in normal form. Raises CompileError.

    `own` marks the sheets that an editor wrote; without it all are theirs.
    """

    def prepare(found: re.Match[str]) -> str:
        attributes, css = found.groups()
        if own and own not in css:
            return f"<style{attributes}{_IGNORED}>{css}</style>"
        return f"<style{attributes}>{prepared(css.replace(own, ''))}</style>"

    page = _as_comments(_STYLE.sub(prepare, page), lifted)
    try:
        page = _inliner().inline(page)
    except (css_inline.InlineError, ValueError) as error:
        raise CompileError(f"The HTML cannot be read: {str(error).splitlines()[0]}.") from error
    return _from_comments(page.replace(_IGNORED, ""), lifted)


def _as_comments(page: str, lifted: Lifted) -> str:
    """Lifted tags that stand in text become comments; those in a tag, a comment or raw text stay as they are."""
    tokens = re.compile(
        r"<!--.*?-->|<(title|style|textarea)\b.*?</\1\s*>|<[a-z/!](?:[^>\"']|\"[^\"]*\"|'[^']*')*>"
        rf"|({lifted.pattern.pattern})",
        re.IGNORECASE | re.DOTALL,
    )
    return tokens.sub(lambda found: f"<!--{found.group()}-->" if found.group(2) else found.group(), page)


def _from_comments(page: str, lifted: Lifted) -> str:
    word = lifted.pattern.pattern
    # A row's loop begins before the row, not before the table body that the parser put around it.
    page = re.sub(rf"(<table\b[^>]*>)((?:\s*<!--{word}-->)+)\s*<tbody>", r"\1<tbody>\2", page)
    return re.sub(rf"<!--({word})-->", r"\1", page)


def prepared(css: str) -> str:
    """A style sheet without what lies elsewhere, and with what cannot be inlined marked important."""
    css = _REMOTE.sub("", _COMMENT.sub("", css))
    parts: list[str] = []
    stack: list[str] = []
    end = 0
    for found in _BRACES.finditer(css):
        text, brace = found.groups()
        end = found.end()
        if brace == "{":
            stack.append(text.strip())
        elif stack:
            if _stays(stack):
                text = _important(text)
            stack.pop()
        parts.append(text + brace)
    return "".join(parts) + css[end:]


def _stays(stack: list[str]) -> bool:
    """Whether the innermost rule is one that stays in the sheet: in a media query, or for a state of an element."""
    rule, outer = stack[-1], [prelude.lower() for prelude in stack[:-1]]
    if rule.startswith("@") or any(prelude.startswith(("@keyframes", "@-")) for prelude in outer):
        return False
    return bool(outer) or ":" in rule


def _important(declarations: str) -> str:
    found = [one.strip() for one in _DECLARATION.findall(declarations) if ":" in one]
    return " ".join(f"{one if '!important' in one.lower() else f'{one} !important'};" for one in found)
