"""From the streams to events, figures and engagement, exactly once."""

from datetime import timedelta

import pytest
from django.conf import settings

from campaigns import reporting
from campaigns.models import CampaignFigures, DeliveryState
from subscribers.models import Engagement, TrackingConsent
from tests.tracking.building import SENT, append, click, drain, ingest, next_issue, send_issue, sighting
from tracking import ingesting, judging, stream
from tracking.ingesting import Positions
from tracking.models import Event, IngestCursor, SetAside, Verdict
from tracking.stream import Group, Writer

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("streams")]


def figures(campaign_id: int) -> dict[str, dict[str, int]]:
    status = reporting.status(campaign_id)
    return {"opens": status["opens"], "clicks": status["clicks"]}


def test_an_open_and_a_click_become_events_figures_and_engagement() -> None:
    issue = send_issue(people=2)
    ingest(sighting(issue), sighting(issue, after=70), click(issue, 1, after=100))
    opened, clicked = Event.objects.order_by("at")
    assert (opened.kind, opened.verdict, opened.client, opened.delay_ms) == (
        1,
        Verdict.HUMAN,
        "browser:chrome-windows",
        60_000,
    )
    assert (clicked.kind, clicked.link, clicked.reasons) == (2, 1, ["link-followed"])
    assert figures(issue.campaign.pk) == {
        "opens": {"raw": 1, "human": 1, "hits": 2},
        "clicks": {"raw": 1, "human": 1, "hits": 1},
    }
    delivery = issue.delivery()
    assert (delivery.opened_at, delivery.clicked_at) == (SENT + timedelta(seconds=60), SENT + timedelta(seconds=100))
    assert delivery.seen == 3
    engagement = Engagement.objects.get(subscription__subscriber=issue.people[0])
    assert engagement.engaged == "1"
    assert engagement.clicked_at == SENT + timedelta(seconds=100)


def test_hits_of_the_same_minute_share_a_row_and_a_flood_costs_twenty() -> None:
    issue = send_issue()
    ingest(*(sighting(issue, after=after) for after in (60, 61, 62)))
    assert Event.objects.get().hits == 3
    ingest(*(sighting(issue, after=60 * minute) for minute in range(100) for _hit in range(20)))
    assert Event.objects.count() == 20
    assert sum(Event.objects.values_list("hits", flat=True)) == 2003
    assert figures(issue.campaign.pk)["opens"] == {"raw": 1, "human": 1, "hits": 2003}


def test_a_scanner_that_follows_every_link_leaves_the_human_figures_as_they_were() -> None:
    issue = send_issue(people=2, links=9)
    ingest(sighting(issue, person=1), click(issue, 2, person=1, after=90))
    before = figures(issue.campaign.pk)
    ingest(
        sighting(issue, after=43, ip="198.51.100.1"),
        *(click(issue, link, after=43 + link / 10, ip="198.51.100.1") for link in range(9)),
    )
    after = figures(issue.campaign.pk)
    assert after["opens"] == before["opens"] | {"raw": 2, "hits": 2}
    assert after["clicks"] == before["clicks"] | {"raw": 2, "hits": 10}
    assert not Engagement.objects.filter(subscription__subscriber=issue.people[0], engaged__contains="1").exists()


def test_the_other_nine_clicks_come_late_and_take_the_first_one_back() -> None:
    issue = send_issue(links=9)
    ingest(click(issue, 0, after=43))
    assert figures(issue.campaign.pk)["clicks"] == {"raw": 1, "human": 1, "hits": 1}
    ingest(*(click(issue, link, after=43 + link / 10) for link in range(1, 9)))
    assert figures(issue.campaign.pk)["clicks"] == {"raw": 1, "human": 0, "hits": 9}
    assert issue.delivery().clicked_at is None
    engagement = Engagement.objects.get(subscription__subscriber=issue.people[0])
    assert (engagement.engaged, engagement.clicked_at) == ("0", None)


def test_what_is_taken_back_leaves_what_a_person_read_before() -> None:
    first = send_issue(links=9)
    second = next_issue(first.list, first.people, links=9)
    ingest(sighting(first, after=60), sighting(second, after=400), click(second, 0, after=4000))
    ingest(*(click(second, link, after=4000 + link / 10) for link in range(1, 9)))
    engagement = Engagement.objects.get(subscription__subscriber=first.people[0])
    assert engagement.engaged == "11"
    assert (engagement.opened_at, engagement.clicked_at) == (SENT + timedelta(seconds=400), None)


def test_a_verdict_is_final_after_the_settling_time() -> None:
    issue = send_issue()
    ingest(sighting(issue, after=60))
    assert not Event.objects.get().is_final
    settled = SENT + timedelta(seconds=61 + settings.SETTLING_SECONDS)
    assert ingesting.settle(now=settled - timedelta(seconds=2)) == 0
    assert ingesting.settle(now=settled) == 1
    assert Event.objects.get().is_final
    assert ingesting.settle(now=settled) == 0


def test_settling_judges_by_today_s_rules() -> None:
    issue = send_issue()
    ingest(sighting(issue, after=60))
    Event.objects.update(client="library:http")
    ingesting.settle(now=SENT + timedelta(hours=1))
    assert Event.objects.get().verdict == Verdict.MACHINE
    assert figures(issue.campaign.pk)["opens"] == {"raw": 1, "human": 0, "hits": 1}


@pytest.mark.django_db(transaction=True)
def test_an_entry_is_trimmed_only_after_its_rows_are_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    issue = send_issue()
    append(sighting(issue), sighting(issue, after=600))
    with stream.connect(settings.STREAM_URL) as client:
        number = stream.stream_of(issue.campaign.pk, issue.people[0].pk)

        def die(*_arguments: object, **_named: object) -> None:
            raise ConnectionError("killed between the commit and the trim")

        with monkeypatch.context() as patched:
            patched.setattr(client, "xtrim", die)
            with pytest.raises(ConnectionError):
                ingesting.ingest_stream(client, number, now=SENT)
        assert client.xlen(stream.name(number)) == 1
        assert ingesting.ingest_stream(client, number, now=SENT) == 0
        assert figures(issue.campaign.pk)["opens"]["hits"] == 2
        append(sighting(issue, after=700))
        assert ingesting.ingest_stream(client, number, now=SENT) == 1
        assert client.xlen(stream.name(number)) == 0
    assert figures(issue.campaign.pk)["opens"]["hits"] == 3


@pytest.mark.django_db(transaction=True)
def test_a_consumer_that_dies_while_storing_loses_and_doubles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    issue = send_issue()
    append(sighting(issue))

    def die(*_arguments: object, **_named: object) -> None:
        raise ConnectionError("killed while storing")

    with monkeypatch.context() as patched:
        patched.setattr(reporting, "record_signals", die)
        with pytest.raises(ConnectionError):
            ingesting.ingest_once(SENT)
    assert Event.objects.count() == 0
    drain()
    assert figures(issue.campaign.pk)["opens"]["hits"] == 1


def test_a_group_sent_twice_is_stored_once() -> None:
    issue = send_issue()
    writer = Writer()
    pairs = [(stream.stream_of(issue.campaign.pk, issue.people[0].pk), sighting(issue).encode())]
    first, second, third = writer.groups(pairs), writer.groups(pairs), writer.groups(pairs)
    with stream.connect(settings.STREAM_URL) as client:
        for groups in (first, third, first, second):
            stream.append(client, groups)
        drain()
        stream.append(client, third)
        drain()
    assert Event.objects.get().hits == 3
    cursor = IngestCursor.objects.get(stream=stream.name(pairs[0][0]))
    assert (cursor.stored, cursor.duplicates) == (3, 2)


def test_positions_remember_what_is_missing() -> None:
    positions = Positions()
    assert [positions.take(number) for number in (1, 5, 3, 3, 2, 5, 4, 4, 6)] == [
        True, True, True, False, True, False, True, False, True,
    ]  # fmt: skip
    assert (positions.highest, positions.missing) == (6, [])


def test_poison_is_set_aside_and_counted_and_stops_nothing() -> None:
    issue = send_issue()
    number = stream.stream_of(issue.campaign.pk, issue.people[0].pk)
    with stream.connect(settings.STREAM_URL) as client:
        for count, payload in enumerate(
            ['{"a": 1}', "[[1]]", "not json", "[" * 5000, '[[9,1,1,null,1,"GET","","",[],""]]']
        ):
            stream.append(client, [Group(number, "f00d", count + 1, payload)])
        client.xadd(stream.name(number), {"other": b"\xff\x00"})
    append(sighting(issue))
    drain()
    assert Event.objects.count() == 1
    assert SetAside.objects.count() == 6
    assert IngestCursor.objects.get(stream=stream.name(number)).set_aside == 6


def test_an_entry_that_postgresql_refuses_is_found_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    issue = send_issue(people=8)
    good, bad = [sighting(issue, person=person) for person in range(7)], sighting(issue, person=7)
    take = judging.take

    def refuse(sightings: list[stream.Sighting], **more: object) -> judging.Counts:
        if bad in sightings:
            raise ValueError("no room for this one")
        return take(sightings, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(judging, "take", refuse)
    for one in (*good, bad):
        append(one)
    drain()
    assert figures(issue.campaign.pk)["opens"]["human"] == 7
    assert SetAside.objects.get().reason == "ValueError: no room for this one"


def test_a_delivery_that_is_not_in_the_ledger_is_counted_and_dropped() -> None:
    issue = send_issue()
    ingest(sighting(issue)._replace(subscriber_id=999_999_999))
    assert Event.objects.count() == 0
    assert sum(IngestCursor.objects.values_list("foreign", flat=True)) == 1


@pytest.mark.parametrize("consent", [TrackingConsent.HYGIENE, TrackingConsent.NONE])
def test_who_agreed_to_less_leaves_no_event(consent: TrackingConsent) -> None:
    issue = send_issue(consent=consent)
    ingest(sighting(issue, after=3600), click(issue, 1, after=3700))
    assert Event.objects.count() == 0
    assert figures(issue.campaign.pk)["opens"]["raw"] == 0
    assert issue.delivery().seen == 0
    found = Engagement.objects.filter(subscription__subscriber=issue.people[0]).first()
    if consent == TrackingConsent.NONE:
        assert found is None
    else:
        assert found is not None
        assert found.opened_at == SENT.replace(hour=0)
        assert found.clicked_at is None
        assert "1" not in found.engaged


def test_somebody_who_reads_shows_that_a_delivery_in_doubt_arrived() -> None:
    issue = send_issue()
    issue.delivery()
    type(issue.delivery()).objects.filter(campaign_id=issue.campaign.pk).update(state=DeliveryState.UNKNOWN)
    ingest(sighting(issue, user_agent="Mozilla/5.0"))
    assert issue.delivery().state == DeliveryState.UNKNOWN
    ingest(sighting(issue, after=200))
    assert issue.delivery().state == DeliveryState.ACCEPTED


def test_the_report_counts_people_by_link_and_by_hour() -> None:
    issue = send_issue(people=3, links=2)
    ingest(
        click(issue, 0, person=0),
        click(issue, 0, person=0, after=600),
        click(issue, 0, person=1, user_agent="curl/8"),
        click(issue, 1, person=2, after=4000),
    )
    assert [(one.url, one.raw, one.human) for one in reporting.clicks_by_link(issue.campaign.pk)] == [
        ("https://example.org/0", 2, 1),
        ("https://example.org/1", 1, 1),
    ]
    hours = reporting.signals_over_time(issue.campaign.pk)
    assert [(one.hour, one.clicks_human, one.clicks_machine) for one in hours] == [
        (SENT, 1, 1),
        (SENT + timedelta(hours=1), 1, 0),
    ]


def test_figures_of_a_campaign_nobody_has_seen() -> None:
    issue = send_issue(people=2)
    assert not CampaignFigures.objects.filter(pk=issue.campaign.pk).exists()
    assert reporting.status(issue.campaign.pk) == {
        "state": "sent",
        "deliveries": {"accepted": 2},
        "outcomes": {"delivered": 2, "bounced": 0, "complained": 0},
        "opens": {"raw": 0, "human": 0, "hits": 0},
        "clicks": {"raw": 0, "human": 0, "hits": 0},
        "unsubscribed": 0,
    }
