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
from typing import Any

import psutil

from benchmarks.harness import Result, child, free_port, installation, say
from benchmarks.send import prepare, sinks
from newsletter.embedded import Engines, Postgres, Valkey

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
    with tempfile.TemporaryDirectory(prefix="nl-crash-") as folder, installation(EMAIL_URL=url) as engines:
        result = measure(options, port, Path(folder), engines)
    result.show(as_json=options.json)


def measure(options: argparse.Namespace, port: int, folder: Path, engines: Engines) -> Result:
    found = campaign_under_fire(options, port, folder, engines)
    found["unknown allowed (kills × connections)"] = found["kills"] * options.connections
    wrong = found["twice"] + found["lost"]
    return Result(claim="crash", value=wrong, unit="people mailed twice or lost", details=found)


def campaign_under_fire(options: argparse.Namespace, port: int, folder: Path, engines: Engines) -> dict[str, Any]:
    from campaigns import scheduling

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
    return verdict(options, campaign_id, Counter(log.read_text(encoding="ascii").split())) | {
        "kills": kills,
        "state": state,
        "end after the last kill, s": round(time.monotonic() - began, 1),
    }


def verdict(options: argparse.Namespace, campaign_id: int, taken: Counter[str]) -> dict[str, Any]:
    """What the ledger says of everybody, held against what the mail server took."""
    from campaigns import doubting
    from campaigns.models import Delivery, DeliveryState
    from subscribers.models import Subscriber

    address = dict(Subscriber.objects.values_list("pk", "email"))
    ledger = dict(Delivery.objects.filter(campaign_id=campaign_id).values_list("subscriber_id", "state"))
    unknown = {address[person] for person, state in ledger.items() if state == DeliveryState.UNKNOWN}
    listed = {address[doubt.subscriber_id] for doubt in doubting.listed(campaign_id, limit=options.recipients)}
    everybody = set(address.values())
    return {
        "twice": sum(count > 1 for count in taken.values()),
        "lost": len(everybody - taken.keys() - unknown),  # neither mailed nor shown to be in doubt
        "unknown": len(unknown),
        "unknown, listed for the editor": len(unknown & listed),
        "accepted": sum(state == DeliveryState.ACCEPTED for state in ledger.values()),
        "mails at the sink": sum(taken.values()),
        "fsync": setting("fsync"),
    }


def setting(name: str) -> str:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", [name])
        return str(cursor.fetchone()[0])


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


def restart(engine: Postgres | Valkey) -> None:
    engine.kill()
    time.sleep(0.5)
    engine.start()


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
