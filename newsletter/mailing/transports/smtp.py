"""SMTP over kept connections to one or more servers, all served by one loop; nothing waits for one answer alone."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial

from newsletter.env import EmailUrl
from newsletter.mailing.headers import HeaderError
from newsletter.mailing.personalizing import Message, Personalizer, Recipient
from newsletter.mailing.slots import PersonalizeError
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Report, Result, TransportError
from newsletter.mailing.transports.smtp_connection import Connection
from newsletter.mailing.transports.smtp_loop import Wake, Watched
from newsletter.mailing.transports.smtp_server import Server

log = logging.getLogger(__name__)

SHORTEST_WAIT = timedelta(seconds=5)  # of a batch while all servers rest
_ANSWERED = frozenset({Result.ACCEPTED, Result.DEFERRED, Result.FAILED})


class SmtpTransport:
    """The servers of EMAIL_URL share the messages by weight; one that does not work is left out until it does again.

    Connections are opened as they can be used, and kept until they fail, are idle too long, or are closed. They belong
    to one call at a time: while one is under way, another thread's call has connections of its own.
    """

    def __init__(self, url: EmailUrl) -> None:
        self._url = url
        self._is_in_use = threading.Lock()
        self._servers = [Server(server) for server in url.servers]
        self._limit = sum(server.limit for server in self._servers)

    def deliver(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None] = lambda key: None,
    ) -> Iterator[Report]:
        if not self._is_in_use.acquire(blocking=False):
            with closing(SmtpTransport(self._url)) as own:
                yield from own.deliver(personalizer, recipients, until=until, begins=begins)
            return
        try:
            yield from self._deliver(personalizer, recipients, until=until, begins=begins)
        finally:
            self._is_in_use.release()

    def _deliver(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None],
    ) -> Iterator[Report]:
        if not self._working():
            # Nobody was asked anew, so this is no further failure: whoever comes then will ask.
            rest = min(server.rest(alone=True) for server in self._servers)
            raise TransportError(self._why(), retry_after=max(SHORTEST_WAIT, timedelta(seconds=rest)))
        call = _Call(personalizer, recipients, until=until, begins=begins, servers=self._servers)
        wake = Wake()
        watched = Watched((), lost=call.lost, wake=wake)
        try:
            for server in self._servers:
                for connection in server.resume(wake):
                    call.attach(connection, server)
                    watched.add(connection)
            yield from self._serve(call, watched)
        finally:
            for server in self._servers:
                server.keep()
            wake.close()

    def close(self) -> None:
        for server in self._servers:
            server.close()

    # The loop ------------------------------------------------------------------------------------------------------

    def _serve(self, call: "_Call", watched: Watched) -> Iterator[Report]:
        while True:
            self._begin(call, watched)
            if len(watched.connections) < self._limit:
                self._grow(call, watched)
            if call.reports:
                yield from call.taken()
            if watched.is_idle:
                if not call.has_more():
                    return
                if not any(server.opening for server in self._servers):
                    yield from self._without_the_rest(call)
                    return
            watched.serve()
            if call.reports:
                yield from call.taken()

    def _without_the_rest(self, call: "_Call") -> Iterator[Report]:
        """Nobody is left to send the rest: it was never begun."""
        if call.may_finish() and not call.has_connected:
            raise TransportError(self._why())
        call.give_up(self._why() if call.may_finish() else "The time for this batch is over.")
        yield from call.taken()

    def _begin(self, call: "_Call", watched: Watched) -> None:
        """Give idle connections something to do."""
        for connection in watched.idle():
            # With several servers one may only have to leave the next message to another.
            if not watched.begin(connection) and (len(self._servers) == 1 or not call.has_more()):
                return

    def _grow(self, call: "_Call", watched: Watched) -> None:
        """Take in connections that have been opened, and open others where all are busy and more is to be sent."""
        for server in self._servers:
            for connection in server.opened():
                call.attach(connection, server)
                watched.add(connection)
                watched.begin(connection)
        growing = [server for server in self._servers if server.wants_another()]
        if growing and call.may_finish() and call.has_more():
            working = self._working()
            for server in growing:
                while server in working and server.wants_another():
                    server.open_another()

    # Who works -----------------------------------------------------------------------------------------------------

    def _working(self) -> list[Server]:
        """The servers that do not rest after a failure; where all do, those that have rested long enough for that."""
        return [server for server in self._servers if not server.is_resting(alone=False)] or [
            server for server in self._servers if not server.is_resting(alone=True)
        ]

    def _why(self) -> str:
        """Why no server works, in a sentence each."""
        return " ".join(server.why for server in self._servers if server.why) or "No mail server can be used."


class _Call:
    """One call of deliver: who is next and by which server, what has become of whom."""

    def __init__(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None],
        servers: list[Server],
    ) -> None:
        self._personalizer = personalizer
        self._recipients = iter(recipients)
        self._until = until
        self._begins = begins
        self._ahead: deque[Message] = deque()
        self._ended = False
        self._servers = servers
        self._server_of: dict[Connection, Server] = {}
        self.has_connected = False
        self._traces = log.isEnabledFor(logging.DEBUG)  # by which server each message went
        self.reports: list[Report] = []

    def attach(self, connection: Connection, server: Server) -> None:
        """Let a connection serve this call."""
        self.has_connected = True
        self._server_of[connection] = server
        is_only = len(self._servers) == 1
        connection.next_message = self.next_message if is_only else partial(self._next_message_by, server)
        connection.may_finish = self.may_finish
        connection.begins = self._begin
        connection.report = partial(self._report, server)
        connection.unsent = self._ahead.append if is_only else partial(self._unsent, server)

    def lost(self, connection: Connection, why: str) -> None:
        """A connection is gone, and has said what that means for the messages it held."""
        server = self._server_of.pop(connection)
        server.connections.remove(connection)
        if self.may_finish():  # else we ended it ourselves
            server.lost(why)

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

    def _next_message_by(self, server: Server) -> Message | None:
        """The same for one of several servers, which may have to leave the next message to another."""
        if not server.may_take(self._servers):
            return None
        message = self.next_message()
        if message is not None:
            server.share += 1 / server.weight
        return message

    def has_more(self) -> bool:
        """Whether another message waits; looks one ahead."""
        if not self._ahead:
            message = self.next_message()
            if message is not None:
                self._ahead.append(message)
        return bool(self._ahead)

    def give_up(self, why: str) -> None:
        """Say of those who were taken that they were not sent to; no more are asked for."""
        self._ended = True
        while self._ahead:
            self.reports.append(Report(self._ahead.popleft().key, Result.NOT_SENT, "", why))

    def may_finish(self) -> bool:
        """Whether there is time to complete a message."""
        return datetime.now(UTC) < self._until()

    def _begin(self, message: Message) -> None:
        self._begins(message.key)

    def _report(self, server: Server, report: Report) -> None:
        if server.is_doubted and report.result in _ANSWERED:
            server.answered()
        if self._traces:
            log.debug("%s: %s by %s %s", report.key, report.result.value, server.name, report.text)
        self.reports.append(report)

    def _unsent(self, server: Server, message: Message) -> None:
        """A connection went before the message did: another may take it."""
        server.share -= 1 / server.weight
        self._ahead.append(message)
