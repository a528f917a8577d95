"""A long task for the tests of stopping: a worker takes it in by `--include tests.newsletter.slow_tasks`."""

import time
from pathlib import Path

from celery import shared_task

from newsletter.celery import stopping

LONGEST = 30.0  # seconds; a test that fails must still end


@shared_task(name="tests.hand_back")
def hand_back(folder: str) -> None:
    """Works until the worker is told to stop, then says so."""
    Path(folder, "begun").touch()
    deadline = time.monotonic() + LONGEST
    while not stopping() and time.monotonic() < deadline:
        time.sleep(0.02)
    Path(folder, "handed-back" if stopping() else "too-late").touch()


@shared_task(name="tests.finish")
def finish(folder: str) -> None:
    """Works on for a second whatever it is told, as a task that never asks."""
    Path(folder, "begun").touch()
    time.sleep(1)
    Path(folder, "finished").touch()
