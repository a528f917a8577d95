"""A campaign by real Celery workers, and its limit: what the benchmarks of SMTP and of mail services share."""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from benchmarks.harness import Memory, Shares, child, last_json, wait_until

SERVERS = 2  # processes that take what is sent, on one port
Servers = list[subprocess.Popen[str]]


class Sent(NamedTuple):
    """One campaign through real workers."""

    figures: list[dict[str, Any]]  # what each server says that it took
    memory: float  # MB, peak of all workers
    took: float  # s from the launch to the campaign's end
    shares: dict[str, float]  # µs of processor time a recipient


@contextlib.contextmanager
def servers(command: list[str]) -> Iterator[Servers]:
    """The processes of a server that prints "ready"."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(child(command, ready="ready")) for _ in range(SERVERS)]


def by_workers(campaign_id: int, options: argparse.Namespace, running: Servers, *, database: int | None) -> Sent:
    """Send a draft by as many workers as asked for; ends the servers."""
    from campaigns import scheduling
    from campaigns.models import Campaign

    def ended() -> bool:
        return Campaign.objects.values_list("state", flat=True).get(pk=campaign_id) == "sent"

    command = ["-m", "celery", "-A", "newsletter", "worker", "-c", str(options.workers), "-l", "WARNING"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with child([*command, *quiet], ready="takes tasks") as worker:
        pids = {f"server_{number}": server.pid for number, server in enumerate(running, start=1)}
        shares = Shares(workers=worker.pid, database=database, **pids)
        with Memory(worker.pid) as memory:
            begun = time.monotonic()
            scheduling.send_now(campaign_id, now=datetime.now(UTC))
            wait_until(ended, seconds=900)
            took = time.monotonic() - begun
        costs = shares.each(options.recipients)
    return Sent([last_json(server) for server in running], memory.peak, took, costs)


def by_blast(program: str, campaign_id: int, processes: int, count: int, running: Servers) -> list[dict[str, Any]]:
    """The limit: each process sends the same thing again and again; what the servers took, which it ends."""
    command = [sys.executable, "-m", program, str(campaign_id), str(count // processes)]
    blasting = [subprocess.Popen(command, env=os.environ) for _ in range(processes)]
    if any(process.wait(300) for process in blasting):
        raise SystemExit("the limit could not be measured")
    return [last_json(server) for server in running]


def rate_of(figures: list[dict[str, Any]], expected: int) -> float:
    """Taken a second from the first to the last. Ends the program when it is not what was to be taken."""
    taken: int = sum(figure["taken"] for figure in figures)
    if taken != expected:
        raise SystemExit(f"{taken} messages arrived, {expected} were to")
    first: float = min(figure["first"] for figure in figures if figure["taken"])
    last: float = max(figure["last"] for figure in figures)
    return taken / (last - first)
