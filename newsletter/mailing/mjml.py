"""From an editor's text and a layout to MJML, and from MJML to HTML.

The text is Markdown, or MJML in one of three shapes: blocks (<mj-text> …), which stand where the layout says
{{ content }}; sections, which stand instead of the layout's section around {{ content }}; or a whole <mjml>
document, which needs no layout.
"""

import html
import re
from collections.abc import Callable

import mrml

from newsletter.mailing import mergetags
from newsletter.mailing.markdown import markdown_to_mjml, unwrap_blocks
from newsletter.mailing.mergetags import Lifted
from newsletter.mailing.vetting import CompileError, Vetted, vet

OWN_STYLE = "/*own*/"  # marks the style sheets that an editor wrote; mrml adds its own
_SECTIONS = {"mj-section", "mj-wrapper", "mj-hero", "mj-raw"}
_PROLOGUE = re.compile(r"\A\ufeff?\s*(?:<\?xml[^>]*\?>\s*|<!--.*?-->\s*)*", re.DOTALL)
_OWN = re.compile(r"<mj-style\b(?![^>]*\binline\s*=)[^>]*>", re.IGNORECASE)

# Puts a constant's text, a lifted word or the preheader where a merge tag stands.
Placing = Callable[[str], str]


def is_document(source: str) -> bool:
    """Whether this is a whole <mjml> document."""
    return _PROLOGUE.sub("", source).lower().startswith("<mjml")


def document(source: str, lifted: Lifted, placing: Placing, *, preheader: str, language: str) -> tuple[str, set[str]]:
    """A whole document that an editor wrote, with the preheader where it has none. Raises CompileError."""
    has_preheader = "preheader" in {mergetags.simple_name(tag) for tag in _tags(source)}
    source = _PROLOGUE.sub("", mergetags.substitute(source, placing))
    seen = vet(source, what="The text", word=lifted.pattern, is_mjml=True)
    if preheader and not has_preheader and "mj-preview" not in seen.first:
        source = _with_preview(source, preheader, has_head="mj-head" in seen.first)
    if not re.match(r"<mjml\s[^>]*\blang\s*=", source, re.IGNORECASE):
        source = f'<mjml lang="{html.escape(language, quote=True)}"{source[len("<mjml") :]}'
    return source, seen.notes


def in_layout(body: str, layout: str, lifted: Lifted, placing: Placing, *, is_markdown: bool) -> tuple[str, set[str]]:
    """A text in its layout. Raises CompileError."""
    content = lifted.put("{{ content }}")
    layout = mergetags.substitute(
        layout, lambda tag: content if mergetags.simple_name(tag) == "content" else placing(tag)
    )
    layout = _PROLOGUE.sub("", layout)
    around = vet(layout, what="The layout", word=lifted.pattern, is_mjml=True, place=content)
    if around.place < 0:
        raise CompileError("The layout has no place for the text; write {{ content }} into one of its columns.")
    if is_markdown:
        return _blocks(markdown_to_mjml(lifted.lift(body), lifted), layout, around, content), around.notes
    text = mergetags.substitute(body, placing)
    seen = vet(text, what="The text", word=lifted.pattern, is_mjml=True)
    kinds = {element.tag in _SECTIONS for element in seen.top if element.tag != "mj-raw"}
    if len(kinds) > 1:
        raise CompileError("The text mixes sections and single blocks; put every block into a section, or none.")
    put = _sections if kinds == {True} else _blocks
    return put(text, layout, around, content), seen.notes | around.notes


def to_html(mjml: str, lifted: Lifted, *, what: str) -> str:
    """HTML of an MJML document. Raises CompileError."""
    try:
        output = mrml.to_html(
            _OWN.sub(rf"\g<0>{OWN_STYLE}", mjml),
            parser_options=mrml.ParserOptions(include_loader=mrml.noop_loader()),
            render_options=mrml.RenderOptions(fonts={}),
        )
    except OSError as error:
        lines = str(error).strip().splitlines() or ["it cannot be parsed"]
        raise CompileError(f"{what} is not valid MJML: {lines[0].rstrip('.')}.") from error
    return unwrap_blocks(output.content, lifted)


def _tags(source: str) -> list[str]:
    return [source[start:end] for start, end in mergetags.spans(source)]


def _blocks(blocks: str, layout: str, around: Vetted, content: str) -> str:
    """Blocks where {{ content }} stands, in a column of their own if it stands outside of one."""
    parent = around.around[-1].tag if around.around else ""
    if parent in {"mj-body", "mj-wrapper"}:
        blocks = f"<mj-section><mj-column>{blocks}</mj-column></mj-section>"
    elif parent in {"mj-section", "mj-group"}:
        blocks = f"<mj-column>{blocks}</mj-column>"
    elif parent not in {"mj-column", "mj-hero"}:
        raise CompileError(f"The layout’s {{{{ content }}}} stands in <{parent}>; it belongs into <mj-column>.")
    return layout.replace(content, blocks)


def _sections(sections: str, layout: str, around: Vetted, content: str) -> str:
    """Sections instead of the section around {{ content }}."""
    parent = around.around[-1].tag if around.around else ""
    if parent in {"mj-body", "mj-wrapper"}:
        return layout.replace(content, sections)
    section = next((element for element in reversed(around.around) if element.tag == "mj-section"), None)
    if section is None or around.section_end < 0:
        raise CompileError(f"The layout’s {{{{ content }}}} stands in <{parent}>; it belongs into <mj-column>.")
    whole = layout[section.start : around.section_end]
    if re.sub(r"</?mj-(?:section|column|group)\b[^>]*>", "", whole).strip() != content:
        raise CompileError(
            "The text is made of sections, but the layout’s section around {{ content }} holds other things too; "
            "write single blocks such as <mj-text>, or choose another layout."
        )
    return layout.replace(whole, sections)


def _with_preview(source: str, preheader: str, *, has_head: bool) -> str:
    preview = f"<mj-preview>{preheader}</mj-preview>"
    if has_head:
        return re.sub(r"<mj-head\b[^>]*>", lambda found: found.group() + preview, source, count=1)
    return re.sub(r"<mjml\b[^>]*>", lambda found: f"{found.group()}<mj-head>{preview}</mj-head>", source, count=1)
