"""What tracking tells the apps below through their registries."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from campaigns import freezing
from subscribers.hygiene import explaining, policies
from tests.tracking.building import SENT, ingest, send_issue, sighting
from tracking import edge_links, ingesting, stream, tasks
from tracking.models import Event, ReceivedReport

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("streams")]


def test_hygiene_learns_what_only_machines_fetched() -> None:
    issue = send_issue(people=3)
    apple, scanner, reader = issue.people
    ingest(
        sighting(issue, person=0, user_agent="Mozilla/5.0"),
        sighting(issue, person=1, user_agent="curl/8"),
        sighting(issue, person=2, user_agent="curl/8"),
        sighting(issue, person=2, after=900),
    )
    found = explaining.machine_fetches(issue.list.pk, [one.pk for one in issue.people])
    assert found == {apple.pk: {1: explaining.APPLE}, scanner.pk: {1: explaining.MACHINE}}
    assert reader.pk not in found


def test_what_is_not_settled_bars_a_removal() -> None:
    issue = send_issue(people=2)
    ingest(sighting(issue))
    unsettled = policies.protections["unsettled"]
    later = SENT + timedelta(seconds=60 + settings.SETTLING_SECONDS + 1)
    assert unsettled(issue.list.pk, later) == {issue.people[0].pk}
    assert unsettled(issue.list.pk, SENT) == set()
    ingesting.settle(now=later)
    assert unsettled(issue.list.pk, later) == set()


def test_a_freeze_publishes_the_links() -> None:
    issue = send_issue()
    assert edge_links.publish in freezing.on_frozen
    for publish in freezing.on_frozen:
        publish(issue.campaign.pk)
    with stream.connect(settings.STREAM_URL) as client:
        assert client.hlen(edge_links.key(issue.campaign.pk)) == 3


def test_a_freeze_succeeds_while_the_stream_is_down(settings: Any, tmp_path: Path) -> None:
    issue = send_issue()
    settings.STREAM_URL = f"unix://{tmp_path}/nothing.sock"
    edge_links.publish(issue.campaign.pk)


def test_partitions_are_made_ahead_and_old_proof_is_dropped() -> None:
    issue = send_issue()
    ingest(sighting(issue))
    assert Event.objects.get().network_hash
    ReceivedReport.objects.create(key="old", at=SENT)
    tasks.make_partitions()
    assert Event.objects.get().network_hash is None
    assert not ReceivedReport.objects.exists()
    assert tasks.make_partitions() == 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'tracking_event'::regclass")
        assert cursor.fetchone()[0] >= 4


def test_the_tasks_say_nothing_when_there_is_nothing_to_do(settings: Any, tmp_path: Path) -> None:
    assert (tasks.ingest(), tasks.settle(), tasks.publish_links()) == (0, 0, 0)
    settings.STREAM_URL = f"unix://{tmp_path}/nothing.sock"
    assert (tasks.ingest(), tasks.publish_links()) == (0, 0)
