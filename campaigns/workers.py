"""Who holds a lease: `machine/boot/pid/started`. Whether they live is asked of their journal, not of these numbers."""

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
