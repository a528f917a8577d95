"""Throttling: what may go now, from a real Valkey, shared by all who ask; the clock is the tests'."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import redis
from django.conf import settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from newsletter.mailing import throttling
from newsletter.mailing.throttling import Group, Limit, Rules, Throttle, Unavailable, WarmUp

NOW = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)
GMAIL = Limit("1", "Gmail", ("gmail.com", "googlemail.com"), per_second=100)
ALL = Limit("2", "Everything", per_second=200)


@pytest.fixture
def client() -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(settings.STREAM_URL) as client:
        _forget(client)
        yield client
        _forget(client)


def _forget(client: "redis.Redis") -> None:
    keys = list(client.scan_iter("throttle:*"))
    if keys:
        client.delete(*keys)


@pytest.fixture
def throttle(client: "redis.Redis") -> Throttle:
    return Throttle(client, zone=UTC, uses_server_time=False)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def taken(throttle: Throttle, group: Group, want: int, seconds: float) -> int:
    return throttle.take({group: want}, now=at(seconds))[group].now


def test_a_bucket_gives_its_burst_at_once_and_then_the_rate(throttle: Throttle) -> None:
    assert taken(throttle, (GMAIL,), 1_000, 0) == 50
    assert taken(throttle, (GMAIL,), 1_000, 0) == 0
    assert taken(throttle, (GMAIL,), 1_000, 0.25) == 25
    assert taken(throttle, (GMAIL,), 1_000, 600) == 50  # it holds no more than its burst, however long it waits


def test_who_cannot_go_is_told_when_there_is_room(throttle: Throttle) -> None:
    throttle.take({(GMAIL,): 50}, now=NOW)
    grant = throttle.take({(GMAIL,): 10}, now=NOW)[(GMAIL,)]
    assert (grant.now, grant.more_at, grant.is_day_spent) == (0, at(0.1), False)
    assert taken(throttle, (GMAIL,), 10, 0.1) == 10


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.sampled_from([0.5, 3.0, 10.0, 200.0]),
    asks=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 300)), min_size=1, max_size=25),
)
def test_no_second_sees_more_than_the_burst_and_the_rate(
    client: "redis.Redis", rate: float, asks: list[tuple[float, int]]
) -> None:
    _forget(client)
    throttle, group = Throttle(client, zone=UTC, uses_server_time=False), (Limit("p", per_second=rate),)
    seconds, went = 0.0, []
    for pause, want in asks:
        seconds += pause
        went.append((seconds, taken(throttle, group, want, seconds)))
    for start, _ in went:
        within = sum(count for moment, count in went if start <= moment < start + 1)
        assert within <= group[0].burst + rate + 0.01


def test_many_who_ask_at_once_never_take_the_same_token(client: "redis.Redis") -> None:
    throttle, together = Throttle(client, zone=UTC, uses_server_time=False), threading.Barrier(8)

    def ask(_: int) -> int:
        together.wait()
        return sum(taken(throttle, (GMAIL,), 3, 0) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 50


def test_every_limit_that_covers_a_recipient_must_have_room(throttle: Throttle) -> None:
    rules = Rules((GMAIL, ALL))
    gmail, other = rules.group("gmail.com"), rules.group("shed.example")
    assert (gmail, other) == ((GMAIL, ALL), (ALL,))
    grants = throttle.take({gmail: 80, other: 80}, now=NOW)
    assert (grants[gmail].now, grants[other].now) == (50, 50)  # 100 tokens for all, of which 50 are Gmail's


def test_a_day_has_a_cap_and_begins_where_the_house_stands(client: "redis.Redis") -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    throttle = Throttle(client, zone=tokyo, uses_server_time=False)
    group = (Limit("1", per_day=30),)
    assert throttle.take({group: 20}, now=NOW)[group].now == 20
    grant = throttle.take({group: 20}, now=NOW)[group]
    assert (grant.now, grant.is_day_spent) == (10, True)
    assert grant.more_at == datetime(2026, 11, 3, tzinfo=tokyo)
    assert throttle.sent_today(group, now=NOW) == {group[0]: 30}
    assert throttle.take({group: 20}, now=grant.more_at)[group].now == 20


def test_what_was_not_used_comes_back(throttle: Throttle) -> None:
    group = (Limit("1", per_second=100, per_day=50),)
    throttle.take({group: 50}, now=NOW)
    throttle.give_back({group: 7}, now=NOW)
    assert throttle.take({group: 50}, now=NOW)[group].now == 7


@pytest.mark.parametrize(("day", "cap"), [(-5, 200), (0, 200), (1, 300), (2, 450), (3, 500), (4_000, 500)], ids=str)
def test_a_warm_up_raises_the_cap_day_by_day_until_the_limit(day: int, cap: int) -> None:
    limit = Limit("1", per_day=500, warm_up=WarmUp(date(2026, 11, 2), first=200, growth=50))
    assert limit.cap(date(2026, 11, 2) + timedelta(days=day)) == cap


def test_a_clock_that_was_set_back_stops_nobody_for_long(throttle: Throttle) -> None:
    taken(throttle, (GMAIL,), 50, 86_400)
    assert taken(throttle, (GMAIL,), 50, 0) == 0
    assert taken(throttle, (GMAIL,), 50, 1) == 50


def test_the_servers_clock_is_used_where_none_is_given(client: "redis.Redis") -> None:
    throttle = Throttle(client, zone=UTC)
    limit = (Limit("1", per_second=1_000_000),)
    assert taken(throttle, limit, 500_000, 0) == 500_000
    assert throttle.take({limit: 1}, now=NOW)[limit].now == 1  # a millionth of a second later there is one more


def test_a_server_that_is_away_is_said_not_guessed() -> None:
    with pytest.raises(Unavailable):
        Throttle(redis.Redis(port=1), zone=UTC).take({(GMAIL,): 1}, now=NOW)


def test_domains_are_taken_as_written_or_with_a_star() -> None:
    rules = Rules((Limit("m", domains=throttling.WELL_KNOWN["Microsoft"], per_second=1),))
    asked = ["hotmail.co.uk", "live.com", "msn.com", "hotmail", "gmail.com", "nothotmail.com"]
    assert [domain for domain in asked if rules.group(domain)] == ["hotmail.co.uk", "live.com", "msn.com"]


@pytest.mark.parametrize(("rate", "size"), [(None, 100), (0.5, 1), (10.0, 1), (200.0, 20), (50_000.0, 100)])
def test_a_window_is_a_tenth_of_a_second(rate: float | None, size: int) -> None:
    assert throttling.window((Limit("1", per_second=rate),)) == size
