"""A fast SMTP server that takes everything: `python -m benchmarks.sink --port N [--delay-ms D] [--log FILE]`.

Several may share a port (SO_REUSEPORT). One epoll loop with nothing above it, since what the server costs is taken from
the sender's share of the machine. With a log, each taken message's recipient is appended to it, unbuffered, so that a
test can tell who was mailed twice. On SIGTERM it prints what it took, and when, as JSON.
"""

import argparse
import contextlib
import heapq
import itertools
import json
import os
import select
import signal
import socket
import time

EHLO = b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
READ = 65_536
TICK_SECONDS = 0.2


class Counter:
    """What this process took."""

    def __init__(self, log: str) -> None:
        self.taken = 0
        self.bytes = 0
        self.first = self.last = 0.0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else None

    def take(self, recipient: bytes, size: int) -> None:
        self.last = time.time()
        self.first = self.first or self.last
        self.taken += 1
        self.bytes += size
        if self._log is not None:
            os.write(self._log, recipient + b"\n")


class Session:
    """One connection: bytes in, replies out; replies to all that came in one segment leave in one write."""

    def __init__(self, connection: socket.socket, counter: Counter) -> None:
        self.connection = connection
        self._counter = counter
        self._buffer = b""
        self._in_data = False
        self._recipient = b""

    def answers(self, data: bytes) -> bytes:
        """The replies to what has come in."""
        buffer = self._buffer + data if self._buffer else data
        replies: list[bytes] = []
        start = 0
        while True:
            if self._in_data:
                end = buffer.find(b"\r\n.\r\n", max(0, start - 2))
                if end < 0:
                    break
                self._counter.take(self._recipient, end - start)
                self._in_data = False
                start = end + 5
                replies.append(b"250 taken\r\n")
                continue
            end = buffer.find(b"\r\n", start)
            if end < 0:
                break
            replies.append(self._command(buffer, start, end))
            start = end + 2
        self._buffer = buffer[start:]
        return b"".join(replies)

    def _command(self, buffer: bytes, start: int, end: int) -> bytes:
        verb = buffer[start : start + 4].upper()
        if verb == b"RCPT":
            self._recipient = buffer[start + 9 : end - 1]
        elif verb == b"DATA":
            self._in_data = True
            return b"354 go on\r\n"
        elif verb in {b"EHLO", b"HELO"}:
            return EHLO
        elif verb == b"QUIT":
            return b"221 bye\r\n"
        return b"250 fine\r\n"


class Server:
    """The loop: connections by file number, and answers that wait for their delay."""

    def __init__(self, port: int, delay: float, counter: Counter) -> None:
        self._delay = delay
        self._counter = counter
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(512)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._sessions: dict[int, Session] = {}
        self._waiting: list[tuple[float, int, Session, bytes]] = []
        self._count = itertools.count()
        self.is_over = False

    def serve(self) -> None:
        listening = self._listener.fileno()
        while not self.is_over:
            for number, _ in self._poll.poll(self._until_next()):
                if number == listening:
                    self._accept()
                else:
                    self._read(self._sessions[number])
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, _, session, replies = heapq.heappop(self._waiting)
                self._send(session, replies)

    def _until_next(self) -> float:
        if not self._waiting:
            return TICK_SECONDS
        return max(0.0, min(TICK_SECONDS, self._waiting[0][0] - time.monotonic()))

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sessions[connection.fileno()] = Session(connection, self._counter)
        self._poll.register(connection, select.EPOLLIN)
        connection.send(b"220 sink ready\r\n")

    def _read(self, session: Session) -> None:
        try:
            data = session.connection.recv(READ)
        except OSError:
            data = b""
        if not data:
            self._close(session)
            return
        replies = session.answers(data)
        if replies and self._delay:
            heapq.heappush(self._waiting, (time.monotonic() + self._delay, next(self._count), session, replies))
        elif replies:
            self._send(session, replies)

    def _send(self, session: Session, replies: bytes) -> None:
        with contextlib.suppress(OSError):
            session.connection.send(replies)

    def _close(self, session: Session) -> None:
        self._poll.unregister(session.connection)
        del self._sessions[session.connection.fileno()]
        session.connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--log", default="")
    options = parser.parse_args()
    counter = Counter(options.log)
    server = Server(options.port, options.delay_ms / 1000, counter)

    def stop(*_: object) -> None:
        server.is_over = True

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    server.serve()
    figures = {"taken": counter.taken, "bytes": counter.bytes, "first": counter.first, "last": counter.last}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
