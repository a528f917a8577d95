"""The demo's mail server: takes every message on loopback, delivers none, and keeps all for the inbox page.

A mailbox is two append-only files. `messages` holds a frame a message (one line of JSON with the envelope, then the
bytes as they came), `index` 16 bytes a frame (its place and length). The frame is written before its index entry and
both before the sender has its 250, so a reader needs no lock and a killed server loses no message that it had taken.
Written for one server a mailbox. There is no fsync: a crash of the whole machine may cost the last messages.

No Django in this module: it is a process of its own, and tests run it in their own.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

LARGEST_MESSAGE = 32 * 1024 * 1024  # bytes
_INDEX_ENTRY = struct.Struct(">QQ")  # place of the frame in `messages`, its length


@dataclass(frozen=True)
class Message:
    """One received message with its envelope."""

    id: int  # 1 is the mailbox's first message
    received_at: datetime
    mail_from: str
    rcpt_tos: list[str]
    size: int  # of `raw`, in bytes
    raw: bytes


class Mailbox:
    """What a demo mail server has received; may be read while the server writes."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._frames = self.folder / "messages"
        self._index = self.folder / "index"

    def __len__(self) -> int:
        try:
            return self._index.stat().st_size // _INDEX_ENTRY.size
        except FileNotFoundError:
            return 0

    def get(self, message_id: int) -> Message | None:
        """The message with this id; None when there is none."""
        return next(self._read(range(message_id, message_id + 1)), None) if 1 <= message_id <= len(self) else None

    def messages(self, offset: int = 0, limit: int = 50, *, recipient: str = "") -> list[Message]:
        """Newest first; `recipient` keeps those whose envelope names an address that contains this text."""
        newest = len(self)
        if not recipient:
            return list(self._read(range(newest - offset, max(0, newest - offset - limit), -1)))
        wanted = recipient.casefold()
        found: list[Message] = []
        for message in self._read(range(newest, 0, -1)):
            if any(wanted in address.casefold() for address in message.rcpt_tos):
                found.append(message)
                if len(found) == offset + limit:
                    break
        return found[offset:]

    def __iter__(self) -> Iterator[Message]:
        """Every message, oldest first."""
        return self._read(range(1, len(self) + 1))

    def _read(self, numbers: Sequence[int]) -> Iterator[Message]:
        if not len(self):
            return
        with self._index.open("rb") as index, self._frames.open("rb") as frames:
            for number in numbers:
                index.seek((number - 1) * _INDEX_ENTRY.size)
                place, length = _INDEX_ENTRY.unpack(index.read(_INDEX_ENTRY.size))
                frames.seek(place)
                head, _, raw = frames.read(length).partition(b"\n")
                envelope = json.loads(head)
                yield Message(
                    id=number,
                    received_at=datetime.fromisoformat(envelope["at"]),
                    mail_from=envelope["from"],
                    rcpt_tos=envelope["to"],
                    size=len(raw),
                    raw=raw,
                )


class MailboxWriter:
    """The server's side of a mailbox. What a killed server left half written is cut off at opening."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT
        self._frames = os.open(folder / "messages", flags, 0o600)
        self._index = os.open(folder / "index", flags, 0o600)
        entries = os.fstat(self._index).st_size // _INDEX_ENTRY.size
        self._end = 0
        if entries:
            last = os.pread(self._index, _INDEX_ENTRY.size, (entries - 1) * _INDEX_ENTRY.size)
            self._end = sum(_INDEX_ENTRY.unpack(last))
        os.ftruncate(self._index, entries * _INDEX_ENTRY.size)
        os.ftruncate(self._frames, self._end)
        os.lseek(self._index, 0, os.SEEK_END)
        os.lseek(self._frames, 0, os.SEEK_END)

    def append(self, *, mail_from: str, rcpt_tos: Sequence[str], raw: bytes, now: datetime) -> None:
        head = json.dumps({"at": now.isoformat(), "from": mail_from, "to": list(rcpt_tos)})
        frame = head.encode() + b"\n" + raw
        _write(self._frames, frame)
        _write(self._index, _INDEX_ENTRY.pack(self._end, len(frame)))
        self._end += len(frame)

    def close(self) -> None:
        os.close(self._frames)
        os.close(self._index)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class _Handler:
    """What aiosmtpd calls for a session."""

    def __init__(self, writer: MailboxWriter) -> None:
        self.writer = writer

    async def handle_EHLO(  # noqa: N802  aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.content or b""
        raw = content if isinstance(content, bytes) else content.encode()
        try:
            self.writer.append(
                mail_from=envelope.mail_from or "", rcpt_tos=envelope.rcpt_tos, raw=raw, now=datetime.now(UTC)
            )
        except OSError as error:
            return f"452 4.3.1 the message could not be stored: {error.strerror}"
        return "250 2.0.0 kept"


async def serve(listener: socket.socket, folder: Path, stop: asyncio.Event) -> None:
    """Take mail on a listening socket until told to stop."""
    writer = MailboxWriter(folder)

    def session() -> SMTP:
        return SMTP(
            _Handler(writer),
            data_size_limit=LARGEST_MESSAGE,
            enable_SMTPUTF8=True,
            hostname="localhost",
            ident="demo mail server",
            timeout=3600,
        )

    server = await asyncio.get_running_loop().create_server(session, sock=listener)
    try:
        await stop.wait()
    finally:
        server.close()
        writer.close()


def listen(port: int = 0) -> socket.socket:
    """A listening socket on loopback; port 0 takes a free one. Raises OSError when it is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(100)  # two bound sockets may share a port, two listening ones may not
    return listener


@dataclass(frozen=True)
class Running:
    """A mail server that runs in a thread of this process (tests and benchmarks)."""

    port: int
    mailbox: Mailbox

    @property
    def url(self) -> str:
        """The address as EMAIL_URL takes it."""
        return f"smtp://127.0.0.1:{self.port}"


@contextlib.contextmanager
def running(folder: Path, *, port: int = 0) -> Iterator[Running]:
    """A mail server in a thread, until the block ends."""
    listener = listen(port)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # ends open sessions, too
            runner.run(serve(listener, folder, stop))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield Running(listener.getsockname()[1], Mailbox(folder))
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _serve_until_signalled(listener: socket.socket, folder: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"taking mail on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await serve(listener, folder, stop)


def main() -> None:
    """`python -m newsletter.mailserver --port N --dir FOLDER`."""
    parser = argparse.ArgumentParser(prog="python -m newsletter.mailserver", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--dir", type=Path, required=True, help="where the messages are kept")
    options = parser.parse_args()
    try:
        listener = listen(options.port)
    except OSError as error:
        parser.exit(1, f"The mail server cannot listen on 127.0.0.1:{options.port}: {error.strerror}\n")
    asyncio.run(_serve_until_signalled(listener, options.dir))


if __name__ == "__main__":
    main()
