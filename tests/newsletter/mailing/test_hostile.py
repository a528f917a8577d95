"""Values that want to be more than values: whatever an import holds, a mail stays the mail that the editor wrote."""

import json
import re
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsletter.mailing.bounds import VALUE_LIMIT, read_values
from newsletter.mailing.headers import NAME_LIMIT, one_line
from newsletter.mailing.mergetags import plain
from newsletter.mailing.personalizing import Message, Personalizer
from newsletter.mailing.slots import PersonalizeError
from tests.newsletter.mailing.building import LETTER, compiled, person, personalizer

STRICT = policy.SMTP.clone(raise_on_defect=True)
MARKDOWN = """# For {{ a }}

Between [[{{ b }}]] and ![{{ a }}](https://x.example/{{ a }}.png), [there](https://x.example/?a={{ a }}&b=1).

{% if a %}

With [a link](https://y.example/) for {{ a }}.

{% endif %}
{% for one in fields.many %}- {{ one }}
{% endfor %}
"""
MJML = """<mj-text>For {{ a }}, <b title="{{ a }}">[[{{ b }}]]</b> <a href="{{ fields.a }}">here</a></mj-text>
<mj-button href="https://x.example/?a={{ a }}">{{ a | upcase }}</mj-button>
<mj-table>{% for one in fields.many %}<tr><td>{{ one }}</td></tr>{% endfor %}</mj-table>
<mj-image src="{{ fields.a }}" alt="{{ a }}" />"""
HTML = """<html><head><title>{{ a }}</title></head><body style="color: {{ a }}">
<p class='{{ a }}'>For {{ a }} [[{{ b }}]]
<a href='{{ fields.a }}'>here</a> <a href=https://x.example/{{ a }}>there</a> {% if a == b %}same{% endif %}
{% for one in fields.many %}<i>{{ one }}</i>{% endfor %}<!--[if mso]>{{ a }}<![endif]-->
<a href="https://y.example/">y</a><a href="{{ unsubscribe_url }}">out</a></body></html>"""
LINES = {"subject": "{{ a }}, {{ name }}", "preheader": "For {{ a }}"}
MAILS = {
    kind: personalizer(compiled(body, format=kind, layout=LETTER, **LINES))
    for kind, body in (("markdown", MARKDOWN), ("mjml", MJML), ("html", HTML))
}
# What ends a line, a header, a message, a tag, a part or a condition.
PIECES = [
    *("\r", "\n", "\r\n", "\0", "\n.\n", "\r\n.\r\n", ".", "..", "\r\nBcc: x@y.example\r\n", "\r\n\r\n", "\t", " "),
    *("{{ name }}", "{%", "{% for i in (1..9) %}", "{{ settings.SECRET_KEY }}", "qz00000000x0zq"),
    *("<script>x</script>", "</td></table></body>", "<!--", "-->", "]]>", "'", '"', '" onclick="x', "javascript:x"),
    *("&amp;", "&#0;", "=?utf-8?q?x?=", "=\n", "=3D", "--=_nl-1", "--=_nl-1--", "%0d%0a"),
    *("\u2028", "\u202e\u05e9\u05dc\u05d5\u05dd", "長い名前", "🌱👩\u200d👧", "\x1b[2J", "\x85", "\u00a0", "\ufeff"),
]
hostile = st.one_of(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=8).map("".join),
    st.tuples(st.sampled_from(PIECES), st.sampled_from([100, 9_999, 1_000_000])).map(
        lambda drawn: (drawn[0] * (drawn[1] // len(drawn[0]) + 1))[: drawn[1]]
    ),
)


def made(mail: Personalizer, *, name: str = "Ada Green", **fields: Any) -> Message:
    """As a worker makes it: names as the database keeps them, fields as they come out of it."""
    name = " ".join(name.replace("\0", "").split("\n"))[:200]
    return mail.message(person(name=name, fields=read_values(json.dumps(fields))))


def parsed(message: Message) -> EmailMessage:
    mail = message_from_bytes(message.content, policy=STRICT)
    assert isinstance(mail, EmailMessage)
    return mail


def part(mail: EmailMessage, kind: str) -> str:
    found = mail.get_body((kind,))
    assert found
    return str(found.get_content()).replace("\r\n", "\n")


class Shape(HTMLParser):
    """The elements of a page, each with the names of its attributes; and its addresses that are ours."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.ours: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))
        for name, value in attrs:
            if name in {"href", "src"}:
                assert not re.match(r"\s*(javascript|data|vbscript):", value or "", re.IGNORECASE)
                if "shed.example" in (value or ""):
                    self.ours.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")


def check_wire(content: bytes) -> None:
    """Nothing that a server could take for the end of the message or for another line of the dialogue."""
    assert b"\r\n." not in content
    assert b"\0" not in content
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert b"\r" not in content.replace(b"\r\n", b"")
    assert max(map(len, content.split(b"\r\n"))) <= 998


HARMLESS = {kind: made(mail, a="x", b="harmless", many=["one", "two"]) for kind, mail in MAILS.items()}


@pytest.mark.parametrize("kind", MAILS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(a=hostile, name=hostile, one=hostile)
def test_no_value_is_more_than_a_value(kind: str, a: str, name: str, one: str) -> None:
    # An empty value would leave a condition out, with the element in it.
    message = made(MAILS[kind], a=f"a{a}", b="harmless", many=[one, "two"], name=name)
    harmless, expected = parsed(HARMLESS[kind]), HARMLESS[kind]
    check_wire(message.content)
    assert (message.mail_from, message.rcpt_to) == (expected.mail_from, expected.rcpt_to)

    mail = parsed(message)
    assert mail.keys() == harmless.keys()
    for header in set(mail.keys()) - {"To", "Subject"}:
        assert mail[header] == harmless[header]
    assert [each.get_content_type() for each in mail.iter_parts()] == ["text/plain", "text/html"]
    assert mail["To"].addresses[0].addr_spec == "ada@mail.example"

    shape, unharmed = Shape(part(mail, "html")), Shape(part(harmless, "html"))
    if len(json.dumps([one, "two"])) < VALUE_LIMIT // 3:  # else the list is left out, and the rows with it
        assert shape.tags == unharmed.tags
    assert shape.ours == unharmed.ours
    for text in (part(mail, "plain"), unescape(part(mail, "html"))):
        assert "[[harmless]]" in text


@pytest.mark.parametrize("kind", MAILS)
@given(a=hostile)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_value_arrives_as_it_is(kind: str, a: str) -> None:
    message = parsed(made(MAILS[kind], a="x", b=f"<{a}>", many=[]))
    cut = read_values(json.dumps({"b": f"<{a}>"}))["b"]
    shown = re.search(r"\[\[(.*?)\]\](?!\])", part(message, "plain"), re.DOTALL)
    assert shown
    if "]]" not in cut:
        assert shown.group(1) == plain(cut).replace("\r", "\n")


@given(name=hostile)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_name_arrives_as_it_is(name: str) -> None:
    content = made(MAILS["mjml"], a="x", b="b", many=[], name=name).content
    to = str(message_from_bytes(content, policy=policy.compat32)["To"])
    shown = str(make_header(decode_header(to))).rpartition("<")[0].strip()
    if to.startswith('"'):
        shown = shown[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    stored = " ".join(name.replace("\0", "").split("\n"))[:200]
    assert " ".join(shown.split()) == " ".join(one_line(stored)[:NAME_LIMIT].split())


@pytest.mark.parametrize("body", ["{{ a }}", "{{ a | upcase }}", "{% if a %}{{ a }}{% endif %}", "{{ fields.a.b.c }}"])
@pytest.mark.parametrize(
    "value", [None, "", 0, -1.5, True, [], {}, [None], {"x": {"y": 1}}, [["<b>"]], "x" * 1_000_000]
)
def test_every_kind_of_value_that_json_knows_makes_a_mail(body: str, value: Any) -> None:
    message = made(personalizer(compiled(body, subject=f"S {body}")), a=value)
    check_wire(message.content)
    assert "<b>" not in part(parsed(message), "html")
    assert len(message.content) < 200_000


def test_a_mail_without_any_value_is_still_a_mail() -> None:
    for mail in MAILS.values():
        message = mail.message(person(name="", fields={}))
        check_wire(message.content)
        assert "[[]]" in part(parsed(message), "plain")
        assert "[[]]" in part(parsed(message), "html")


def test_a_mail_that_one_persons_values_would_blow_up_is_not_made() -> None:
    # Both parts, each value as three characters a byte: past what servers take.
    mail = personalizer(compiled(" ".join(f"{{{{ a{n} }}}}" for n in range(200))))
    with pytest.raises(PersonalizeError, match=r"would have \d\d MB for this recipient"):
        made(mail, **{f"a{n}": "ü" * 5_000 for n in range(200)})
    check_wire(made(mail, a1="ü").content)
