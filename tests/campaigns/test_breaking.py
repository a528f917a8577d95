"""Circuit breakers: a campaign that goes wrong pauses by itself once, says why, and goes on when somebody resumes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import connections
from django.test import Client
from django.urls import reverse

from campaigns import breaking, delivering, reporting, scheduling, tasks
from campaigns.breaking import Strain, is_failure
from campaigns.models import (
    Batch,
    Campaign,
    CampaignFigures,
    CampaignState,
    Delivery,
    DeliveryState,
    Outcome,
    SendingHealth,
)
from newsletter.env import email_url
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports import smtp_server, transport_for
from newsletter.mailing.transports.base import Report, Result, TransportError
from subscribers.models import AuditEntry, List, Subscriber
from tests.campaigns.batches import send
from tests.campaigns.conftest import Patient
from tests.conftest import NOW, MailServer
from tests.processes import manage_json, worker

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)
KEY = DeliveryKey(1, 1)


@pytest.fixture
def campaign(garden: List, subscribe: People, launched: Drafts, settings: LazySettings) -> Campaign:
    """Sixty people in six batches, and breakers that trip early."""
    settings.BATCH_SIZE = 10
    settings.BREAKER_FAILURES = 4
    settings.BREAKER_BOUNCE_AFTER = settings.BREAKER_COMPLAINT_AFTER = 20
    settings.BREAKER_BOUNCE_PERCENT = 10.0
    settings.BREAKER_COMPLAINT_PERCENT = 10.0
    subscribe(garden, 60)
    return launched()


def batches(campaign: Campaign) -> list[Batch]:
    return list(Batch.objects.filter(campaign=campaign, state=Batch.State.READY).order_by("pk"))


def now(campaign: Campaign) -> tuple[str, str]:
    campaign.refresh_from_db()
    return campaign.state, campaign.state_reason


def waiting(campaign: Campaign) -> int:
    return Delivery.objects.filter(campaign_id=campaign.pk, state=DeliveryState.QUEUED).count()


@pytest.mark.parametrize(
    ("report", "fails"),
    [
        (Report(KEY, Result.FAILED, "5.7.1", "550 5.7.1 blocked"), True),
        (Report(KEY, Result.FAILED, "5.7.515", "550 5.7.515 not authenticated"), True),
        (Report(KEY, Result.FAILED, "5.1.8", "550 5.1.8 bad sender"), True),
        (Report(KEY, Result.FAILED, "535", "535 bad login"), True),
        (Report(KEY, Result.DEFERRED, "4.3.2", "451 4.3.2 not now"), True),
        (Report(KEY, Result.DEFERRED, "421", "421 goodbye"), True),
        (Report(KEY, Result.FAILED, "554", "554 no", is_general=True), True),
        (Report(KEY, Result.UNKNOWN, "", "lost"), True),
        (Report(KEY, Result.FAILED, "5.1.1", "550 5.1.1 no such user"), False),
        (Report(KEY, Result.FAILED, "550", "550 no such user"), False),
        (Report(KEY, Result.DEFERRED, "4.2.2", "452 4.2.2 full"), False),
        (Report(KEY, Result.DEFERRED, "4.7.1", "451 4.7.1 try later"), False),
        (Report(KEY, Result.DEFERRED, "451", "451 Greylisted, come back", is_general=True), False),
        (Report(KEY, Result.NOT_SENT), False),
        (Report(KEY, Result.ACCEPTED), False),
    ],
    ids=lambda value: value.text if isinstance(value, Report) else "",
)
def test_what_speaks_of_us_and_what_of_one_mailbox(report: Report, fails: bool) -> None:
    assert is_failure(report) is fails


def test_a_mail_server_that_is_down_pauses_after_so_many_failures(campaign: Campaign) -> None:
    away = MailServer(port=1)
    for batch in batches(campaign)[:3]:
        send(batch, away)
        assert now(campaign) == (CampaignState.SENDING, "")
    send(batches(campaign)[-1], away)
    state, reason = now(campaign)
    assert state == CampaignState.PAUSED
    assert reason.startswith("Paused by itself: sending failed 4 times in a row. The last answer: The mail server")
    assert waiting(campaign) == 60
    entry = AuditEntry.objects.get(action="campaign.pause")
    assert (entry.actor, entry.details["reason"]) == ("system", reason)


def test_one_acceptance_ends_a_row_of_failures(campaign: Campaign, mail_server: MailServer) -> None:
    away = MailServer(port=1)
    listed = batches(campaign)
    for place, server in enumerate([away, away, away, mail_server, away, away]):
        send(listed[place], server)
    assert now(campaign) == (CampaignState.SENDING, "")
    assert SendingHealth.objects.get().failures == 2


def test_a_policy_stops_a_batch_before_it_has_burnt_everybody(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, settings: LazySettings
) -> None:
    settings.BREAKER_FAILURES = 20
    subscribe(garden, 400)
    mail_server.data_answer = "550 5.7.1 your domain is on a list"
    settings.BATCH_SIZE = 1_000
    campaign = launched()
    for batch in batches(campaign):
        send(batch, mail_server)
    state, reason = now(campaign)
    assert state == CampaignState.PAUSED
    assert "550 5.7.1 your domain is on a list" in reason
    assert waiting(campaign) >= 400 - 100 - 20  # the window that was on the wire, and the row of failures


def test_mailboxes_that_do_not_exist_are_bounces_not_failures(
    campaign: Campaign, mail_server: MailServer, garden: List
) -> None:
    addresses = list(Subscriber.objects.order_by("pk").values_list("email", flat=True))
    mail_server.answers = dict.fromkeys(addresses[8:13], "550 5.1.1 no such user")
    first, second, third = batches(campaign)[:3]
    send(first, mail_server)
    assert now(campaign)[0] == CampaignState.SENDING  # two of ten, but ten are too few to judge by
    send(second, mail_server)
    state, reason = now(campaign)
    assert state == CampaignState.PAUSED
    assert reason.startswith("Paused by itself: 5 of 20 mails bounced, which is more than 10 %.")
    assert send(third, mail_server) is None

    scheduling.resume(campaign.pk, actor="ada", now=NOW)
    assert breaking.check(now=NOW) == []
    for batch in batches(campaign):
        send(batch, mail_server)
    assert now(campaign) == (CampaignState.SENDING, "")


def test_bounces_and_complaints_that_come_later_pause_too(campaign: Campaign, mail_server: MailServer) -> None:
    for batch in batches(campaign)[:3]:
        send(batch, mail_server)
    sent = list(Delivery.objects.filter(campaign_id=campaign.pk, state=DeliveryState.ACCEPTED)[:10])
    for row in sent[:3]:
        reporting.record_outcome(campaign.pk, row.subscriber_id, Outcome.BOUNCED)
    assert now(campaign)[0] == CampaignState.SENDING  # three of thirty are not more than a tenth
    reporting.record_outcome(campaign.pk, sent[3].subscriber_id, Outcome.BOUNCED)
    assert now(campaign)[1].startswith("Paused by itself: 4 of 30 mails bounced")

    scheduling.resume(campaign.pk, now=NOW)
    for batch in batches(campaign)[:2]:
        send(batch, mail_server)
    for row in sent[4:7]:
        reporting.record_outcome(campaign.pk, row.subscriber_id, Outcome.COMPLAINED)
    assert now(campaign)[1].startswith("Paused by itself: 3 people of 20 reported this mail as spam")


def test_resuming_accepts_the_numbers_and_new_failures_trip_again(campaign: Campaign) -> None:
    away = MailServer(port=1)
    for batch in batches(campaign)[:4]:
        send(batch, away)
    assert now(campaign)[0] == CampaignState.PAUSED
    scheduling.resume(campaign.pk, now=NOW)
    tasks.sweep()
    assert now(campaign) == (CampaignState.SENDING, "")
    Batch.objects.update(not_before=NOW)
    for batch in batches(campaign)[:3]:
        send(batch, away)
    assert now(campaign)[0] == CampaignState.SENDING
    send(batches(campaign)[5], away)
    assert now(campaign)[0] == CampaignState.PAUSED


def test_many_who_see_it_pause_once(campaign: Campaign) -> None:
    SendingHealth.objects.create(campaign=campaign, failures=9, last_failure="no")

    def look(_: int) -> list[int]:
        try:
            return breaking.check(now=NOW)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        paused = [found for found in pool.map(look, range(12)) if found]
    assert paused == [[campaign.pk]]
    assert AuditEntry.objects.filter(action="campaign.pause").count() == 1


def test_workers_count_together(campaign: Campaign) -> None:
    """Each sees fewer failures than it takes, in batches that run at the same time."""
    one, other = Strain(campaign.pk), Strain(campaign.pk)
    for strain in (one, other):
        for _ in range(2):
            strain.note(Report(KEY, Result.FAILED, "5.7.1", "550 5.7.1 no"), accepted=0)
        strain.add(accepted=0, now=NOW)
    assert now(campaign)[0] == CampaignState.PAUSED


def test_being_asked_to_wait_is_no_failure(campaign: Campaign) -> None:
    strain = Strain(campaign.pk)
    for _ in range(9):
        strain.ended(TransportError("slow down", retry_after=delivering.TRANSPORT_DOWN_DELAY), accepted=0)
    strain.add(accepted=0, now=NOW)
    assert not SendingHealth.objects.exists()


@pytest.mark.parametrize("name", ["BREAKER_FAILURES", "BREAKER_BOUNCE_PERCENT", "BREAKER_COMPLAINT_PERCENT"])
def test_each_breaker_can_be_switched_off(campaign: Campaign, settings: LazySettings, name: str) -> None:
    numbers: dict[str, dict[str, Any]] = {
        "BREAKER_FAILURES": {"failures": 99},
        "BREAKER_BOUNCE_PERCENT": {"accepted": 100, "refused": 90},
        "BREAKER_COMPLAINT_PERCENT": {"accepted": 100},
    }
    SendingHealth.objects.create(campaign=campaign, **numbers[name])
    CampaignFigures.objects.filter(campaign=campaign).update(complained=50 if "COMPLAINT" in name else 0)
    setattr(settings, name, 0)
    assert breaking.check(now=NOW) == []
    setattr(settings, name, 1)
    assert breaking.check(now=NOW) == [campaign.pk]


def test_the_editor_reads_why_and_resumes_by_one_click(admin_client: Client, campaign: Campaign) -> None:
    for batch in batches(campaign)[:4]:
        send(batch, MailServer(port=1))
    page = admin_client.get(reverse("admin:campaigns_campaign_report", args=[campaign.pk])).content.decode()
    assert "sending failed 4 times in a row" in page
    admin_client.post(reverse("admin:campaigns_campaign_act", args=[campaign.pk, "resume"]))
    assert now(campaign) == (CampaignState.SENDING, "")


def test_worker_processes_pause_a_campaign_together(
    garden: List, subscribe: People, draft: Drafts, mail_server: MailServer
) -> None:
    mail_server.data_answer = "451 4.3.2 not now"
    subscribe(garden, 60)
    campaign = draft()
    # More than any one batch can see.
    settings: dict[str, Any] = {"BATCH_SIZE": "10", "BREAKER_FAILURES": "45"}
    with worker(**settings):
        ended = manage_json("send_campaign", str(campaign.pk), "--wait", **settings)
    assert ended["state"] == "paused"
    assert "451 4.3.2 not now" in now(campaign)[1]
    assert not mail_server.received


def test_an_outage_met_by_many_batches_is_one_failure(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server rests after it could not be reached; that others wait for it meanwhile trips nothing."""
    monkeypatch.setattr(smtp_server, "REST_ALONE_SECONDS", (60.0, 60.0))
    transport = Patient(transport_for(email_url("smtp://127.0.0.1:1")))
    for batch in batches(campaign):
        delivering.send_batch(batch.pk, transport=transport, worker="w", clock=lambda: NOW)
    assert now(campaign) == (CampaignState.SENDING, "")
    assert SendingHealth.objects.get(campaign=campaign).failures == 1
    assert waiting(campaign) == 60
