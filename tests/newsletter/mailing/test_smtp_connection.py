"""The state machine of one connection, driven by hand over a socket pair: replies may be cut anywhere."""

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsletter.mailing.personalizing import Message
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Report, Result
from newsletter.mailing.transports.smtp_connection import Connection, Lost

ACCEPTED, MAILBOX, POLICY, LATER, NO_DATA = "accepted", "mailbox", "policy", "later", "no data"
EXPECTED = {
    ACCEPTED: (Result.ACCEPTED, ""),
    MAILBOX: (Result.FAILED, "5.1.1"),
    POLICY: (Result.FAILED, "5.7.1"),
    LATER: (Result.DEFERRED, "4.2.2"),
    NO_DATA: (Result.DEFERRED, "451"),
}


class Receiver:
    """The server: what it answers to each command is told by the message's number."""

    def __init__(self, outcomes: list[str], *, goes_ahead: bool) -> None:
        self._outcomes = outcomes
        self._goes_ahead = goes_ahead  # answers 354 although it refused the recipient
        self._buffer = b""
        self._in_data = False
        self._outcome = ""
        self.taken: list[bytes] = []

    def answers(self, data: bytes) -> bytes:
        self._buffer += data
        replies = b""
        while True:
            end = b"\r\n.\r\n" if self._in_data and not self._buffer.startswith(b".\r\n") else b"\r\n"
            line, found, rest = self._buffer.partition(end)
            if not found:
                return replies
            self._buffer = rest
            replies += self._final(line) if self._in_data else self._command(line)

    def _final(self, content: bytes) -> bytes:
        self._in_data = False
        if content == b".":
            return b"554 5.5.1 no recipients\r\n"
        self.taken.append(content)
        return {POLICY: b"554-5.7.1 no\r\n554 5.7.1 thanks\r\n"}.get(self._outcome, b"250 2.0.0 taken\r\n")

    def _command(self, line: bytes) -> bytes:
        if line.startswith(b"RCPT"):
            self._outcome = self._outcomes[int(line.partition(b"<p")[2].partition(b"@")[0])]
            return {MAILBOX: b"550 5.1.1 nobody\r\n", LATER: b"450 4.2.2 full\r\n"}.get(self._outcome, b"250 fine\r\n")
        if line == b"DATA":
            if self._outcome == NO_DATA:
                return b"451 busy\r\n"
            if self._outcome in {MAILBOX, LATER} and not self._goes_ahead:
                return b"503 no recipients\r\n"
            self._in_data = True
            return b"354 go on\r\n"
        return b"250 fine\r\n"


@contextmanager
def connected(count: int, *, pipelining: bool) -> Iterator[tuple[Connection, socket.socket, list[Report]]]:
    waiting = deque(
        Message(DeliveryKey(1, number), "a@shed.example", f"p{number}@x.example", f"Subject: {number}\r\n\r\n".encode())
        for number in range(count)
    )
    reports: list[Report] = []
    here, there = socket.socketpair()
    there.setblocking(False)
    connection = Connection(here, pipelining=pipelining, eight_bit=True, smtputf8=False)
    connection.next_message = lambda: waiting.popleft() if waiting else None
    connection.report = reports.append
    with here, there:
        yield connection, there, reports


@given(
    outcomes=st.lists(st.sampled_from(list(EXPECTED)), min_size=1, max_size=6),
    pieces=st.lists(st.integers(1, 40), max_size=30),
    pipelining=st.booleans(),
    goes_ahead=st.booleans(),
)
def test_each_is_answered_for_once_wherever_the_replies_are_cut(
    outcomes: list[str], pieces: list[int], pipelining: bool, goes_ahead: bool
) -> None:
    receiver = Receiver(outcomes, goes_ahead=goes_ahead)
    cuts = iter(pieces)
    with connected(len(outcomes), pipelining=pipelining) as (connection, there, reports):
        assert connection.begin()
        while not connection.is_idle:
            replies = receiver.answers(there.recv(65_536))
            while replies:
                size = next(cuts, len(replies))
                there.send(replies[:size])
                replies = replies[size:]
                connection.receive()
    assert [(report.key.subscriber_id, report.result, report.code) for report in reports] == [
        (number, *EXPECTED[outcome]) for number, outcome in enumerate(outcomes)
    ]
    written = [outcome for outcome in outcomes if outcome in {ACCEPTED, POLICY}]
    assert len(receiver.taken) == len(written), "nobody else's message reached its end"


def test_a_lease_that_ends_while_the_next_message_is_awaited_lets_no_message_be_completed() -> None:
    with connected(2, pipelining=True) as (connection, there, reports):
        asked: list[Message | None] = []
        source = connection.next_message

        def next_message() -> Message | None:
            asked.append(source())
            return asked[-1]

        connection.next_message = next_message
        connection.may_finish = lambda: len(asked) < 2  # the database took its time for the second
        unsent: list[Message] = []
        connection.unsent = unsent.append
        connection.begin()
        there.recv(65_536)
        there.send(b"250 fine\r\n250 fine\r\n354 go on\r\n")
        with pytest.raises(Lost, match="the lease has ended"):
            connection.receive()
        assert [report.result for report in reports] == [Result.NOT_SENT]
        assert [message.key.subscriber_id for message in unsent] == [1]
        assert there.recv(65_536) == b"", "not a byte of the message was written"
