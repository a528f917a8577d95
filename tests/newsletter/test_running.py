"""`make run`'s program: starts by one command, ends in order, recovers from a kill, refuses in one sentence."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from newsletter.datafolder import Refusal
from newsletter.embedded import Place, remove_engines
from newsletter.env import BASE_DIR
from newsletter.mailserver import listen
from newsletter.running import parse
from tests.engines import engines

OURS = ("DATABASE_URL", "REDIS_URL", "EMAIL_URL", "SITE_URL", "EDGE_URL", "SECRET_KEY", "TOKEN_KEYS", "SUPPRESSION_KEY")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Start:
    """One start of the program, in a session of its own as a terminal would give it."""

    def __init__(self, folder: Path, *, port: int | None = None, env: dict[str, str] | None = None) -> None:
        self.port = port or free_port()
        self.folder = folder
        clean = {name: value for name, value in os.environ.items() if name not in OURS}
        # Without the demo's data, which has tests of its own and takes its time.
        variables = {**clean, "DATA_DIR": str(folder), "DEMO": "0", "TERM": "dumb", **(env or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "newsletter.running", "--port", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables,
            cwd=BASE_DIR,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.begun = time.monotonic()

    def until_running(self) -> "Start":
        watchdog = threading.Timer(60, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if "Stop    Ctrl-C" in line:
                break
        else:
            pytest.fail("".join(self.lines))
        watchdog.cancel()
        self.seconds = time.monotonic() - self.begun
        threading.Thread(target=self._drain, daemon=True).start()
        return self

    def _drain(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def answers(self) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/admin/login/") as response:
            return bool(response.status == 200)

    def stop(self, number: int = signal.SIGINT) -> int:
        os.killpg(self.process.pid, number)
        return self.process.wait(20)

    def refusal(self) -> str:
        """What a start says that ends by itself."""
        out, _ = self.process.communicate(timeout=20)
        assert self.process.returncode == 1
        assert len(out.splitlines()) == 1, out
        return out


def programs_of(folder: Path) -> list[str]:
    """What still runs for a data folder, the engines included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("DATA_DIR") == str(folder):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder that has seen its first start and its end."""
    folder = tmp_path_factory.mktemp("copy") / ".data"
    start = Start(folder).until_running()
    assert start.stop() == 0
    assert programs_of(folder) == []
    yield folder
    remove_engines(Place.of(folder).root)


def test_the_first_start_leaves_private_files_and_says_how_to_log_in(prepared: Path) -> None:
    assert stat.S_IMODE(prepared.stat().st_mode) == 0o700
    for name in ("env", "admin-password", "postgres-password"):
        assert stat.S_IMODE((prepared / name).stat().st_mode) == 0o600


def test_a_second_start_is_quick_keeps_its_ports_serves_manage_py_and_leaves_nothing_behind(prepared: Path) -> None:
    def kept() -> list[str]:
        text = (prepared / "env").read_text(encoding="utf-8")
        return [line for line in text.splitlines() if line.startswith(("EDGE_PORT", "MAIL_PORT", "SECRET_KEY"))]

    before = kept()
    start = Start(prepared).until_running()
    assert start.seconds < 10
    assert start.answers()
    assert kept() == before
    password = (prepared / "admin-password").read_text(encoding="utf-8").strip()
    assert any(f"login admin, password {password}" in line for line in start.lines)
    assert shell_of(prepared, password).split() == ["True", f"http://127.0.0.1:{start.port}"]

    assert start.stop(signal.SIGTERM) == 0
    stages = [line.split("stopping ")[1].strip() for line in start.lines if "stopping " in line]
    assert stages == ["worker, beat", "web, edge, mail", "the engines"]
    assert programs_of(prepared) == []


def shell_of(folder: Path, password: str) -> str:
    """What a manage.py command in another terminal sees of the running installation."""
    code = f"""from django.conf import settings; from django.contrib.auth import authenticate
print(authenticate(username="admin", password={password!r}).is_superuser, settings.SITE_URL)"""
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    command = [sys.executable, "manage.py", "shell", "--no-imports", "--command", code]
    variables = {**clean, "DATA_DIR": str(folder), "DEMO": "0"}
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=BASE_DIR, env=variables).stdout


def test_after_a_kill_the_next_start_ends_what_was_left_and_recovers(prepared: Path) -> None:
    killed = Start(prepared).until_running()
    killed.process.kill()
    killed.process.wait()
    assert any("granian" in program for program in programs_of(prepared))

    start = Start(prepared, port=killed.port).until_running()
    assert "ended what a killed start had left running" in start.lines[0]
    assert start.answers()
    remembered = {entry["pid"] for entry in json.loads((prepared / "processes.json").read_text(encoding="utf-8"))}
    assert start.stop() == 0
    assert programs_of(prepared) == []
    assert not any(psutil.pid_exists(pid) for pid in remembered)


def test_of_two_starts_at_once_one_runs_and_one_says_so(prepared: Path) -> None:
    both = [Start(prepared), Start(prepared)]
    while all(start.process.poll() is None for start in both):
        time.sleep(0.02)
    loser, winner = sorted(both, key=lambda start: start.process.poll() is None)
    assert "This copy is running already" in loser.refusal()
    assert winner.until_running().answers()
    winner.stop()


def test_engines_and_mail_server_of_the_environment_are_used_and_not_started(tmp_path: Path) -> None:
    with engines.postgres.connect("postgres") as connection:
        connection.execute("DROP DATABASE IF EXISTS running_elsewhere")
        connection.execute("CREATE DATABASE running_elsewhere")
    elsewhere = {
        "DATABASE_URL": engines.postgres.url("running_elsewhere"),
        "REDIS_URL": f"{engines.valkey.url}?db=7",
        "STREAM_URL": f"{engines.valkey.url}?db=8",
        # Celery's command line reads this one itself, so it has Celery's form of a socket.
        "BROKER_URL": f"redis+socket://{engines.valkey.socket}?virtual_host=9",
        "CACHE_URL": f"{engines.valkey.url}?db=10",
        "EMAIL_URL": "smtp://127.0.0.1:1",
    }
    start = Start(tmp_path / ".data", env=elsewhere).until_running()
    assert start.answers()
    found = programs_of(tmp_path / ".data")
    assert not any("postgres" in program or "valkey" in program or "mailserver" in program for program in found)
    assert start.stop() == 0
    assert programs_of(tmp_path / ".data") == []
    remove_engines(Place.of(tmp_path / ".data").root)


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with listen() as taken:
        port = taken.getsockname()[1]
        said = Start(tmp_path / ".data", port=port).refusal()
    assert said == f"Port {port} cannot be used (Address already in use); choose another: make run PORT={port + 1}\n"


def test_a_foreign_folder_a_file_and_a_forbidden_place_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine", encoding="utf-8")
    starts = [Start(path) for path in (foreign, foreign / "thesis.txt", Path("/sys/newsletter"))]
    assert "was not made by this program" in starts[0].refusal()
    assert "is a file" in starts[1].refusal()
    assert "/sys/newsletter cannot be written" in starts[2].refusal()
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("port", ["0", "65536", "web", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(Refusal, match=f"PORT must be a number from 1 to 65535, not “{port}”."):
        parse([f"--port={port}"])
