"""The loop under the SMTP transport: waits on all connections at once, and ends those that have gone silent.

By `poll` itself: `selectors` would look up a key and make an object for each event.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterable

from newsletter.mailing.transports.smtp_connection import Connection, Lost

REPLY_SECONDS = 300  # RFC 5321, 4.5.3.2: MAIL, RCPT and DATA
FINAL_SECONDS = 600  # RFC 5321, 4.5.3.2.6: the answer to the final dot
_TICK_MS = 1_000
_READABLE = select.POLLIN | select.POLLPRI


class Wake:
    """Wakes a loop that polls, from another thread."""

    def __init__(self) -> None:
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)

    def fileno(self) -> int:
        return self._ear.fileno()

    def __call__(self) -> None:
        with contextlib.suppress(OSError):
            self._mouth.send(b"!")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4096)

    def close(self) -> None:
        self._ear.close()
        self._mouth.close()


class Watched:
    """The connections of one call, served as the system says that they can be; `lost` is told of each that goes."""

    def __init__(
        self, connections: Iterable[Connection], *, lost: Callable[[Connection, str], None], wake: Wake
    ) -> None:
        self.connections: list[Connection] = []
        self._poll = select.poll()
        self._by_number: dict[int, Connection] = {}
        self._waits_to_write: set[Connection] = set()
        self._looked_at = time.monotonic()
        self._lost = lost
        self._wake = wake
        self._poll.register(wake, select.POLLIN)
        for connection in connections:
            self.add(connection)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way on any of them."""
        return all(connection.is_idle for connection in self.connections)

    def idle(self) -> list[Connection]:
        return [connection for connection in self.connections if connection.is_idle]

    def add(self, connection: Connection) -> None:
        self.connections.append(connection)
        self._by_number[connection.fileno()] = connection
        self._poll.register(connection, _READABLE)

    def begin(self, connection: Connection) -> bool:
        """Let a connection take its next message; False when there is none."""
        number = connection.fileno()
        try:
            begun = connection.begin()
        except Lost as loss:
            self._drop(connection, number, loss)
            return True
        self._watch(connection)
        return begun

    def serve(self) -> None:
        """Wait until something can be read or written, and do it."""
        for number, events in self._poll.poll(_TICK_MS):
            connection = self._by_number.get(number)
            if connection is None:
                self._wake.clear()
                continue
            try:
                if events & select.POLLOUT:
                    connection.flush()
                if events & ~select.POLLOUT:
                    connection.receive()
            except Lost as loss:
                self._drop(connection, number, loss)
            else:
                if connection.wants_to_write or self._waits_to_write:
                    self._watch(connection)
        now = time.monotonic()
        if now - self._looked_at > _TICK_MS / 1000:
            self._looked_at = now
            self._end_silent(now)

    def _watch(self, connection: Connection) -> None:
        """Ask for room to write only while something waits to be written."""
        if connection.wants_to_write and connection not in self._waits_to_write:
            self._waits_to_write.add(connection)
            self._poll.modify(connection, _READABLE | select.POLLOUT)
        elif not connection.wants_to_write and connection in self._waits_to_write:
            self._waits_to_write.discard(connection)
            self._poll.modify(connection, _READABLE)

    def _drop(self, connection: Connection, number: int, loss: Lost) -> None:
        self._poll.unregister(number)
        del self._by_number[number]
        self._waits_to_write.discard(connection)
        self.connections.remove(connection)
        self._lost(connection, str(loss))

    def _end_silent(self, now: float) -> None:
        for number, connection in list(self._by_number.items()):
            limit = FINAL_SECONDS if connection.has_final_dot_out else REPLY_SECONDS
            if not connection.is_idle and now - connection.heard_at > limit:
                self._drop(connection, number, connection.lost(f"no answer for {limit} seconds"))
