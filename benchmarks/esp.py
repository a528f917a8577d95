"""Recipients a second from real Celery workers with the full ledger, through Anymail to a local Mailgun-like server.

    python -m benchmarks.esp --recipients 100000 --workers 2 [--json]

The mail is that of benchmarks.send: 5 KB of HTML and its text, 5 links, 3 merge tags. A call carries it once with
placeholders, and the values of 200 people. The rate counts from the first call at the server to the last. The limit: as
many processes as workers make one ready call again and again over the same kept sessions, without database or
personalisation.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from benchmarks.harness import Memory, Result, Shares, child, free_port, installation, last_json, say, wait_until
from benchmarks.send import Sent, prepare, rate_of

SERVERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.esp", description=__doc__)
    parser.add_argument("--recipients", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    port = free_port()
    url = f"mailgun://key@mg.shed.example?api_url=http://127.0.0.1:{port}/v3&connections={options.connections}"
    with installation(EMAIL_URL=url, SITE_URL="http://127.0.0.1:8000", EDGE_URL="http://127.0.0.1:8001") as engines:
        result = measure(options, port, database=engines.postgres.pid)
    result.show(as_json=options.json)


def measure(options: argparse.Namespace, port: int, *, database: int | None) -> Result:
    campaign_id = prepare(options.recipients)
    say("sending by workers …")
    sent, calls = by_workers(campaign_id, options, port, database=database)
    say("the limit …")
    limit = by_blast(campaign_id, options.workers, max(2_000, 4 * options.recipients), port)
    return Result(
        claim="esp",
        value=round(sent.rate, 1),
        unit="recipients/s",
        limit=round(limit, 1),
        peak_rss_mb=round(sent.memory, 1),
        details={
            "recipients": options.recipients,
            "workers": options.workers,
            "calls": calls,
            "launch to end, s": round(sent.took, 2),
            "µs of processor a recipient": sent.shares,
            "limit is": "a ready call, same sessions",
        },
    )


@contextlib.contextmanager
def servers(port: int) -> Iterator[list[subprocess.Popen[str]]]:
    command = ["-m", "benchmarks.mailgun", "--port", str(port)]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(child(command, ready="ready")) for _ in range(SERVERS)]


def by_workers(campaign_id: int, options: argparse.Namespace, port: int, *, database: int | None) -> tuple[Sent, int]:
    """What the workers did, and in how many calls."""
    from campaigns import scheduling
    from campaigns.models import Campaign

    def ended() -> bool:
        return Campaign.objects.values_list("state", flat=True).get(pk=campaign_id) == "sent"

    command = ["-m", "celery", "-A", "newsletter", "worker", "-c", str(options.workers), "-l", "WARNING"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with servers(port) as running, child([*command, *quiet], ready="takes tasks") as worker:
        shares = Shares(workers=worker.pid, server_1=running[0].pid, server_2=running[1].pid, database=database)
        with Memory(worker.pid) as memory:
            begun = time.monotonic()
            scheduling.send_now(campaign_id, now=datetime.now(UTC))
            wait_until(ended, seconds=900)
            took = time.monotonic() - begun
        costs = shares.each(options.recipients)
        figures = [last_json(server) for server in running]
    check(figures, options.recipients)
    sent = Sent(rate_of(figures, options.recipients), memory.peak, took, costs)
    return sent, sum(figure["calls"] for figure in figures)


def check(figures: list[dict[str, Any]], recipients: int) -> None:
    """Each person once, and no call that the server had to refuse."""
    people, refused = (sum(figure[name] for figure in figures) for name in ("people", "refused"))
    if (people, refused) != (recipients, 0):
        raise SystemExit(f"{people} people were sent to, {recipients} were to be; {refused} calls were refused")


def by_blast(campaign_id: int, processes: int, count: int, port: int) -> float:
    """The limit: each process makes one ready call again and again."""
    command = [sys.executable, "-m", "benchmarks.esp_blast", str(campaign_id), str(count // processes)]
    with servers(port) as running:
        blasting = [subprocess.Popen(command, env=os.environ) for _ in range(processes)]
        if any(process.wait(300) for process in blasting):
            raise SystemExit("the limit could not be measured")
        figures = [last_json(server) for server in running]
    return rate_of(figures, sum(figure["taken"] for figure in figures))


if __name__ == "__main__":
    main()
