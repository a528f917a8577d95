"""A fast SMTP server that takes everything: `python -m benchmarks.sink --port N [--delay-ms D] [--log FILE]`.

Several may share a port (SO_REUSEPORT). With a log, each taken message's recipient and Message-ID are appended to it,
unbuffered, so that a test can tell who was mailed twice. On SIGTERM it prints what it took, and when, as JSON.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import time

EHLO = b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"


class Counter:
    """What this process took."""

    def __init__(self, log: str | None) -> None:
        self.taken = 0
        self.bytes = 0
        self.first = self.last = 0.0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else None

    def take(self, recipient: bytes, size: int) -> None:
        now = time.time()
        if not self.taken:
            self.first = now
        self.last = now
        self.taken += 1
        self.bytes += size
        if self._log is not None:
            os.write(self._log, recipient + b"\n")


class Session(asyncio.Protocol):
    """One connection; replies to all that came in one segment leave in one write."""

    def __init__(self, counter: Counter, delay: float) -> None:
        self._counter = counter
        self._delay = delay
        self._buffer = b""
        self._in_data = False
        self._recipient = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 sink ready\r\n")

    def data_received(self, data: bytes) -> None:
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
        if replies:
            self._answer(b"".join(replies))

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

    def _answer(self, replies: bytes) -> None:
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, replies)
        else:
            self._transport.write(replies)


async def serve(port: int, delay: float, counter: Counter) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await loop.create_server(lambda: Session(counter, delay), sock=listener, backlog=512)
    print("ready", flush=True)
    await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--log")
    options = parser.parse_args()
    counter = Counter(options.log)
    asyncio.run(serve(options.port, options.delay_ms / 1000, counter))
    figures = {"taken": counter.taken, "bytes": counter.bytes, "first": counter.first, "last": counter.last}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
