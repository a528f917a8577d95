"""The freeze: everybody who may be mailed gets one row and one batch, once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.conf import LazySettings
from django.db import connection, connections
from django.db.models import Count

from campaigns import freezing, scheduling
from campaigns.errors import NotReady, WrongState
from campaigns.models import Batch, Campaign, CampaignState, Delivery, Link
from subscribers.models import List, Subscriber
from tests.conftest import NOW
from tests.engines import engines

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]


@pytest.mark.django_db(transaction=True)
def test_the_audience_becomes_rows_and_batches_of_the_set_size(
    garden: List, subscribe: People, launched: Drafts, settings: LazySettings
) -> None:
    settings.BATCH_SIZE = 10
    people = subscribe(garden, 25)
    subscribe(garden, 3, state="unsubscribed", prefix="left")
    subscribe(garden, 3, state="pending", prefix="waiting")
    subscribe(garden, 2, prefix="bounced", suppressed_at=NOW)
    campaign = launched()
    rows = dict(Delivery.objects.filter(campaign_id=campaign.pk).values_list("subscriber_id", "batch_id"))
    assert set(rows) == {person.pk for person in people}
    batches = list(Batch.objects.filter(campaign=campaign).order_by("first_id"))
    assert [sum(batch_id == batch.pk for batch_id in rows.values()) for batch in batches] == [10, 10, 5]
    assert all(batch.first_id <= row <= batch.last_id for batch in batches for row, b in rows.items() if b == batch.pk)
    assert (campaign.state, campaign.audience, campaign.number) == (CampaignState.SENDING, 25, 1)
    assert list(Link.objects.filter(campaign=campaign).values_list("index", "url")) == [
        (0, "https://weather.example/?a=1&b=2"),
        (1, "https://almanac.example/"),
    ]


@pytest.mark.django_db(transaction=True)
def test_a_small_campaign_is_shared_among_workers(garden: List, subscribe: People, launched: Drafts) -> None:
    subscribe(garden, 250)
    sizes = Delivery.objects.filter(campaign_id=launched().pk).values("batch_id").annotate(people=Count("pk"))
    assert sorted(row["people"] for row in sizes) == [50, 100, 100]


@pytest.mark.django_db(transaction=True)
def test_a_campaign_launched_by_many_at_once_is_frozen_once(garden: List, subscribe: People, draft: Drafts) -> None:
    subscribe(garden, 50)
    campaign = draft()
    scheduling.schedule(campaign.pk, NOW, now=NOW)

    def launch(_: int) -> bool:
        try:
            return scheduling.launch(campaign.pk, now=NOW)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(launch, range(4)))
    assert won.count(True) == 1
    assert Delivery.objects.filter(campaign_id=campaign.pk).count() == 50
    assert Campaign.objects.get(pk=campaign.pk).number == 1


@pytest.mark.django_db(transaction=True)
def test_what_upper_apps_registered_is_told_after_the_commit(
    garden: List, subscribe: People, launched: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        freezing, "on_frozen", [lambda campaign_id: told.append((campaign_id, connection.in_atomic_block))]
    )
    subscribe(garden, 1)
    campaign = launched()
    assert told == [(campaign.pk, False)]


@pytest.mark.django_db
def test_a_campaign_that_is_not_ready_says_all_that_is_missing(garden: List, draft: Drafts) -> None:
    campaign = draft(body="")
    with pytest.raises(NotReady) as refused:
        scheduling.send_now(campaign.pk, now=NOW)
    assert "Nobody on this list can be mailed." in str(refused.value)
    assert "The campaign has no text." in str(refused.value)


@pytest.mark.django_db
def test_a_layout_without_an_unsubscribe_link_is_refused(garden: List, subscribe: People, draft: Drafts) -> None:
    subscribe(garden, 1)
    campaign = draft()
    assert campaign.layout
    campaign.layout.mjml = campaign.layout.mjml.replace("{{ unsubscribe_url }}", "https://elsewhere.example/")
    campaign.layout.save()
    with pytest.raises(NotReady, match="The mail has no unsubscribe link"):
        scheduling.send_now(campaign.pk, now=NOW)


@pytest.mark.django_db(transaction=True)
def test_sending_twice_is_refused_in_words(garden: List, subscribe: People, draft: Drafts) -> None:
    subscribe(garden, 1)
    campaign = draft()
    scheduling.schedule(campaign.pk, NOW, now=NOW)
    with pytest.raises(WrongState, match="it is scheduled"):
        scheduling.schedule(campaign.pk, NOW, now=NOW)


@pytest.mark.django_db(transaction=True)
def test_two_that_need_the_same_new_partition_at_once_make_it_once() -> None:
    campaign_id = 900_000 * freezing.CAMPAIGNS_A_PARTITION
    name = freezing._partition(campaign_id)

    def second() -> None:
        try:
            freezing.ensure_partition(campaign_id)
        finally:
            connections.close_all()

    with engines.postgres.connect(str(connection.settings_dict["NAME"])) as first, ThreadPoolExecutor(1) as pool:
        with first.transaction():
            first.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [name])
            waiting = pool.submit(second)
            while not first.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]:  # type: ignore[index]
                assert not waiting.done()
            lower = campaign_id
            first.execute(f"CREATE TABLE {name} (LIKE campaigns_delivery INCLUDING ALL)")
            first.execute(
                f"ALTER TABLE campaigns_delivery ATTACH PARTITION {name}"
                f" FOR VALUES FROM ({lower}) TO ({lower + freezing.CAMPAIGNS_A_PARTITION})"
            )
        waiting.result(30)
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {name}")
