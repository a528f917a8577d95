"""An address has one form, one key, and a reason when it is refused."""

import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import given
from hypothesis import strategies as st

from subscribers import validating
from subscribers.validating import InvalidAddress, normalise


@pytest.mark.parametrize(
    ("typed", "email", "key"),
    [
        ("Ann@Example.ORG", "Ann@example.org", "ann@example.org"),
        ("  ann@example.org\u00a0", "ann@example.org", "ann@example.org"),
        ("x@bücher.example", "x@bücher.example", "x@xn--bcher-kva.example"),
        ("X@BÜCHER.EXAMPLE", "X@bücher.example", "x@xn--bcher-kva.example"),
        ("x@xn--bcher-kva.example", "x@bücher.example", "x@xn--bcher-kva.example"),
        ("JOSE\u0301@example.org", "JOSÉ@example.org", "josé@example.org"),
        ("用户@例え.jp", "用户@例え.jp", "用户@xn--r8jz45g.jp"),
        ("a@demo.test", "a@demo.test", "a@demo.test"),
    ],
)
def test_every_spelling_of_an_address_has_one_key(typed: str, email: str, key: str) -> None:
    assert normalise(typed)[:2] == (email, key)


def test_dots_and_tags_only_hint_at_a_duplicate() -> None:
    one, other = normalise("a.nn+news@gmail.com"), normalise("ann@googlemail.com")
    assert one.key != other.key
    assert one.duplicate_hint == other.duplicate_hint == "ann@gmail.com"
    assert normalise("a.nn+x@example.org").duplicate_hint == "a.nn@example.org"


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "   ",
        "ann",
        "ann@",
        "@example.org",
        "ann@localhost",
        "ann@example.org\r\nBcc: all@example.org",
        "ann@exa\x00mple.org",
        "ann\ud800@example.org",
        "a" * 65 + "@example.org",
        "ann@" + "a" * 300 + ".org",
        "ann@@example.org",
        "ann smith@example.org",
        "Ann <ann@example.org>",
        '"ann"@example.org',
        "ann@[127.0.0.1]",
        "ann@printer.local",
        "ann@-example.org",
        "ann.@example.org",
    ],
)
def test_what_cannot_be_mailed_is_refused_with_a_sentence(typed: str) -> None:
    with pytest.raises(InvalidAddress, match=r"\.$"):
        normalise(typed)


@given(st.text(max_size=80))
def test_any_text_ends_in_an_address_or_a_sentence(text: str) -> None:
    try:
        found = normalise(text)
    except InvalidAddress:
        return
    assert "\n" not in found.email
    assert len(found.key) <= 320


@given(st.emails())
def test_normalising_again_changes_nothing(typed: str) -> None:
    try:
        found = normalise(typed)
    except InvalidAddress:
        return
    assert normalise(found.email) == found
    assert normalise(found.key).key == found.key
    assert normalise(typed.upper()).key == found.key


_label = st.from_regex(r"[A-Za-z0-9-]{1,12}", fullmatch=True)
_local = st.from_regex(r"[A-Za-z0-9.+_'-]{1,20}", fullmatch=True)


@given(_local, st.lists(_label, min_size=1, max_size=3))
def test_the_quick_way_agrees_with_the_thorough_one(local: str, labels: list[str]) -> None:
    text = f"{local}@{'.'.join(labels)}"
    quick = validating._plain(text)
    if quick is None:
        return
    try:
        thorough = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError as refusal:
        pytest.fail(f"{text} was taken by the quick way: {refusal}")
    assert quick[2] == thorough.ascii_domain


def test_a_masked_address_is_known_to_its_owner_only() -> None:
    assert validating.masked("ann.smith@example.org") == "a•••@example.org"


def test_attributes_are_an_object_of_values_that_fit_into_a_mail() -> None:
    assert not validating.attributes_problem({"city": "Bath", "plants": ["rose"], "long": "x" * 10_000})
    assert "must be an object" in validating.attributes_problem(["Bath"])
    assert "“plants” is longer than 10 kB" in validating.attributes_problem({"plants": ["rose" * 100] * 30})
