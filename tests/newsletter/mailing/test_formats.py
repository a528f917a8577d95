"""Texts written as MJML or HTML: what they become, and the one sentence that refuses what cannot be a mail."""

import html
import re

import pytest

from newsletter.mailing.compiling import Compiled, CompileError
from newsletter.mailing.personalizing import Rendered
from newsletter.mailing.styling import prepared
from tests.newsletter.mailing.building import LETTER, PLAIN, compiled, person, personalizer

SECTION = "<mj-section><mj-column><mj-text>{}</mj-text></mj-column></mj-section>"
DOCUMENT = f"""<?xml version="1.0"?>
<!-- by hand -->
<mjml>
  <mj-head>
    <mj-font name="Raleway" href="https://fonts.example/css?family=Raleway" />
    <mj-style>.note {{ color: #b00020 }} .note:hover {{ color: black }}
      @media (max-width: 400px) {{ .note {{ top: 0 }} }}</mj-style>
  </mj-head>
  <mj-body>
    {SECTION.format('<p class="note">Hi {{ name }}, <a href="https://x.example/?a=1&amp;b=2">here</a></p>')}
    {{% if vip %}}{SECTION.format("Welcome back")}{{% endif %}}
    <mj-section><mj-column>
      <mj-table>{{% for plant in plants %}}<tr><td>{{{{ plant }}}}</td></tr>{{% endfor %}}</mj-table>
      <mj-image src="https://x.example/rose.png" alt="A rose" />
      <mj-text><a href="{{{{ unsubscribe_url }}}}">Out</a>, {{{{ postal_address }}}}</mj-text>
    </mj-column></mj-section>
  </mj-body>
</mjml>"""
PAGE = """<html>
<head><title>{{ subject }}</title>
<link rel="stylesheet" href="https://elsewhere.example/a.css">
<style>@import url(https://elsewhere.example/b.css); .note { color: #b00020 }
@media (max-width: 400px) { .note { top: 0 } }</style>
</head>
<body class=page>
<p class=note title="a > b">Hello {{ name | default: "you" }},
<a title='c > d' href='https://x.example/?a=1&b=2'>read on</a></p>
<table>{% for plant in plants %}<tr><td>{{ plant }}</td></tr>{% endfor %}</table>
<a href="{{ fields.site }}">Your page</a>
<!--[if mso]><v:roundrect href="https://y.example/">Go</v:roundrect><![endif]-->
<img src=https://x.example/rose.png alt="A rose"><br>
<a href="{{ unsubscribe_url }}">Out</a>, {{ postal_address }}
</body></html>"""


def shown(mail: Compiled, **fields: object) -> Rendered:
    return personalizer(mail).rendered(person(fields=fields, is_tracked=False))


def test_a_whole_mjml_document_needs_no_layout() -> None:
    mail = compiled(DOCUMENT, format="mjml", layout="no MJML at all {{", preheader="For {{ name }}")
    found = shown(mail, vip=True, plants=["rose", "oak"])
    assert '<p class="note" style="color: #b00020;">Hi Ada Green' in found.html
    assert "<tbody><tr><td>rose</td></tr><tr><td>oak</td></tr></tbody>" in found.html
    assert 'lang="en"' in found.html
    assert found.html.index("For Ada Green") < found.html.index("Hi Ada Green")
    assert mail.links == ["https://x.example/?a=1&b=2"]
    assert ["control", "u"] in mail.html
    assert ["control", "u"] in mail.text
    for words in ("Hi Ada Green, here <https://x.example/?a=1&b=2>", "Welcome back", "[A rose]", "rose\n", "oak\n"):
        assert words in found.text
    assert "Welcome back" not in shown(mail, plants=[]).html


def test_nothing_is_loaded_from_elsewhere_and_the_editor_is_told() -> None:
    for source, kind in ((DOCUMENT, "mjml"), (PAGE, "html")):
        mail = compiled(source, format=kind)
        page = shown(mail).html
        assert not re.search(r"<link|@import|fonts\.example|elsewhere", page)
        assert [note for note in mail.notes if "from elsewhere are left out" in note]


def test_icons_from_elsewhere_are_pointed_out() -> None:
    element = (
        "<mj-social><mj-social-element name='facebook' {}href='https://x.example/'>F</mj-social-element></mj-social>"
    )
    assert "another company’s server" in " ".join(compiled(element.format(""), format="mjml").notes)
    assert not compiled(element.format("src='https://x.example/f.png' "), format="mjml").notes


def test_what_cannot_be_inlined_wins_over_what_was() -> None:
    page = shown(compiled(DOCUMENT, format="mjml")).html
    assert ".note:hover { color: black !important; }" in page.replace("{color", "{ color").replace(";}", "; }")
    assert re.search(r"@media \(max-width: 400px\) ?\{ ?\.note ?\{ ?top: 0 !important;", page)
    assert prepared("a{b:c} @font-face{src:url(x)} /* } */ .x{c:d}") == "a{b:c}   .x{c:d}"
    assert prepared("@keyframes k{from{top:0}to{top:1px}}") == "@keyframes k{from{top:0}to{top:1px}}"


def test_blocks_stand_where_the_layout_says_and_sections_stand_instead_of_its_section() -> None:
    blocks = shown(compiled("<mj-text>Hi {{ name }}</mj-text>", format="mjml", layout=LETTER))
    assert blocks.html.index("The Potting Shed") < blocks.html.index("Hi Ada Green") < blocks.html.index("Unsubscribe")
    assert "card" in blocks.html
    sections = shown(compiled(SECTION.format("One") + SECTION.format("Two"), format="mjml", layout=LETTER))
    assert sections.text.startswith("The Potting Shed\n")
    assert sections.text.index("One") < sections.text.index("Two") < sections.text.index("You get this because")
    assert 'class="card"' not in sections.html
    bare = PLAIN.replace("<mj-section><mj-column>", "").replace("</mj-column></mj-section>", "")
    for body in ("<mj-text>Alone</mj-text>", SECTION.format("Alone")):
        assert "Alone" in shown(compiled(body, format="mjml", layout=bare)).text
    assert "<mj-" not in shown(compiled("Alone", layout=bare)).html


def test_a_page_is_sent_as_it_is_but_for_its_style_sheets() -> None:
    mail = compiled(PAGE, format="html", layout="{{", preheader="For {{ name }}")
    found = shown(mail, plants=["rose", "oak"], site="https://ada.example/?x=1&y=2")
    assert found.html.startswith("<!DOCTYPE html>")
    assert "<title>News</title>" in found.html
    assert '<p class="note" title="a > b" style="color: #b00020;">Hello Ada Green' in found.html
    assert "<tbody><tr><td>rose</td></tr><tr><td>oak</td></tr></tbody>" in found.html
    assert 'href="https://ada.example/?x=1&amp;y=2"' in found.html
    assert found.html.index("For Ada Green") < found.html.index("Hello Ada Green")
    assert "For Ada Green" not in found.text
    assert mail.links == ["https://x.example/?a=1&b=2", "https://y.example/"]
    assert "read on <https://x.example/?a=1&b=2>" in found.text
    assert "Your page <https://ada.example/?x=1&y=2>" in found.text
    assert "[A rose]" in found.text
    tracked = personalizer(mail).rendered(person(), with_pixel=True).html
    assert re.search(r"/o/[\w-]{28}\.gif.*</body>", tracked)
    assert "x.example/?a" not in tracked


def test_an_address_from_a_field_is_only_ever_a_web_address_in_both_parts() -> None:
    page = PAGE.replace('"{{ fields.site }}"', "'{{ fields.site }}'")
    for source in (page, page.replace("'{{ fields.site }}'", "{{ fields.site }}")):
        found = shown(compiled(source, format="html"), site="javascript:alert(1)")
        assert "javascript" not in found.html + found.text
        assert 'href="#"' in found.html


def test_a_page_that_was_exported_from_mjml_can_be_pasted() -> None:
    exported = shown(compiled(DOCUMENT, format="mjml"), vip=True).html
    again = shown(compiled(exported, format="html"))
    assert "Hi Ada Green" in again.text
    assert again.html.count("[if mso") == exported.count("[if mso")


@pytest.mark.parametrize(
    ("kind", "body", "sentence"),
    [
        (
            "mjml",
            "<mj-text>\n<script>x</script></mj-text>",
            "The text holds <script> (line 2), which mail clients refuse.",
        ),
        ("mjml", "<mj-foo></mj-foo>", "(line 1): there is no <mj-foo> in MJML."),
        ("mjml", "<mj-section>\n<mj-text>x</mj-text></mj-section>", "(line 2): <mj-text> cannot stand in <mj-section>"),
        ("mjml", "<mj-text color='red;x:y'>x</mj-text>", "the value of “color” in <mj-text> holds “;”"),
        ("mjml", '<mj-section background-url="https://x/\');"></mj-section>', "the value of “background-url”"),
        ("mjml", "<mj-button href='java&#115;cript:x'>x</mj-button>", "an address of the kind “javascript:” (line 1)"),
        ("mjml", "<mj-text>a < b</mj-text>", "a bare “<” stands in the text, write &lt;"),
        ("mjml", "<mj-text>\n<p>a</mj-text>", "(line 2): </mj-text> closes <p> of line 2."),
        ("mjml", "<mj-text>a", "The text is not valid MJML: <mj-text> (line 1) is never closed."),
        ("mjml", "words", "a text stands outside of MJML’s blocks, put it into <mj-text>."),
        ("mjml", "<p>x</p>", "<p> stands outside of MJML’s blocks"),
        ("mjml", "<mj-include path='./x' />", "<mj-include> cannot load other files here."),
        ("mjml", "<mj-text>x</mj-text><mj-section></mj-section>", "mixes sections and single blocks"),
        ("mjml", "<mj-raw><!--[if mso]><iframe></iframe><![endif]--></mj-raw>", "holds <iframe> (line 1)"),
        ("html", "\n<p onclick=x>", "The text holds the event handler “onclick” (line 2)"),
        ("html", "<form></form>", "The text holds <form> (line 1)"),
        ("html", "<!--><script>x</script>-->", "would hold a script"),
        ("html", "<a href='data:text/html,x'>x</a>", "an address of the kind “data:”"),
        ("html", "<style>a { color: {{ name }} }</style>", "a merge tag stands in a style sheet"),
        ("html", "<td {% if a %}class=x{% endif %}>", "a merge tag stands between the attributes of <td>"),
        ("html", "<mj-text>x</mj-text>", "<mj-text> is MJML, not HTML."),
        ("html", "<meta http-equiv=refresh content=0>", "holds <meta http-equiv=refresh>"),
        ("html", "<p style='x: expression(y)'>", "CSS that runs code"),
        ("html", "x" * 1_000_001, "The text has 1.0 MB; more than 1 MB cannot become a mail."),
        ("html", "<p>" * 300_000, "more than 2 MB of HTML"),
        ("word", "x", "cannot be of the kind “word”"),
    ],
)
def test_what_cannot_be_a_mail_is_one_sentence(kind: str, body: str, sentence: str) -> None:
    with pytest.raises(CompileError) as caught:
        compiled(body, format=kind)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        (PLAIN.replace("{{ content }}", ""), "The layout has no place for the text"),
        (PLAIN.replace("{{ content }}", "<mj-text>{{ content }}</mj-text>"), "stands in <mj-text>; it belongs into"),
        (
            PLAIN.replace("{{ content }}", "<mj-foo />{{ content }}"),
            "not valid MJML (line 1): there is no",
        ),
    ],
)
def test_a_layout_that_has_no_good_place_is_refused(layout: str, sentence: str) -> None:
    with pytest.raises(CompileError, match=re.escape(sentence)):
        compiled("Hi", layout=layout)


def test_sections_do_not_take_away_what_stands_beside_the_layouts_place() -> None:
    layout = PLAIN.replace("{{ content }}", "{{ content }}<mj-text>Footer</mj-text>")
    with pytest.raises(CompileError, match="holds other things too"):
        compiled(SECTION.format("x"), format="mjml", layout=layout)


def test_a_condition_that_the_parts_of_a_mail_would_tear_apart_is_refused() -> None:
    in_order = "<table><tr><td>x{% if a %}</td></tr></table>{% endif %}<p>"
    assert "x" in shown(compiled(in_order, format="html")).html
    with pytest.raises(CompileError, match="stands before the tag that it belongs to"):
        compiled("<title>{% if a %}</title><p>x{% endif %}</p>", format="html")  # the text part has no title


SHOP = "https://shop.example/?a=1&b=2"


@pytest.mark.parametrize("kind", ["markdown", "mjml", "html"])
@pytest.mark.parametrize(
    ("address", "fields", "target"),
    [
        ("{% if shop %}{{ shop }}{% else %}https://x.example/{% endif %}", {"shop": SHOP}, SHOP),
        ("{% if shop %}{{ shop }}{% else %}https://x.example/{% endif %}", {}, "https://x.example/"),
        ("{% if shop %}https://a.example/{% else %}{{ other }}{% endif %}", {"other": SHOP}, SHOP),
        ("{% if shop %}{{ shop }}{% endif %}", {"shop": "javascript:alert(1)"}, "#"),
        (
            "{% if vip %}https://x.example/{% endif %}{{ page }}",
            {"vip": True, "page": "a&b"},
            "https://x.example/a%26b",
        ),
    ],
)
def test_an_address_may_depend_on_a_condition(kind: str, address: str, fields: dict[str, object], target: str) -> None:
    bodies = {
        "markdown": f"[Shop]({address})",
        "mjml": f'<mj-text><a href="{address}">Shop</a></mj-text>',
        "html": f'<html><body><a href="{address}">Shop</a></body></html>',
    }
    page = shown(compiled(bodies[kind], format=kind), **fields).html
    assert html.unescape(re.findall(r'<a href="([^"]*)"', page)[0]) == target


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "java{{ x }}script:alert(1)",
        "{{ x }}javascript:alert(1)",
        "{% if x %}https://a.example/{% else %}javascript:alert(1){% endif %}",
        "{% if x %}{% else %}data:text/html,x{% endif %}",
    ],
)
@pytest.mark.parametrize("kind", ["mjml", "html"])
def test_no_branch_of_an_address_runs_code(kind: str, address: str) -> None:
    link = f'<a href="{address}">Go</a>'
    body = f"<mj-text>{link}</mj-text>" if kind == "mjml" else f"<html><body>{link}</body></html>"
    with pytest.raises(CompileError, match=r"an address of the kind “(javascript|data):”"):
        compiled(body, format=kind)


@pytest.mark.parametrize(
    "text",
    [
        "&#123;&#123; name &#125;&#125;",
        r"{\{ name }}",
        "&#123;&#123; (1..20000000) | join: '' | size }}",
        "&#123;% for i in (1..20000000) %&#125;x&#123;% endfor %&#125;",
        "&#123;{{ name }}",
    ],
)
@pytest.mark.parametrize("kind", ["markdown", "html"])
def test_what_becomes_braces_on_the_way_is_no_merge_tag_within_a_condition(kind: str, text: str) -> None:
    body = f"{{% if vip %}}{text}{{% endif %}}"
    if kind == "html":
        body = f"<html><body><p>{body.replace(chr(92), '')}</p></body></html>"
    if "&#" not in body and kind == "html":
        return  # a tag like any other
    with pytest.raises(CompileError, match=r"no merge tag|begins in one element"):
        compiled(body, format=kind)
    assert "{" in shown(compiled(text)).html, "elsewhere it is text"
