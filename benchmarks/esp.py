"""Recipients a second from real Celery workers with the full ledger, through Anymail to a local Mailgun-like server.

    python -m benchmarks.esp --recipients 100000 --workers 2 [--json]

The mail is that of benchmarks.send: 5 KB of HTML and its text, 5 links, 3 merge tags. A call carries it once with
placeholders, and the values of 200 people. The rate counts from the first call at the server to the last. The limit: as
many processes as workers make one ready call again and again over the same kept sessions, without database or
personalisation.
"""

import argparse
import contextlib
from typing import Any

from benchmarks.campaign import Servers, by_blast, by_workers, rate_of, servers
from benchmarks.harness import Result, free_port, installation, say
from benchmarks.send import prepare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.esp", description=__doc__)
    parser.add_argument("--recipients", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    port = free_port()
    url = f"mailgun://key@mg.shed.example?api_url=http://127.0.0.1:{port}/v3&connections={options.connections}"
    with installation(EMAIL_URL=url) as engines:
        result = measure(options, port, database=engines.postgres.pid)
    result.show(as_json=options.json)


def measure(options: argparse.Namespace, port: int, *, database: int | None) -> Result:
    campaign_id = prepare(options.recipients)
    say("sending by workers …")
    with mailguns(port) as running:
        sent = by_workers(campaign_id, options, running, database=database)
    check(sent.figures, options.recipients)
    say("the limit …")
    with mailguns(port) as running:
        limit_count = max(2_000, 4 * options.recipients)
        figures = by_blast("benchmarks.esp_blast", campaign_id, options.workers, limit_count, running)
    limit = rate_of(figures, sum(figure["taken"] for figure in figures))
    return Result(
        claim="esp",
        value=round(rate_of(sent.figures, options.recipients), 1),
        unit="recipients/s",
        limit=round(limit, 1),
        peak_rss_mb=round(sent.memory, 1),
        details={
            "recipients": options.recipients,
            "workers": options.workers,
            "calls": sum(figure["calls"] for figure in sent.figures),
            "launch to end, s": round(sent.took, 2),
            "µs of processor a recipient": sent.shares,
            "limit is": "a ready call, same sessions",
        },
    )


def mailguns(port: int) -> contextlib.AbstractContextManager[Servers]:
    return servers(["-m", "benchmarks.mailgun", "--port", str(port)])


def check(figures: list[dict[str, Any]], recipients: int) -> None:
    """Each person once, and no call that the server had to refuse."""
    people, refused = (sum(figure[name] for figure in figures) for name in ("people", "refused"))
    if (people, refused) != (recipients, 0):
        raise SystemExit(f"{people} people were sent to, {recipients} were to be; {refused} calls were refused")


if __name__ == "__main__":
    main()
