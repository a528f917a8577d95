"""What a newcomer does with `make run`: send the waiting letter, open it, click, and see the figures move; for real."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from newsletter.embedded import Place, remove_engines
from newsletter.env import BASE_DIR
from newsletter.mailserver import Mailbox
from tests.newsletter.test_running import OURS, Start

pytestmark = pytest.mark.browser
LIST = "leafmould"


@dataclass
class Running:
    """The demo as `make run` starts it."""

    site: str
    data: Path
    password: str

    def manage(self, *arguments: str) -> dict[str, Any]:
        """A command of the contract against this installation."""
        clean = {name: value for name, value in os.environ.items() if name not in OURS}
        command = [sys.executable, "manage.py", *arguments, "--json"]
        variables = {**clean, "DATA_DIR": str(self.data)}
        variables.pop("DEMO", None)
        done = subprocess.run(command, cwd=BASE_DIR, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        assert isinstance(answer, dict)
        return answer

    def figures(self, campaign: int, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The campaign's figures as soon as they are as told."""
        deadline = time.monotonic() + 60
        while True:
            status = self.manage("campaign_status", str(campaign))
            if holds(status):
                return status
            assert time.monotonic() < deadline, status


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("demo") / ".data"
    start = Start(data, env={"DEMO": "1", "UNDO_SEND_SECONDS": "5"}).until_running()
    yield Running(f"http://127.0.0.1:{start.port}", data, (data / "admin-password").read_text().strip())
    assert start.stop() == 0
    remove_engines(Place.of(data).root)


@pytest.fixture
def page(browser: Browser, running: Running) -> Iterator[Page]:
    context = browser.new_context(base_url=running.site, viewport={"width": 1280, "height": 900})
    # Letters lead to the wide world, which a test must not reach.
    context.route("**/*", lambda route: route.continue_() if "127.0.0.1" in route.request.url else route.abort())
    yield context.new_page()
    context.close()


def test_a_newcomer_sends_the_letter_reads_it_and_sees_it_counted(running: Running, page: Page) -> None:
    campaign = send_the_waiting_letter(running, page)
    recipients = everybody_got_it_once(running, campaign)
    assert running.manage("campaign_status", str(campaign))["opens"] == {"raw": 0, "human": 0, "hits": 0}

    open_in_the_inbox(page, recipients[0], images=False)
    open_in_the_inbox(page, recipients[1], images=True)
    status = running.figures(campaign, lambda status: status["opens"]["hits"] > 0)
    assert status["opens"] == {"raw": 1, "human": 1, "hits": 1}, "images off is no open, images on is one"

    with page.context.expect_event("requestfailed") as left:
        page.frame_locator("iframe").get_by_role("link", name="Trichomonosis").click()
    assert left.value.url == "https://en.wikipedia.org/wiki/Trichomonosis", "the link leads where it says"
    status = running.figures(campaign, lambda status: status["clicks"]["hits"] > 0)
    assert status["clicks"] == {"raw": 1, "human": 1, "hits": 1}


def send_the_waiting_letter(running: Running, page: Page) -> int:
    page.goto("/admin/")
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", running.password)
    page.press("input[name=password]", "Enter")
    page.get_by_role("link", name="Feeding the birds").click()
    campaign = int(page.url.rstrip("/").split("/")[-2])
    page.get_by_role("button", name="Review and send").click()
    asked = page.get_by_label("to confirm")
    asked.fill("".join(filter(str.isdigit, page.locator("label[for=id_typed]").inner_text())))
    page.get_by_role("button", name="Send to").click()
    page.get_by_role("button", name="Undo").wait_for()
    return campaign


def everybody_got_it_once(running: Running, campaign: int) -> list[str]:
    status = running.figures(campaign, lambda status: status["state"] == "sent")
    got = [entry.rcpt_tos[0] for entry in Mailbox(running.data / "mail").messages(limit=10_000)]
    assert len(got) == len(set(got)) == status["deliveries"]["accepted"] > 1_500
    return got


def open_in_the_inbox(page: Page, address: str, *, images: bool) -> None:
    page.goto(f"/inbox/?q={address}{'' if images else '&images=off'}")
    page.get_by_role("link", name="Feeding the birds").first.click()
    page.frame_locator("iframe").get_by_text("If you feed in winter").wait_for()
    page.wait_for_load_state("networkidle")
