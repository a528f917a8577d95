"""Tokens: one purpose each, no forgery, no second spelling, keys that rotate."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsletter.mailing.tokens import (
    BadToken,
    DeliveryKey,
    Keyring,
    Purpose,
    confirmation_token,
    delivery_tokens,
    read_confirmation,
    read_delivery,
    report_token,
)

RING = Keyring.parse(["1:first secret"])
KEY = DeliveryKey(7, 123_456)
AT = datetime(2026, 11, 2, 8, tzinfo=UTC)
WEEK = timedelta(days=7)
keys = st.builds(DeliveryKey, st.integers(0, 2**32 - 1), st.integers(0, 2**48 - 1))


def by_purpose(key: DeliveryKey, ring: Keyring = RING) -> dict[Purpose, str]:
    tokens = delivery_tokens(ring, key)
    return {
        Purpose.TRACK: tokens.track,
        Purpose.CONTROL: tokens.control,
        Purpose.RETURN: tokens.return_path,
        Purpose.REPORT: report_token(ring, key),
    }


@given(keys)
def test_each_token_reads_back_for_its_purpose_and_no_other(key: DeliveryKey) -> None:
    for made_for, token in by_purpose(key).items():
        for asked_for in Purpose:
            if asked_for is made_for:
                assert read_delivery(RING, asked_for, token) == key
            else:
                with pytest.raises(BadToken):
                    read_delivery(RING, asked_for, token)


def test_tokens_are_short() -> None:
    assert {len(token) for purpose, token in by_purpose(KEY).items() if purpose is not Purpose.RETURN} == {28}
    assert len(by_purpose(KEY)[Purpose.RETURN]) == 42, "hexadecimal, below the 64 of a local part with its prefix"


def test_a_return_path_survives_a_relay_that_changes_case() -> None:
    token = by_purpose(KEY)[Purpose.RETURN]
    assert read_delivery(RING, Purpose.RETURN, token.upper()) == KEY


@given(st.sampled_from(list(Purpose)), st.integers(0, 41), st.characters())
def test_a_changed_character_is_refused(purpose: Purpose, place: int, character: str) -> None:
    token = by_purpose(KEY)[purpose]
    place %= len(token)
    changed = token[:place] + character + token[place + 1 :]
    same = changed == token or (purpose is Purpose.RETURN and changed.upper() == token.upper())
    if not same:
        with pytest.raises(BadToken):
            read_delivery(RING, purpose, changed)


@given(st.sampled_from(list(Purpose)), st.text(max_size=60))
def test_any_text_is_refused_without_another_error(purpose: Purpose, text: str) -> None:
    with pytest.raises(BadToken):
        read_delivery(RING, purpose, text)


def test_a_foreign_installations_token_is_refused() -> None:
    with pytest.raises(BadToken):
        read_delivery(RING, Purpose.CONTROL, delivery_tokens(Keyring.parse(["1:another"]), KEY).control)


def test_a_retired_key_goes_on_verifying_and_the_first_signs() -> None:
    old = delivery_tokens(RING, KEY).control
    rotated = Keyring.parse(["2:second secret", "1:first secret"])
    assert read_delivery(rotated, Purpose.CONTROL, old) == KEY
    assert delivery_tokens(rotated, KEY).control != old
    with pytest.raises(BadToken):
        read_delivery(Keyring.parse(["2:second secret"]), Purpose.CONTROL, old)


def test_a_confirmation_lives_as_long_as_told() -> None:
    token = confirmation_token(RING, 99, AT)
    assert read_confirmation(RING, token, now=AT + WEEK, lifetime=WEEK) == (99, AT)
    for moment in (AT + WEEK + timedelta(seconds=1), AT - timedelta(hours=1)):
        with pytest.raises(BadToken):
            read_confirmation(RING, token, now=moment, lifetime=WEEK)


def test_a_confirmation_and_a_delivery_are_not_mistaken_for_each_other() -> None:
    with pytest.raises(BadToken):
        read_delivery(RING, Purpose.CONTROL, confirmation_token(RING, 99, AT))
    with pytest.raises(BadToken):
        read_confirmation(RING, delivery_tokens(RING, KEY).control, now=AT, lifetime=WEEK)


@pytest.mark.parametrize("entries", [[], ["secret"], ["x:secret"], ["300:secret"], ["1:"]])
def test_malformed_keys_are_refused_in_words(entries: list[str]) -> None:
    with pytest.raises(ValueError, match="TOKEN_KEYS"):
        Keyring.parse(entries)
