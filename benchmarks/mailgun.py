"""A fast Mailgun-like HTTP server: `python -m benchmarks.mailgun --port N`.

It reads each call's form, takes its JSON apart, and counts the people who have both a `to` and variables of their own.
Several may share a port (SO_REUSEPORT). One epoll loop with nothing above it, since what the server costs is taken from
the sender's share of the machine. On SIGTERM it prints what it took, and when, as JSON.
"""

import argparse
import contextlib
import json
import select
import signal
import socket
import time

READ = 1 << 20
TICK_SECONDS = 0.2
_VARIABLES = b'name="recipient-variables"\r\n\r\n'
_TO = b'name="to"\r\n'


class BadForm(ValueError):
    """A call that Mailgun would refuse."""


class Counter:
    """What this process took."""

    def __init__(self) -> None:
        self.taken = self.calls = self.bytes = self.refused = 0
        self.first = self.last = 0.0
        self.people: set[str] = set()

    def take(self, content_type: bytes, body: bytes) -> None:
        """Count the people of one call. Raises BadForm."""
        boundary = content_type.partition(b"boundary=")[2]
        start = body.find(_VARIABLES)
        end = body.find(b"\r\n--" + boundary, start)
        if not boundary or start < 0 or end < 0:
            raise BadForm("no recipient-variables")
        variables = json.loads(body[start + len(_VARIABLES) : end])
        if len(variables) != body.count(_TO):
            raise BadForm("somebody has no variables, or no address")
        self.people.update(variables)
        self.last = time.time()
        self.first = self.first or self.last
        self.calls += 1
        self.taken += len(variables)
        self.bytes += len(body)


class Session:
    """One connection: calls in, answers out."""

    def __init__(self, connection: socket.socket, counter: Counter) -> None:
        self.connection = connection
        self._counter = counter
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 0  # bytes of the call with its head, once that is known
        self._content_type = b""
        self._body_at = 0

    def answers(self, data: bytes) -> bytes:
        """The replies to what has come in."""
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return b""
        whole = b"".join(self._chunks)
        if not self._need:
            head, end, _ = whole.partition(b"\r\n\r\n")
            if not end:
                self._chunks = [whole]
                return b""
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self._body_at = len(head) + 4
            self._need = self._body_at + int(fields[b"Content-Length"])
            self._content_type = fields[b"Content-Type"]
            if self._have < self._need:
                self._chunks = [whole]
                return b""
        body, rest = whole[self._body_at : self._need], whole[self._need :]
        self._chunks, self._have, self._need = [rest], len(rest), 0
        return self._answer(body)

    def _answer(self, body: bytes) -> bytes:
        try:
            self._counter.take(self._content_type, body)
            status, said = b"200 OK", {"id": "<1@bench.example>", "message": "Queued. Thank you."}
        except ValueError as error:
            self._counter.refused += 1
            status, said = b"400 Bad Request", {"message": str(error)}
        written = json.dumps(said).encode()
        return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            status,
            len(written),
            written,
        )


def serve(port: int, counter: Counter) -> None:
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    with socket.socket() as listener, select.epoll() as poll:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(512)
        poll.register(listener, select.EPOLLIN)
        sessions: dict[int, Session] = {}
        print("ready", flush=True)
        while not stopped:
            with contextlib.suppress(InterruptedError):
                for number, _ in poll.poll(TICK_SECONDS):
                    if number == listener.fileno():
                        connection, _ = listener.accept()
                        sessions[connection.fileno()] = Session(connection, counter)
                        poll.register(connection, select.EPOLLIN)
                    elif not _serve_one(sessions[number]):
                        poll.unregister(number)
                        sessions.pop(number).connection.close()


def _serve_one(session: Session) -> bool:
    """Read what has come and answer it; whether the connection goes on."""
    try:
        data = session.connection.recv(READ)
        if data:
            session.connection.sendall(session.answers(data))
        return bool(data)
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mailgun", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    counter = Counter()
    serve(parser.parse_args().port, counter)
    figures = {name: getattr(counter, name) for name in ("taken", "calls", "bytes", "refused", "first", "last")}
    print(json.dumps({**figures, "people": len(counter.people)}), flush=True)


if __name__ == "__main__":
    main()
