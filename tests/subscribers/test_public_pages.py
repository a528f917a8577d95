"""Every public page in a real browser: nothing for axe to complain of, on phone and desktop, light and dark."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page
from pytest_django.live_server_helper import LiveServer

from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import confirmation_token
from subscribers.models import List, SenderIdentity, Subscriber, Subscription
from tests.subscribers.conftest import Reader

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1200, "height": 800}
LOOKS: list[tuple[str, Any, Literal["light", "dark"]]] = [
    ("phone", PHONE, "light"),
    ("phone", PHONE, "dark"),
    ("desktop", DESKTOP, "light"),
    ("desktop", DESKTOP, "dark"),
]
# Set to a folder, the tests leave pictures of every page there.
PICTURES = os.environ.get("PICTURES", "")


@pytest.fixture
def pages(garden: List, sender: SenderIdentity, reader: Reader) -> dict[str, str]:
    """Every public page by name, in each of its states that a GET shows."""
    garden.description = "A letter every Friday about what grows, what does not, and what to do about it."
    garden.save()
    List.objects.create(
        slug="niwa", name="庭だより", sender=sender, language="ja", description="季節の庭から、月に一度。"
    )
    waiting = Subscriber.objects.create(email="may@mail.example", email_key="may@mail.example")
    now = timezone.now()
    asked = Subscription.objects.create(list=garden, subscriber=waiting, requested_at=now - timedelta(minutes=1))
    left = Subscriber.objects.create(email="lou@mail.example", email_key="lou@mail.example")
    Subscription.objects.create(
        list=garden, subscriber=left, state="unsubscribed", unsubscribed_by=reader.campaign.pk, state_since=now
    )
    from tests.subscribers.conftest import control_token

    gone = control_token(reader.campaign.pk, left.pk)
    return {
        "home": reverse("subscribers:home"),
        "subscribe": reverse("subscribers:subscribe", args=["garden"]),
        "confirm": reverse("subscribers:confirm", args=[confirmation_token(keyring(), asked.pk, now)]),
        "confirmed": reverse("subscribers:confirm", args=[confirmation_token(keyring(), reader.subscription.pk, now)]),
        "unsubscribe": reverse("subscribers:unsubscribe", args=[reader.token]),
        "unsubscribed": reverse("subscribers:unsubscribe", args=[gone]),
        "preferences": reverse("subscribers:preferences", args=[reader.token]),
        "bad link": reverse("subscribers:confirm", args=["x" * 28]),
        "nothing here": "/nothing/here",
    }


def check(page: Page, name: str) -> None:
    """No violation, nothing wider than the screen, nothing from elsewhere."""
    if PICTURES:
        Path(PICTURES).mkdir(exist_ok=True)
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)
    violations: list[dict[str, Any]] = Axe().run(page).response["violations"]
    assert not violations, (name, [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: f"{look[0]}-{look[2]}")
def test_every_page_is_accessible_in_every_look(
    browser: Browser, live_server: LiveServer, pages: dict[str, str], look: tuple[str, Any, Literal["light", "dark"]]
) -> None:
    device, size, scheme = look
    context = browser.new_context(viewport=size, color_scheme=scheme)
    foreign: list[str] = []
    complaints: list[str] = []
    page = context.new_page()
    page.on("request", lambda r: None if r.url.startswith(live_server.url) else foreign.append(r.url))
    page.on("console", lambda m: complaints.append(m.text) if "status of 4" not in m.text else None)
    for name, path in pages.items():
        page.goto(live_server.url + path)
        check(page, f"{name} {device} {scheme}")
    # The pages that only a POST shows.
    page.goto(live_server.url + pages["subscribe"])
    page.get_by_label("E-mail address").fill("not an address")
    page.get_by_label("Name").fill("Bea")
    page.get_by_role("button", name="Subscribe").click()
    assert page.get_by_label("E-mail address").input_value() == "not an address"
    assert page.get_by_label("Name").input_value() == "Bea"
    check(page, f"refused {device} {scheme}")
    page.get_by_label("E-mail address").fill("bea@mail.example")
    page.get_by_role("button", name="Subscribe").click()
    check(page, f"check inbox {device} {scheme}")
    page.goto(live_server.url + pages["preferences"])
    page.get_by_role("button", name="Save").click()
    assert page.get_by_role("status").inner_text() == "Saved."
    check(page, f"saved {device} {scheme}")
    assert not foreign
    assert not complaints
    assert context.cookies() == []
    context.close()


def test_a_reader_leaves_and_returns_by_keyboard_alone_without_scripts(
    browser: Browser, live_server: LiveServer, pages: dict[str, str], reader: Reader
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(live_server.url + pages["unsubscribe"])
    for _step in range(2):  # past the name of the list
        page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Unsubscribe"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="You are unsubscribed").wait_for()
    assert reader.state == "unsubscribed"
    for _step in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Unsubscribe from The Potting Shed?").wait_for()
    assert reader.state == "active"
    context.close()


def test_the_sign_up_form_is_walked_in_order_and_the_trap_is_never_met(
    browser: Browser, live_server: LiveServer, pages: dict[str, str]
) -> None:
    page = browser.new_page()
    page.goto(live_server.url + pages["subscribe"])
    walked = []
    for _step in range(4):
        page.keyboard.press("Tab")
        walked.append(page.evaluate("document.activeElement.name || document.activeElement.textContent.trim()"))
    assert walked == ["Newsletters", "email", "name", "Subscribe"]
    page.close()


def test_right_to_left_pages_fit_too(browser: Browser, live_server: LiveServer, pages: dict[str, str]) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    for name in ("home", "subscribe", "preferences"):
        page.goto(live_server.url + pages[name])
        page.evaluate("document.documentElement.dir = 'rtl'")
        check(page, f"{name} rtl")
    page.close()
