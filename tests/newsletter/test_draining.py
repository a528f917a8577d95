"""A worker that is told to stop lets its tasks hand back or finish, whoever of its processes was told."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from newsletter.celery import READY_LINE, app
from tests.newsletter import slow_tasks
from tests.processes import PYTHON, running

QUEUE = "draining"


@contextmanager
def worker() -> Iterator[Popen[str]]:
    command = [PYTHON, "-m", "celery", "--app", "newsletter", "worker", "--concurrency", "2", "--queues", QUEUE]
    command += ["--include", "tests.newsletter.slow_tasks", "--without-gossip", "--without-mingle"]
    with running(command, ready=lambda line: READY_LINE in line) as process:
        yield process


def to_the_group(process: Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGTERM)


def to_the_main_process(process: Popen[str]) -> None:
    process.terminate()


@pytest.mark.parametrize("tell", [to_the_group, to_the_main_process])
@pytest.mark.parametrize(("task", "result"), [("hand_back", "handed-back"), ("finish", "finished")])
@pytest.mark.django_db
def test_a_running_task_is_not_cut_off(
    tmp_path: Path, tell: Callable[[Popen[str]], None], task: str, result: str
) -> None:
    with worker() as process:
        getattr(slow_tasks, task).apply_async((str(tmp_path),), queue=QUEUE)
        deadline = time.monotonic() + 10
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        tell(process)
        begun = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - begun < 5
    assert (tmp_path / result).exists()
    assert app.conf.task_acks_late is False  # what a killed child held comes back by the sweep, not by the broker
