"""A limit kept by real worker processes together: nearly reached, never passed, and nobody else waits for it."""

import os
import signal
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from aiosmtpd.smtp import Envelope

from campaigns import batching, limiting
from campaigns.models import Batch, Campaign, Delivery, DeliveryState, SendingLimit
from campaigns.tasks import sweep
from newsletter.mailing.throttling import WINDOW_SECONDS
from subscribers.models import List, Subscriber
from tests.conftest import MailServer
from tests.processes import manage_json, worker

pytestmark = pytest.mark.django_db(transaction=True)

RATE, BURST = 200, 100
LIMITED, OTHERS = 1_000, 400


def test_two_workers_keep_a_rate_together_and_hold_nobody_else_up(
    garden: List,
    subscribe: Callable[..., list[Subscriber]],
    mail_server: MailServer,
    draft: Callable[..., Campaign],
) -> None:
    limiting.server().flushdb()
    subscribe(garden, OTHERS)
    people = subscribe(garden, LIMITED, prefix="limited")
    for person in people:
        person.email = person.email_key = person.email.replace("mail.example", "gmail.com")
    Subscriber.objects.bulk_update(people, ["email", "email_key"])
    SendingLimit.objects.create(name="Gmail", domains="gmail.com", per_second=RATE)
    limited: list[float] = []
    others: list[float] = []

    def note(envelope: Envelope) -> None:
        (limited if envelope.rcpt_tos[0].endswith("@gmail.com") else others).append(time.monotonic())

    mail_server.on_message = note
    campaign = draft()
    with worker(BATCH_SIZE="100"):
        ended = manage_json("send_campaign", str(campaign.pk), "--wait")
    assert ended["state"] == "sent"
    assert len(set(mail_server.recipients)) == len(mail_server.recipients) == LIMITED + OTHERS

    least = (LIMITED - BURST) / RATE
    took = limited[-1] - limited[0]
    # Seen: 5 % over the least, 28 % with six other jobs on two cores.
    assert least * 0.99 <= took <= least * 2.5
    most = max(bisect_left(limited, moment + 1) - place for place, moment in enumerate(limited))
    # What was granted in time may arrive late, beside what was granted after it: a window of each process at most.
    assert most <= RATE + BURST + 2 * RATE * WINDOW_SECONDS
    assert others[-1] < limited[len(limited) // 2]


def test_a_worker_killed_while_people_wait_for_a_limit_loses_nobody(
    garden: List, subscribe: Callable[..., list[Subscriber]], mail_server: MailServer, draft: Callable[..., Campaign]
) -> None:
    limiting.server().flushdb()
    subscribe(garden, 300)
    SendingLimit.objects.create(name="All", per_second=RATE)
    enough, all_there = threading.Event(), threading.Event()
    in_doubt: list[int] = []

    def note(_: Envelope) -> None:
        if len(mail_server.received) >= 150:
            enough.set()
        if in_doubt and len(mail_server.received) + in_doubt[0] >= 300:
            all_there.set()

    mail_server.on_message = note
    campaign = draft()
    with worker() as first:
        manage_json("send_campaign", str(campaign.pk))
        assert enough.wait(20)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    later = datetime.now(UTC) + timedelta(hours=1)
    in_doubt.append(batching.take_back_expired(now=later))
    Batch.objects.update(enqueued_at=None)  # hints that went with the worker are sent again, after 20 s
    with worker():
        sweep()
        assert all_there.wait(20)
    people = mail_server.recipients
    assert len(people) == len(set(people)) >= 300 - in_doubt[0]
    rows = Delivery.objects.filter(campaign_id=campaign.pk)
    assert rows.filter(state=DeliveryState.UNKNOWN).count() == in_doubt[0] <= 2 * 8
    assert rows.filter(state=DeliveryState.ACCEPTED).count() == 300 - in_doubt[0]
