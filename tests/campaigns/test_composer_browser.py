"""The editor's room in a real browser: typing moves the preview, a test goes out, axe and the keyboard are content."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, Page, expect
from pytest_django.live_server_helper import LiveServer

from campaigns import scheduling
from campaigns.admin.framing import framed
from campaigns.models import Campaign, CampaignFigures, CampaignState, Delivery, DeliveryState
from subscribers.models import List, Subscriber
from tests.campaigns.test_admin_composing import Draft, page
from tests.conftest import NOW, MailServer

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

# Set to a folder, the tests leave pictures of the pages there.
PICTURES = os.environ.get("PICTURES", "")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
# Every width and every scheme once; all four when pictures are taken.
LOOKS = [(DESKTOP, "light"), (PHONE, "dark"), *([(DESKTOP, "dark"), (PHONE, "light")] if PICTURES else [])]
BAD = {"serious", "critical"}

Look = Callable[..., Page]


@pytest.fixture
def look(browser: Browser, live_server: LiveServer, admin_user: User) -> Iterator[Look]:
    """Open pages as the owner, in a context of its own; a script's error or a request to elsewhere fails the test."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def open_page(address: str, **options: Any) -> Page:
        session = Client()
        session.force_login(admin_user)
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        cookie = {"name": "sessionid", "value": session.cookies["sessionid"].value, "url": live_server.url}
        context.add_cookies([cookie])  # type: ignore[list-item]
        tab = context.new_page()
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: _note_foreign(request.url, live_server.url, problems))
        tab.goto(live_server.url + address)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


def _note_foreign(url: str, home: str, problems: list[str]) -> None:
    if not url.startswith((home, "data:", "about:")):
        problems.append(f"asked {url}")


def test_switching_the_way_of_writing_keeps_the_text_and_moves_the_preview(look: Look, draft: Draft) -> None:
    tab = look(page("change", draft(body="Hello **{{ name }}**").pk))
    mail = tab.frame_locator("[data-frame]")
    expect(tab.get_by_role("button", name="Bold")).to_be_visible()

    tab.get_by_text("MJML", exact=True).click()
    expect(tab.locator("[data-problem]")).to_contain_text("put it into <mj-text>")
    expect(tab.locator("textarea")).to_have_value("Hello **{{ name }}**")
    expect(tab.get_by_role("button", name="Bold")).to_be_hidden()
    expect(tab.get_by_label("Insert a merge tag")).to_be_visible()
    tab.locator("textarea").fill("<mj-text>Hello <i>{{ name }}</i></mj-text>")
    expect(mail.get_by_text("Hello Robin Reader")).to_be_visible()
    expect(tab.locator("[data-problem]")).to_be_hidden()

    tab.get_by_text("HTML", exact=True).click()
    expect(tab.locator("[data-problem]")).to_contain_text("is MJML, not HTML")
    tab.locator("textarea").fill("<h1>By hand, {{ name }}</h1>")
    expect(mail.get_by_role("heading", name="By hand, Robin Reader")).to_be_visible()
    expect(mail.get_by_text("You get this because")).to_have_count(0)
    tab.get_by_role("button", name="Save", exact=True).click()
    expect(tab.get_by_role("radio", name="HTML")).to_be_checked()
    expect(tab.get_by_text("The mail has no unsubscribe link.")).to_be_visible()


def test_a_text_that_is_too_long_is_not_sent_to_the_server_and_not_lost(look: Look, draft: Draft) -> None:
    tab = look(page("change", draft().pk))
    tab.locator("textarea").evaluate("(area) => { area.value = 'x'.repeat(1_000_001); }")
    tab.get_by_role("button", name="Save", exact=True).click()
    expect(tab.locator("[data-problem]")).to_contain_text("longer than 1 MB")
    assert tab.locator("textarea").evaluate("(area) => area.value.length") == 1_000_001


def test_typing_moves_the_preview_and_a_test_goes_out(look: Look, draft: Draft, mail_server: MailServer) -> None:
    campaign = draft()
    tab = look(page("change", campaign.pk))
    mail = tab.frame_locator("[data-frame]")
    expect(mail.get_by_role("heading", name="Hello Robin")).to_be_visible()

    tab.get_by_label("Text", exact=True).first.fill("# Typed just now\n\nFor {{ name }}.")
    expect(mail.get_by_role("heading", name="Typed just now")).to_be_visible()
    expect(mail.get_by_text("For Robin Reader.")).to_be_visible()
    expect(tab.get_by_text("Not saved yet")).to_be_visible()

    tab.get_by_label("Subject").fill("A subject just typed")
    expect(tab.locator("[data-subject]")).to_have_text("A subject just typed")

    tab.locator("textarea").fill("For {{ name")
    expect(tab.locator("[data-problem]")).to_have_text(re.compile("opened with {{ but never closed"))
    expect(mail.get_by_role("heading", name="Typed just now")).to_be_visible()  # the last good mail stays

    tab.locator("textarea").fill("For {{ name }}, tested.")
    tab.get_by_text("Send a test …").click()
    tab.get_by_label("To these addresses").fill("ann@shed.example")
    tab.get_by_role("button", name="Save and send test").click()
    expect(tab.get_by_text("A test is on its way to ann@shed.example.")).to_be_visible()
    [message] = mail_server.messages
    assert message["Subject"] == "[Test] A subject just typed"
    campaign.refresh_from_db()
    assert campaign.body == "For {{ name }}, tested."


def test_the_composer_works_by_keyboard_alone(look: Look, draft: Draft) -> None:
    campaign = draft(body="plain")
    tab = look(page("change", campaign.pk))
    tab.get_by_label("Subject").focus()
    for name in ("preheader", "list", "sender", "layout"):
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.name") == name
    source = tab.locator("textarea")
    source.focus()
    tab.keyboard.press("Control+a")
    tab.keyboard.press("Control+b")
    expect(source).to_have_value("**plain**")
    tab.keyboard.press("Control+z")
    expect(source).to_have_value("plain")
    tab.keyboard.press("Control+a")
    tab.keyboard.press("Control+i")
    tab.keyboard.press("Control+s")
    expect(tab.get_by_text("Saved.")).to_be_visible()
    campaign.refresh_from_db()
    assert campaign.body == "*plain*"
    tab.locator("[value=desktop]").focus()
    tab.keyboard.press("ArrowRight")
    expect(tab.locator("[value=phone]")).to_be_checked()


TOOLS = [
    ("Heading", "## word"),
    ("List", "- word"),
    ("Quote", "> word"),
    ("Link", "[word](https://)"),
    ("Image", "![word](https://)"),
    ("Button", '[word](https:// "button")\n\n'),
]


@pytest.mark.parametrize(("tool", "written"), TOOLS)
def test_each_tool_writes_markdown_around_what_is_selected(look: Look, draft: Draft, tool: str, written: str) -> None:
    tab = look(page("change", draft(body="word").pk))
    tab.locator("textarea").select_text()
    tab.get_by_role("button", name=tool, exact=True).click()
    expect(tab.locator("textarea")).to_have_value(written)


def test_the_composer_works_without_scripts(look: Look, draft: Draft) -> None:
    campaign = draft()
    tab = look(page("change", campaign.pk), java_script_enabled=False)
    expect(tab.frame_locator("[data-frame]").get_by_role("heading", name="Hello Robin")).to_be_visible()
    expect(tab.get_by_role("button", name="Bold")).to_be_hidden()
    tab.locator("textarea").fill("# Without scripts")
    tab.get_by_role("button", name="Save", exact=True).click()
    expect(tab.get_by_text("Saved.")).to_be_visible()
    expect(tab.frame_locator("[data-frame]").get_by_role("heading", name="Without scripts")).to_be_visible()
    tab.locator("label", has_text="Phone").click()
    expect(tab.locator("[value=phone]")).to_be_checked()


def test_a_mail_cannot_run_anything_in_the_admin(look: Look, draft: Draft) -> None:
    tab = look(page("mail", draft().pk))
    frame = tab.locator("[data-frame]")
    expect(frame).to_have_attribute("sandbox", "")
    loaded = "(frame, mail) => new Promise(done => { frame.onload = done; frame.srcdoc = mail })"
    frame.evaluate(loaded, framed("<script>top.document.title = 'owned'</script><p>Read me</p>"))
    expect(tab.frame_locator("[data-frame]").get_by_text("Read me")).to_be_visible()
    assert "owned" not in tab.title()


def test_a_campaign_goes_from_the_composer_to_its_report(
    look: Look, draft: Draft, garden: List, subscribe: Callable[..., list[Subscriber]]
) -> None:
    subscribe(garden, 1001)
    tab = look(page("change", draft().pk))
    tab.get_by_role("button", name="Review and send …").click()
    tab.get_by_role("button", name="Send to 1,001 people now").click()
    expect(tab.get_by_text("Nothing was sent: the number typed is not the number of recipients.")).to_be_visible()
    tab.get_by_label("Type 1,001 to confirm").fill("1001")
    tab.get_by_role("button", name="Send to 1,001 people now").click()
    expect(tab.get_by_role("heading", name="Leaves in")).to_be_visible()
    expect(tab.get_by_role("heading", name="Links")).to_be_hidden()
    Campaign.objects.update(scheduled_at=timezone.now())
    expect(tab.get_by_text("A worker is about to start")).to_be_visible()
    tab.evaluate("document.body.dataset.same = 'page'")  # it turns by itself, without being loaded again
    assert scheduling.launch(Campaign.objects.get().pk, now=timezone.now())
    expect(tab.locator("[data-audience]")).to_have_text("1,001")
    expect(tab.get_by_role("link", name="https://almanac.example/")).to_be_visible()
    assert tab.evaluate("document.body.dataset.same") == "page"


def test_undo_makes_it_a_draft_again(look: Look, draft: Draft, garden: List, subscribe: Callable[..., Any]) -> None:
    subscribe(garden, 3)
    tab = look(page("review", draft().pk))
    tab.get_by_role("button", name="Send to 3 people now").click()
    expect(tab.locator("[data-countdown]")).to_have_text(re.compile(r"5[0-8]"))
    tab.get_by_role("button", name="Undo").click()
    expect(tab.get_by_text("It is a draft again.")).to_be_visible()
    expect(tab.get_by_label("Subject")).to_have_value("Rain at last")
    assert Campaign.objects.get().state == CampaignState.DRAFT


def test_a_pause_shows_its_reason_and_one_click_resumes(look: Look, sending: Campaign) -> None:
    tab = look(page("report", sending.pk))
    scheduling.pause(sending.pk, reason="The server refused 50 mails in a row.", now=timezone.now())
    expect(tab.locator("[data-part=live]").get_by_text("The server refused 50 mails in a row.")).to_be_visible()
    tab.locator("[data-part=live]").get_by_role("button", name="Resume").click()
    expect(tab.get_by_text("Sending goes on.")).to_be_visible()
    expect(tab.get_by_role("heading", name="Going out")).to_be_visible()


def test_the_report_moves_while_mail_goes_out(look: Look, sending: Campaign) -> None:
    tab = look(page("report", sending.pk))
    expect(tab.locator("[data-done]")).to_have_text("0")
    Delivery.objects.filter(campaign_id=sending.pk).update(state=DeliveryState.ACCEPTED, sent_at=NOW)
    CampaignFigures.objects.filter(pk=sending.pk).update(opens_human=7, opens_raw=9)
    expect(tab.locator("[data-done]")).to_have_text("20")
    expect(tab.locator("[data-figure=opened] [data-value]")).to_have_text("7")
    Campaign.objects.filter(pk=sending.pk).update(state=CampaignState.SENT, finished_at=NOW)
    expect(tab.get_by_text("Going out")).to_be_hidden()
    expect(tab.locator(".nl-badge", has_text="Sent")).to_be_visible()


@pytest.fixture
def sending(launched: Draft, garden: List, subscribe: Callable[..., list[Subscriber]]) -> Campaign:
    subscribe(garden, 20)
    return launched()


@pytest.mark.parametrize(("size", "scheme"), LOOKS, ids=[f"{size['width']}-{scheme}" for size, scheme in LOOKS])
def test_every_page_is_readable_for_everybody(
    look: Look, sending: Campaign, draft: Draft, size: dict[str, int], scheme: str
) -> None:
    Delivery.objects.filter(campaign_id=sending.pk, subscriber_id__lt=Subscriber.objects.latest("pk").pk - 15).update(
        state=DeliveryState.UNKNOWN, sent_at=NOW
    )
    campaign = draft(subject="A campaign whose subject is so long that it needs a second line on every phone there is")
    pages = {
        "overview": "/admin/",
        "campaigns": page("changelist"),
        "composer": page("change", campaign.pk),
        "review": page("review", campaign.pk),
        "report": page("report", sending.pk),
        "recipients": page("recipients", sending.pk),
        "mail": page("mail", sending.pk),
        "doubts": page("doubts", sending.pk),
        "mails": page("mails"),
        "lift": "/admin/subscribers/suppression/lift/",
        "layout": f"/admin/campaigns/mailtemplate/{campaign.layout_id}/change/",
    }
    tab = look("/admin/login/", viewport=size, color_scheme=scheme)
    for name, address in pages.items():
        tab.goto(tab.url.partition("/admin")[0] + address)
        tab.wait_for_load_state("networkidle")
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            tab.screenshot(path=f"{PICTURES}/{name}-{size['width']}-{scheme}.png", full_page=True)
        found = [each for each in Axe().run(tab).response["violations"] if each["impact"] in BAD]
        assert not found, (name, [(each["id"], [node["html"] for node in each["nodes"]]) for each in found])
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
