"""Workers killed at random, PostgreSQL and Valkey restarted, in mid-campaign: who was mailed twice, who was lost?

    python -m benchmarks.crash --recipients 20000 --kills 20 --workers 2 [--json]

Pool children are killed with -9; each engine is killed once and started again; fsync is on. The sink notes every
recipient. `value` is the number of people mailed twice or lost; unknown is at most kills × connections.
"""

import argparse
import contextlib
import os
import random
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.harness import Result, child, free_port, installation, say
from benchmarks.send import prepare, sinks
from newsletter.embedded import Engines

SECONDS = 600


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash", description=__doc__)
    parser.add_argument("--recipients", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    port = free_port()
    url = f"smtp://127.0.0.1:{port}?connections={options.connections}"
    site = {"SITE_URL": "http://127.0.0.1:8000", "EDGE_URL": "http://127.0.0.1:8001"}
    with tempfile.TemporaryDirectory(prefix="nl-crash-") as folder, installation(EMAIL_URL=url, **site) as engines:
        result = measure(options, port, Path(folder), engines)
    result.show(as_json=options.json)


def measure(options: argparse.Namespace, port: int, folder: Path, engines: Engines) -> Result:
    from campaigns import scheduling
    from campaigns.models import Delivery, DeliveryState

    campaign_id = prepare(options.recipients)
    log = folder / "taken"
    celery = ["-m", "celery", "-A", "newsletter"]
    worker = [*celery, "worker", "-c", str(options.workers), "-l", "CRITICAL"]
    beat = [*celery, "beat", "--schedule", str(folder / "schedule"), "--pidfile", str(folder / "beat.pid")]
    # A server that takes a moment, so that there is a middle of the campaign to kill in.
    with (
        sinks(port, delay_ms=4, log=str(log)),
        child(worker, ready="takes tasks") as workers,
        child([*beat, "-l", "CRITICAL"], ready=". maxinterval"),
    ):
        scheduling.send_now(campaign_id, now=datetime.now(UTC))
        kills = disturb(options, workers.pid, engines, log)
        began = time.monotonic()
        state = wait_for_the_end(campaign_id)
    taken = Counter(log.read_text(encoding="ascii").split())
    ledger = dict(Delivery.objects.filter(campaign_id=campaign_id).values_list("subscriber_id", "state"))
    unknown = sum(value == DeliveryState.UNKNOWN for value in ledger.values())
    accepted = sum(value == DeliveryState.ACCEPTED for value in ledger.values())
    twice = sum(count > 1 for count in taken.values())
    # Lost: nobody at the sink, and the ledger does not say so.
    lost = options.recipients - len(taken.keys()) - (accepted + unknown - len(taken))
    allowed = kills * options.connections
    return Result(
        claim="crash",
        value=twice + max(0, lost),
        unit="people mailed twice or lost",
        details={
            "kills": kills,
            "state": state,
            "twice": twice,
            "lost": options.recipients - accepted - unknown,
            "unknown": unknown,
            "unknown allowed (kills × connections)": allowed,
            "accepted": accepted,
            "mails at the sink": sum(taken.values()),
            "end after the last kill, s": round(time.monotonic() - began, 1),
        },
    )


def disturb(options: argparse.Namespace, worker: int, engines: Engines, log: Path) -> int:
    """Kill random pool children as the campaign goes on; each engine once, at a third and at two thirds."""
    dice = random.Random(options.seed)  # noqa: S311  not for secrets
    kills = 0
    deadline = time.monotonic() + SECONDS
    while kills < options.kills and time.monotonic() < deadline:
        time.sleep(dice.uniform(0.1, 0.5))
        if not log.exists() or not log.stat().st_size:
            continue
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(worker).children()
            if children:
                os.kill(dice.choice(children).pid, 9)
                kills += 1
        if kills == options.kills // 3:
            say("PostgreSQL is killed and started again …")
            restart(engines.postgres)
        elif kills == 2 * options.kills // 3:
            say("Valkey is killed and started again …")
            restart(engines.valkey)
    return kills


def restart(engine: object) -> None:
    engine.kill()  # type: ignore[attr-defined]
    time.sleep(0.5)
    engine.start()  # type: ignore[attr-defined]


def wait_for_the_end(campaign_id: int) -> str:
    """The campaign's state when it has ended by itself, or when we gave up waiting."""
    from django.db import DatabaseError, connection

    from campaigns.models import Campaign

    state = ""
    deadline = time.monotonic() + SECONDS
    while state != "sent" and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            state = Campaign.objects.values_list("state", flat=True).get(pk=campaign_id)
        except DatabaseError:
            connection.close()
    return state


if __name__ == "__main__":
    main()
