"""Who holds a lease: `machine/boot/pid/started`, by which the sweep of the same machine knows a dead process."""

import os
import socket
from functools import cache

import psutil

from campaigns.journal import boot_id


def here() -> str:
    """This machine since its last boot."""
    return f"{socket.gethostname()[:60]}/{boot_id()[:8]}"


def name() -> str:
    """The name of this process, unlike that of any other."""
    return f"{here()}/{os.getpid()}/{_started(os.getpid())}"


@cache
def _started(pid: int) -> int:
    return int(psutil.Process(pid).create_time() * 100)


def is_dead(worker: str, *, here: str) -> bool:
    """Whether a worker was a process of this machine and is gone. One of another machine may live: False."""
    place, _, process = worker.rpartition("/")
    place, _, pid = place.rpartition("/")
    if place != here or not pid.isdigit() or not process.isdigit():
        return False
    try:
        running = psutil.Process(int(pid))
        return int(running.create_time() * 100) != int(process) or running.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
