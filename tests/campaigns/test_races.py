"""Races between real processes: workers, beats and engines that are stopped, killed and started in mid-campaign."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from django.db import DatabaseError, connection, connections

from campaigns import scheduling, tasks
from campaigns.models import Batch, Campaign, CampaignState, Delivery, DeliveryState
from newsletter.celery import READY_LINE
from subscribers.models import List, Subscriber
from tests.conftest import NOW, MailServer
from tests.engines import engines
from tests.processes import PYTHON, ROOT, beat, environment, running, worker

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)

SECONDS = 90  # after which a campaign that does not end has failed
CONNECTIONS = 4
SLOW = 0.002  # seconds a message, so that a campaign has a middle
BATCHES = "100"
GATE = 7_260_499  # an advisory lock that lets several processes begin at one moment


def another_worker(name: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """A further worker with one child, beside those that run; the broker keeps what it holds."""
    command = [PYTHON, "-m", "celery", "-A", "newsletter", "worker", "-c", "1", "-l", "WARNING", "-n", f"{name}@%h"]
    return running(
        [*command, "--without-gossip", "--without-mingle"], ready=lambda line: READY_LINE in line, BATCH_SIZE=BATCHES
    )


@pytest.fixture
def slow(mail_server: MailServer, settings: object) -> MailServer:
    mail_server.on_message = lambda _: time.sleep(SLOW)
    settings.EMAIL_URL = f"{mail_server.url}?connections={CONNECTIONS}"  # type: ignore[attr-defined]
    return mail_server


@contextmanager
def two_beats(folder: Path) -> Iterator[None]:
    for name in ("one", "two"):
        (folder / name).mkdir()
    with beat(folder / "one"), beat(folder / "two"):
        yield


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def has_ended(campaign: Campaign) -> bool:
    try:
        return Campaign.objects.filter(pk=campaign.pk, state=CampaignState.SENT).exists()
    except DatabaseError:
        connection.close()
        return False


def counts(campaign: Campaign) -> Counter[int]:
    return Counter(Delivery.objects.filter(campaign_id=campaign.pk).values_list("state", flat=True))


def send(campaign: Campaign) -> None:
    Campaign.objects.filter(pk=campaign.pk).update(state="scheduled", scheduled_at=NOW)
    tasks.launch.delay(campaign.pk)


def test_a_campaign_launched_by_several_processes_at_once_is_frozen_once(
    garden: List, subscribe: People, draft: Drafts
) -> None:
    subscribe(garden, 300)
    campaign = draft()
    scheduling.schedule(campaign.pk, NOW, now=NOW)
    program = f"""
import django; django.setup()
from datetime import UTC, datetime
from django.db import connection
from campaigns import composing, scheduling
with connection.cursor() as cursor:
    print("here", flush=True)
    cursor.execute("SELECT pg_advisory_lock_shared({GATE})")
print(scheduling.launch({campaign.pk}, now=datetime.now(UTC)))
"""
    with engines.postgres.connect(str(connection.settings_dict["NAME"])) as gate:
        gate.execute(f"SELECT pg_advisory_lock({GATE})")
        launchers = [
            subprocess.Popen(
                [PYTHON, "-c", program], env=environment(DJANGO_SETTINGS_MODULE="newsletter.settings"),
                cwd=ROOT, text=True, stdout=subprocess.PIPE,
            )
            for _ in range(3)
        ]  # fmt: skip
        for launcher in launchers:
            assert launcher.stdout
            assert launcher.stdout.readline() == "here\n"
        gate.execute(f"SELECT pg_advisory_unlock({GATE})")
    said = sorted(launcher.communicate(timeout=60)[0].strip() for launcher in launchers)
    assert said == ["False", "False", "True"]
    campaign.refresh_from_db()
    assert (campaign.state, campaign.number, campaign.audience) == (CampaignState.SENDING, 1, 300)
    assert Delivery.objects.filter(campaign_id=campaign.pk).count() == 300
    assert campaign.revisions.count() == 1


def test_stops_restarts_and_repeated_messages_cost_nobody_and_leave_nobody_in_doubt(
    garden: List, subscribe: People, draft: Drafts, slow: MailServer, tmp_path: Path
) -> None:
    people = subscribe(garden, 1_500)
    campaign = draft()

    def received(count: int) -> None:
        until(lambda: len(slow.received) >= count)

    with worker(processes=1, BATCH_SIZE=BATCHES) as first, two_beats(tmp_path), another_worker("second"):
        send(campaign)
        received(200)
        for batch_id in list(Batch.objects.values_list("pk", flat=True)) * 5:
            tasks.send_batch.delay(batch_id)  # the broker says everything again and again
        received(400)
        scheduling.pause(campaign.pk, reason="wait", now=NOW)
        until(lambda: not Batch.objects.filter(state=Batch.State.LEASED).exists())
        at_rest = len(slow.received)
        assert counts(campaign) == {DeliveryState.ACCEPTED: at_rest, DeliveryState.QUEUED: 1_500 - at_rest}
        scheduling.resume(campaign.pk, now=NOW)
        received(at_rest + 200)
        os.killpg(first.pid, signal.SIGTERM)
        assert first.wait(15) == 0
        assert not counts(campaign)[DeliveryState.UNKNOWN]
        with another_worker("third"):
            received(at_rest + 400)
            restart(engines.postgres)
            received(at_rest + 700)
            restart(engines.valkey)
            # What was lost with it is told again; here without waiting for the twenty seconds.
            Batch.objects.filter(state=Batch.State.READY).update(enqueued_at=None)
            until(lambda: has_ended(campaign))
    assert counts(campaign) == {DeliveryState.ACCEPTED: 1_500}, "nobody is in doubt"
    assert Counter(slow.recipients) == Counter(person.email for person in people)


def test_workers_killed_and_a_worker_that_hangs_leave_only_what_was_on_the_wire_in_doubt(
    garden: List, subscribe: People, draft: Drafts, slow: MailServer, tmp_path: Path
) -> None:
    people = subscribe(garden, 1_200)
    campaign = draft()
    held: list[psutil.Process] = []
    with worker(BATCH_SIZE=BATCHES, BATCH_LEASE_SECONDS="6") as workers, two_beats(tmp_path):
        send(campaign)
        for count in (200, 400, 600):
            until(lambda count=count: len(slow.received) >= count)  # type: ignore[misc]
            until(lambda: kill_a_child(workers))
        until(lambda: len(slow.received) >= 800)
        while not held:
            held = suspended()
        (hanging,) = held
        # Its lease ends; the others send what it had not begun; then it comes back.
        until(lambda: not Batch.objects.exclude(state__in=("done", "leased")).exists() and leases_left(hanging) == 0)
        hanging.resume()
        until(lambda: has_ended(campaign))
    found = counts(campaign)
    assert set(found) <= {DeliveryState.ACCEPTED, DeliveryState.UNKNOWN}
    assert found[DeliveryState.UNKNOWN] <= 4 * CONNECTIONS
    taken = Counter(slow.recipients)
    assert set(taken.values()) == {1}, "nobody twice"
    accepted = Delivery.objects.filter(campaign_id=campaign.pk, state=DeliveryState.ACCEPTED).values("subscriber_id")
    assert set(Subscriber.objects.filter(pk__in=accepted).values_list("email", flat=True)) <= set(taken)
    assert len(taken) >= len(people) - found[DeliveryState.UNKNOWN]


def kill_a_child(workers: subprocess.Popen[str]) -> bool:
    """Kill a pool child by -9, if there is one at this moment."""
    with suppress(psutil.Error):
        for child in psutil.Process(workers.pid).children():
            child.kill()
            return True
    return False


def suspended() -> list[psutil.Process]:
    """Let a process that is sending a batch hang, if there is one at this moment."""
    for name in Batch.objects.filter(state=Batch.State.LEASED).values_list("worker", flat=True):
        with suppress(psutil.Error):
            process = psutil.Process(int(name.split("/")[2]))
            if process.status() != psutil.STATUS_ZOMBIE:
                process.suspend()
                return [process]
    return []


def leases_left(process: psutil.Process) -> int:
    return Batch.objects.filter(state=Batch.State.LEASED, worker__contains=f"/{process.pid}/").count()


def restart(engine: object) -> None:
    """Kill an engine and start it again."""
    connections.close_all()
    connections["default"].close_pool()  # type: ignore[attr-defined]
    engine.kill()  # type: ignore[attr-defined]
    engine.start()  # type: ignore[attr-defined]
