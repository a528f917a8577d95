"""Programs side by side under one process: prefixed output, restart of what falls over, an orderly end.

Honcho brings the parts (process, printer, colours). Its manager ends everything at once and kills after five seconds;
here programs stop in stages, workers before what they depend on, and a stage has the time that it needs to drain.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from types import FrameType
from typing import Any, TextIO

from honcho.colour import get_colours
from honcho.printer import Message, Printer
from honcho.process import Popen, Process

from newsletter import orphans
from newsletter.env import BASE_DIR

SYSTEM = "newsletter"  # the supervisor's own lines
SHORTEST_LIFE = 5.0  # seconds; a program that ends sooner would only end again
START_WAIT = 5.0
SAME_WISH_SECONDS = 1.0
_TICK = 0.1


@dataclass
class Program:
    """One program: its command, the stage in which it stops (lowest first) and how long it may take to."""

    name: str
    command: Sequence[str]
    stop_stage: int = 1
    stop_seconds: float = 3.0
    once: bool = False  # it is meant to end
    pid: int | None = None
    began: float = field(default=0.0, init=False)  # of the monotonic clock
    ended: bool = field(default=False, init=False)
    returncode: int | None = field(default=None, init=False)

    @property
    def running(self) -> bool:
        return self.pid is not None and not self.ended


class _ListProcess(Process):
    """Honcho's process with a command as a list and nothing to read from."""

    def __init__(self, cmd: Sequence[str], **options: Any) -> None:
        super().__init__(list(cmd), **options)
        self._child_ctor = partial(Popen, shell=False, stdin=subprocess.DEVNULL)

    @property
    def exited(self) -> bool:
        """Whether the program itself has ended; its output may be held open by children that it left."""
        return self._child is not None and self._child.poll() is not None


class QuietPrinter(Printer):
    """Honcho's printer, for a terminal that may go away while the programs go on."""

    def write(self, message: Message) -> None:
        try:
            super().write(message)
        except (OSError, ValueError):
            self.output = _Nowhere()


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


class Supervisor:
    """Runs programs until it is told to stop or one of them cannot be kept alive.

    `changed` is called with the running programs at each start, so that they can be remembered for the case that this
    process is killed. Use as a context manager: leaving it ends every program.
    """

    def __init__(self, changed: Callable[[list[Program]], None], *, output: TextIO | None = None) -> None:
        self.env = dict(os.environ)
        self.programs: list[Program] = []
        self.returncode = 0
        self._changed = changed
        self._events: queue.Queue[Message] = queue.Queue()
        self._printer = QuietPrinter(output or sys.stdout, width=len(SYSTEM), colour=_may_colour())
        self._colours: Iterator[str] = get_colours()
        self._by_name: dict[str, tuple[Program, str]] = {}
        self._on_line: dict[str, Callable[[str], None]] = {}
        self._processes: dict[str, _ListProcess] = {}
        self._signals = 0
        self._last_signal = 0.0

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """While in the block, signals are a wish to stop (`asked_to_stop`) and interrupt nothing."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        for number, handler in before.items():
            if number != signal.SIGHUP or handler is not signal.SIG_IGN:  # nohup means what it says
                signal.signal(number, self._asked)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def asked_to_stop(self) -> bool:
        return self._signals > 0

    def _asked(self, _number: int, _frame: FrameType | None) -> None:
        # make hands on the signal that the whole group has had: that is one wish, not two.
        now = time.monotonic()
        if now - self._last_signal > SAME_WISH_SECONDS:
            self._signals += 1
        self._last_signal = now

    def say(self, text: str) -> None:
        """Print a line of the supervisor's own."""
        self._printer.write(Message("line", text, datetime.now(), SYSTEM, None))  # noqa: DTZ005  wall clock of the reader

    def plain(self, text: str) -> None:
        """Print without a prefix."""
        prefix, self._printer.prefix = self._printer.prefix, False
        self.say(text)
        self._printer.prefix = prefix

    def start(self, program: Program, *, on_line: Callable[[str], None] | None = None) -> None:
        """Start a program; `on_line` sees each line that it prints."""
        if program.name not in self._by_name:
            self.programs.append(program)
            self._by_name[program.name] = (program, next(self._colours))
            self._printer.width = max(self._printer.width, len(program.name))
        if on_line:
            self._on_line[program.name] = on_line
        program.pid, program.ended, program.began = None, False, time.monotonic()
        colour = self._by_name[program.name][1]
        process = _ListProcess(program.command, name=program.name, colour=colour, env=self.env, cwd=str(BASE_DIR))
        self._processes[program.name] = process
        # A thread waits for each program, so that it is a child of this process and no helper stands between.
        threading.Thread(target=process.run, args=(self._events,), daemon=True).start()
        deadline = time.monotonic() + START_WAIT
        while program.pid is None and time.monotonic() < deadline:
            self.pump()
        self._changed([one for one in self.programs if one.running])

    def finish(self, program: Program) -> int:
        """Run a program that ends by itself and return its exit status; a wish to stop ends it."""
        program.once = True
        self.start(program)
        while program.running and not self.asked_to_stop:
            self.pump()
        return program.returncode if program.returncode is not None else 1

    def pump(self, seconds: float = _TICK) -> None:
        """Print what has come, for at most this long."""
        try:
            message = self._events.get(timeout=seconds)
        except queue.Empty:
            for program in self.programs:
                if program.running and self._processes[program.name].exited:
                    orphans.end_group(program.pid or 0)
            return
        program, _ = self._by_name[message.name]
        if message.type == "line":
            self._printer.write(message)
            if watch := self._on_line.get(message.name):
                watch(message.data.decode("utf-8", "replace").rstrip())
        elif message.type == "start":
            program.pid = message.data["pid"]
        elif message.type == "stop":
            program.ended, program.returncode = True, message.data["returncode"]
            if not (program.once or self.asked_to_stop):
                self._ended_unasked(program, message.data["returncode"])

    def _ended_unasked(self, program: Program, returncode: int) -> None:
        if time.monotonic() - program.began > SHORTEST_LIFE:
            self.say(f"{program.name} ended ({_how(returncode)}); starting it again")
            orphans.end_group(program.pid or 0)
            self.start(program)
            return
        self.say(f"{program.name} ended at once ({_how(returncode)}); stopping everything")
        self.returncode = 1
        self._signals += 1

    def run(self, *, watch: Callable[[], str | None]) -> int:
        """Print and mind until asked to stop; `watch` names what else has failed. Returns the exit status."""
        while not self.asked_to_stop:
            self.pump()
            if failure := watch():
                self.say(f"{failure}; stopping everything")
                self.returncode = 1
                break
        return self.returncode

    def stop(self) -> None:
        """End every program, stage by stage; a further signal ends the rest at once."""
        patience = self._signals = max(self._signals, 1)
        for stage in sorted({program.stop_stage for program in self.programs}):
            members = [program for program in self.programs if program.stop_stage == stage and program.running]
            if members:
                self.say(f"stopping {', '.join(program.name for program in members)}")
                self._stop_stage(members, patience)

    def _stop_stage(self, members: list[Program], patience: int) -> None:
        for program in members:
            _terminate(program)
        begun = time.monotonic()
        while any(program.running for program in members):
            self.pump()
            for program in members:
                late = time.monotonic() - begun > program.stop_seconds
                if program.running and (late or self._signals > patience):
                    self.say(f"{program.name} does not end; killing it")
                    orphans.end_group(program.pid or 0)
                    program.ended = True
        for program in members:
            orphans.end_group(program.pid or 0)  # children that outlived their parent


def _terminate(program: Program) -> None:
    """To the program alone, not to its group: it ends its own children in its own order."""
    if program.pid and program.running:
        try:
            os.kill(program.pid, signal.SIGTERM)
        except ProcessLookupError:
            program.ended = True


def _may_colour() -> bool:
    return os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ


def _how(returncode: int) -> str:
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"
