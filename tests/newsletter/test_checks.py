"""Settings that would hurt are named by a check with an id and a hint."""

from pathlib import Path

import pytest
from django.core.checks import CheckMessage
from pytest_django import Settings

from newsletter import checks, env
from newsletter.mailing.signing import make_key, read_keys


def ids(found: list[CheckMessage]) -> list[str]:
    assert all(message.hint for message in found)
    return [str(message.id).removeprefix("newsletter.") for message in found]


@pytest.mark.parametrize(
    ("site", "edge", "expected"),
    [
        ("http://127.0.0.1:8000", "http://localhost:8001", []),
        ("http://[::1]:8000", "http://news.localhost", []),
        ("https://news.example.org", "http://127.0.0.1:8001", ["E001"]),
        ("http://192.168.1.4:8000", "http://0.0.0.0:8001", ["E001", "E001"]),
    ],
)
def test_the_demo_is_refused_under_a_public_name(settings: Settings, site: str, edge: str, expected: list[str]) -> None:
    settings.DEMO, settings.SITE_URL, settings.EDGE_URL = True, site, edge
    settings.ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
    assert ids(checks.the_demo_stays_on_this_machine()) == expected
    settings.DEMO = False
    assert checks.the_demo_stays_on_this_machine() == []


@pytest.mark.parametrize("host", ["news.example.org", ".example.org", "*"])
def test_the_demo_does_not_answer_to_a_public_name(settings: Settings, host: str) -> None:
    settings.DEMO, settings.SITE_URL, settings.EDGE_URL = True, "http://127.0.0.1:8000", "http://127.0.0.1:8001"
    settings.ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", host]
    assert ids(checks.the_demo_stays_on_this_machine()) == ["E001"]


@pytest.mark.parametrize("url", ["news.example.org", "ftp://news.example.org", "https://news.example.org/sub", ""])
def test_an_address_with_a_missing_or_further_part_is_refused(settings: Settings, url: str) -> None:
    settings.SITE_URL, settings.EDGE_URL = url, "https://edge.example.org:8443"
    assert ids(checks.addresses_are_whole()) == ["E002"]


@pytest.mark.parametrize(("keys", "expected"), [(["1:secret"], []), (["secret"], ["E003"]), (["999:x"], ["E003"])])
def test_malformed_token_keys_are_refused(settings: Settings, keys: list[str], expected: list[str]) -> None:
    settings.TOKEN_KEYS = keys
    assert ids(checks.token_keys_can_be_read()) == expected


def test_stream_cache_and_broker_must_be_apart(settings: Settings) -> None:
    assert checks.stream_and_cache_are_apart() == []
    settings.CACHE_URL = settings.BROKER_URL = settings.STREAM_URL
    assert ids(checks.stream_and_cache_are_apart()) == ["E004", "E004"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example.org:587?starttls=1", []),
        ("smtp://:25", ["E005"]),
        ("smtp://mail.example.org smtp://:25", ["E005"]),
        ("sendgrid://", ["E006"]),
        ("mailgun://key@", ["E007"]),
        ("mailgun://key@example.org", []),
        ("ses://?region=eu-west-1", []),
    ],
)
def test_a_mail_service_without_what_it_needs_is_refused(settings: Settings, url: str, expected: list[str]) -> None:
    settings.MAIL_TRANSPORT = env.email_url(url)
    assert ids(checks.the_mail_service_has_what_it_needs()) == expected


def test_a_server_without_tls_is_warned_and_a_laptop_is_not(settings: Settings) -> None:
    settings.SITE_URL, settings.EDGE_URL = "http://news.example.org", "http://127.0.0.1:8001"
    assert ids(checks.a_server_is_reached_by_tls()) == ["W001"]
    settings.SITE_URL = "https://news.example.org"
    assert checks.a_server_is_reached_by_tls() == []
    assert ids(checks.the_proxy_is_known()) == ["W005"]
    settings.TRUSTED_PROXIES = 1
    assert checks.the_proxy_is_known() == []


def test_short_and_shared_secrets_and_a_sender_at_localhost_are_warned(settings: Settings) -> None:
    assert checks.secrets_are_long_and_apart() == []
    settings.TOKEN_KEYS, settings.SUPPRESSION_KEY = ["1:short"], "short"
    assert ids(checks.secrets_are_long_and_apart()) == ["W002", "W003"]
    settings.DEFAULT_FROM_EMAIL = "Newsletter <newsletter@localhost>"
    assert ids(checks.mails_come_from_an_address_of_ours()) == ["W004"]
    settings.DEFAULT_FROM_EMAIL = "Newsletter <news@example.org>"
    assert checks.mails_come_from_an_address_of_ours() == []


def test_a_dkim_key_that_others_can_read_or_nobody_uses_is_warned(settings: Settings, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(make_key())
    key.chmod(0o600)
    settings.DKIM_KEYS = read_keys(path=str(key), selector="s1")
    settings.MAIL_TRANSPORT = env.email_url("smtp://mail.example.org")
    assert checks.dkim_keys_are_private() == checks.mail_is_signed_once() == []
    key.chmod(0o640)
    assert ids(checks.dkim_keys_are_private()) == ["W007"]
    settings.MAIL_TRANSPORT = env.email_url("mailgun://key@example.org")
    assert ids(checks.mail_is_signed_once()) == ["W006"]


def test_a_dkim_key_among_the_programs_files_is_warned(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(make_key())
    key.chmod(0o600)
    settings.DKIM_KEYS = read_keys(path=str(key), selector="s1")
    monkeypatch.setattr(checks, "BASE_DIR", tmp_path)
    assert ids(checks.dkim_keys_are_private()) == ["W008"]
    monkeypatch.setattr(checks, "DATA_DIR", tmp_path)
    assert checks.dkim_keys_are_private() == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://user:word@mail.example.org", ["W009"]),
        ("smtp://user:word@127.0.0.1:2525", []),
        ("smtp://user:word@mail.example.org?starttls=1 smtps://user:word@mail2.example.org", []),
        ("smtps://mail.example.org, smtp://user:word@mail2.example.org:587", ["W009"]),
        ("sendgrid://key@", []),
    ],
)
def test_a_password_that_travels_in_the_clear_is_warned(settings: Settings, url: str, expected: list[str]) -> None:
    settings.MAIL_TRANSPORT = env.email_url(url)
    found = checks.passwords_travel_encrypted()
    assert ids(found) == expected
    assert not any("word@" in message.msg for message in found)


def test_authorities_that_are_none_are_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing", encoding="utf-8")
    for ca, word in ((tmp_path / "ca.pem", "no certificate"), (tmp_path / "missing.pem", "No such file")):
        settings.MAIL_TRANSPORT = env.email_url(f"smtps://mail.example.org?ca={ca}")
        [problem] = checks.authorities_can_be_read()
        assert word in problem.msg
        assert ids([problem]) == ["E008"]
    settings.MAIL_TRANSPORT = env.email_url("smtps://mail.example.org")
    assert checks.authorities_can_be_read() == []
