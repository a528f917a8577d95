"""`make run`: the whole platform on a laptop, by one command.

Engines first (each unless its address stands in the environment), then tables, login and demo, then web, edge, worker,
beat and mail server side by side. Ctrl-C ends them in the opposite order. A start that was killed leaves its memory in
`.data/`, by which the next one ends what still runs. No Django in this module: settings need what it makes.
"""

import argparse
import hashlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from newsletter import embedded, orphans
from newsletter.celery import READY_LINE
from newsletter.datafolder import DataFolder, Refusal, port_problem
from newsletter.embedded import EngineError, Place, Postgres, Valkey
from newsletter.env import BASE_DIR, DATA_DIR, env
from newsletter.health import status
from newsletter.supervising import Program, Supervisor

ANSWER_SECONDS = 60.0
DRAIN_SECONDS = 10.0  # a worker's tasks hand back what they hold within 3 s of the signal; beat needs up to 3 s


@dataclass
class Installation:
    """What one start has decided: addresses, ports and which parts are its own."""

    folder: DataFolder
    port: int
    edge_port: int = 0
    mail_port: int | None = None  # None: EMAIL_URL of the environment leads elsewhere
    postgres: Postgres | None = None
    valkey: Valkey | None = None
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def demo(self) -> bool:
        return self.variables["DEMO"].lower() in {"1", "true", "yes", "on"}

    def failure(self) -> str | None:
        """Which engine has ended by itself, as a clause; None while all is well."""
        if self.postgres and not self.postgres.running:
            return "PostgreSQL has ended"
        if self.valkey and not self.valkey.running:
            return "Valkey has ended"
        return None


def parse(arguments: list[str]) -> int:
    """The port to listen on. Raises Refusal."""
    parser = argparse.ArgumentParser(prog="python -m newsletter.running", description=__doc__)
    parser.add_argument("--port", default="8000", help="of the site, on 127.0.0.1 (default 8000)")
    port = parser.parse_args(arguments).port
    if not (port.isdigit() and 1 <= int(port) <= 65535):
        raise Refusal(f"PORT must be a number from 1 to 65535, not “{port}”.")
    return int(port)


def decide(folder: DataFolder, port: int) -> Installation:
    """Choose ports and engines, and write down what `manage.py` needs. Raises Refusal."""
    if problem := port_problem(port):
        raise Refusal(f"Port {port} cannot be used ({problem}); choose another: make run PORT={port + 1}")
    found = Installation(folder, port)
    found.edge_port = folder.port("EDGE_PORT", taken={port})
    if "EMAIL_URL" not in os.environ:
        found.mail_port = folder.port("MAIL_PORT", taken={port, found.edge_port})
    place = Place.of(folder.path)
    place.make()
    embedded.remove_abandoned()
    if "DATABASE_URL" not in os.environ:
        found.postgres = Postgres(place)
    if "REDIS_URL" not in os.environ:
        found.valkey = Valkey(place)
    return found


def start_engines(found: Installation, stack: ExitStack) -> None:
    """Start the engines side by side; the stack stops them. Raises EngineError."""
    engines = [engine for engine in (found.postgres, found.valkey) if engine]
    with ThreadPoolExecutor(2) as pool:
        for engine in engines:
            stack.callback(engine.stop)
        for started in [pool.submit(engine.start) for engine in engines]:
            started.result()


def write_variables(found: Installation) -> None:
    """Put together the environment of every program, and keep it for `manage.py`."""
    keys = found.folder.keys()
    addresses = {
        "DEMO": "1",
        "SITE_URL": f"http://127.0.0.1:{found.port}",
        "EDGE_URL": f"http://127.0.0.1:{found.edge_port}",
        "EDGE_PORT": str(found.edge_port),
        "DATABASE_URL": found.postgres.url() if found.postgres else "",
        "REDIS_URL": found.valkey.url if found.valkey else "",
        "EMAIL_URL": f"smtp://127.0.0.1:{found.mail_port}",
        "MAIL_PORT": str(found.mail_port or ""),
    }
    own = {**keys, **addresses}
    found.variables = {name: os.environ.get(name, value) for name, value in own.items()}
    # Secrets that the environment brings are used and not written down; ours are kept for the time without them.
    found.folder.remember({**found.variables, **keys})


def prepare(found: Installation, supervisor: Supervisor) -> None:
    """Tables, login and demo; skipped when this database has had them from these very migrations. Raises Refusal."""
    found.folder.admin_password()
    state = found.folder.state()
    wanted = {"database": _database_identity(found), "migrations": _migrations(), "demo": found.demo}
    if state == wanted:
        return
    command = _manage("prepare_laptop", "--password-file", str(found.folder.password_file))
    if state.get("database") == wanted["database"] and state.get("demo"):
        command.append("--without-demo")
        wanted["demo"] = True
    supervisor.say("preparing the database" + (" and the demo" if wanted["demo"] else ""))
    if supervisor.finish(Program("prepare", command)) and not supervisor.asked_to_stop:
        raise Refusal("The database could not be prepared; the lines above say why.")
    if not supervisor.asked_to_stop:
        found.folder.set_state(wanted)


def programs(found: Installation) -> list[Program]:
    """Everything that runs beside the engines."""
    data = found.folder.path
    (data / "beat.pid").unlink(missing_ok=True)  # whoever wrote it has ended: we hold the folder
    granian = [sys.executable, "-m", "granian", "--host", "127.0.0.1", "--workers", "1", "--log-level", "warning"]
    granian += ["--no-ws", "--workers-kill-timeout", "2"]
    celery = [sys.executable, "-m", "celery", "--quiet", "--app", "newsletter"]
    web = [*granian, "--interface", "wsgi", "--port", str(found.port), "--blocking-threads", "4"]
    edge = [*granian, "--interface", "asgi", "--port", str(found.edge_port)]
    worker = [*celery, "worker", "--concurrency", "2", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    beat = [*celery, "beat", "--schedule", str(data / "beat-schedule"), "--pidfile", str(data / "beat.pid")]
    mail = [sys.executable, "-m", "newsletter.mailserver", "--port", str(found.mail_port), "--dir", str(data / "mail")]
    wanted = [
        Program("web", [*web, "newsletter.wsgi:application"]),
        Program("edge", [*edge, "tracking.edge:application"]),
        Program("worker", worker, stop_stage=0, stop_seconds=DRAIN_SECONDS),
        Program("beat", beat, stop_stage=0, stop_seconds=DRAIN_SECONDS),
    ]
    return [*wanted, Program("mail", mail)] if found.mail_port else wanted


def start_programs(found: Installation, supervisor: Supervisor) -> None:
    """Start everything and wait until all of it answers; a page that fails is in the log. Raises Refusal."""
    worker_ready = threading.Event()
    waiting: dict[str, Callable[[], bool]] = {
        "web": lambda: status(found.port) is not None,
        "edge": lambda: status(found.edge_port) is not None,
        "worker": worker_ready.is_set,
    }
    if found.mail_port:
        waiting["mail"] = lambda: _greets(found.mail_port or 0)

    def listen(line: str) -> None:
        if line == READY_LINE:
            worker_ready.set()

    for program in programs(found):
        supervisor.start(program, on_line=listen)
    deadline = time.monotonic() + ANSWER_SECONDS
    while waiting and not supervisor.asked_to_stop:
        supervisor.pump()
        waiting = {name: answers for name, answers in waiting.items() if not answers()}
        if time.monotonic() > deadline:
            raise Refusal(f"{', '.join(waiting)} did not answer within {ANSWER_SECONDS:.0f} s.")


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(4).startswith(b"220")
    except OSError:
        return False


def _manage(*arguments: str) -> list[str]:
    return [sys.executable, str(BASE_DIR / "manage.py"), *arguments]


def _database_identity(found: Installation) -> str:
    """What tells this database from one made anew in its place."""
    if not found.postgres:
        return hashlib.sha256(found.variables["DATABASE_URL"].encode()).hexdigest()
    with found.postgres.connect() as connection:
        row = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
    return str(row[0]) if row else ""


def _migrations() -> str:
    """A fingerprint of every migration: of ours by their text, of the packages' by their pinned versions."""
    files = [*sorted(BASE_DIR.glob("*/migrations/*.py")), BASE_DIR / "requirements.txt", BASE_DIR / "constraints.txt"]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def box(found: Installation) -> str:
    """Where everything is, for the person at the terminal."""
    site = found.variables["SITE_URL"]
    lines = ["Newsletter is running.", "", f"Site    {site}/"]
    lines.append(f"Admin   {site}/admin/   login admin, password {found.folder.admin_password()}")
    if found.demo and found.mail_port:
        lines.append(f"Inbox   {site}/inbox/   every mail that the demo sends")
    lines += [f"Data    {_shown(found.folder.path)}", "Stop    Ctrl-C"]
    width = max(len(line) for line in lines) + 2
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    corners = "┌┐└┘─│" if encoding == "utf8" else "++++-|"
    top, bottom = corners[0] + corners[4] * width + corners[1], corners[2] + corners[4] * width + corners[3]
    return "\n".join(["", top, *(f"{corners[5]} {line.ljust(width - 1)}{corners[5]}" for line in lines), bottom, ""])


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def run(port: int) -> int:
    """Start everything and keep it running until asked to stop. Raises Refusal and EngineError."""
    folder = DataFolder(DATA_DIR.absolute())
    folder.take()
    with ExitStack() as stack:
        stack.enter_context(folder.alone(f"http://127.0.0.1:{port}/, process {os.getpid()}"))
        if ended := orphans.end(orphans.read(folder.processes)):
            print(f"ended what a killed start had left running: {', '.join(ended)}", flush=True)
        mark = os.environ[orphans.MARK] = secrets.token_hex(8)
        found = decide(folder, port)
        # Before the engines: a signal that comes while they start must not leave them behind.
        supervisor = Supervisor(lambda running: orphans.write(folder.processes, _identities(running, mark)))
        with supervisor.signals():
            start_engines(found, stack)
            write_variables(found)
            supervisor.env = {**os.environ, **found.variables, **_surroundings(folder)}
            with supervisor:
                prepare(found, supervisor)
                if not supervisor.asked_to_stop:
                    start_programs(found, supervisor)
                if not supervisor.asked_to_stop:
                    supervisor.plain(box(found))
                status = supervisor.run(watch=found.failure)
            if found.postgres or found.valkey:
                supervisor.say("stopping the engines")
            folder.processes.unlink(missing_ok=True)
    return status


def _surroundings(folder: DataFolder) -> dict[str, str]:
    """What a program needs beside settings; the warnings left out are for servers."""
    silenced = ["No directory at", "You're running the worker with superuser privileges"]
    return {
        "DATA_DIR": str(folder.path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": ",".join(f"ignore:{text}" for text in silenced),
    }


def _identities(running: list[Program], mark: str) -> list[orphans.Remembered]:
    known = [orphans.remember(program.name, program.pid or 0, mark) for program in running]
    return [identity for identity in known if identity]


def main() -> int:
    """Run, and say in one sentence why it is not possible."""
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    if (BASE_DIR / ".env").is_file():
        env.read_env(str(BASE_DIR / ".env"), overwrite=False)
    try:
        return run(parse(sys.argv[1:]))
    except (Refusal, EngineError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
