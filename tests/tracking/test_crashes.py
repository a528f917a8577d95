"""Ingest killed in the middle, and several at once: every hit is counted, none twice."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.conf import settings
from django.db import connection, connections

from campaigns import reporting
from tests.engines import engines
from tests.tracking.building import SENT, Issue, append, drain, send_issue, sighting
from tests.tracking.edges import wait_until
from tracking import ingesting, stream
from tracking.models import Event, IngestCursor
from tracking.stream import Writer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("streams")]
PEOPLE, HITS = 50, 80

INGEST = "import django; django.setup(); from tracking import tasks; tasks.ingest()"


def fill(issue: Issue) -> None:
    """One entry a hit, as an edge writes them when it is asked slowly."""
    writer = Writer()
    groups = [
        group
        for minute in range(HITS)
        for person in range(PEOPLE)
        for group in writer.groups(
            [
                (
                    stream.stream_of(issue.campaign.pk, issue.people[person].pk),
                    sighting(issue, person=person, after=60 * (minute % 10)).encode(),
                )
            ]
        )
    ]
    with stream.connect(settings.STREAM_URL) as client:
        stream.append(client, groups)


def counted(issue: Issue) -> tuple[int, int]:
    opens = reporting.status(issue.campaign.pk)["opens"]
    return opens["human"], opens["hits"]


def test_a_consumer_killed_in_the_middle_loses_and_doubles_nothing() -> None:
    issue = send_issue(people=PEOPLE)
    fill(issue)
    environment = {**os.environ, "DATABASE_URL": engines.postgres.url(connection.settings_dict["NAME"])}
    process = subprocess.Popen([sys.executable, "-c", INGEST], env=environment)
    try:
        wait_until(lambda: IngestCursor.objects.filter(stored__gt=0).exists(), process)
    finally:
        process.kill()
        process.wait()
    drain()
    assert counted(issue) == (PEOPLE, PEOPLE * HITS)
    assert sum(Event.objects.values_list("hits", flat=True)) == PEOPLE * HITS


def test_consumers_at_once_share_the_streams_and_no_entry() -> None:
    issue = send_issue(people=PEOPLE)
    fill(issue)

    def consume(_number: int) -> int:
        try:
            taken = 0
            while sum(ingesting.lag().values()):
                taken += ingesting.ingest_once(SENT)
            return taken
        finally:
            connections.close_all()

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(consume, range(3))) == PEOPLE * HITS
    assert counted(issue) == (PEOPLE, PEOPLE * HITS)


def test_the_same_entry_after_a_lost_append_is_stored_once() -> None:
    issue = send_issue()
    writer = Writer()
    append(sighting(issue), writer=writer)
    drain()
    again = Writer()
    again.id = writer.id  # the group's number comes again, as over the spool
    append(sighting(issue), writer=again)
    drain()
    assert counted(issue) == (1, 1)
