"""The same hour everywhere: each time zone has its turn, and a campaign with one is frozen in batches of turns."""

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta

import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command

from campaigns import batching, local_hours, scheduling
from campaigns.models import Batch, Campaign, Delivery
from subscribers.models import List, Subscriber
from tests.conftest import NOW

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
NINE = time(9)


def turn(zone: str, *, start: datetime = NOW, hour: time = NINE, home: str = "UTC") -> datetime:
    return local_hours.turns([zone], start=start, hour=hour, home=home, now=start)[zone]


@pytest.mark.parametrize(
    ("zone", "utc"),
    [
        ("UTC", datetime(2026, 11, 2, 9, 0, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 11, 2, 14, 0, tzinfo=UTC)),
        ("Asia/Kathmandu", NOW),  # its hour has passed: at once
        ("", datetime(2026, 11, 2, 9, 0, tzinfo=UTC)),
        ("Mars/Olympus", datetime(2026, 11, 2, 9, 0, tzinfo=UTC)),
        ("../etc/passwd", datetime(2026, 11, 2, 9, 0, tzinfo=UTC)),
        ("America", datetime(2026, 11, 2, 9, 0, tzinfo=UTC)),  # a folder of zones
        ("a\x00b", datetime(2026, 11, 2, 9, 0, tzinfo=UTC)),
    ],
)
def test_each_zone_has_its_hour_on_the_day_at_home(zone: str, utc: datetime) -> None:
    assert turn(zone) == utc


def test_the_day_is_the_one_that_it_is_at_home() -> None:
    start = datetime(2026, 11, 2, 22, 0, tzinfo=UTC)  # the third in Tokyo
    assert turn("Europe/London", start=start, home="Asia/Tokyo") == datetime(2026, 11, 3, 9, 0, tzinfo=UTC)


def test_an_hour_that_a_clock_jumps_over_or_shows_twice() -> None:
    spring, autumn = datetime(2027, 3, 28, 0, 0, tzinfo=UTC), datetime(2027, 10, 31, 0, 0, tzinfo=UTC)
    half_past_two = time(2, 30)
    assert turn("Europe/Berlin", start=spring, hour=half_past_two) == datetime(2027, 3, 28, 1, 30, tzinfo=UTC)
    assert turn("Europe/Berlin", start=autumn, hour=half_past_two) == datetime(2027, 10, 31, 0, 30, tzinfo=UTC)


@pytest.mark.django_db(transaction=True)
def test_a_campaign_is_frozen_in_batches_of_turns(
    garden: List, subscribe: People, draft: Drafts, settings: LazySettings
) -> None:
    settings.BATCH_SIZE = 4
    zones = ["Europe/London", "America/New_York", "", "Nowhere/Such", "Asia/Tokyo"]
    people = [subscribe(garden, 3, prefix=f"z{place}-", time_zone=zone) for place, zone in enumerate(zones)]
    campaign = draft()
    scheduling.schedule(campaign.pk, NOW, local_time=NINE, now=NOW)
    assert scheduling.launch(campaign.pk, now=NOW)

    batches = {batch.pk: batch for batch in Batch.objects.filter(campaign=campaign)}
    assert sorted(batch.not_before for batch in batches.values()) == [
        NOW,  # Tokyo's nine o'clock has passed
        *[NOW + timedelta(hours=1)] * 3,  # London, and whose zone nobody knows: nine people by fours
        NOW + timedelta(hours=6),
    ]
    turns = {
        row.subscriber_id: batches[row.batch_id].not_before for row in Delivery.objects.filter(campaign_id=campaign.pk)
    }
    assert len(turns) == 15
    hours = [0 if zone == "Asia/Tokyo" else 6 if zone == "America/New_York" else 1 for zone in zones]
    for group, hour in zip(people, hours, strict=True):
        assert {turns[person.pk] for person in group} == {NOW + timedelta(hours=hour)}
    for row in Delivery.objects.filter(campaign_id=campaign.pk):
        assert batches[row.batch_id].first_id <= row.subscriber_id <= batches[row.batch_id].last_id
    assert len(batching.due(now=NOW)) == 1
    assert batching.finish_campaigns(now=NOW) == []  # somebody still waits for their hour


@pytest.mark.django_db(transaction=True)
def test_people_share_a_turn_across_zones(garden: List, subscribe: People, draft: Drafts) -> None:
    for place, zone in enumerate(["Europe/Berlin", "Europe/Paris", "Europe/Rome"]):
        subscribe(garden, 2, prefix=f"z{place}-", time_zone=zone)
    campaign = draft()
    early = NOW - timedelta(hours=6)
    scheduling.schedule(campaign.pk, early, local_time=NINE, now=early)
    assert scheduling.launch(campaign.pk, now=early)
    batch = Batch.objects.get(campaign=campaign)
    assert batch.not_before == NOW


@pytest.mark.django_db
@pytest.mark.parametrize("hour", ["nine", "25:00", "", "09:00+01:00x"])
def test_an_hour_that_is_none_is_one_clear_line(garden: List, subscribe: People, draft: Drafts, hour: str) -> None:
    subscribe(garden, 1)
    with pytest.raises(CommandError, match="is not an hour such as 09:00") as refused:
        call_command("send_campaign", str(draft().pk), "--at", "2099-03-01T08:00", "--local-time", hour)
    assert refused.value.returncode == 2
    assert Campaign.objects.get().state == "draft"


@pytest.mark.django_db
def test_the_command_takes_an_hour(garden: List, subscribe: People, draft: Drafts) -> None:
    subscribe(garden, 1)
    call_command("send_campaign", str(draft().pk), "--at", "2099-03-01T08:00", "--local-time", "09:30")
    assert Campaign.objects.get().local_time == time(9, 30)
