"""One SMTP connection after its greeting, as a state machine that never waits: replies in, writes and reports out.

With PIPELINING (RFC 2920) the final dot of one message and the envelope of the next go out in one write, so that a
message costs one round trip. The connection says of each message that it was given exactly once what became of it.
"""

import contextlib
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from enum import Enum

from newsletter.mailing.personalizing import Message
from newsletter.mailing.transports.base import Report, Result

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\b")
_READ = 16_384
# The usual answers to a final dot and the envelope behind it, all in one segment.
_ROUND = re.compile(rb"250 [^\n]*\n250 [^\n]*\n25[01] [^\n]*\n354 [^\n]*\n")
_TLS_RECORD = 16_384  # bytes
REPLY_LIMIT = 65_536  # bytes of a reply without a line's end: a server that sends more is broken


def status_code(code: int, text: str) -> str:
    """The enhanced status code that a reply begins with, else the reply code itself."""
    found = _ENHANCED.match(text.strip())
    return found.group() if found else str(code)


class Lost(Exception):
    """The connection is gone; `reports` holds what that means for the messages it held."""


class _Step(Enum):
    MAIL = 1
    RCPT = 2
    DATA = 3
    FINAL = 4
    IGNORE = 5  # RSET, or the lone dot after a refused recipient


_ENVELOPE = (_Step.MAIL, _Step.RCPT, _Step.DATA)


class Connection:
    """A connection that is ready for MAIL. `next_message` gives the next one to send, or None."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        pipelining: bool,
        eight_bit: bool,
        smtputf8: bool,
        next_message: Callable[[], Message | None] = lambda: None,
        may_finish: Callable[[], bool] = lambda: True,
        begins: Callable[[Message], None] = lambda message: None,
        report: Callable[[Report], None] = lambda report: None,
        unsent: Callable[[Message], None] = lambda message: None,
    ) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._pipelining = pipelining
        self._body = " BODY=8BITMIME" if eight_bit else ""
        self._takes_utf8 = smtputf8
        self.next_message, self.may_finish, self.begins = next_message, may_finish, begins
        self.report, self.unsent = report, unsent
        self._expected: deque[_Step] = deque()
        self._expects_round = False  # before these: the answers to a final dot and an envelope
        self._waiting: deque[tuple[_Step, bytes]] = deque()  # commands not sent yet, where there is no pipelining
        self._in: bytes = b""
        self._out = b""
        self._handed_over = 0  # bytes of the current write that the kernel took, or may have taken
        self._dot_at = 0  # place in the current write after which the message in doubt is complete; 0: none
        self._envelope: Message | None = None  # its MAIL, RCPT and DATA are under way
        self._refusal: tuple[int, str, bool] | None = None  # and whether it was to MAIL
        self._in_doubt: Message | None = None  # its final dot is under way or out
        self.heard_at = time.monotonic()
        self.is_closed = False

    @property
    def is_idle(self) -> bool:
        return not (self._expects_round or self._expected or self._out or self._waiting)

    @property
    def wants_to_write(self) -> bool:
        return bool(self._out)

    @property
    def has_final_dot_out(self) -> bool:
        """Whether it waits for the answer that RFC 5321 gives ten minutes."""
        return self._in_doubt is not None

    def fileno(self) -> int:
        return self.socket.fileno()

    def is_fresh(self) -> bool:
        """Whether a kept connection is still open: an idle server that has something to say says goodbye."""
        if self.is_closed:
            return False
        waiting, _, _ = select.select([self.socket], [], [], 0)
        return not waiting

    def quit(self) -> None:
        """Say goodbye without waiting for the answer."""
        with contextlib.suppress(OSError):
            self.socket.send(b"QUIT\r\n")
        self.is_closed = True
        self.socket.close()

    # Going out -------------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Take the next message if there is one; whether there was. Raises Lost."""
        opening = self._next_envelope()
        if opening:
            self._expected.extend(_ENVELOPE)
        elif self._waiting:
            opening = self._next_waiting()
        else:
            return False
        self._write(opening)
        return True

    def _next_envelope(self) -> bytes:
        """The commands of the next message that this server can take, as one write; empty when there is none.

        Without PIPELINING they wait for their turn, and nothing is to be written yet.
        """
        while True:
            message = self.next_message()
            if message is None:
                return b""
            if message.needs_smtputf8 and not self._takes_utf8:
                self.report(Report(message.key, Result.FAILED, "5.6.7", "The mail server takes no such address."))
                continue
            self._envelope, self._refusal = message, None
            utf8 = " SMTPUTF8" if message.needs_smtputf8 else ""
            mail = f"MAIL FROM:<{message.mail_from}>{self._body}{utf8}\r\n"
            if self._pipelining:
                return f"{mail}RCPT TO:<{message.rcpt_to}>\r\nDATA\r\n".encode()
            lines = (mail, f"RCPT TO:<{message.rcpt_to}>\r\n", "DATA\r\n")
            self._waiting.extend((step, line.encode()) for step, line in zip(_ENVELOPE, lines, strict=True))
            return b""

    def _next_waiting(self) -> bytes:
        step, line = self._waiting.popleft()
        self._expected.append(step)
        return line

    def _write(self, data: bytes, *, dot_at: int = 0) -> None:
        # Whatever was written before has been answered, so it has left.
        self._out, self._handed_over, self._dot_at = data, 0, dot_at
        self.heard_at = time.monotonic()
        self.flush()

    def flush(self) -> None:
        """Hand over what the kernel takes. Raises Lost."""
        try:
            taken = self.socket.send(self._out)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._note_records()
            return
        except OSError as error:
            self._note_records()
            raise self.lost(str(error)) from error
        self._handed_over += taken
        self._out = self._out[taken:] if taken < len(self._out) else b""

    def _note_records(self) -> None:
        """TLS takes a write record by record and says so when all are gone: each but the last may be."""
        if isinstance(self.socket, ssl.SSLSocket):
            self._handed_over = max(0, len(self._out) - 1) // _TLS_RECORD * _TLS_RECORD

    # Coming in -------------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Read what is there and act on whole replies. Raises Lost."""
        try:
            data = self.socket.recv(_READ)
            # A TLS socket may hold more than it gave, of which no selector tells.
            while isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
                data += self.socket.recv(_READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise self.lost(str(error)) from error
        if not data:
            raise self.lost("the server closed the connection")
        self.heard_at = time.monotonic()
        if self._expects_round and not self._in and _ROUND.fullmatch(data):
            self._settle(250, "")
            self._go_ahead(354, "")
            return
        self._take(self._in + data)

    def _take(self, data: bytes) -> None:
        """Act on whole replies and keep the rest."""
        start = 0
        while True:
            end = data.find(b"\n", start)
            if end < 0:
                break
            # A line such as "250-more" goes on; "250 last" or a bare "250" ends the reply.
            if data[start + 3 : start + 4] == b"-":
                following = self._end_of_reply(data, end + 1)
                if following < 0:
                    break
                line, start = data[start:following], following
            else:
                line, start = data[start:end], end + 1
            self._reply(line)
        self._in = data[start:]
        if len(self._in) > REPLY_LIMIT:
            raise self.lost("the server's reply has no end")

    @staticmethod
    def _end_of_reply(data: bytes, start: int) -> int:
        while True:
            end = data.find(b"\n", start)
            if end < 0:
                return -1
            if data[start + 3 : start + 4] != b"-":
                return end + 1
            start = end + 1

    def _reply(self, raw: bytes) -> None:
        self._spell_out()
        if raw.startswith(b"250") and self._expected and self._expected[0] is not _Step.DATA:
            code, text = 250, ""
        else:
            code, text = _parsed(raw)
        if code == 421 or code < 200 or not self._expected:
            raise self.lost(f"{code} {text}".strip(), answered=(code, text) if code == 421 else None)
        step = self._expected.popleft()
        if step is _Step.FINAL:
            self._settle(code, text)
        elif step in {_Step.MAIL, _Step.RCPT}:
            if step is _Step.MAIL and code >= 500 and self._is_refused_as_sender:
                # No login (530, RFC 4954), a sender it does not know: that says nothing of this recipient.
                raise self.lost(f"it takes no mail from us: {code} {text}")
            if code not in {250, 251} and self._refusal is None:
                self._refusal = (code, text, step is _Step.MAIL)
        elif step is _Step.DATA:
            self._go_ahead(code, text)
        if self._waiting and not self._expected and not self._out:
            self._write(self._next_waiting())

    @property
    def _is_refused_as_sender(self) -> bool:
        """Whether MAIL was refused for who we are: it held nothing of the message but a wish for SMTPUTF8."""
        return self._envelope is not None and not self._envelope.needs_smtputf8

    def _spell_out(self) -> None:
        if self._expects_round:
            self._expects_round = False
            self._expected.extendleft(reversed((_Step.FINAL, *_ENVELOPE)))

    def _settle(self, code: int, text: str) -> None:
        message, self._in_doubt, self._dot_at = self._in_doubt, None, 0
        assert message is not None
        self.report(_report(message, code, text))

    def _go_ahead(self, code: int, text: str) -> None:
        """The answer to DATA: the message's end and the next envelope in one write."""
        message, self._envelope = self._envelope, None
        self._expects_round = False
        assert message is not None
        if code == 354 and self._refusal is None:
            # First the next one: asking for it may take long (a window from the database), and the lease goes on.
            envelope = self._next_envelope()
            # Written down first: a process that is held up right after the look is known to have begun (promise 1).
            self.begins(message)
            if not self.may_finish():
                self.report(Report(message.key, Result.NOT_SENT))
                raise self.lost("the lease has ended")
            self._in_doubt = message
            if envelope:
                self._expects_round = True
            else:
                self._expected.append(_Step.FINAL)
            self._write(b"".join((message.content, b".\r\n", envelope)), dot_at=len(message.content) + 3)
            return
        refused = self._refusal or (code, text, True)
        self.report(_report(message, *refused))
        # Every recipient was refused, yet the server waits for a message: a lone dot. Else the transaction is dropped.
        closing = b".\r\n" if code == 354 else b"RSET\r\n"
        self._expected.append(_Step.IGNORE)
        envelope = self._next_envelope()
        if envelope:
            self._expected.extend(_ENVELOPE)
        self._write(closing + envelope)

    def lost(self, why: str, *, answered: tuple[int, str] | None = None) -> Lost:
        """Close, and say what became of the messages it held: in doubt only if the whole final dot was handed over."""
        self.is_closed = True
        self.socket.close()
        self._spell_out()
        if self._in_doubt:
            key = self._in_doubt.key
            if answered and self._expected and self._expected[0] is _Step.FINAL:
                self.report(_report(self._in_doubt, *answered))
            elif self._dot_at and self._handed_over < self._dot_at:
                self.unsent(self._in_doubt)
            else:
                self.report(Report(key, Result.UNKNOWN, "", f"The connection was lost before the answer: {why}"))
        if self._envelope:
            self.unsent(self._envelope)
        self._in_doubt = self._envelope = None
        self._expected.clear()
        self._waiting.clear()
        self._out = b""
        return Lost(why)


def _parsed(raw: bytes) -> tuple[int, str]:
    """Code and text of a reply; several lines become one."""
    lines = raw.decode("utf-8", "replace").splitlines()
    try:
        code = int(lines[0][:3])
    except (ValueError, IndexError):
        return 0, raw[:200].decode("utf-8", "replace")
    return code, " ".join(line[4:].strip() for line in lines)[:500]


def _report(message: Message, code: int, text: str, is_general: bool = True) -> Report:
    if 200 <= code < 300:
        return Report(message.key, Result.ACCEPTED)
    result = Result.FAILED if 500 <= code < 600 else Result.DEFERRED
    return Report(message.key, result, status_code(code, text), f"{code} {text}", is_general)
