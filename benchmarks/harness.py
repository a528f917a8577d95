"""What the benchmarks share: engines, children, memory, and how a result is printed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from newsletter import embedded

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Result:
    """One claim as `--json` prints it; ratio is value over limit unless the claim says otherwise."""

    claim: str
    value: float
    unit: str
    limit: float | None = None
    ratio: float | None = None
    peak_rss_mb: float | None = None  # PSS summed over the processes
    details: dict[str, Any] = field(default_factory=dict)

    def show(self, *, as_json: bool) -> None:
        """A small table, or the object as the last line."""
        if self.limit and self.ratio is None:
            self.ratio = round(self.value / self.limit, 3)
        if as_json:
            print(json.dumps(asdict(self)))
            return
        print(f"\n{self.claim}: {self.value:,.0f} {self.unit}")
        if self.limit:
            print(f"  limit of the same run {self.limit:,.0f} {self.unit}, ratio {self.ratio}")
        if self.peak_rss_mb:
            print(f"  peak memory {self.peak_rss_mb:,.0f} MB")
        for name, value in self.details.items():
            print(f"  {name}: {value:,}" if isinstance(value, (int, float)) else f"  {name}: {value}")


def say(text: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def installation(**variables: str) -> Iterator[embedded.Engines]:
    """Engines with fsync on, tables made, and this process's Django on them."""
    with embedded.temporary(prefix="nl-bench-") as engines:
        os.environ.update(engines.environment())
        os.environ.update(embedded.demo_keys())
        os.environ.update({"DATA_DIR": str(engines.place.data), "DEMO": "0", "LOG_LEVEL": "WARNING"})
        os.environ.update({"SITE_URL": "http://127.0.0.1:8000", "EDGE_URL": "http://127.0.0.1:8001", **variables})
        os.environ["DJANGO_SETTINGS_MODULE"] = "newsletter.settings"
        import django
        from django.core.management import call_command
        from django.db import connections

        django.setup()
        call_command("migrate", verbosity=0)
        try:
            yield engines
        finally:
            connections.close_all()
            connections["default"].close_pool()  # type: ignore[attr-defined]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def child(command: list[str], *, ready: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program that has printed what it prints when it is ready; ended by SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        for line in process.stdout:
            if ready in line:
                break
        else:
            raise SystemExit(f"{command} did not start")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_json(process: subprocess.Popen[str]) -> dict[str, Any]:
    """End a child and return the JSON object that it says goodbye with."""
    process.send_signal(signal.SIGTERM)
    assert process.stdout
    said = process.stdout.read().strip().splitlines()
    process.wait(30)
    found: dict[str, Any] = json.loads(said[-1])
    return found


class Memory:
    """The peak of the memory (PSS) of processes and their children, looked at twice a second."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self.peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.peak = max(self.peak, sum(map(self._pss, self._pids)) / 1_000_000)

    @staticmethod
    def _pss(pid: int) -> float:
        total = 0.0
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(pid)
            for process in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
        return total


class Shares:
    """What each part of the machine costs while something runs, in µs of processor time a unit."""

    def __init__(self, **pids: int | None) -> None:
        self._pids = {name: pid for name, pid in pids.items() if pid}
        self._before = self._now()

    def each(self, units: int) -> dict[str, float]:
        """Processor time since the beginning, divided by the units done."""
        now = self._now()
        return {name: round((now[name] - self._before[name]) / units * 1e6, 1) for name in now}

    def _now(self) -> dict[str, float]:
        return {name: _cpu_seconds(pid) for name, pid in self._pids.items()}


def _cpu_seconds(pid: int) -> float:
    total = 0.0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])  # user and system, own and of children that have ended
    return total


def wait_until(holds: Callable[[], bool], *, seconds: float) -> None:
    """Look until it holds. Ends the program when it does not come about."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"it did not come about within {seconds:.0f} s")
        time.sleep(0.1)
