"""Personalising: the bytes of one mail, right whatever stands in somebody's name."""

import re
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsletter.mailing.bounds import OUTPUT_LIMIT
from newsletter.mailing.headers import HeaderError
from newsletter.mailing.quoting import quoted_printable
from newsletter.mailing.slots import PersonalizeError
from newsletter.mailing.tokens import DeliveryKey, Purpose, read_delivery
from tests.newsletter.mailing.building import LETTER, RING, compiled, person, personalizer

BODY = """# Hello {{ first_name | default: "friend" }}

From {{ city | upcase }}. [One](https://one.example/), [two](https://two.example/).

. a line that starts with a dot

{% for plant in fields.plants %}- {{ plant }}
{% endfor %}
"""
MAIL = personalizer(compiled(BODY, subject="{{ name }}, hello", layout=LETTER, preheader="for {{ name }}"))
STRICT = policy.SMTP.clone(raise_on_defect=True)
HEADERS = [
    "From",
    "Date",
    "List-Id",
    "Feedback-ID",
    "Precedence",
    "List-Unsubscribe-Post",
    "MIME-Version",
    "Content-Type",
    "To",
    "Subject",
    "Message-ID",
    "List-Unsubscribe",
]
nasty = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "\r\n.\r\n",
            "a\r\nBcc: x@y.example",
            "\x00",
            "{{ name }}{% for i in (1..9) %}",
            "<script>x</script>",
            '"quoted", <x@y>',
            "=?utf-8?q?x?=",
            "🌱" * 30,
            "שלום עולם",
            "長い名前" * 20,
            "\u2028line",
            "x" * 5_000,
            ".",
            "ends with space ",
        ]
    ),
)


def parsed(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=STRICT)
    assert isinstance(message, EmailMessage)
    return message


def test_it_carries_every_header_of_a_newsletter() -> None:
    message = MAIL.message(person(name="Ada Green"))
    mail = parsed(message.content)
    assert mail.keys() == HEADERS
    assert mail["From"] == '"Ann & Co" <ann@shed.example>' or mail["From"] == "Ann & Co <ann@shed.example>"
    assert mail["To"] == "Ada Green <ada@mail.example>"
    assert mail["Subject"] == "Ada Green, hello"
    assert "<garden.shed.example>" in mail["List-Id"]
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    token = re.fullmatch(r"<https://news\.shed\.example/u/([\w-]{28})>", mail["List-Unsubscribe"])
    assert token
    assert read_delivery(RING, Purpose.CONTROL, token.group(1)) == DeliveryKey(1, 2)
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    returned = message.mail_from.removeprefix("bounce+").partition("@")[0]
    assert read_delivery(RING, Purpose.RETURN, returned) == DeliveryKey(1, 2)


def test_the_same_recipient_gets_the_same_bytes_each_time() -> None:
    assert MAIL.message(person()) == MAIL.message(person())
    assert MAIL.message(person()).content != MAIL.message(person(key=DeliveryKey(1, 3))).content


def test_both_parts_say_the_same_and_start_no_line_with_a_dot() -> None:
    message = MAIL.message(person(fields={"city": ".bath", "plants": ["rose", ".thyme"]}))
    assert b"\r\n." not in message.content
    mail = parsed(message.content)
    text = mail.get_body(("plain",))
    html = mail.get_body(("html",))
    assert text
    assert html
    for part in (text, html):
        content = part.get_content()
        assert ".BATH" in content
        assert ". a line that starts with a dot" in content
        assert "thyme" in content


def test_somebody_without_tracking_gets_plain_links_and_no_pixel() -> None:
    html = MAIL.rendered(person(is_tracked=False), with_pixel=True).html
    assert "https://one.example/" in html
    assert "t.shed.example" not in html
    tracked = MAIL.rendered(person(), with_pixel=True).html
    assert len(re.findall(r"https://t\.shed\.example/o/[\w-]{28}\.gif", tracked)) == 1
    assert "https://one.example/" not in tracked


@settings(max_examples=150, deadline=None)
@given(name=nasty, city=nasty, plant=nasty)
def test_no_value_changes_a_header_another_slot_or_the_dialogue(name: str, city: str, plant: str) -> None:
    content = MAIL.message(person(name=name, fields={"city": city, "plants": [plant]})).content
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert b"\r\n." not in content
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert b"\x00" not in content
    mail = parsed(content)
    assert mail.keys() == HEADERS
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    assert mail["List-Unsubscribe"] == MAIL_OF_ADA["List-Unsubscribe"]
    html = mail.get_body(("html",))
    assert html
    assert "<script" not in html.get_content()


MAIL_OF_ADA = parsed(MAIL.message(person()).content)


@given(st.text(max_size=400))
def test_quoted_printable_reads_back(text: str) -> None:
    import quopri

    normal = text.replace("\r\n", "\n").replace("\r", "\n")
    encoded = quoted_printable(text)
    assert quopri.decodestring(encoded.replace(b"\r\n", b"\n")).decode() == normal
    assert all(len(line) <= 76 and not line.startswith(b".") for line in encoded.split(b"\r\n"))


@pytest.mark.parametrize("unit", [".", "..\n", "é.", ".é", ". ", "=.", "a.", "\n."])
def test_no_line_of_quoted_printable_starts_with_a_dot_however_many_there_are(unit: str) -> None:
    for count in range(400):
        lines = quoted_printable(unit * count).split(b"\r\n")
        assert all(len(line) <= 76 and not line.startswith(b".") for line in lines)


@pytest.mark.parametrize(
    "name", ['Ann "The Gardener" Lee', "Lee, Ann", "Ánna Ünger", "🌱 Sprout", "أحمد", "田中 花子", "x" * 200]
)
def test_names_survive(name: str) -> None:
    content = MAIL.message(person(name=name)).content
    assert parsed(content)["To"].addresses[0].addr_spec == "ada@mail.example"
    # Python's own address parser puts a space between adjacent encoded words, so the field is decoded by RFC 2047.
    shown = str(make_header(decode_header(message_from_bytes(content, policy=policy.compat32)["To"])))
    assert parseaddr(shown) == (name, "ada@mail.example") or shown == f"{name} <ada@mail.example>"


def test_an_international_domain_goes_as_a_labels_and_a_local_part_asks_for_smtputf8() -> None:
    message = MAIL.message(person(email="ada@gärten.example"))
    assert message.rcpt_to == "ada@xn--grten-gra.example"
    assert not message.needs_smtputf8
    assert MAIL.message(person(email="jürgen@mail.example")).needs_smtputf8


@pytest.mark.parametrize("email", ["a\r\nb@c.example", "a b@c.example", "nobody", "a@b@c,d.example", "<x>@y.example"])
def test_an_address_that_cannot_be_mailed_is_refused(email: str) -> None:
    with pytest.raises(HeaderError):
        MAIL.message(person(email=email))


@pytest.mark.parametrize(
    "tag",
    [
        pytest.param("{{ score | floor }}", id="a value that is no number"),
        pytest.param("{{ digits | times: digits }}", id="a number with too many digits"),
        pytest.param("{{ 'a'" + f" | replace: 'a', '{'a' * 100}'" * 4 + " | size }}", id="replacements that multiply"),
        pytest.param("{{ 'a'" + f" | replace: '', '{'a' * 100}'" * 4 + " | size }}", id="between all characters"),
        pytest.param(f"{{{{ long | split: '' | join: '{'a' * 100}' | size }}}}", id="joints that multiply"),
    ],
)
def test_a_tag_that_cannot_be_filled_in_fails_for_its_recipient_alone(tag: str) -> None:
    mail = personalizer(compiled(f"Hello {tag}"))
    recipient = person(fields={"score": "nan", "digits": "9" * 4_000, "long": "a" * (OUTPUT_LIMIT // 50)})
    with pytest.raises(PersonalizeError, match=r"A merge tag cannot be filled in: .+\.\Z"):
        mail.message(recipient)


@pytest.mark.parametrize("value", [None, "", False, [], {}, 0, " ", "x", True, 1.5, ["a", "b"]])
@pytest.mark.parametrize("tag", ["{{ a }}", "{{ a | default: 'friend' }}", "{{ a | default: '' }}"])
def test_a_simple_tag_prints_what_liquid_prints(tag: str, value: object) -> None:
    whole = f"{{% if true %}}{tag}{{% endif %}}"  # which is left to Liquid
    simple, by_liquid = (
        personalizer(compiled("x", subject=subject)).rendered(person(fields={"a": value})).subject
        for subject in (tag, whole)
    )
    assert simple == by_liquid


@pytest.mark.parametrize("line", ["Rain & sun", "Rain & {{ name }}"])
@pytest.mark.parametrize("where", ["subject", "preheader"])
def test_conditions_and_filters_know_the_subject_and_the_preheader(where: str, line: str) -> None:
    shown = line.replace("{{ name }}", "Ada Green")
    mail = compiled(f"{{% if {where} %}}[{{{{ {where} }}}}]{{% endif %}} {{{{ {where} | upcase }}}}", **{where: line})
    text = personalizer(mail).rendered(person()).text
    assert f"[{shown}]" in text
    assert shown.upper() in text


def test_bounded_filters_do_what_liquid_says() -> None:
    mail = personalizer(
        compiled("{{ 'a-b-c' | replace: '-', '+' }} {{ 'a b' | split: ' ' | join }} {{ 12 | join: 'x' }}")
    )
    assert mail.rendered(person()).text.splitlines()[0] == "a+b+c a b 12"
