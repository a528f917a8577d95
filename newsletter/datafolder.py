"""The folder `.data` of a laptop installation: whose it is, who uses it now, and what it remembers.

No Django in this module: it runs before settings can be read.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import secrets
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsletter.embedded import demo_keys

MARK = "README"
_MARK_TEXT = """The data of one newsletter installation, made by `make run`.

Everything is in here: database, queue, received demo mail, secrets (`env`) and the admin's password. Remove the whole
folder while nothing runs to begin anew; keep it, and a copy of it, if you care for what is inside.
"""
# Below the range from which systems take ports for outgoing connections.
_PORTS = range(20000, 32000)


class Refusal(Exception):
    """The installation cannot start; the text is one sentence for a person."""


@dataclass(frozen=True)
class DataFolder:
    """The folder and the names in it."""

    path: Path

    @property
    def env_file(self) -> Path:
        return self.path / "env"

    @property
    def processes(self) -> Path:
        return self.path / "processes.json"

    @property
    def password_file(self) -> Path:
        return self.path / "admin-password"

    def take(self) -> None:
        """Make the folder, or make sure that it is one of ours. Raises Refusal."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.stat()
            if found.st_uid != os.geteuid():
                raise Refusal(f"{self.path} belongs to another user; set DATA_DIR to a folder of yours.")
            mark = self.path / MARK
            if not mark.is_file() and any(self.path.iterdir()):
                raise Refusal(
                    f"{self.path} exists, is not empty and was not made by this program; "
                    "move it away or set DATA_DIR to another folder."
                )
            if stat.S_IMODE(found.st_mode) != 0o700:
                self.path.chmod(0o700)
            if not mark.exists() or mark.read_text(encoding="utf-8") != _MARK_TEXT:
                mark.write_text(_MARK_TEXT, encoding="utf-8")
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except FileExistsError:
            raise Refusal(f"{self.path} is a file; move it away or set DATA_DIR to another folder.") from None
        except OSError as error:
            raise Refusal(
                f"{self.path} cannot be written ({error.strerror}); set DATA_DIR to a folder of yours."
            ) from None

    @contextlib.contextmanager
    def alone(self, description: str) -> Iterator[None]:
        """Hold the folder for this process; the description is what a second start is told. Raises Refusal."""
        with (self.path / "lock").open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise Refusal(f"This copy is running already ({lock.read().strip() or 'it has just begun'}).") from None
            lock.truncate(0)
            lock.write(f"{description}\n")
            lock.flush()
            yield

    def remembered(self) -> dict[str, str]:
        """What the file `env` holds; empty before the first start."""
        if not self.env_file.exists():
            return {}
        lines = self.env_file.read_text(encoding="utf-8").splitlines()
        pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
        return {name: value.strip("'") for name, _, value in pairs}

    def remember(self, values: dict[str, str]) -> None:
        """Write `env`, by which any `manage.py` command finds the running installation."""
        text = "# Written at each start of `make run`; secrets and ports are kept from one start to the next.\n"
        self.write_private(self.env_file, text + "".join(f"{name}='{value}'\n" for name, value in values.items()))

    def write_private(self, path: Path, text: str) -> None:
        """Replace a file that only its owner may read, in one step."""
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)

    def keys(self) -> dict[str, str]:
        """This installation's secrets, made once."""
        known = self.remembered()
        return {name: known.get(name) or fresh for name, fresh in demo_keys().items()}

    def port(self, name: str, *, taken: set[int]) -> int:
        """The remembered port of a server, or a free one if it has none or somebody else has taken it."""
        remembered = self.remembered().get(name, "")
        if remembered.isdigit() and int(remembered) not in taken and port_problem(int(remembered)) is None:
            return int(remembered)
        # Two copies that start at the same time look in different places.
        look = random.Random(hashlib.sha256(f"{self.path.resolve()}{name}".encode()).digest())  # noqa: S311
        for port in look.sample(_PORTS, 200):
            if port not in taken and port_problem(port) is None:
                return port
        raise Refusal("No free port was found on 127.0.0.1.")

    def admin_password(self) -> str:
        """The admin's first password, made once."""
        if not self.password_file.exists():
            self.write_private(self.password_file, secrets.token_urlsafe(12) + "\n")
        return self.password_file.read_text(encoding="utf-8").strip()

    def state(self) -> dict[str, Any]:
        """What has been done once: which database was prepared, by which migrations."""
        try:
            loaded = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}

    def set_state(self, state: dict[str, Any]) -> None:
        self.write_private(self.path / "state.json", json.dumps(state, indent=1) + "\n")


def port_problem(port: int) -> str | None:
    """Why a server cannot listen on this port of 127.0.0.1; None when it can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            return error.strerror
    return None
