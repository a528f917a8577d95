"""Templates that nobody has checked yet, compiled and filled in by a child process that may be killed.

What python-liquid, mrml, css-inline or a regular expression can be led to do is bounded by no library of ours. So
previews, preflight, tests and the launch let a child do it: it has 2 s of processor time, 300 MB of memory and no
secret in its environment, and it dies with the process that started it. It is kept for the next job; one that ran away
is replaced. Campaigns are sent by what came out of here; there `bounds` alone holds a recipient's values in check.

A frame on the pipes is eight bytes of length and so much JSON: what the child answers is read as data, never run.
"""

import contextlib
import hashlib
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from newsletter.mailing.compiling import Compiled, CompileError, Source
from newsletter.mailing.personalizing import Addresses, Recipient
from newsletter.mailing.slots import PersonalizeError

log = logging.getLogger(__name__)

CPU_SECONDS = 2
WALL_SECONDS = 10.0
MEMORY_BYTES = 300_000_000  # beyond what the child has when it is ready
MOST_ANSWER = 20_000_000  # bytes
CHILDREN = 2  # at once in one process; further callers wait
REFUSE_SECONDS, REFUSE_MOST = 300.0, 100  # what ran away is not tried again so soon
HEADER = 8
_ROOT = Path(__file__).resolve().parents[2]
_TOO_LONG = "This mail takes more than {} seconds to compute; make its merge tags or its HTML simpler."
_TOO_LARGE = "This mail takes too much memory to compute; make its merge tags or its HTML simpler."
_BUSY = "The machine is too busy to look at this mail just now; try again in a minute."


class RunawayError(Exception):
    """A template that was cut off; the text is a sentence for the editor."""


class BusyError(Exception):
    """No answer in time, by no fault of the template; the text is a sentence for the editor."""


def compile_source(source: Source, *, headers: Mapping[str, str], date: datetime | None = None) -> Compiled:
    """compiling.compile_source in a child. Raises CompileError, RunawayError or BusyError."""
    job = {
        "source": {**vars(source), "constants": dict(source.constants), "fields": sorted(source.fields)},
        "headers": dict(headers),
        "date": date.isoformat() if date else None,
    }
    # Who writes and to whom is ours to say, whatever became of the child.
    return replace(Compiled.from_json(_ask("compile", job)), headers=dict(headers), constants=dict(source.constants))


@dataclass(frozen=True)
class Shown:
    """One recipient's mail to look at."""

    subject: str
    preheader: str
    html: str
    text: str


def render(compiled: Compiled, recipients: Sequence[Recipient], *, addresses: Addresses) -> list[Shown]:
    """Fill a mail in for some people, to look at: its control links hold no tokens that work.

    Raises PersonalizeError, RunawayError or BusyError.
    """
    people = [{**recipient._asdict(), "fields": dict(recipient.fields)} for recipient in recipients]
    job = {"compiled": compiled.to_json(), "recipients": people, "addresses": [addresses.site, addresses.edge]}
    return [Shown(**shown) for shown in _ask("render", job)]


def _ask(kind: str, job: dict[str, Any]) -> Any:
    """What a child makes of a job; its refusals become the exceptions that they were."""
    frame = json.dumps({"kind": kind, **job}).encode()
    with _recent.refusing(frame):
        answer = _answered(frame)
    if "answer" in answer:
        return answer["answer"]
    error, sentence = answer["error"], answer["sentence"]
    if error == "fill":
        raise PersonalizeError(sentence)
    if error != "compile":
        log.error("a mail could not be computed: %s", error)
    raise CompileError(sentence)


def _answered(frame: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for is_last in (False, True):
        with _children.one() as child:
            try:
                answer = json.loads(child.exchange(frame))
            except _Gone:
                if is_last:  # killed by nobody we know, twice: the system has no memory left
                    raise BusyError(_BUSY) from None
                continue
        break
    if answer.get("error") == "memory":
        raise RunawayError(_TOO_LARGE)
    return answer


class _Recent:
    """What ran away lately: a page asks for a preview and for a checklist of one draft, and may be loaded again."""

    def __init__(self) -> None:
        self._sentences: dict[bytes, tuple[float, str]] = {}

    @contextlib.contextmanager
    def refusing(self, frame: bytes) -> Iterator[None]:
        """Raise the same RunawayError again at once, if it is not long ago."""
        digest = hashlib.blake2b(frame, digest_size=16).digest()
        at, sentence = self._sentences.get(digest, (0.0, ""))
        if sentence and time.monotonic() - at < REFUSE_SECONDS:
            raise RunawayError(sentence)
        try:
            yield
        except RunawayError as error:
            while len(self._sentences) >= REFUSE_MOST:
                self._sentences.pop(next(iter(self._sentences)), None)
            self._sentences[digest] = (time.monotonic(), str(error))
            raise


_recent = _Recent()


# Children ----------------------------------------------------------------------------------------------------


class _Gone(Exception):
    """The child ended without an answer and without a limit of ours: the thread that had started it ended."""


class _Child:
    def __init__(self) -> None:
        # Its own session: a signal to our process group is not for it. Nothing of our environment is for it either.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "newsletter.mailing.sandboxed", str(os.getpid())],
            cwd=_ROOT,
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._in, self._out):
            os.set_blocking(descriptor, False)

    def exchange(self, frame: bytes) -> bytes:
        """Send a job and wait for its answer. Raises RunawayError, BusyError or _Gone; the child is dead then."""
        unsent = memoryview(len(frame).to_bytes(HEADER, "big") + frame)
        answer = bytearray()
        deadline = time.monotonic() + WALL_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._in, selectors.EVENT_WRITE)
            selector.register(self._out, selectors.EVENT_READ)
            while not _is_whole(answer):
                left = deadline - time.monotonic()
                events = selector.select(left) if left > 0 else []
                if not events:
                    self.end()
                    raise BusyError(_BUSY)
                for key, _ in events:
                    if key.fd == self._out:
                        self._read(answer)
                    else:
                        unsent = self._write(unsent)
                        if not unsent:
                            selector.unregister(self._in)
        return bytes(answer[HEADER:])

    def _write(self, unsent: memoryview) -> memoryview:
        try:
            return unsent[os.write(self._in, unsent) :]
        except BrokenPipeError:
            raise self._ended() from None

    def _read(self, answer: bytearray) -> None:
        chunk = os.read(self._out, 1 << 16)
        if not chunk:
            raise self._ended()
        answer += chunk
        if len(answer) > MOST_ANSWER + HEADER:
            self.end()
            raise RunawayError(_TOO_LARGE)

    def _ended(self) -> Exception:
        """Why it is gone, by the signal that ended it."""
        self._process.wait()
        code = self._process.returncode
        self.end()
        if code == -24:  # SIGXCPU
            return RunawayError(_TOO_LONG.format(CPU_SECONDS))
        if code in {-9, 0}:
            return _Gone()
        # A library in Rust or C ends the process when it gets no memory.
        return RunawayError(_TOO_LARGE)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()


def _is_whole(answer: bytearray) -> bool:
    return len(answer) >= HEADER and len(answer) >= HEADER + int.from_bytes(answer[:HEADER], "big")


class _Children:
    """The children of this process: idle ones are used again, dead ones are forgotten."""

    def __init__(self) -> None:
        self._idle: list[_Child] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(CHILDREN)

    @contextlib.contextmanager
    def one(self) -> Iterator[_Child]:
        with self._free:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child and not child.is_alive:
                child.end()
                child = None
            child = child or _Child()
            try:
                yield child
            except BaseException:
                child.end()
                raise
            if child.is_alive:
                with self._lock:
                    self._idle.append(child)


_children = _Children()


def _forget() -> None:
    global _children  # noqa: PLW0603  a fork inherits the parent's children, which are not its own
    _children = _Children()


os.register_at_fork(after_in_child=_forget)
