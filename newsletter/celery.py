"""The Celery application, and how a worker stops. Periodic tasks stand in flows.py, the one place that spans the apps.

A process manager ends a worker by SIGTERM, to its main process or to the whole group. Celery's main process then
finishes what runs; a pool child, left to itself, would die in mid-task. So children keep SIGTERM for themselves: it
only says that a long task should hand back the rest of its work soon (`stopping`), and the main process tells them so
even when the signal reached it alone. A task that never asks is not cut off, it ends as usual.
"""

import contextlib
import os
import signal
import sys
import time
from typing import Any

from billiard import active_children
from celery import Celery, bootsteps
from celery.signals import task_postrun, task_prerun, worker_process_init, worker_ready, worker_shutting_down
from redis import RedisError

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "newsletter.settings")

READY_LINE = "the worker takes tasks"
STOPPING_SECONDS = 30.0  # a signal that ended nothing (sent to one child by mistake) is forgotten after this

app = Celery("newsletter")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

ROOM_SECONDS = 0.25  # how often a worker looks whether mail that waited for a limit may go
AWAY_SECONDS = 10.0  # after Valkey did not answer; the sweep finds what is due meanwhile


class LimitClock(bootsteps.StartStopStep):
    """Hints at mail that waits for a limit a second, for which the sweep's five seconds would be too long.

    A timer of the worker's main process, so that no task waits. It asks Valkey for one key; only while somebody waits
    does it send a message, and of all workers only one at a time.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        self._quiet_until = 0.0
        self._timer, self._entry = parent.timer, parent.timer.call_repeatedly(ROOM_SECONDS, self._look)

    def stop(self, parent: Any) -> None:
        self._timer.cancel(self._entry)

    def _look(self) -> None:
        from campaigns import limiting
        from subscribers.tasks import enqueue

        if time.monotonic() < self._quiet_until:
            return
        try:
            if limiting.is_somebody_waiting():
                enqueue(app.tasks["campaigns.hand_out_limited"])
        except RedisError:
            self._quiet_until = time.monotonic() + AWAY_SECONDS


app.steps["consumer"].add(LimitClock)

_told_to_stop: float | None = None
_is_pool_child = False


def stopping() -> bool:
    """Whether this process has been asked to stop: a long task hands back the rest of its work, within 3 s."""
    return _told_to_stop is not None and time.monotonic() - _told_to_stop < STOPPING_SECONDS


def _note_stop(*_: object) -> None:
    global _told_to_stop  # noqa: PLW0603  a signal has nowhere else to leave its word
    _told_to_stop = time.monotonic()


@worker_process_init.connect
def keep_sigterm_from_killing_tasks(**_: object) -> None:
    """Of a pool child's handlers only "ignore" outlives its start: billiard sets its own over any other afterwards."""
    global _is_pool_child  # noqa: PLW0603
    _is_pool_child = True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@task_prerun.connect
def hear_sigterm(**_: object) -> None:
    if _is_pool_child and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _note_stop)


@worker_shutting_down.connect
def tell_children(**_: object) -> None:
    _note_stop()
    for child in active_children():
        with contextlib.suppress(ProcessLookupError):
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)


@task_postrun.connect
def give_connections_back(**_: object) -> None:
    """The database connection goes back to this process's pool, where the next task finds it open."""
    from django.db import close_old_connections

    close_old_connections()


@worker_ready.connect
def say_ready(**_: object) -> None:
    # Read by newsletter.running. Past the logs, which can be switched off and into which Celery turns sys.stdout.
    print(READY_LINE, file=sys.__stdout__, flush=True)
