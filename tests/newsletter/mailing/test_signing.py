"""DKIM: dkimpy, which shares no code with the product, verifies what left for a server, changed or not."""

import json
import re
from io import StringIO
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from django.conf import LazySettings
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from dkim.canonicalization import Relaxed
from hypothesis import given
from hypothesis import strategies as st

from newsletter.env import email_url
from newsletter.mailing import signing
from newsletter.mailing.personalizing import Personalizer, Recipient
from newsletter.mailing.signing import EVERY_DOMAIN, KeyProblem, Keys, load_key, make_key, read_keys
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Result
from newsletter.mailing.transports.smtp import SmtpTransport
from tests.conftest import MailServer
from tests.newsletter.mailing.building import RING, SITE, compiled, person
from tests.newsletter.mailing.test_smtp import FOREVER

PEMS = {"rsa": make_key(), "ed25519": make_key(ed25519=True)}
BODY = "Hello {{ name }}, {{ fields.town | upcase }}\n\n.a line with a dot\n\n" + "  two  spaces\tand a tab \n\n" * 30
PEOPLE = [
    person(key=DeliveryKey(1, 1), name='Ada "the, Green"', fields={"town": "\r\n.\r\nBath"}),
    person(key=DeliveryKey(1, 2), name="周 小 🦔", email="zhou@例え.jp", fields={"town": "ä" * 400}),
    person(key=DeliveryKey(1, 3), name="", fields={"town": ".\n..\n" * 50}),
]


def keys(kind: str = "rsa", domain: str = EVERY_DOMAIN) -> Keys:
    return Keys("s1", {domain: load_key(PEMS[kind], named="a test's")})


def letter(with_keys: Keys, *, subject: str = "News for {{ name }}") -> Personalizer:
    return Personalizer(
        compiled(BODY, subject=subject),
        keyring=RING,
        addresses=SITE,
        mail_from="bounce@shed.example",
        boundary="=_nl-1",
        sign=with_keys.signer("shed.example"),
    )


def verifies(content: bytes, with_keys: Keys, domain: str = "shed.example") -> bool:
    """What a receiver says who looks the public key up at its place in the DNS."""
    zone = {f"s1._domainkey.{domain}.".encode(): with_keys.record(domain).encode()}
    return bool(dkim.verify(content, dnsfunc=lambda name, timeout=5: zone.get(name)))


def deliver(url: str, mail: Personalizer, people: list[Recipient]) -> None:
    transport = SmtpTransport(email_url(url))
    reports = list(transport.deliver(mail, people, until=lambda: FOREVER))
    transport.close()
    assert {report.result for report in reports} == {Result.ACCEPTED}


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_a_signature_holds_for_everybody_after_the_way_through_a_server(mail_server: MailServer, kind: str) -> None:
    with_keys = keys(kind)
    deliver(mail_server.url, letter(with_keys), PEOPLE)
    assert len(mail_server.contents) == len(PEOPLE)
    for content in mail_server.contents:
        assert verifies(content, with_keys)
        assert all(len(line) <= 998 for line in content.split(b"\r\n"))
    assert len(mail_server.messages) == len(PEOPLE), "strictly parsed"


def test_every_header_that_matters_is_inside_the_signature() -> None:
    content = letter(keys()).message(PEOPLE[0]).content
    named = re.search(rb"h=([^;]*);", content)
    assert named
    inside = re.sub(rb"\s", b"", named.group(1)).decode().split(":")
    assert {"list-unsubscribe", "list-unsubscribe-post", "list-id", "feedback-id", "message-id"} <= set(inside)
    assert {name: inside.count(name) for name in ("from", "to", "subject", "date")} == {
        "from": 2,
        "to": 2,
        "subject": 2,
        "date": 2,
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Subject: News", b"Subject: Olds"),
        (b"From: ", b"From: Eve <eve@evil.example>\r\nFrom: "),
        (b"Subject: ", b"Subject: first\r\nSubject: "),
        (b"MIME-Version", b"Reply-To: eve@evil.example\r\nMIME-Version"),
        (b"List-Unsubscribe: <https", b"List-Unsubscribe: <http"),
        (b"two", b"too"),
    ],
)
def test_what_is_changed_on_the_way_is_noticed(old: bytes, new: bytes) -> None:
    content = letter(keys()).message(PEOPLE[0]).content
    assert verifies(content, keys())
    assert old in content
    assert not verifies(content.replace(old, new, 1), keys())


def test_white_space_may_change_on_the_way() -> None:
    content = letter(keys()).message(PEOPLE[0]).content
    assert verifies(content.replace(b"Subject: ", b"subject:\t ", 1) + b"\r\n\r\n", keys())


@given(st.lists(st.text(alphabet=" \tab.\r", max_size=12), max_size=8))
def test_the_canonical_body_is_that_of_dkimpy(lines: list[str]) -> None:
    body = "".join(f"{line}\r\n" for line in lines).encode()
    assert signing.relaxed_body(body) == Relaxed.canonicalize_body(body)


@given(st.lists(st.tuples(st.sampled_from(["To", "SUBJECT", "subject", "Date "]), st.text(" \tab:")), max_size=6))
def test_the_canonical_headers_are_those_of_dkimpy(headers: list[tuple[str, str]]) -> None:
    head = "\r\n".join(f"{name}: x {value}\r\n\t y" for name, value in headers).encode()
    _, fields = signing.signed_fields(head)
    given_fields = [(name.encode(), f" x {value}\r\n\t y\r\n".encode()) for name, value in headers]
    theirs = [b"%b:%b" % (name, value.rstrip(b"\r\n")) for name, value in Relaxed.canonicalize_headers(given_fields)]
    assert sorted(fields) == sorted(theirs)


# Which key signs ---------------------------------------------------------------------------------------------------


def test_each_domain_has_its_own_key_and_others_are_not_signed(tmp_path: Path) -> None:
    for kind, domain in (("rsa", "shed.example"), ("ed25519", "garden.example")):
        (tmp_path / f"{domain}.pem").write_bytes(PEMS[kind])
    found = read_keys(path=str(tmp_path), selector="s1")
    assert found
    assert "k=rsa" in found.record("shed.example")
    assert "k=ed25519" in found.record("Garden.example")
    assert found.signer("other.example") is None
    assert found.record("other.example") == ""
    message = b"From: Ann <ann@other.example>\r\n\r\nHello\r\n"
    assert found.signed(message) == message
    assert verifies(found.signed(message.replace(b"other", b"garden")), found, "garden.example")


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_djangos_own_mail_is_signed_too(mail_server: MailServer, settings: LazySettings, kind: str) -> None:
    settings.DKIM_KEYS = keys(kind)
    message = EmailMessage(
        "Grüße", ".dots\n.\nfrom ä\n", "Ann <ann@shed.example>", ["Bea <bea@mail.example>"], reply_to=["c@shed.example"]
    )
    assert message.send() == 1
    assert verifies(mail_server.contents[0], settings.DKIM_KEYS)


def test_djangos_own_mail_leaves_as_it_is_without_a_key(mail_server: MailServer) -> None:
    EmailMessage("Hello", "Text", "ann@shed.example", ["bea@mail.example"]).send()
    assert "DKIM-Signature" not in mail_server.messages[0]


# Keys that cannot be used ------------------------------------------------------------------------------------------


def pem_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, *, password: bytes = b"") -> bytes:
    locked = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)


@pytest.mark.parametrize(
    ("pem", "word"),
    [
        (b"", "no private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key in PEM"),
        (pem_of(rsa.generate_private_key(65_537, 2048), password=b"word"), "protected by a password"),
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "must be RSA or Ed25519"),
    ],
)
def test_a_key_that_cannot_sign_is_explained_without_showing_it(tmp_path: Path, pem: bytes, word: str) -> None:
    (tmp_path / "key").write_bytes(pem)
    with pytest.raises(KeyProblem, match=word) as problem:
        read_keys(path=str(tmp_path / "key"), selector="s1")
    assert "AAAA" not in str(problem.value)


@pytest.mark.parametrize(
    ("given_settings", "word"),
    [
        ({"path": "/nowhere/key.pem", "selector": "s1"}, "cannot be read"),
        ({"path": "/nowhere/key.pem", "pem": "x", "selector": "s1"}, "keep one"),
        ({"pem": PEMS["rsa"].decode(), "selector": ""}, "no DKIM_SELECTOR"),
        ({"pem": PEMS["rsa"].decode(), "selector": "a b;"}, "letters, digits"),
    ],
)
def test_settings_that_do_not_go_together_are_explained(given_settings: dict[str, str], word: str) -> None:
    with pytest.raises(KeyProblem, match=word):
        read_keys(**given_settings)


def test_an_empty_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(KeyProblem, match="holds no file"):
        read_keys(path=str(tmp_path), selector="s1")


def test_a_key_in_one_line_of_a_settings_file_is_read() -> None:
    one_line = PEMS["rsa"].decode().replace("\n", "\\n")
    found = read_keys(pem=one_line, selector="s1")
    assert found
    assert verifies(letter(found).message(PEOPLE[0]).content, keys())


# The command -------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> str:
    out = StringIO()
    call_command("dkim_key", *arguments, stdout=out)
    return out.getvalue()


def test_the_command_makes_a_key_once_and_shows_what_to_publish(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "shed.example.pem"
    arguments = ("Shed.example.", "--file", str(file), "--selector", "s1")
    shown = command(*arguments)
    assert "s1._domainkey.shed.example" in shown
    assert "Made" in shown
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    again = json.loads(command(*arguments, "--json"))
    assert again["is_new"] is False
    assert again["value"] in shown
    found = read_keys(path=str(file), selector=again["settings"]["DKIM_SELECTOR"])
    assert found
    assert found.record("shed.example") == again["value"]
    assert verifies(letter(found).message(PEOPLE[0]).content, found)


@pytest.mark.parametrize("domain", ["", "a b", "../x", "a/b", "x-.example", "x@y.example"])
def test_the_command_refuses_what_is_no_domain(tmp_path: Path, domain: str) -> None:
    with pytest.raises(CommandError) as refused:
        command(domain, "--file", str(tmp_path / "key.pem"))
    assert refused.value.returncode == 2
    assert not (tmp_path / "key.pem").exists()
