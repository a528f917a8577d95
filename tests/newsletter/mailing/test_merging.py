"""Merging: whatever a text and a person's values hold, the service makes of them what was meant."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsletter.mailing.compiling import Piece
from newsletter.mailing.merging import NONCE, merged
from newsletter.mailing.transports.providers import PROVIDERS, Way
from tests.newsletter.mailing.building import compiled, person, personalizer
from tests.newsletter.mailing.esp_merging import RULES

PLAIN = compiled("Hello")
# Literals and values made of what services look for.
_BRACES = ["{", "}", "{{", "}}", "{{{", "{%", "%}", "{#", "#}", "params.x", "var:x"]
_PERCENTS = ["%", "%recipient.", "recipient.x%", "unsubscribe_url%", "%unsubscribe_url%", "x", "-", "0"]
_OTHERS = ["&amp;", "é", "🌱", "<b>", " ", "\n"]
tricky = st.lists(st.sampled_from([*_BRACES, *_PERCENTS, *_OTHERS]), max_size=8).map("".join)
pieces: st.SearchStrategy[list[Piece]] = st.lists(
    st.one_of(
        tricky,
        st.sampled_from([["liquid", "{{ name | _plain }}"], ["liquid", "{{ city | _html }}"]]),
        st.sampled_from([["control", "u"], ["control", "w"], ["link", 0], ["pixel"]]),
    ),
    max_size=8,
)


def test_the_rules_are_those_of_all_services_that_merge() -> None:
    assert set(RULES) == {scheme for scheme, provider in PROVIDERS.items() if provider.way is Way.MERGE}


@pytest.mark.parametrize("scheme", list(RULES))
@settings(max_examples=150, deadline=None)
@given(subject=pieces, page=pieces, text=pieces, name=tricky, city=tricky, tracked=st.booleans())
def test_what_was_meant_arrives(
    scheme: str, subject: list[Piece], page: list[Piece], text: list[Piece], name: str, city: str, tracked: bool
) -> None:
    syntax = PROVIDERS[scheme].syntax
    assert syntax
    subject = [piece for piece in subject if isinstance(piece, str) or piece[0] == "liquid"]
    links = ["https://one.example/?a={{x}}&b=%recipient.x%"]
    mail = personalizer(replace(PLAIN, subject=subject, html=page, text=text, links=links))
    to = person(name=name, fields={"city": city}, is_tracked=tracked)
    merge = merged(mail, syntax, tracked=tracked)
    values = merge.values(to)
    if scheme == "sendgrid":
        values = {syntax.field(field): value for field, value in values.items()}
    expected = mail.rendered(to, with_pixel=True)
    rule = RULES[scheme]
    assert rule(merge.html, values) == expected.html
    assert rule(merge.text, values) == expected.text
    assert rule(merge.subject, values).split() == expected.subject.split()
    assert rule(merge.unsubscribe_url, values) == mail.unsubscribe_url(to)


def test_fields_have_names_that_nobody_can_guess_and_a_link_costs_a_token() -> None:
    mail = personalizer(compiled("{{ name }} [one](https://one.example/) [two](https://two.example/)"))
    syntax = PROVIDERS["mailgun"].syntax
    assert syntax
    merge = merged(mail, syntax, tracked=True)
    values = merge.values(person())
    assert all(field.startswith(NONCE) for field in values)
    assert len(values) <= 4  # the name, twice as it is escaped in two ways, and two tokens
    assert "Ada Green" not in merge.html + merge.text + merge.subject
    assert merged(mail, syntax, tracked=True) is merge, "the texts are made once"
