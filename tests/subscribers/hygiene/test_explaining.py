"""The sentence for one person says what was sent, what was seen, and what it proves."""

from typing import Any

import pytest

from subscribers.hygiene import explaining, policies
from subscribers.models import TrackingConsent
from tests.subscribers.hygiene.building import Letters, make_list, subscribe

pytestmark = pytest.mark.django_db


def explained(name: str, *, read: tuple[int, ...] = (), fetched: dict[int, str] | None = None, **more: Any) -> Any:
    """Evidence and reason of somebody on a weekly of thirty issues."""
    letters = Letters.weekly(make_list(), 30)
    reader, person = subscribe(letters.to, "reader")[0], subscribe(letters.to, name, **more)[0]
    letters.deliver([reader, person])
    letters.read(reader, *range(1, 31))
    letters.read(person, *read)
    found = policies.judge(letters.to.pk, at=letters.end)
    evidence = explaining.evidence(found.remove[0], chances=found.opportunities, fetches=fetched or {})
    return evidence, explaining.reason(evidence)


def test_somebody_who_never_read() -> None:
    evidence, reason = explained("never")
    assert reason == "Got 30 issues since 6 January 2025; none was ever opened or clicked by a person."
    assert evidence["strip"] == "s" * 30


def test_what_machines_fetched_proves_nothing() -> None:
    _, reason = explained("apple", fetched=dict.fromkeys(range(1, 12), "a") | {20: "m"})
    assert reason.endswith(
        "11 were fetched by Apple Mail, which proves nothing either way. "
        "1 was fetched by a scanner, which proves nothing."
    )


def test_somebody_who_once_read_and_machines_since() -> None:
    evidence, reason = explained("lapsed", read=(1, 2), fetched={1: "a", 2: "a", 3: "a"})
    assert reason == (
        "Last opened an issue on 13 January 2025. Got 28 issues since; none was opened or clicked by a person. "
        "1 was fetched by Apple Mail, which proves nothing either way."
    )
    assert evidence["strip"] == "rra" + "s" * 27


def test_of_some_only_a_date_is_known() -> None:
    _, reason = explained("dated", read=(2,), consent=TrackingConsent.HYGIENE)
    assert reason == "Last opened on 13 January 2025, the only thing they let us keep; 28 issues went out since."
