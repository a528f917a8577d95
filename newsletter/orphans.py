"""The processes of a start that was killed: the next start finds them by what was written down, never by name.

A number alone does not name a process, since numbers are given again. What is remembered is number, start time and
boot; each program has a session of its own, so its number is also that of its group. Where only the group's children
are left, each must carry the start's own mark in its environment.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

MARK = "NEWSLETTER_START"  # environment variable that every program of a start carries
_SAME_START_SECONDS = 0.05  # start times of one process, read twice, differ by rounding only
_END_SECONDS = 3.0  # what a draining worker may take


@dataclass(frozen=True)
class Remembered:
    """A process as it is written down."""

    name: str
    pid: int
    started: float  # seconds since the epoch
    boot: str
    mark: str


def boot() -> str:
    """What differs after each start of the machine; numbers and times of processes are worth nothing beyond it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(round(psutil.boot_time(), -1))


def remember(name: str, pid: int, mark: str) -> Remembered | None:
    """The identity of a running process; None when it is gone already."""
    try:
        return Remembered(name=name, pid=pid, started=psutil.Process(pid).create_time(), boot=boot(), mark=mark)
    except psutil.NoSuchProcess:
        return None


def alive(pid: int, started: float, *, within: float = _SAME_START_SECONDS) -> bool:
    """Whether this very process runs; one that only waits to be collected does not."""
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - started) <= within and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def write(path: Path, processes: Iterable[Remembered]) -> None:
    """Replace the memory in one step, so that a kill leaves the old or the new."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps([asdict(process) for process in processes], indent=1), encoding="utf-8")
    fresh.replace(path)


def read(path: Path) -> list[Remembered]:
    """What the last start wrote down; nothing when it ended well or the file cannot be read."""
    try:
        return [Remembered(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def end(processes: Iterable[Remembered], *, kill_after: float = _END_SECONDS) -> list[str]:
    """End what is left of a killed start, asking first; returns the names of what was found."""
    here = boot()
    found = {process.name: left for process in processes if process.boot == here and (left := _group(process))}
    members = [member for group in found.values() for member in group]
    # The leader alone is asked: it ends its children in its own order.
    _signal([group[0] for group in found.values()], psutil.Process.terminate)
    _, stubborn = psutil.wait_procs(members, timeout=kill_after)
    _signal(stubborn, psutil.Process.kill)
    psutil.wait_procs(stubborn, timeout=kill_after)
    return list(found)


def end_group(pid: int) -> None:
    """Kill a program that we started ourselves, with its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _group(leader: Remembered) -> list[psutil.Process]:
    """The processes of this program that run, its leader first if it is one of them."""
    if psutil.pid_exists(leader.pid) and not alive(leader.pid, leader.started) and not _is_zombie(leader.pid):
        return []  # the number belongs to somebody else by now
    leads = alive(leader.pid, leader.started)
    members: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) != leader.pid or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if leads or process.environ().get(MARK) == leader.mark:
                members.append(process)
    return sorted(members, key=lambda process: process.pid != leader.pid)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    return False


def _signal(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            send(process)
