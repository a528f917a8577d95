"""Real processes beside the tests: Celery workers, beat, and manage.py commands, on the tests' engines."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from django.conf import settings
from django.db import connection

from newsletter.celery import READY_LINE
from tests.engines import engines

PYTHON = sys.executable
ROOT = Path(settings.BASE_DIR)
READY_SECONDS = 30.0


def environment(**more: str) -> dict[str, str]:
    """What leads a child process to the tests' database, Valkey and mail server."""
    return {
        **os.environ,
        "DATABASE_URL": engines.postgres.url(str(connection.settings_dict["NAME"])),
        "EMAIL_URL": settings.EMAIL_URL,
        "SITE_URL": settings.SITE_URL,
        "EDGE_URL": settings.EDGE_URL,
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def manage(*arguments: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a manage.py command as an operator would."""
    command = [PYTHON, str(ROOT / "manage.py"), *arguments]
    done = subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    if check and done.returncode:
        raise AssertionError(f"{arguments} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done


def manage_json(*arguments: str, **more: str) -> dict[str, Any]:
    """The JSON object that a command of the contract prints."""
    printed = manage(*arguments, "--json", check=True, **more).stdout.strip().splitlines()
    answer = json.loads(printed[-1])
    assert isinstance(answer, dict)
    return answer


@contextlib.contextmanager
def running(command: list[str], *, ready: Callable[[str], bool], **more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is ready; it is ended by SIGTERM, and killed if that does not help."""
    process = subprocess.Popen(
        command,
        env=environment(**more),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    is_ready = threading.Event()
    said: list[str] = []

    def listen() -> None:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if ready(line):
                is_ready.set()
        is_ready.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        if not is_ready.wait(READY_SECONDS) or process.poll() is not None:
            raise AssertionError(f"{command} did not start:\n{''.join(said[-30:])}")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        listener.join(5)


def worker(*, processes: int = 2, **more: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A Celery worker with its pool; hints that earlier tests left in the broker are gone."""
    with redis.Redis.from_url(settings.BROKER_URL) as broker:
        broker.flushdb()
    command = [PYTHON, "-m", "celery", "-A", "newsletter", "worker", "-c", str(processes), "-l", "WARNING"]
    return running([*command, "--without-gossip", "--without-mingle"], ready=lambda line: READY_LINE in line, **more)


def beat(folder: Path, **more: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Celery's clock."""
    command = [PYTHON, "-m", "celery", "-A", "newsletter", "beat", "-l", "INFO"]
    files = ["--schedule", str(folder / "schedule"), "--pidfile", str(folder / "beat.pid")]
    return running([*command, *files], ready=lambda line: ". maxinterval" in line, **more)
