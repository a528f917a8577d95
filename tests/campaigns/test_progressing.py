"""How far a campaign is, its speed, time left, what holds it up; counted once for all; and why mail was refused."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.conf import LazySettings
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext

from campaigns import progressing, refusals
from campaigns.admin import live
from campaigns.models import Batch, Campaign, CampaignState, Delivery, DeliveryError, DeliveryState
from subscribers.models import List, Subscriber
from tests.conftest import NOW

pytestmark = pytest.mark.django_db

LATER = NOW + timedelta(minutes=5)


@pytest.fixture
def people(garden: List, subscribe: Callable[..., list[Subscriber]]) -> list[Subscriber]:
    return subscribe(garden, 100)


@pytest.fixture
def going(people: list[Subscriber], launched: Callable[..., Campaign]) -> Campaign:
    """100 people: 40 accepted in the last 20 s, 20 before that, 40 wait."""
    campaign = launched()
    cache.clear()
    mark(campaign, people[:40], state=DeliveryState.ACCEPTED, sent_at=LATER - timedelta(seconds=5))
    mark(campaign, people[40:60], state=DeliveryState.ACCEPTED, sent_at=NOW)
    return campaign


def mark(campaign: Campaign, people: list[Subscriber], **fields: object) -> None:
    Delivery.objects.filter(campaign_id=campaign.pk, subscriber_id__in=[one.pk for one in people]).update(**fields)


def test_speed_is_that_of_the_last_seconds_and_says_how_long_it_takes(going: Campaign) -> None:
    progress = progressing.count(going.pk, now=LATER)
    assert (progress.done, progress.waiting, progress.rate, progress.seconds_left) == (60, 40, 2.0, 20.0)
    assert (live.speed(progress), live.pace(progress)) == ("2 a second", "less than a minute left")


def test_a_campaign_that_has_just_begun_is_measured_by_its_own_age(going: Campaign) -> None:
    Campaign.objects.filter(pk=going.pk).update(started_at=LATER - timedelta(seconds=5))
    assert progressing.count(going.pk, now=LATER).rate == 8.0


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"state": Batch.State.READY, "not_before": NOW}, "waiting for a worker"),
        ({"state": Batch.State.READY, "not_before": NOW + timedelta(hours=2)}, "goes on at 10:00, Mon 2 Nov"),
        ({"state": Batch.State.LEASED}, "a worker has it; the receiving servers are slow to answer"),
    ],
)
def test_what_does_not_move_says_why(going: Campaign, batch: dict[str, object], words: str) -> None:
    Batch.objects.filter(campaign=going).update(**batch)
    progress = progressing.count(going.pk, now=NOW + timedelta(hours=1))
    assert (live.speed(progress), live.pace(progress)) == ("", words)


def test_when_only_retries_are_left_it_says_until_when(going: Campaign, people: list[Subscriber]) -> None:
    assert progressing.only_retries(going.pk, now=LATER) is None
    mark(going, people, state=DeliveryState.ACCEPTED)
    mark(going, people[:3], state=DeliveryState.DEFERRED, attempts=2)
    Batch.objects.filter(campaign=going).update(not_before=LATER + timedelta(minutes=15))
    retries = progressing.only_retries(going.pk, now=LATER)
    assert retries
    assert (retries.people, retries.next_at) == (3, LATER + timedelta(minutes=15))
    # After this third attempt those of 1, 4, 12, 24 and 24 hours later remain.
    assert retries.until - retries.next_at == timedelta(hours=65)
    going.refresh_from_db()
    assert live.phase(going, progressing.count(going.pk, now=LATER)) == "retrying"
    Batch.objects.filter(campaign=going).update(state=Batch.State.LEASED)
    assert progressing.only_retries(going.pk, now=LATER) is None


def test_many_who_look_count_once_and_see_the_state_at_once(going: Campaign) -> None:
    first = progressing.progress(going.pk, now=LATER)
    mark(going, list(Subscriber.objects.all()), state=DeliveryState.ACCEPTED)
    Campaign.objects.filter(pk=going.pk).update(state=CampaignState.PAUSED)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        again = progressing.progress(going.pk, now=LATER)
    assert again.done == first.done
    assert again.status["state"] == "paused"
    assert len(queries) == 1
    cache.clear()
    assert progressing.progress(going.pk, now=LATER).done == 100


def test_without_a_cache_progress_is_counted(going: Campaign, settings: LazySettings) -> None:
    backend = "django.core.cache.backends.redis.RedisCache"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": "redis://127.0.0.1:1/0"}}
    assert progressing.progress(going.pk, now=LATER).done == 60


# Causes ---------------------------------------------------------------------------------------------------------


def test_refusals_are_grouped_by_code_or_else_by_their_words(going: Campaign, people: list[Subscriber]) -> None:
    said = [
        *((one, "5.1.1", f"550 5.1.1 <{one.email}>: no such user", True) for one in people[:5]),
        *((one, "5.1.1", f"550 5.1.1 {one.email} unknown to us", True) for one in people[5:8]),
        *((one, "451", f"451 try again in {n} s, id {n}f00ba7", False) for n, one in enumerate(people[10:14])),
        (people[10], "451", "451 try again in 99 s, id 12ab", False),
        (people[20], "451", "451 disk full", False),
    ]
    DeliveryError.objects.bulk_create(
        DeliveryError(campaign_id=going.pk, subscriber_id=one.pk, code=code, text=text, is_permanent=for_good)
        for one, code, text, for_good in said
    )
    first, second, third = refusals.count(going.pk, with_addresses=True)
    assert (first.code, first.people, first.refused, first.put_off) == ("5.1.1", 8, 8, 0)
    assert first.meaning == "The mailbox does not exist."
    assert (first.examples, first.text) == ([people[0].email, people[7].email], said[7][2])
    assert (second.people, second.refused, second.put_off) == (4, 0, 4)
    assert (third.people, third.text) == (1, "451 disk full")
    masked = refusals.count(going.pk, with_addresses=False)[0]
    assert (masked.examples, masked.text) == ([], "550 5.1.1 … unknown to us")
    assert refusals.without_addresses("550 5.1.1 <a@b.example>: no such user") == "550 5.1.1 <…>: no such user"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("4.7.1", "second attempt"),
        ("5.7.1", "policy"),
        ("5.7.515", "lacks SPF"),
        ("5.2.9", "wrong with the mailbox"),
        ("4.2.2", "mailbox is full"),
        ("550", "does not exist"),
        ("429", "limits how much"),
        ("503", "problem of its own"),
    ],
)
def test_a_code_has_a_sentence(code: str, words: str) -> None:
    assert words in refusals.meaning(code)


@pytest.mark.parametrize("code", ["", "5.99.1", "x", "999"])
def test_a_code_that_nobody_knows_has_none(code: str) -> None:
    assert refusals.meaning(code) == ""
