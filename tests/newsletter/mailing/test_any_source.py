"""Whatever an editor pastes, it becomes a mail or one sentence."""

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsletter.mailing.compiling import FORMATS, Compiled, CompileError
from newsletter.mailing.headers import HeaderError
from newsletter.mailing.slots import PersonalizeError
from tests.newsletter.mailing.building import LETTER, PLAIN, compiled, person, personalizer

PIECES = [
    *("<mjml>", "</mjml>", "<mj-head>", "</mj-head>", "<mj-body>", "</mj-body>", "<mj-section>", "</mj-section>"),
    *("<mj-column>", "</mj-column>", "<mj-text>", "</mj-text>", "<mj-raw>", "</mj-raw>", "<mj-image />", "<mj-table>"),
    *("<mj-style>", "</mj-style>", "<mj-button href='https://x.example/'>", "</mj-button>", "</mj-table>"),
    *("<html>", "<head>", "<title>", "</title>", "<body>", "</body>", "<style>", "</style>", "<p>", "</p>", "<br>"),
    *("<table>", "<tr>", "<td>", "</td>", "</table>", "<a href=", "'https://x.example/'>", "</a>", "<img src=x alt=y>"),
    *("<!--", "-->", "<![CDATA[", "]]>", "<?xml?>", "<!doctype html>", "<", ">", "&", "&lt;", '"', "'", "=", "/", "\0"),
    *("{{ name }}", "{{ content }}", "{{ preheader }}", "{{ fields.a }}", "{{", "}}", "{% if name %}", "{% else %}"),
    *("{% endif %}", "{% for a in (1..3) %}", "{% endfor %}", "{% case name %}", "{% when 'x' %}", "{% endcase %}"),
    *("{% comment %}", "{% endcomment %}", "{% # note %}", "{% break %}", "{%", "%}", "{{-", "-}}"),
    *("# ", "- ", "1. ", "> ", "```", "**", "[x](https://x.example/)", "![x](y)", "|a|b|\n|-|-|\n", "\n", "\n\n", " "),
    *("a{b:c}", "@media x{a{b:c}}", "@import url(x);", "{", "}", "🌱", "\u202e", "\r", "x" * 80, "href=", "style="),
]
sources = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=14).map("".join)


@settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=sources, kind=st.sampled_from(FORMATS), line=sources)
def test_any_text_becomes_a_mail_or_a_sentence(body: str, kind: str, line: str) -> None:
    look(lambda: compiled(body, format=kind, layout=LETTER, subject=line, preheader=line))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layout=sources)
def test_any_layout_becomes_a_mail_or_a_sentence(layout: str) -> None:
    look(lambda: compiled("Hello", layout=PLAIN.replace("{{ content }}", "{{ content }}" + layout)))


def look(make: Callable[[], Compiled]) -> None:
    """A mail can be made of it for anybody, or there is a sentence."""
    try:
        mail = personalizer(make())
        for reader in (person(), person(name="", is_tracked=False)):
            message = mail.message(reader).content
            assert b"\r\n." not in message
            shown = mail.rendered(reader)
            assert "zq" not in shown.text or "qz" not in shown.text  # no word of ours is left
    except (CompileError, PersonalizeError, HeaderError) as error:
        sentence = str(error)
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert "qz" not in sentence
