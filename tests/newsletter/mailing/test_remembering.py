"""What was printed for the same values before is printed again, and nothing else is."""

from collections.abc import Iterator
from email import message_from_bytes, policy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsletter.mailing import remembering
from newsletter.mailing.tokens import DeliveryKey
from tests.newsletter.mailing.building import compiled, person, personalizer

BODY = (
    "{% if city == 'Bath' %}pump room{% else %}{{ city }}{% endif %} "
    "{% if n %}n {{ n }}{% endif %} {% for p in plants %}{{ p }},{% endfor %} "
    "{% if vip %}[read](https://x.example/) {{ first_name }}{% endif %} {{ city | upcase | append: n }}"
)


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    remembering._store.clear()
    yield
    remembering._store.clear()


def text_of(content: bytes) -> str:
    part = message_from_bytes(content, policy=policy.SMTP).get_body(("plain",))
    assert part
    return str(part.get_content())


values = st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.sampled_from(["Bath", "Wells", "1", "True", ""]))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"city": values, "n": values, "vip": values}), min_size=2, max_size=6))
def test_each_gets_what_a_whole_render_would_give(people: list[dict[str, Any]]) -> None:
    mail = personalizer(compiled(BODY))
    for number, fields in enumerate(people, start=1):
        recipient = person(key=DeliveryKey(1, number), fields={**fields, "plants": ["rose"] * (number % 3)})
        sent = text_of(mail.message(recipient).content)
        assert sent.replace("\r\n", "\n").split() == mail.rendered(recipient).text.split()


def test_a_condition_is_worked_out_once_for_each_city() -> None:
    mail = personalizer(compiled("{% if city == 'Bath' %}pump room{% endif %}"))
    for number in range(1, 50):
        mail.message(person(key=DeliveryKey(1, number), fields={"city": ["Bath", "Wells"][number % 2]}))
    assert len(remembering._store) == 2  # both parts say it in the same words


def test_a_link_and_a_moment_are_never_another_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    mail = personalizer(compiled("{% if city %}[x](https://x.example/) {{ 'now' | date: '%s' }}{% endif %}"))
    one, two = (mail.message(person(key=DeliveryKey(1, n), fields={"city": "Bath"})).content for n in (1, 2))
    assert text_of(one).split(">")[0] != text_of(two).split(">")[0]
    assert not remembering._store


def test_the_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "STORE_BYTES", 20_000)
    mail = personalizer(compiled("{% if city %}{{ city }} again{% endif %}"))
    for number in range(1, 600):
        mail.message(person(key=DeliveryKey(1, number), fields={"city": f"City {number}"}))
        kept = sum(len(made) + sum(len(str(part)) for part in key) for key, made in remembering._store.items())
        assert kept <= 20_000
    assert remembering._stored <= 20_000
