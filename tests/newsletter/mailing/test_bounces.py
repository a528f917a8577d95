"""The class of a bounce by its enhanced status code."""

import pytest

from newsletter.mailing.bounces import BounceClass, classify, enhanced_code


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("5.1.1", "", BounceClass.HARD),
        ("5.1.10", "null MX", BounceClass.HARD),
        ("5.2.1", "disabled", BounceClass.HARD),
        ("5.4.1", "550 5.4.1 Recipient address rejected: Access denied", BounceClass.HARD),
        ("5.4.1", "no answer from host", BounceClass.SOFT),
        ("5.2.2", "mailbox full", BounceClass.SOFT),
        ("4.1.1", "", BounceClass.SOFT),
        ("5.7.515", "not authenticated", BounceClass.POLICY),
        ("4.7.1", "greylisted", BounceClass.POLICY),
        ("", "User unknown", BounceClass.SOFT),
    ],
)
def test_the_code_decides(code: str, text: str, expected: BounceClass) -> None:
    assert classify(code, text) is expected


def test_a_code_is_found_in_what_a_server_said() -> None:
    assert enhanced_code(None, "550-5.1.1 The email account does not exist") == "5.1.1"
    assert enhanced_code("", "connected to 5.1.1.7 and 2.5.1.10") == ""
