"""Servers with habits of their own: few messages a connection, goodbyes in mid-campaign, few extensions."""

from collections.abc import Callable

import pytest

from newsletter.env import email_url
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Result
from newsletter.mailing.transports.smtp import SmtpTransport
from tests.newsletter.mailing.building import person
from tests.newsletter.mailing.test_smtp import FOREVER, MAIL, Dialogue, deliver, people, results, server, takes_all
from tests.newsletter.mailing.test_smtp_tls import wait_until_closed

PIPELINED = pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])


def takes(count: int, *extensions: str, goodbye: str = "") -> Callable[[Dialogue], None]:
    """A server that takes some messages a connection, then says goodbye to the next MAIL, or just goes."""

    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo(*extensions)
        for _ in range(count):
            if not dialogue.envelope():
                return
            dialogue.body()
            dialogue.say("250 2.0.0 taken")
        if goodbye:
            dialogue.line()
            dialogue.say(goodbye)

    return answer


@PIPELINED
@pytest.mark.parametrize("goodbye", ["", "421 4.7.0 too many messages in this session", "554 5.7.0 too many messages"])
@pytest.mark.parametrize("connections", [1, 3])
def test_a_server_that_ends_each_connection_after_some_messages_gets_them_all(
    extensions: tuple[str, ...], goodbye: str, connections: int
) -> None:
    with server(takes(4, *extensions, goodbye=goodbye)) as url:
        assert results(deliver(url, 21, connections=connections)) == [Result.ACCEPTED] * 21


@PIPELINED
def test_a_server_that_takes_no_mail_from_us_fails_no_recipient(extensions: tuple[str, ...]) -> None:
    """MAIL is refused for who we are (530: no login; 550: not this sender), which says nothing of a recipient."""

    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo(*extensions)
        while dialogue.line():
            dialogue.say("550 5.7.1 sender not allowed")

    with server(answer) as url:
        assert set(results(deliver(url, 4))) == {Result.NOT_SENT}


@PIPELINED
def test_a_goodbye_in_mid_envelope_is_taken_by_another_connection(extensions: tuple[str, ...]) -> None:
    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo(*extensions)
        if dialogue.number == 0:
            dialogue.envelope()
            dialogue.body()
            dialogue.say("250 taken")
            dialogue.line()
            dialogue.say("250 fine")
            dialogue.line()
            dialogue.say("421 4.3.2 going down")
            return
        while dialogue.envelope():
            dialogue.body()
            dialogue.say("250 taken")

    with server(answer) as url:
        assert results(deliver(url, 6)) == [Result.ACCEPTED] * 6


def test_fewer_connections_than_asked_for_are_enough_for_all() -> None:
    """Two are served, the third is told to go: the transport goes on with what it got."""

    def answer(dialogue: Dialogue) -> None:
        if dialogue.number >= 2:
            dialogue.say("421 4.7.0 too many connections from you")
            return
        takes_all("PIPELINING")(dialogue)

    with server(answer) as url:
        assert results(deliver(url, 40, connections=8)) == [Result.ACCEPTED] * 40


def test_a_kept_connection_that_the_server_dropped_is_replaced() -> None:
    seen: list[int] = []

    def answer(dialogue: Dialogue) -> None:
        seen.append(dialogue.number)
        takes(3, "PIPELINING")(dialogue)

    with server(answer) as url:
        transport = SmtpTransport(email_url(f"{url}?connections=1"))
        for _ in range(2):
            reports = list(transport.deliver(MAIL, people(3), until=lambda: FOREVER))
            assert [report.result for report in reports] == [Result.ACCEPTED] * 3
            wait_until_closed([connection.socket for connection, _ in transport._servers[0]._kept])
        transport.close()
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("extensions", "email", "expected"),
    [
        ((), "ada@mail.example", ""),
        (("8BITMIME",), "ada@mail.example", " BODY=8BITMIME"),
        (("SMTPUTF8",), "ada@mail.example", ""),
        (("8BITMIME", "SMTPUTF8"), "jürgen@mail.example", " BODY=8BITMIME SMTPUTF8"),
    ],
)
def test_an_extension_is_used_only_where_it_is_offered_and_needed(
    extensions: tuple[str, ...], email: str, expected: str
) -> None:
    lines: list[str] = []

    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo(*extensions)
        lines.append(dialogue.line())
        dialogue.say("250 fine")
        lines.append(dialogue.line())
        dialogue.say("550 no")

    with server(answer) as url:
        transport = SmtpTransport(email_url(url))
        one = person(key=DeliveryKey(1, 1), email=email)
        list(transport.deliver(MAIL, [one], until=lambda: FOREVER))
        transport.close()
    assert lines[0].partition(">")[2] == expected
    assert lines[1] == f"RCPT TO:<{email}>"
