"""One server of EMAIL_URL as this process knows it: whether it works, its connections, and its share of the messages.

A server that fails rests for a growing time while others work. With no other it rests too, but shortly: somebody
waits for it to come back.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

from newsletter.env import EmailUrl
from newsletter.mailing.transports.base import TransportError
from newsletter.mailing.transports.smtp_connection import Connection
from newsletter.mailing.transports.smtp_opening import open_connection, shown

log = logging.getLogger(__name__)

DEFAULT_CONNECTIONS = 8
LOSSES = 10  # connections lost one after the other without an answer in between, on top of as many as may be open
REST_SECONDS = (30.0, 600.0)  # at first and at most, doubled in between
REST_ALONE_SECONDS = (1.0, 30.0)  # the same where no other server works
FULL_SECONDS = 60.0  # after a server refused a further connection, until it is asked for one again
IDLE_SECONDS = 240.0  # servers close idle connections after five minutes; a kept one is given up before
SLOW_SECONDS = 5.0  # whoever has not answered for so long is not waited for by the others


class Server:
    """One server. Connections are opened in threads, since greetings and logins may take long; the rest is one loop."""

    def __init__(self, url: EmailUrl, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = shown(url)
        self.limit = max(1, int(url.options.get("connections", DEFAULT_CONNECTIONS)))
        self.weight = max(1, int(url.options.get("weight", 1)))
        self.connections: list[Connection] = []  # open, and serving the call under way
        self.opening = 0  # threads that will say by `opened` what they got
        self.share = 0.0  # messages taken, by weight
        self.why = ""  # it does not work: a sentence
        self.is_doubted = False  # it failed or ended a connection, and has not answered for a message since
        self._url = url
        self._clock = clock
        self._failures = 0
        self._failed_at = 0.0
        self._losses = 0
        self._full_until = 0.0
        self._kept: list[tuple[Connection, float]] = []
        self._opened: SimpleQueue[tuple[Connection | TransportError, float]] = SimpleQueue()
        self._wake: Callable[[], None] = lambda: None
        self._is_closed = False

    # Whether it works ----------------------------------------------------------------------------------------------

    def rest(self, *, alone: bool) -> float:
        """Seconds that it is left alone from now on after a failure; `alone` when no other server works."""
        if not self._failures:
            return 0.0
        first, most = REST_ALONE_SECONDS if alone else REST_SECONDS
        whole: float = min(first * 2 ** min(self._failures - 1, 30), most)
        return max(0.0, self._failed_at + whole - self._clock())

    def is_resting(self, *, alone: bool) -> bool:
        return self.rest(alone=alone) > 0

    def failed(self, why: str) -> None:
        """It cannot be reached, refuses us, or ends one connection after the other."""
        log.warning("%s", why)
        self.why = why
        self.is_doubted = True
        self._failures += 1
        self._failed_at = self._clock()
        self._losses = 0

    def answered(self) -> None:
        """It said what became of a message, so it works."""
        self._losses = self._failures = 0
        self.why = ""
        self.is_doubted = False

    def lost(self, why: str) -> None:
        """It ended a connection."""
        if self.is_resting(alone=True):
            return  # the others of a server that has just failed
        self.is_doubted = True
        self._losses += 1
        # Once it has failed, it has to answer first: each further loss may put somebody in doubt.
        if self._failures or self._losses > LOSSES + self.limit:
            self.failed(f"The mail server {self.name} ends one connection after the other: {why}.")

    # Connections ---------------------------------------------------------------------------------------------------

    def resume(self, wake: Callable[[], None]) -> list[Connection]:
        """A call begins: the kept connections that are still good. `wake` is called when another has been opened."""
        self._wake = wake
        kept, self._kept = self._kept, []
        self.connections = [connection for connection, since in kept if self._is_good(connection, since)]
        return self.connections

    def keep(self) -> None:
        """A call has ended: keep what is idle. What is not belonged to messages that nobody waits for any more."""
        for connection in self.connections:
            if connection.is_idle and not connection.is_closed:
                self._kept.append((connection, self._clock()))
            else:
                connection.lost("the call has ended")
        self.connections = []

    def close(self) -> None:
        self._is_closed = True
        for connection, _ in self._kept:
            connection.quit()
        self._kept.clear()

    def wants_another(self) -> bool:
        """Whether a further connection would help: the first one alone, more when it works and all have work."""
        count = len(self.connections) + self.opening
        if count >= self.limit:
            return False
        if not self.connections or self._failures:
            return count == 0
        return not any(connection.is_idle for connection in self.connections) and self._clock() >= self._full_until

    def open_another(self) -> None:
        self._is_closed = False
        self.opening += 1
        threading.Thread(target=self._open, daemon=True, name=f"opens {self.name}").start()

    def opened(self) -> list[Connection]:
        """The connections that threads have opened since the last time; they serve the call under way from now on."""
        fresh: list[Connection] = []
        while self.opening:
            try:
                got, since = self._opened.get_nowait()
            except Empty:
                break
            self.opening -= 1
            if isinstance(got, TransportError):
                self._was_refused(got)
            elif self.is_resting(alone=True):
                got.quit()
            elif self._is_good(got, since):
                fresh.append(got)
        self.connections += fresh
        return fresh

    def _was_refused(self, error: TransportError) -> None:
        if self.connections or self.opening:
            # It allows fewer connections, or is going down: make do with those there are.
            self._full_until = self._clock() + FULL_SECONDS
        else:
            self.failed(str(error))

    def _open(self) -> None:
        got: Connection | TransportError
        try:
            got = open_connection(self._url)
        except TransportError as error:
            got = error
        except Exception as error:
            got = TransportError(f"The mail server {self.name} cannot be used: {error}.")
        if self._is_closed and isinstance(got, Connection):
            got.quit()
        self._opened.put((got, self._clock()))
        self._wake()

    def _is_good(self, connection: Connection, since: float) -> bool:
        """Whether an idle connection can still be used; one that cannot is ended."""
        if self._clock() - since <= IDLE_SECONDS and connection.is_fresh():
            return True
        connection.quit()
        return False

    # Its share -----------------------------------------------------------------------------------------------------

    def takes_part(self) -> bool:
        """Whether others shall leave it its share: it has connections, and answers."""
        now = self._clock()
        return any(connection.is_idle or now - connection.heard_at < SLOW_SECONDS for connection in self.connections)

    def may_take(self, servers: Iterable["Server"]) -> bool:
        """Whether it may have another message: not much further ahead of any that works, by weight.

        What it may be ahead is what its connections hold at once, two messages each. Those that do not work have
        nothing to make up for later.
        """
        lowest = self.share
        for server in servers:
            if server is not self and server.takes_part():
                lowest = min(lowest, server.share)
            else:
                server.share = max(server.share, self.share)
        return self.share - 2 * self.limit / self.weight <= lowest
