"""Compiling: what every recipient shares is worked out once, and an editor's mistake becomes one sentence."""

import re

import pytest

from newsletter.mailing.compiling import Compiled, CompileError
from newsletter.mailing.markdown import markdown_to_mjml
from tests.newsletter.mailing.building import LETTER, PLAIN, compiled, person, personalizer


def page(body: str, **more: str) -> str:
    fields = more.pop("fields", None)
    mail = compiled(body, **more)
    return personalizer(mail).rendered(person(fields=fields or {}, is_tracked=False)).html


def test_what_is_the_same_for_all_is_a_literal_and_the_rest_a_slot() -> None:
    mail = compiled("Hi {{ name }}, from {{ list_name }}", layout=PLAIN)
    slots = [piece for piece in mail.html if not isinstance(piece, str)]
    assert slots == [["liquid", "{{ name | _html }}"], ["pixel"]]
    assert "The Potting Shed" in "".join(piece for piece in mail.html if isinstance(piece, str))


def test_it_survives_being_stored() -> None:
    mail = compiled("Hi {{ name }}", layout=LETTER)
    assert Compiled.from_json(mail.to_json()) == mail


def test_links_are_numbered_by_target_and_unescaped() -> None:
    mail = compiled("[a](https://x.example/?a=1&b=2) [b](https://y.example/) [again](https://x.example/?a=1&b=2)")
    assert mail.links == ["https://x.example/?a=1&b=2", "https://y.example/"]
    html = personalizer(mail).rendered(person()).html
    assert len(re.findall(r"https://t\.shed\.example/c/[\w-]{28}/0\"", html)) == 2


def test_a_link_with_a_merge_tag_stays_as_it_is() -> None:
    mail = compiled("[map](https://maps.example/{{ city }}?q={{ city }})")
    assert mail.links == []
    html = personalizer(mail).rendered(person(fields={"city": 'Bath & "Wells"/x'})).html
    assert "https://maps.example/Bath%20%26%20%22Wells%22%2Fx?q=Bath%20%26" in html


def test_a_whole_url_from_a_field_is_only_ever_a_web_address() -> None:
    html = page("[mine](http://x.example)", layout=PLAIN.replace("{{ content }}", "{{ content }}" + _BUTTON))
    assert 'href="#"' in html
    assert "javascript" not in html


_BUTTON = '<mj-button href="{{ fields.site }}">Go</mj-button>'


def test_values_are_escaped_where_they_land() -> None:
    mail = compiled("Hi {{ name }} ![{{ name }}](https://x.example/a.png)", subject="For {{ name }}")
    rendered = personalizer(mail).rendered(person(name='<b>"Ann"</b>\r\nBcc: x'))
    assert "<b>" not in rendered.html
    assert "&lt;b&gt;&quot;Ann&quot;&lt;/b&gt;" in rendered.html
    assert rendered.subject == 'For <b>"Ann"</b> Bcc: x'
    assert '<b>"Ann"</b>' in rendered.text


def test_a_condition_on_lines_of_its_own_leaves_no_empty_paragraph() -> None:
    body = "{% if city %}\n\nYou live in {{ city }}: [near](https://x.example/).\n\n{% else %}\n\nWhere?\n\n{% endif %}"
    mail = compiled(body)
    there = personalizer(mail).rendered(person(fields={"city": "Bath"}))
    nowhere = personalizer(mail).rendered(person())
    assert "You live in Bath" in there.html
    assert re.search(r"/c/[\w-]{28}/0\"", there.html)
    assert "Where?" in nowhere.html
    assert "You live" not in nowhere.html + nowhere.text
    assert "<p></p>" not in there.html


def test_a_button_an_image_and_a_rule_become_blocks() -> None:
    mjml = markdown_to_mjml(
        'Hi\n\n[Read on](https://x.example/ "button")\n\n![A rose](https://x.example/r.jpg)\n\n---\n'
    )
    assert mjml.splitlines() == [
        "<mj-text><p>Hi</p>",
        "</mj-text>",
        '<mj-button href="https://x.example/">Read on</mj-button>',
        '<mj-image src="https://x.example/r.jpg" alt="A rose" />',
        "<mj-divider />",
    ]


def test_raw_html_and_script_links_in_markdown_stay_text() -> None:
    html = page("<script>alert(1)</script> [x](javascript:alert(1)) ![y](data:text/html,z)")
    assert "<script" not in html
    assert 'href="javascript' not in html


def test_the_text_part_says_the_same() -> None:
    mail = compiled(
        "# Rain\n\nSee [the forecast](https://x.example/).\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    )
    text = personalizer(mail).rendered(person(is_tracked=False)).text
    assert text == "Rain\n\nSee the forecast <https://x.example/>.\n\n* one\n* two\n\na | b\n1 | 2\n"


def test_the_preheader_is_the_first_thing_in_the_page_and_not_in_the_text() -> None:
    mail = compiled("Hi", layout=LETTER, preheader="Sow & water, {{ name }}")
    rendered = personalizer(mail).rendered(person())
    assert "Sow &amp; water, Ada Green" in rendered.html
    assert "Sow" not in rendered.text


def test_an_unknown_field_is_empty_and_warned_about() -> None:
    mail = compiled("Hi {{ nmae }}!", fields=frozenset({"city"}))
    assert mail.warnings == ["No subscriber has a field named “nmae”; it will be empty."]
    assert "Hi !" in personalizer(mail).rendered(person()).html


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("Hi {{ name", "opened with {{ but never closed"),
        ("Hi {{ name | }}", "cannot be read"),
        ("Hi {{ name | shout }}", "a filter that does not exist: shout"),
        ("{% if name %}Hi", "cannot be read"),
        ("{% include 'x' %}", "cannot be read"),
        ("{% assign x = 1 %}", "cannot be read"),
        ('{{ (1..20000000) | join: "" | size }}', "is too long"),
        ("{% for i in (1..n) %}x{% endfor %}", "is too long"),
    ],
)
def test_a_merge_tag_that_cannot_be_used_is_one_sentence(body: str, sentence: str) -> None:
    with pytest.raises(CompileError, match=re.escape(sentence)):
        compiled(body)


@pytest.mark.parametrize(
    "layout",
    [
        "<mjml><mj-body>{{ content }}",
        PLAIN.replace("<mj-section>", "<mj-raw><script>x</script></mj-raw><mj-section>"),
        PLAIN.replace("<mj-section>", '<mj-section onclick="x">'),
        PLAIN.replace("{{ content }}", '<mj-button href="javascript:x">y</mj-button>'),
    ],
)
def test_a_layout_that_is_broken_or_unsafe_is_refused(layout: str) -> None:
    with pytest.raises(CompileError, match="The layout"):
        compiled("Hi", layout=layout)


def test_merge_tags_reach_nothing_but_what_they_are_given() -> None:
    body = "[{{ name.__class__ }}{{ fields.__init__ }}{{ settings.SECRET_KEY }}{{ request }}{{ _links.__class__ }}]"
    assert "[]" in page(body)


def test_the_website_version_holds_no_control_links() -> None:
    mail = compiled("Hi [out]({{ unsubscribe_url }})", layout=LETTER).without_controls()
    assert "https://news.shed.example/u/" not in personalizer(mail).rendered(person()).html
