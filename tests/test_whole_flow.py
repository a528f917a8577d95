"""The story of the product, on real parts, through public edges only: pages, mails, commands, the edge.

Somebody subscribes, gets a letter, reads it, is not mistaken for the scanner that reads it too, and leaves. A year
later the list is cleaned of people who never read, with a preview, an approval and a way back.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from requests import Response, Session

from tests import processes
from tests.conftest import MailServer
from tests.processes import manage_json
from tests.tracking import edges

pytestmark = pytest.mark.django_db(transaction=True)


class Browser(Session):
    """A visitor who gives up in time, as everybody does."""

    def request(self, *arguments: Any, **options: Any) -> Response:
        return super().request(*arguments, **{"timeout": 20, **options})


WEB = Browser()
FIREFOX = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0"}
APPLE = {"User-Agent": "Mozilla/5.0"}
SCANNER = {"User-Agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/120.0 Safari/537.36"}
LETTER = """# Hello {{ first_name | default: "gardener" }}

It rains at last. [The forecast](https://weather.example/week), [the almanac](https://almanac.example/) and
[what to sow](https://shed.example/sow).

[Read on](https://shed.example/rain "button")
"""


@dataclass
class Town:
    """Everything that runs: the site, the edge, workers, beat and the mail server."""

    site: str
    mail: MailServer
    folder: Path
    browser: Browser = field(default_factory=Browser)

    def letter_to(self, address: str, *, subject: str) -> EmailMessage:
        """Wait for a mail and return it."""
        found: list[EmailMessage] = []

        def arrived() -> bool:
            found[:] = [m for m in self.mail.messages if m["To"].addresses[0].addr_spec == address]
            found[:] = [m for m in found if subject in m["Subject"]]
            return bool(found)

        edges.wait_until(arrived, seconds=40)
        assert len(found) == 1, "nobody gets a mail twice"
        return found[0]

    def figures(self, campaign: int, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until a campaign's figures are as told; how they stand then."""
        seen: list[dict[str, Any]] = []

        def so() -> bool:
            seen.append(manage_json("campaign_status", str(campaign)))
            return until(seen[-1])

        edges.wait_until(so, seconds=40)
        return seen[-1]


@pytest.fixture
def town(live_server: Any, mail_server: MailServer, settings: LazySettings, tmp_path: Path) -> Iterator[Town]:
    settings.SITE_URL = live_server.url
    with edges.running(tmp_path / "edge", settings.REDIS_URL) as edge:
        settings.EDGE_URL = f"http://127.0.0.1:{edge.port}"
        with processes.worker(), processes.beat(tmp_path):
            yield Town(live_server.url, mail_server, tmp_path)


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert body
    return str(body.get_content())


def press_the_button(town: Town, page: str, **fields: str) -> Response:
    """What somebody does with the form of a page: look at it, fill it in, press its button."""
    shown = town.browser.get(page)
    assert shown.status_code == 200
    assert 'method="post"' in shown.text
    assert all(f'name="{name}"' in shown.text for name in fields)
    return town.browser.post(page, data=fields)


def test_the_whole_flow(town: Town) -> None:
    a_list_is_made_and_filled(town)
    ada = somebody_subscribes(town)
    campaign = a_letter_is_sent(town)
    letter = town.letter_to(ada, subject="Rain at last")
    it_is_read_by_a_person_a_phone_and_a_scanner(town, campaign, letter)
    she_leaves_with_one_click_and_gets_no_other(town, campaign, ada, letter)
    a_year_later_the_list_is_cleaned(town)


def a_list_is_made_and_filled(town: Town) -> None:
    made = manage_json("create_list", "garden", "--name", "The Potting Shed", "--from", "letters@shed.example")
    assert made == {"list": "garden", "created": True}
    people = town.folder / "people.csv"
    rows = "".join(f"reader{i}@mail.example,Reader {i}\n" for i in range(8))
    people.write_text(f"email,name\n{rows}not an address,Nobody\n", encoding="utf-8")
    report = manage_json("import_subscribers", str(people), "--list", "garden", "--confirmed")
    assert (report["imported"], report["refused"]) == (8, 1)
    assert "not an address" in Path(report["report"]).read_text(encoding="utf-8")


def somebody_subscribes(town: Town) -> str:
    ada = "ada@mail.example"
    answer = press_the_button(town, f"{town.site}/subscribe/garden/", email=ada, name="Ada Green")
    assert answer.status_code == 200
    asked = town.letter_to(ada, subject="")
    link = re.search(rf"{town.site}/confirm/[\w-]+", part(asked, "plain"))
    assert link
    for _ in range(2):
        assert WEB.get(link.group()).status_code == 200
    assert ada not in actives(town), "a scanner that follows the link confirms nobody"
    assert press_the_button(town, link.group()).status_code == 200
    assert ada in actives(town)
    town.mail.received.clear()
    return ada


def actives(town: Town) -> set[str]:
    from subscribers.models import Subscription

    active = Subscription.objects.filter(list__slug="garden", state="active")
    return set(active.values_list("subscriber__email", flat=True))


def a_letter_is_sent(town: Town) -> int:
    text = town.folder / "letter.md"
    text.write_text(LETTER, encoding="utf-8")
    campaign = manage_json("create_campaign", "--list", "garden", "--subject", "Rain at last", "--body", str(text))
    number = int(campaign["campaign"])
    assert manage_json("send_campaign", str(number), "--wait")["state"] == "sent"
    assert len(town.mail.recipients) == len(set(town.mail.recipients)) == 9
    return number


def it_is_read_by_a_person_a_phone_and_a_scanner(town: Town, campaign: int, letter: EmailMessage) -> None:
    html = part(letter, "html")
    assert "Hello Ada" in html
    pixel = re.search(r'<img src="([^"]+/o/[^"]+)"', html)
    links = list(dict.fromkeys(re.findall(r'href="([^"]+/c/[^"]+)"', html)))
    assert pixel
    assert len(links) == 4
    assert WEB.get(pixel.group(1), headers=FIREFOX).headers["Content-Type"] == "image/gif"
    clicked = WEB.get(links[1], headers=FIREFOX, allow_redirects=False)
    assert (clicked.status_code, clicked.headers["Location"]) == (302, "https://almanac.example/")

    apple = part(town.letter_to("reader0@mail.example", subject="Rain"), "html")
    fetched = re.search(r'<img src="([^"]+/o/[^"]+)"', apple)
    assert fetched
    WEB.get(fetched.group(1), headers=APPLE)

    scanned = part(town.letter_to("reader1@mail.example", subject="Rain"), "html")
    for link in dict.fromkeys(re.findall(r'href="([^"]+/c/[^"]+)"', scanned)):
        WEB.get(link, headers=SCANNER, allow_redirects=False)

    status = town.figures(campaign, lambda s: s["clicks"]["hits"] == 5 and s["opens"]["hits"] == 2)
    assert status["opens"] == {"raw": 2, "human": 1, "hits": 2}
    assert (status["clicks"]["raw"], status["clicks"]["human"]) == (2, 1)


def she_leaves_with_one_click_and_gets_no_other(town: Town, campaign: int, ada: str, letter: EmailMessage) -> None:
    assert letter["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    address = str(letter["List-Unsubscribe"]).strip("<>")
    assert WEB.get(address).status_code == 200
    assert ada in actives(town), "looking at the page changes nothing"
    assert WEB.post(address, data={"List-Unsubscribe": "One-Click"}, allow_redirects=False).status_code == 200
    assert ada not in actives(town)
    assert manage_json("campaign_status", str(campaign))["unsubscribed"] == 1
    town.mail.received.clear()
    text = town.folder / "letter.md"
    second = manage_json("create_campaign", "--list", "garden", "--subject", "Second", "--body", str(text))
    manage_json("send_campaign", str(second["campaign"]), "--wait")
    assert sorted(town.mail.recipients) == [f"reader{i}@mail.example" for i in range(8)]


def a_year_later_the_list_is_cleaned(town: Town) -> None:
    quiet, _ = history(town)
    much_later = (datetime.now(UTC) + timedelta(days=4)).isoformat()
    preview = manage_json("hygiene", "preview", "--list", "old", "--at", much_later)
    assert preview["would_remove"] == len(quiet)
    run = manage_json("hygiene", "run", "--list", "old", "--at", much_later, "--approve", str(preview["preview"]))
    assert run["removed"] == len(quiet)
    assert manage_json("hygiene", "undo", str(run["run"])) == {"restored": len(quiet)}


def history(town: Town) -> tuple[list[str], list[str]]:
    """A list brought from another platform with a year of what it saw."""
    quiet = [f"quiet{i}@mail.example" for i in range(3)]
    reading = [f"keen{i}@mail.example" for i in range(97)]
    manage_json("create_list", "old", "--name", "The Old Shed", "--from", "letters@shed.example")
    people = town.folder / "old.csv"
    people.write_text("email\n" + "\n".join(quiet + reading) + "\n", encoding="utf-8")
    manage_json("import_subscribers", str(people), "--list", "old", "--confirmed")
    start = datetime.now(UTC) - timedelta(days=364)
    reader = {"user_agent": FIREFOX["User-Agent"], "ip": "192.0.2.9"}
    apple = {"user_agent": APPLE["User-Agent"], "ip": "17.58.0.1"}
    lines: list[dict[str, str]] = []
    for week in range(52):
        at = start + timedelta(weeks=week)
        for place, email in enumerate(quiet + reading):
            mail = {"email": email, "campaign": f"w{week:02}"}
            lines.append({"type": "sent", "at": at.isoformat(), **mail})
            if email in reading and (week + place) % 2 == 0:
                lines.append({"type": "open", "at": (at + timedelta(hours=5)).isoformat(), **reader, **mail})
            if email == quiet[0]:
                lines.append({"type": "open", "at": (at + timedelta(minutes=1)).isoformat(), **apple, **mail})
    file = town.folder / "old.ndjson"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    brought = manage_json("import_engagement", str(file), "--list", "old")
    assert (brought["imported"], brought["duplicate"], brought["refused"]) == (len(lines), 0, 0)
    assert manage_json("import_engagement", str(file), "--list", "old")["duplicate"] == len(lines)
    return quiet, reading
