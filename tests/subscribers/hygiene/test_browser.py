"""The preview in a real browser: read, approved and undone without scripts, on a phone, in the dark."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect
from pytest_django.live_server_helper import LiveServer

from subscribers.hygiene import pruning
from subscribers.models import Subscription
from tests.subscribers.hygiene.building import Letters
from tests.subscribers.hygiene.test_pruning import make_letters

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
DESKTOP, PHONE = ViewportSize(width=1440, height=900), ViewportSize(width=390, height=844)
BAD = {"serious", "critical"}
Look = Callable[..., Page]


@pytest.fixture
def look(browser: Browser, live_server: LiveServer, admin_user: User) -> Iterator[Look]:
    """Open pages as the owner."""
    contexts: list[BrowserContext] = []

    def open_page(address: str, **options: object) -> Page:
        session = Client()
        session.force_login(admin_user)
        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        cookie = session.cookies["sessionid"].value
        context.add_cookies([{"name": "sessionid", "value": cookie, "url": live_server.url}])
        tab = context.new_page()
        tab.goto(live_server.url + address)
        return tab

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def letters() -> Letters:
    """A list whose last issue has just had its time to be read."""
    return make_letters(start=timezone.now() - timedelta(weeks=29, days=4))


def page(name: str, *arguments: int) -> str:
    return reverse(f"admin:subscribers_hygienerun_{name}", args=arguments)


def test_a_preview_is_approved_and_undone_without_scripts(look: Look, letters: Letters) -> None:
    seen = pruning.preview(letters.to.pk)
    tab = look(page("list", letters.to.pk), viewport=PHONE, java_script_enabled=False)
    tab.get_by_role("link", name="Look at the names").click()
    expect(tab.get_by_role("heading", name="7 of 8 people would no longer be mailed")).to_be_visible()
    tab.get_by_label("I have looked at the names").check()
    tab.get_by_role("button", name="Stop mailing 7 people").click()
    expect(tab.get_by_text("7 people are no longer mailed.")).to_be_visible()
    assert Subscription.objects.filter(state="pruned").count() == 7
    tab.get_by_text("Undo this run").click()
    tab.get_by_role("button", name="Yes, undo").click()
    expect(tab.get_by_text("7 people are mailed again.")).to_be_visible()
    seen.refresh_from_db()
    assert seen.state == "done"


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_the_pages_are_accessible_and_fit(look: Look, letters: Letters, size: ViewportSize, scheme: str) -> None:
    seen = pruning.preview(letters.to.pk)
    for address in (page("list", letters.to.pk), page("change", seen.pk)):
        tab = look(address, viewport=size, color_scheme=scheme)
        tab.wait_for_load_state("networkidle")
        found = [each for each in Axe().run(tab).response["violations"] if each["impact"] in BAD]
        assert not found, [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{address} scrolls sideways"
