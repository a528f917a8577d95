"""SMTP connections against servers that answer as told: what each answer, and each silence, comes to."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from newsletter import mailserver
from newsletter.env import email_url
from newsletter.mailing.personalizing import Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports import smtp_loop
from newsletter.mailing.transports.base import Report, Result, TransportError
from newsletter.mailing.transports.smtp import SmtpTransport
from tests.newsletter.mailing.building import compiled, person, personalizer

MAIL = personalizer(compiled("Hello {{ name }}\n\n" + "long text " * 2_000))
FOREVER = datetime.now(UTC) + timedelta(days=1)
GREETING = b"220 mail.example ready\r\n"


def people(count: int) -> list[Recipient]:
    return [person(key=DeliveryKey(1, i), email=f"p{i}@mail.example") for i in range(count)]


class Dialogue:
    """The server's side of one connection."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.number = number  # of the connections to this server
        self.sock = sock
        self.file = sock.makefile("rb")

    def say(self, *lines: str) -> None:
        self.sock.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def line(self) -> str:
        return self.file.readline().decode().strip()

    def ehlo(self, *extensions: str) -> None:
        self.sock.sendall(GREETING)
        self.line()
        lines = ["mail.example", *extensions]
        self.say(*(f"250{'-' if i < len(lines) - 1 else ' '}{line}" for i, line in enumerate(lines)))

    def body(self) -> bytes:
        """All lines up to the lone dot."""
        lines = []
        while (line := self.file.readline()) not in {b".\r\n", b""}:
            lines.append(line)
        return b"".join(lines)

    def envelope(self, *, rcpt: str = "250 fine", data: str = "354 go on") -> bool:
        """Answer MAIL, RCPT and DATA; whether there was a MAIL."""
        while (line := self.line()) == "RSET":
            self.say("250 gone")
        if not line.startswith("MAIL"):
            return False
        self.say("250-a reply", "250 of two lines")
        self.line()
        self.say(rcpt)
        assert self.line() == "DATA"
        self.say(data)
        return True


@contextlib.contextmanager
def server(answer: Callable[[Dialogue], None]) -> Iterator[str]:
    """A server on loopback that handles each connection by `answer` and closes it; its EMAIL_URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def handle(sock: socket.socket, number: int) -> None:
        # A reply in several writes would wait for the other side's delayed acknowledgements.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock, contextlib.suppress(OSError, AssertionError):
            answer(Dialogue(sock, number))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threads.append(threading.Thread(target=handle, args=(sock, len(threads)), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    yield f"smtp://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    accepting.join(5)


def deliver(url: str, count: int, *, connections: int = 1, until: datetime = FOREVER) -> dict[int, Report]:
    transport = SmtpTransport(email_url(f"{url}?connections={connections}"))
    reports = list(transport.deliver(MAIL, people(count), until=lambda: until))
    transport.close()
    assert len({report.key for report in reports}) == len(reports), "each exactly once"
    return {report.key.subscriber_id: report for report in reports}


def results(reports: dict[int, Report]) -> list[Result]:
    return [reports[number].result for number in sorted(reports)]


def takes_all(*extensions: str) -> Callable[[Dialogue], None]:
    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo(*extensions)
        while dialogue.envelope():
            dialogue.body()
            dialogue.say("250 2.0.0 taken")

    return answer


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",), ("PIPELINING", "8BITMIME", "SMTPUTF8")])
@pytest.mark.parametrize("connections", [1, 4])
def test_all_are_taken_with_and_without_pipelining(extensions: tuple[str, ...], connections: int) -> None:
    with server(takes_all(*extensions)) as url:
        assert results(deliver(url, 20, connections=connections)) == [Result.ACCEPTED] * 20


def test_what_arrives_is_what_was_written_byte_for_byte(tmp_path: Path) -> None:
    with mailserver.running(tmp_path) as running:
        deliver(running.url, 12, connections=3)
        got = {entry.rcpt_tos[0]: running.mailbox.get(entry.id) for entry in running.mailbox.messages(limit=20)}
    assert len(got) == 12
    for one in people(12):
        kept = got[one.email]
        assert kept
        assert kept.raw == MAIL.message(one).content


def test_a_connection_is_kept_for_the_next_call() -> None:
    seen: list[int] = []

    def answer(dialogue: Dialogue) -> None:
        seen.append(dialogue.number)
        takes_all("PIPELINING")(dialogue)

    with server(answer) as url:
        transport = SmtpTransport(email_url(f"{url}?connections=2"))
        for _ in range(3):
            reports = list(transport.deliver(MAIL, people(6), until=lambda: FOREVER))
            assert {report.result for report in reports} == {Result.ACCEPTED}
        transport.close()
    assert len(seen) <= 2


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("data", ["354 go on", "554 5.5.1 no valid recipients"])
def test_a_refused_recipient_hurts_no_other(pipelining: bool, data: str) -> None:
    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo(*(["PIPELINING"] if pipelining else []))
        number = 0
        while True:
            refused = number % 2 == 1
            rcpt, to_data = ("550 5.1.1 nobody", data) if refused else ("250 fine", "354 go on")
            if not dialogue.envelope(rcpt=rcpt, data=to_data):
                return
            number += 1
            if not refused or data.startswith("354"):
                assert dialogue.body() == b"" or not refused, "a lone dot"
                dialogue.say("554 5.5.1 nobody" if refused else "250 taken")

    with server(answer) as url:
        reports = deliver(url, 6)
    assert results(reports) == [Result.ACCEPTED, Result.FAILED] * 3
    assert reports[1].code == "5.1.1"


def test_greylisting_is_put_off_and_a_policy_refusal_is_final() -> None:
    answers = iter(["451 4.7.1 later", "550 5.7.1 policy", "250 fine"])

    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo("PIPELINING")
        while True:
            rcpt = next(answers, "250 fine")
            if not dialogue.envelope(rcpt=rcpt, data="354 go on" if rcpt.startswith("250") else "503 no"):
                return
            if rcpt.startswith("250"):
                dialogue.body()
                dialogue.say("250 taken")

    with server(answer) as url:
        reports = deliver(url, 3)
    assert results(reports) == [Result.DEFERRED, Result.FAILED, Result.ACCEPTED]
    assert [reports[i].code for i in (0, 1)] == ["4.7.1", "5.7.1"]


def test_a_connection_lost_before_the_final_dot_is_taken_by_another() -> None:
    def answer(dialogue: Dialogue) -> None:
        if dialogue.number == 0:
            dialogue.ehlo("PIPELINING")
            dialogue.line()
            return  # gone in the middle of the envelope
        takes_all("PIPELINING")(dialogue)

    with server(answer) as url:
        assert results(deliver(url, 5)) == [Result.ACCEPTED] * 5


def test_a_connection_lost_after_the_final_dot_leaves_one_message_in_doubt() -> None:
    taken: list[bytes] = []

    def answer(dialogue: Dialogue) -> None:
        if dialogue.number == 0:
            dialogue.ehlo("PIPELINING")
            dialogue.envelope()
            taken.append(dialogue.body())
            return  # took it and went
        takes_all("PIPELINING")(dialogue)

    with server(answer) as url:
        reports = deliver(url, 5)
    assert sorted(results(reports), key=str) == [Result.ACCEPTED] * 4 + [Result.UNKNOWN]
    assert len(taken) == 1


def test_a_goodbye_instead_of_the_final_answer_is_an_answer() -> None:
    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo("PIPELINING")
        dialogue.envelope()
        dialogue.body()
        dialogue.say("421 4.3.2 shutting down")

    with server(answer) as url:
        reports = deliver(url, 1)
    assert results(reports) == [Result.DEFERRED]
    assert reports[0].code == "4.3.2"


def test_a_server_that_drops_every_connection_is_given_up_and_nobody_is_lost() -> None:
    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo("PIPELINING")
        dialogue.line()

    with server(answer) as url:
        reports = deliver(url, 5, connections=2)
    assert set(results(reports)) == {Result.NOT_SENT}
    assert len(reports) <= 5, "who was not asked for waits in the ledger"


def test_a_server_that_allows_one_connection_is_used_with_one() -> None:
    def answer(dialogue: Dialogue) -> None:
        if dialogue.number > 0:
            dialogue.say("421 4.7.0 too many connections")
            return
        takes_all("PIPELINING")(dialogue)

    with server(answer) as url:
        assert results(deliver(url, 9, connections=8)) == [Result.ACCEPTED] * 9


def test_a_silent_server_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_loop, "REPLY_SECONDS", 0.1)
    monkeypatch.setattr(smtp_loop, "FINAL_SECONDS", 0.1)
    monkeypatch.setattr(smtp_loop, "_TICK_MS", 50)
    over = threading.Event()

    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo("PIPELINING")
        if dialogue.envelope():
            dialogue.body()
            over.wait(10)

    with server(answer) as url:
        reports = deliver(url, 1)
        over.set()
    assert results(reports) == [Result.UNKNOWN]


def test_nothing_is_completed_after_the_lease() -> None:
    with server(takes_all("PIPELINING")) as url:
        reports = deliver(url, 4, until=datetime.now(UTC) - timedelta(seconds=1))
    assert set(results(reports)) <= {Result.NOT_SENT}


def test_an_address_that_needs_smtputf8_fails_where_the_server_has_none() -> None:
    utf8 = person(key=DeliveryKey(1, 7), email="jürgen@mail.example")
    with server(takes_all("PIPELINING")) as url:
        transport = SmtpTransport(email_url(url))
        (report,) = transport.deliver(MAIL, [utf8], until=lambda: FOREVER)
        transport.close()
    assert (report.result, report.code) == (Result.FAILED, "5.6.7")


def test_nobody_at_all_answers() -> None:
    with pytest.raises(TransportError, match="cannot be used"):
        deliver("smtp://127.0.0.1:1", 1)


def test_a_server_that_talks_nonsense_loses_nobody() -> None:
    def answer(dialogue: Dialogue) -> None:
        dialogue.ehlo("PIPELINING")
        dialogue.line()
        dialogue.sock.sendall(b"\x00\xff nonsense\r\n" * 3)

    with server(answer) as url:
        assert set(results(deliver(url, 3))) <= {Result.NOT_SENT}
