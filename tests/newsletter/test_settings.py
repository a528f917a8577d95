"""The project's settings hold together."""

import pytest
from django.db import connection

from newsletter.env import email_url


@pytest.mark.django_db
def test_the_database_of_the_tests_is_a_real_postgresql() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        assert int(cursor.fetchone()[0]) >= 180000


def test_several_mail_servers_stand_in_one_address() -> None:
    first = email_url(
        "smtp://a:x%2C%20y@one.example:587?starttls=1&weight=3, smtps://two.example\nsmtp://b:p,q@three.example"
    )
    assert [url.host for url in first.servers] == ["one.example", "two.example", "three.example"]
    assert [url.password for url in first.servers] == ["x, y", "", "p,q"]
    assert first.options["weight"] == "3"
    assert all(url.others == () for url in first.servers[1:])


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "must look like"),
        ("mail.example.org:25", "must look like"),
        ("smtp://mail.example.org:port", "not a number"),
        ("smtp://mail.example.org?connections=0", "0 connections"),
        ("smtp://mail.example.org?connections=²", "number from 1"),
        ("smtp://mail.example.org?weight=0.5", "0.5 as weight"),
        ("smtp://mail.example.org?startls=1", "unknown here: startls"),
        ("smtps://mail.example.org?starttls=1", "drop starttls"),
        ("smtp://mail.example.org mailgun://key@example.org", "only SMTP servers"),
    ],
)
def test_a_mail_address_that_cannot_be_meant_is_explained(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        email_url(url)
