"""A browser for the tests that need one: found, installed where that is possible, or said to be missing in one line.

As a pytest plugin it gives the fixture `browser` and skips what uses it where there is none. `python -m tests.browser`,
which `make test` calls first, installs Debian's Chromium when it may. Under `CI=true` nothing is skipped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
ELSEWHERE = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
INSTALL = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "chromium", "fonts-liberation"]
MISSING = "no Chromium was found (install one, or name it in CHROMIUM)"


def executable() -> str | None:
    """The Chromium of this machine; CHROMIUM names one in an unusual place."""
    named = [os.environ[name] for name in ("CHROMIUM",) if os.environ.get(name)]
    found = [shutil.which(name) for name in (*named, *NAMES)]
    return next((path for path in (*found, *ELSEWHERE) if path and Path(path).exists()), None)


def must_be_there() -> bool:
    """Whether a missing browser is a failure instead of a reason to skip."""
    return os.environ.get("CI", "").lower() in {"1", "true"}


def install() -> None:
    """Install Debian's Chromium, if this is a Debian and we may."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    print("Installing Chromium for the browser tests (once) …", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "--quiet"], INSTALL):
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=quiet)
        if done.returncode:
            print(f"{' '.join(command[:2])} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            return


def main() -> int:
    if executable() is None:
        install()
    if executable() is None:
        print(f"The tests that need a browser {'fail' if must_be_there() else 'are skipped'}: {MISSING}.", flush=True)
        return int(must_be_there())
    return 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if executable() is None and not must_be_there():
        for item in items:
            if item.get_closest_marker("browser") or "browser" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A Chromium for the whole run; each test opens a context of its own."""
    path = executable()
    assert path, MISSING
    # Playwright keeps an event loop in this thread, which Django would take for asynchronous code.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()


if __name__ == "__main__":
    sys.exit(main())
