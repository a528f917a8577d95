"""A suppressed address is known by its hash alone, and stays suppressed."""

from datetime import timedelta

import pytest

from subscribers import suppressing
from subscribers.models import AuditEntry, Subscriber, Suppression
from subscribers.suppressing import Unwanted
from tests.conftest import NOW
from tests.subscribers.conftest import Reader

pytestmark = pytest.mark.django_db


def test_suppressing_marks_the_person_and_leaves_only_a_hash(reader: Reader) -> None:
    assert suppressing.suppress("ann@mail.example", reason="complaint", source="feedback loop", now=NOW)
    reader.subscriber.refresh_from_db()
    assert reader.subscriber.suppressed_at == NOW
    row = Suppression.objects.get()
    assert len(bytes(row.address_hash)) == 32
    assert b"ann" not in bytes(row.address_hash)
    assert suppressing.suppressed_among(["ann@mail.example", "bea@mail.example"]) == {"ann@mail.example"}


def test_repeating_changes_nothing(reader: Reader) -> None:
    suppressing.suppress("ann@mail.example", reason="bounce", source="first", now=NOW)
    assert not suppressing.suppress("ann@mail.example", reason="manual", source="second", now=NOW)
    assert Suppression.objects.get().source == "first"


def test_an_address_that_nobody_knows_can_be_suppressed_too() -> None:
    assert suppressing.suppress("stranger@mail.example", reason="manual", source="", now=NOW)
    assert not Subscriber.objects.exists()
    assert suppressing.is_suppressed("stranger@mail.example")


def test_lifting_lets_the_person_be_mailed_again_and_keeps_no_address(reader: Reader) -> None:
    suppressing.suppress("ann@mail.example", reason="bounce", source="5.1.1", now=NOW)
    suppressing.lift("ann@mail.example", why="typed wrongly", actor="ada")
    reader.subscriber.refresh_from_db()
    assert reader.subscriber.suppressed_at is None
    assert not suppressing.is_suppressed("ann@mail.example")
    entry = AuditEntry.objects.get(action="suppression.lift")
    assert (entry.actor, entry.details["why"], entry.details["reason"]) == ("ada", "typed wrongly", "bounce")
    assert "ann" not in f"{entry.subject} {entry.details}"


def test_what_is_not_suppressed_or_asked_to_be_erased_is_not_lifted() -> None:
    with pytest.raises(suppressing.CannotLift, match="is not suppressed"):
        suppressing.lift("ann@mail.example", why="", actor="ada")
    suppressing.suppress("ann@mail.example", reason="erasure", source="", now=NOW)
    with pytest.raises(suppressing.CannotLift, match="asked to be erased"):
        suppressing.lift("ann@mail.example", why="", actor="ada")
    assert suppressing.is_suppressed("ann@mail.example")


def test_many_are_suppressed_at_once_and_the_first_word_about_each_stays() -> None:
    suppressing.suppress("ann@mail.example", reason="complaint", source="before", now=NOW)
    bea = Subscriber.objects.create(email="bea@mail.example", email_key="bea@mail.example")
    earlier = NOW - timedelta(days=3)
    said = [("bea@mail.example", "later", NOW), ("bea@mail.example", "first", earlier), ("ann@mail.example", "x", NOW)]
    assert suppressing.suppress_all((Unwanted(*one) for one in said), reason="bounce") == 1
    assert suppressing.suppress_all([], reason="bounce") == 0
    bea.refresh_from_db()
    assert bea.suppressed_at == earlier
    rows = Suppression.objects.order_by("since").values_list("reason", "source", "since")
    assert list(rows) == [("bounce", "first", earlier), ("complaint", "before", NOW)]
