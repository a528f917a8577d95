"""The demo's inbox shows what the mail server received, and no mail gets a hold of it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.message import EmailMessage
from importlib import reload
from pathlib import Path

import pytest
from django.conf import LazySettings
from django.core.signals import request_started
from django.test import Client
from playwright.sync_api import Browser
from pytest_django.live_server_helper import LiveServer

from campaigns.models import Campaign, CampaignState
from newsletter import urls
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey, delivery_tokens
from newsletter.mailserver import MailboxWriter
from subscribers.models import List, Subscriber, Subscription

NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)

Receive = Callable[..., None]


@pytest.fixture
def receive(settings: LazySettings, tmp_path: Path) -> Iterator[Receive]:
    """A demo whose mail server receives what a test says."""
    settings.DEMO = True
    settings.DEMO_MAILBOX = str(tmp_path / "mail")
    settings.ROOT_URLCONF = "tests.newsletter.demo.urls"
    writer = MailboxWriter(tmp_path / "mail")

    def receive(
        *, to: str = "ann@example.org", subject: str = "Leeks", html: str = "", raw: bytes = b"", **headers: str
    ) -> None:
        if not raw:
            message = EmailMessage()
            message["From"] = "The Leafmould Letter <ines@leafmould.example>"
            message["To"], message["Subject"] = to, subject
            for name, value in headers.items():
                message[name.replace("_", "-")] = value
            message.set_content("In plain words.\n")
            if html:
                message.add_alternative(html, subtype="html")
            raw = message.as_bytes()
        writer.append(mail_from="bounce@leafmould.example", rcpt_tos=[to], raw=raw, now=NOW)

    yield receive
    writer.close()


def page(client: Client, address: str) -> str:
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


def test_an_empty_inbox_says_how_to_fill_it(client: Client, receive: Receive) -> None:
    assert "No mail yet" in page(client, "/inbox/")


def test_mails_are_listed_newest_first(client: Client, receive: Receive) -> None:
    receive(subject="First")
    receive(subject="庭のたより", to="陽子@example.org")
    text = page(client, "/inbox/")
    assert text.index("庭のたより") < text.index("First")
    assert "陽子@example.org" in text


def test_a_search_finds_by_recipient_and_by_subject(client: Client, receive: Receive) -> None:
    receive(to="ann@example.org", subject="Leeks")
    receive(to="bob@example.org", subject="Onions")
    assert "Leeks" not in page(client, "/inbox/?q=bob@")
    assert "Onions" in page(client, "/inbox/?q=ONION")
    assert "Nothing for" in page(client, "/inbox/?q=%3Cscript%3E")


def test_pages_do_not_shift_while_mail_streams_in(client: Client, receive: Receive) -> None:
    for number in range(60):
        receive(subject=f"Letter {number:02}")
    assert "Letter 59" in page(client, "/inbox/")
    receive(subject="Just arrived")
    older = page(client, "/inbox/?before=11")
    assert "Letter 09" in older
    assert "Letter 10" not in older
    assert client.get("/inbox/count").json() == {"total": 61}


def test_a_mail_shows_its_parts(client: Client, receive: Receive) -> None:
    receive(html="<p>In <b>HTML</b>.</p>", List_Id="Letter <leafmould.example>")
    assert 'src="/inbox/1/html"' in page(client, "/inbox/1/")
    assert "In plain words." in page(client, "/inbox/1/?view=text")
    assert "&lt;leafmould.example&gt;" in page(client, "/inbox/1/?view=headers")
    assert "multipart/alternative" in page(client, "/inbox/1/?view=source")
    assert client.get("/inbox/2/").status_code == 404


def test_the_frame_is_sandboxed_without_scripts_and_without_our_origin(client: Client, receive: Receive) -> None:
    receive(html="<p>x</p>")
    assert 'sandbox="allow-popups allow-popups-to-escape-sandbox"' in page(client, "/inbox/1/")
    policy = client.get("/inbox/1/html")["Content-Security-Policy"]
    assert "sandbox allow-popups allow-popups-to-escape-sandbox" in policy
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "same-origin" not in policy


def test_images_are_switched_by_the_frames_own_policy(client: Client, receive: Receive) -> None:
    receive(html="<p>x</p>")
    assert "img-src http: https: data:;" in client.get("/inbox/1/html")["Content-Security-Policy"]
    assert "img-src 'none';" in client.get("/inbox/1/html?images=off")["Content-Security-Policy"]
    assert 'src="/inbox/1/html?images=off"' in page(client, "/inbox/1/?images=off")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe\x00nothing of a mail",
        b"Subject: =?utf-8?b?!!!?=\r\nFrom: <<>>@\r\n\r\nbody",
        b"Subject: =?no-such-charset?q?abc?=\r\n\r\n",
        b"Content-Type: text/html; charset=no-such\r\n\r\n<p>caf\xe9</p>",
        b"Content-Type: multipart/alternative; boundary=x\r\n\r\n--x\r\nContent-Type: multipart/mixed\r\n\r\n",
        b"List-Unsubscribe: <http://\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nFrom: a@b@c,\r\n\r\n",
        b"Message-ID: <[broken>\r\nTo: \"\r\nDate: never\r\n\r\n",
    ],
)  # fmt: skip
def test_a_broken_mail_is_shown_as_far_as_it_goes(client: Client, receive: Receive, raw: bytes) -> None:
    receive(raw=raw or b"\r\n")
    page(client, "/inbox/")
    for view in ("html", "text", "headers", "source"):
        page(client, f"/inbox/1/?view={view}")
    page(client, "/inbox/1/html")


def test_markup_in_headers_is_text(client: Client, receive: Receive) -> None:
    receive(subject="<img src=x onerror=alert(1)>", to="<b>@example.org")
    for view in ("html", "text", "headers", "source"):
        assert "<img src=x" not in page(client, f"/inbox/1/?view={view}")


@pytest.mark.parametrize("address", ["/inbox/", "/inbox/1/", "/inbox/1/html", "/inbox/count"])
def test_outside_the_demo_there_is_no_such_page(
    client: Client, receive: Receive, settings: LazySettings, address: str
) -> None:
    receive(html="<p>x</p>")
    settings.DEMO = False
    assert client.get(address).status_code == 404
    settings.ROOT_URLCONF = "newsletter.urls"
    reload(urls)
    assert client.get(address).status_code == 404
    assert not [pattern for pattern in urls.urlpatterns if "demo" in str(getattr(pattern, "urlconf_name", ""))]


@pytest.mark.django_db(transaction=True)
def test_one_click_unsubscribes_for_real(
    live_server: LiveServer, receive: Receive, settings: LazySettings, garden: List,
    subscribe: Callable[..., list[Subscriber]],
) -> None:  # fmt: skip
    settings.SITE_URL = live_server.url
    (ann,) = subscribe(garden, 1)
    campaign = Campaign.objects.create(list=garden, subject="Leeks", body="x", number=1, state=CampaignState.SENT)
    token = delivery_tokens(keyring(), DeliveryKey(campaign.pk, ann.pk)).control
    receive(
        List_Unsubscribe=f"<mailto:leave@leafmould.example>, <{live_server.url}/u/{token}>",
        List_Unsubscribe_Post="List-Unsubscribe=One-Click",
    )
    client = Client()
    text = client.post("/inbox/1/unsubscribe", {"kept": "?q=ann"}, follow=True).content.decode()
    assert "is unsubscribed" in text
    assert Subscription.objects.get().state == Subscription.State.UNSUBSCRIBED


def test_only_this_site_is_ever_posted_to(client: Client, receive: Receive) -> None:
    receive(
        List_Unsubscribe="<http://127.0.0.1:6379/>", List_Unsubscribe_Post="List-Unsubscribe=One-Click",
    )  # fmt: skip
    receive(List_Unsubscribe="<http://127.0.0.1:8000/u/x>")
    assert "does not belong to this site" in client.post("/inbox/1/unsubscribe", follow=True).content.decode()
    assert "offers no one-click" in client.post("/inbox/2/unsubscribe", follow=True).content.decode()


def test_a_forged_post_is_refused(receive: Receive) -> None:
    receive()
    assert Client(enforce_csrf_checks=True).post("/inbox/1/unsubscribe").status_code == 403


HOSTILE = """
<html><head><meta http-equiv="refresh" content="0;url={site}/taken"><base href="{site}/based/">
<style>@import url({site}/imported.css); body {{ background: url({site}/background.png) }}</style>
<link rel="stylesheet" href="{site}/linked.css"></head>
<body onload="top.location='{site}/onload'"><script>top.document.title = "owned"; fetch("{site}/script")</script>
<img src="{site}/pixel.png" onerror="parent.document.title='owned'"><img src="{site}/pixel.png" srcset="{site}/set.png">
<form action="{site}/form" method="post"><button id="send">Send</button></form>
<iframe src="{site}/framed"></iframe><object data="{site}/object"></object><embed src="{site}/embedded">
<video poster="{site}/poster.png" src="{site}/film"></video>
<a id="script" href="javascript:parent.document.title='owned'">x</a><p>Hello</p></body></html>
"""


@pytest.mark.browser
@pytest.mark.parametrize("images", ["on", "off"])
def test_a_hostile_mail_gets_nowhere(
    browser: Browser, live_server: LiveServer, receive: Receive, images: str, transactional_db: None
) -> None:
    """Nothing runs, nothing is sent, nothing but images is fetched, and those only when they are on."""
    receive(html=HOSTILE.format(site=f"{live_server.url}/hostile"))
    reached: list[str] = []

    def note(environ: dict[str, str], **_: object) -> None:
        reached.append(environ["PATH_INFO"])

    request_started.connect(note)
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(f"{live_server.url}/inbox/1/" + ("?images=off" if images == "off" else ""))
    frame = opened.frame_locator("iframe")
    frame.get_by_text("Hello").wait_for()
    frame.locator("#send").click()
    frame.locator("#script").click()
    opened.wait_for_load_state("networkidle")
    assert "Leeks" in opened.title()
    assert opened.url.startswith(f"{live_server.url}/inbox/1/")
    request_started.disconnect(note)
    fetched = {path.removeprefix("/hostile/") for path in reached if path.startswith("/hostile")}
    assert fetched <= ({"pixel.png", "set.png", "background.png", "poster.png"} if images == "on" else set())
    assert ("pixel.png" in fetched) == (images == "on")
    context.close()


@pytest.mark.browser
def test_a_link_of_a_mail_opens_in_a_tab_of_its_own(
    browser: Browser, live_server: LiveServer, receive: Receive, transactional_db: None
) -> None:
    receive(html=f'<p><a href="{live_server.url}/inbox/count">Read on</a></p>')
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(f"{live_server.url}/inbox/1/")
    with context.expect_page() as other:
        opened.frame_locator("iframe").get_by_text("Read on").click()
    other.value.wait_for_load_state()
    assert other.value.url == f"{live_server.url}/inbox/count"
    assert opened.url == f"{live_server.url}/inbox/1/"
    context.close()


@pytest.mark.browser
def test_new_mail_is_noticed_and_the_keyboard_walks(
    browser: Browser, live_server: LiveServer, receive: Receive, transactional_db: None
) -> None:
    receive(subject="First")
    receive(subject="Second")
    context = browser.new_context()
    opened = context.new_page()
    opened.clock.install()
    opened.goto(f"{live_server.url}/inbox/")
    receive(subject="Third")
    opened.clock.run_for(4_100)
    opened.get_by_text("1 new mail").click()
    opened.get_by_text("Third").wait_for()
    opened.keyboard.press("j")
    opened.get_by_role("heading", name="Third").wait_for()
    opened.keyboard.press("j")
    opened.get_by_role("heading", name="Second").wait_for()
    context.close()
