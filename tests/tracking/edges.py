"""A real edge for tests: granian in a process of its own, with its own data folder and any Valkey."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from newsletter import embedded


@dataclass(frozen=True)
class RunningEdge:
    port: int
    data: Path

    def ask(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        """One request on a connection of its own; the body is read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(
                method, path, headers={"User-Agent": "Mozilla/5.0 (X11) Firefox/127.0"} | (headers or {})
            )
            response = connection.getresponse()
            response.content = response.read()  # type: ignore[attr-defined]
            return response


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(data: Path, valkey_url: str) -> Iterator[RunningEdge]:
    """An edge that answers, ended afterwards."""
    data.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--log-level", "warning", "tracking.edge:application"]
    environment = {
        **os.environ,
        "REDIS_URL": valkey_url,
        "DATA_DIR": str(data),
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
    }
    with (data / "edge.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        edge = RunningEdge(port, data)
        wait_until(lambda: _answers(edge), process)
        yield edge
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()


def _answers(edge: RunningEdge) -> bool:
    try:
        return edge.ask("/healthz").status == 200
    except OSError:
        return False


def wait_until(holds: object, process: subprocess.Popen[bytes] | None = None, seconds: float = 20) -> None:
    """Return as soon as `holds()` is true."""
    deadline = time.monotonic() + seconds
    assert callable(holds)
    while not holds():
        assert process is None or process.poll() is None, "the process ended"
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


@contextlib.contextmanager
def own_valkey(folder: Path) -> Iterator[embedded.Valkey]:
    """A Valkey that a test may kill."""
    place = embedded.Place(folder, folder, None)
    place.make()
    valkey = embedded.Valkey(place)
    valkey.start()
    try:
        yield valkey
    finally:
        valkey.stop()


def restart(valkey: embedded.Valkey) -> None:
    """Start a killed server again; its dead socket is removed so that nobody waits for an orphan."""
    valkey.socket.unlink(missing_ok=True)
    valkey.start()
