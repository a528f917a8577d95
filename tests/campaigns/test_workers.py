"""A campaign sent by real Celery worker processes, from the command line to the mail server."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, ManagementUtility, call_command
from django.utils import timezone

from campaigns.models import Campaign
from campaigns.tasks import send_batch, sweep
from newsletter.celery import app
from subscribers.models import List, Subscriber
from subscribers.tasks import send_confirmation
from tests.conftest import MailServer
from tests.processes import ROOT, environment, manage, manage_json, worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def body(tmp_path: Path) -> str:
    path = tmp_path / "issue.md"
    path.write_text("# Hello {{ name }}\n\n[Read](https://shed.example/)\n", encoding="utf-8")
    return str(path)


def test_two_thousand_people_get_exactly_one_mail_each_with_their_own_token(
    garden: List, subscribe: Callable[..., list[Subscriber]], mail_server: MailServer, body: str
) -> None:
    people = subscribe(garden, 2_000)
    with worker():
        campaign = manage_json("create_campaign", "--list", "garden", "--subject", "Rain", "--body", body)["campaign"]
        ended = manage_json("send_campaign", str(campaign), "--wait")
    assert ended == {"campaign": campaign, "state": "sent"}
    assert sorted(mail_server.recipients) == sorted(person.email for person in people)
    assert len({message["List-Unsubscribe"] for message in mail_server.messages}) == 2_000
    status = manage_json("campaign_status", str(campaign))
    assert status["state"] == "sent"
    assert status["deliveries"] == {"accepted": 2_000}


def test_waiting_ends_when_only_retries_are_left_and_says_until_when(
    garden: List, subscribe: Callable[..., list[Subscriber]], mail_server: MailServer, body: str
) -> None:
    people = subscribe(garden, 20)
    mail_server.answers = {people[0].email: "451 4.7.1 greylisted"}
    with worker():
        campaign = manage_json("create_campaign", "--list", "garden", "--subject", "Rain", "--body", body)["campaign"]
        ended = manage_json("send_campaign", str(campaign), "--wait")
    assert (ended["state"], ended["deferred"]) == ("sending", 1)
    assert ended["until"] > (timezone.now() + timedelta(days=2)).isoformat()
    assert manage_json("campaign_status", str(campaign))["deliveries"] == {"accepted": 19, "deferred": 1}


def test_on_a_terminal_waiting_shows_a_bar_and_elsewhere_nothing(
    garden: List, subscribe: Callable[..., list[Subscriber]], mail_server: MailServer, draft: Callable[..., Campaign]
) -> None:
    subscribe(garden, 30)
    mail_server.on_message = lambda _envelope: time.sleep(0.1)  # so that there is something to see
    with worker():
        on_terminal = _on_a_terminal("send_campaign", str(draft().pk), "--wait")
        elsewhere = manage("send_campaign", str(draft().pk), "--wait")
    assert re.search(r"[█░]{30} \d+ of 30 ", on_terminal)
    assert "is sent." in on_terminal
    assert elsewhere.stderr == ""


def _on_a_terminal(*arguments: str) -> str:
    """What a manage.py command writes to a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "manage.py", *arguments]
    with subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # Linux says so when the other side is closed
            while more := os.read(ours, 4096):
                written += more
        process.wait(timeout=60)
    os.close(ours)
    return written.decode()


def test_a_time_without_a_zone_is_the_installations_and_says_so(
    garden: List, subscribe: Callable[..., list[Subscriber]], draft: Callable[..., Campaign]
) -> None:
    subscribe(garden, 1)
    campaign = draft()
    done = manage("send_campaign", str(campaign.pk), "--at", "2099-03-01T08:00", TIME_ZONE="Asia/Tokyo")
    assert "names no time zone; it is taken as Asia/Tokyo." in done.stderr
    campaign.refresh_from_db()
    assert campaign.scheduled_at == datetime.fromisoformat("2099-02-28T23:00:00Z")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["create_campaign", "--list", "nowhere", "--subject", "x", "--body", "BODY"], "There is no list “nowhere”."),
        (["create_campaign", "--list", "garden", "--subject", "x", "--body", "/no/such.md"], "cannot be read"),
        (["create_campaign", "--list", "garden", "--subject", "{{ x", "--body", "BODY"], "never closed"),
        (["create_campaign", "--list", "garden", "--subject", "x", "--body", "BODY", "--layout", "no"], "no layout"),
        (["create_campaign", "--list", "garden", "--subject", " ", "--body", "BODY"], "The subject is empty."),
        (["create_campaign", "--list", "garden", "--subject", "\a\r\n", "--body", "BODY"], "The subject is empty."),
        (["create_campaign", "--list", "garden", "--subject", "x", "--body", "EMPTY"], "is empty"),
        (["create_campaign", "--list", "garden", "--subject", "x" * 251, "--body", "BODY"], "longer than 250"),
        (["send_campaign", "999"], "There is no campaign 999."),
        (["send_campaign", "DRAFT"], "Nobody on this list can be mailed."),
        (["send_campaign", "DRAFT", "--at", "tomorrow"], "is not a time"),
        (["send_campaign", "DRAFT", "--at", "9999-12-31T23:59:59-14:00"], "more than a hundred years ahead"),
        (["send_campaign", "DRAFT", "--at", ""], "is not a time"),  # a script's empty variable must not send at once
        (["campaign_status", "999"], "There is no campaign 999."),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(
    garden: List, draft: Callable[..., Campaign], body: str, arguments: list[str], sentence: str
) -> None:
    campaign = draft()
    empty = Path(body).with_name("empty.md")
    empty.write_text(" \n", encoding="utf-8")
    filled = [
        {"BODY": body, "EMPTY": str(empty), "DRAFT": str(campaign.pk)}.get(argument, argument) for argument in arguments
    ]
    with pytest.raises(CommandError, match=re.escape(sentence)) as refused:
        call_command(*filled, "--json")
    assert refused.value.returncode == 2
    assert "\n" not in str(refused.value)
    assert Campaign.objects.count() == 1


def test_a_broker_that_is_down_does_not_fail_what_stands_in_a_row(
    garden: List, subscribe: Callable[..., list[Subscriber]], draft: Callable[..., Campaign]
) -> None:
    subscribe(garden, 1)
    campaign = draft()
    done = manage("send_campaign", str(campaign.pk), "--json", check=False, BROKER_URL="redis://127.0.0.1:1/1")
    assert (done.returncode, json.loads(done.stdout or "{}")) == (0, {"campaign": campaign.pk, "state": "scheduled"})
    assert "waits for the sweep" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refusal_in_a_shell_is_one_line_on_standard_error() -> None:
    done = manage("campaign_status", "999", "--json", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().splitlines() == ["Refusal: There is no campaign 999."]


@pytest.mark.parametrize(
    "arguments",
    [
        ["campaign_status", "abc"],
        ["create_list", "x"],
        ["hygiene"],
        ["hygiene", "run", "--list", "x", "--cap", "abc"],
        ["create_list", "x", "--name", "\udcff"],
        ["hygiene", "preview", "--list", "\udcff"],
        ["create_campaign", "--list", "x", "--subject", "a\0b", "--body", "x"],
    ],
)
def test_arguments_that_cannot_be_read_are_one_line_too(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        ManagementUtility(["manage.py", *arguments]).execute()
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_batches_give_way_to_everything_else_and_their_hints_do_not_pile_up() -> None:
    """A long campaign must keep no confirmation, launch or sweep waiting."""
    with app.connection_for_write() as broker:
        queue = app.amqp.default_queue.bind(broker.default_channel)
        queue.declare()
        queue.purge()
        for batch_id in range(3):
            send_batch.delay(batch_id)
        sweep.delay()
        send_confirmation.delay(1)
        waiting = [message.headers for _ in range(5) if (message := queue.get(no_ack=True))]
    assert [one["task"] for one in waiting] == [
        "campaigns.sweep",
        "subscribers.send_confirmation",
        *["campaigns.send_batch"] * 3,
    ]
    assert all(one["expires"] for one in waiting[2:])
