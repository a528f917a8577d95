"""SMTP over several kept connections, served by one selector loop; nothing here waits for one server answer alone."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from newsletter.env import EmailUrl
from newsletter.mailing.headers import HeaderError
from newsletter.mailing.personalizing import Message, PersonalizeError, Personalizer, Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Report, Result, TransportError
from newsletter.mailing.transports.smtp_connection import Connection
from newsletter.mailing.transports.smtp_loop import Watched
from newsletter.mailing.transports.smtp_opening import open_connection

DEFAULT_CONNECTIONS = 8
LOSSES = 10  # connections lost in a row, after which no other is opened and the rest is given back
IDLE_SECONDS = 240  # servers close idle connections after five minutes; a kept one is given up before


class SmtpTransport:
    """One server; connections are opened as they can be used and kept until they fail, idle too long, or are closed."""

    def __init__(self, url: EmailUrl) -> None:
        self._url = url
        self._limit = max(1, int(url.options.get("connections", DEFAULT_CONNECTIONS)))
        self._kept: list[tuple[Connection, float]] = []

    def deliver(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None] = lambda key: None,
    ) -> Iterator[Report]:
        call = _Call(personalizer, recipients, until=until, begins=begins)
        connections = self._usable(call)
        if not connections:
            connections.append(self._connect(call))
        watched = Watched(connections)
        try:
            yield from self._serve(call, watched)
        finally:
            self._keep(watched.connections, call)

    def close(self) -> None:
        for connection, _ in self._kept:
            connection.quit()
        self._kept.clear()

    # The loop ------------------------------------------------------------------------------------------------------

    def _serve(self, call: "_Call", watched: Watched) -> Iterator[Report]:
        while True:
            self._begin(call, watched)
            if call.reports:
                yield from call.taken()
            if watched.is_idle:
                if call.has_more():
                    # Nobody is left to send the rest: it was never begun.
                    call.give_up()
                    yield from call.taken()
                return
            watched.serve()
            if call.reports:
                yield from call.taken()

    def _begin(self, call: "_Call", watched: Watched) -> None:
        """Give idle connections something to do, and open another where all are busy and more is to be sent."""
        for connection in watched.idle():
            if not watched.begin(connection):
                return
        while len(watched.connections) < self._limit and call.may_open_another and call.has_more():
            try:
                connection = self._connect(call)
            except TransportError:
                # A server that allows fewer connections, or is going down: make do with those there are.
                call.may_open_another = False
                return
            watched.add(connection)
            watched.begin(connection)

    # Connections ---------------------------------------------------------------------------------------------------

    def _usable(self, call: "_Call") -> list[Connection]:
        """Kept connections that are still good, serving this call from now on."""
        usable: list[Connection] = []
        for connection, since in self._kept:
            if time.monotonic() - since > IDLE_SECONDS or not connection.is_fresh():
                connection.quit()
            else:
                call.attach(connection)
                usable.append(connection)
        self._kept.clear()
        return usable

    def _keep(self, connections: list[Connection], call: "_Call") -> None:
        for connection in connections:
            if connection.is_idle and not connection.is_closed:
                self._kept.append((connection, time.monotonic()))
            else:
                connection.lost("the call has ended")

    def _connect(self, call: "_Call") -> Connection:
        """A new connection, greeted, encrypted and logged in. Raises TransportError."""
        connection = open_connection(self._url)
        call.attach(connection)
        return connection


class _Call:
    """One call of deliver: who is next, what has become of whom."""

    def __init__(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None],
    ) -> None:
        self._personalizer = personalizer
        self._recipients = iter(recipients)
        self._until = until
        self._begins = begins
        self._ahead: deque[Message] = deque()
        self._losses = 0  # connections lost since the last answer
        self._ended = False
        self.may_open_another = True
        self.reports: list[Report] = []

    def attach(self, connection: Connection) -> None:
        connection.next_message = self.next_message
        connection.may_finish = self._may_finish
        connection.begins = self._begin
        connection.report = self._report
        connection.unsent = self._unsent

    def taken(self) -> list[Report]:
        """What has come in since the last time."""
        reports, self.reports = self.reports, []
        return reports

    def next_message(self) -> Message | None:
        """The next message that can be written, or None when there is none."""
        if self._ahead:
            return self._ahead.popleft()
        while not self._ended:
            recipient = next(self._recipients, None)
            if recipient is None:
                self._ended = True
                return None
            try:
                return self._personalizer.message(recipient)
            except (PersonalizeError, HeaderError) as error:
                self.reports.append(Report(recipient.key, Result.FAILED, "5.6.0", str(error)))
        return None

    def has_more(self) -> bool:
        """Whether another message waits; looks one ahead."""
        if not self._ahead:
            message = self.next_message()
            if message is not None:
                self._ahead.append(message)
        return bool(self._ahead)

    def give_up(self) -> None:
        """Say of those who were taken that they were not sent to; no more are asked for."""
        self._ended = True
        while self._ahead:
            self.reports.append(Report(self._ahead.popleft().key, Result.NOT_SENT))

    def _may_finish(self) -> bool:
        return datetime.now(UTC) < self._until()

    def _begin(self, message: Message) -> None:
        self._begins(message.key)

    def _report(self, report: Report) -> None:
        self._losses = 0
        self.reports.append(report)

    def _unsent(self, message: Message) -> None:
        """A connection went before the message did: another may take it, unless the server ends one after another."""
        self._losses += 1
        if self._losses > LOSSES:
            self.may_open_another = False
        self._ahead.append(message)
