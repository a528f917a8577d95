"""How many messages may go now: limits a second and a day for domains of recipients, shared by all workers.

A limit a second is a bucket of tokens that fills at the allowed rate and holds half a second of it; a limit a day is a
counter of the date. Both lie in Valkey and are moved by one script, so that two workers never take the same token.
Whoever asks is told at once how many may go and when there will be more: nobody waits in here.

Valkey down: `take` raises Unavailable and the caller waits a moment (fails closed). A mail that is late harms nobody; a
burst that a receiver holds against the sender does.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from fnmatch import fnmatchcase
from typing import NamedTuple

import redis
from redis.commands.core import Script

# The domains behind the big mailbox providers, to start a limit from. Sources: the providers' own sign-up pages.
WELL_KNOWN: dict[str, tuple[str, ...]] = {
    "Gmail": ("gmail.com", "googlemail.com"),
    "Microsoft": ("outlook.com", "outlook.*", "hotmail.*", "live.*", "msn.com", "passport.com"),
    "Yahoo": ("yahoo.*", "ymail.com", "rocketmail.com", "aol.*", "aim.com", "sky.com"),
    "Apple": ("icloud.com", "me.com", "mac.com"),
    "GMX and Web.de": ("gmx.*", "web.de", "mail.com"),
}

WINDOW_SECONDS = 0.1  # what is marked as being sent at once, in time of the allowed rate (DESIGN)
LARGEST_WINDOW = 100
BURST_SECONDS = 0.5  # what a bucket holds: in any second at most one and a half times the rate can go
_LARGEST_CAP = 10**9


class Unavailable(Exception):
    """Valkey does not answer, so nobody can say how many may go."""


@dataclass(frozen=True)
class WarmUp:
    """A sender that nobody knows yet: so many on the first day, and on each day after it more by `growth` percent."""

    start: date
    first: int
    growth: int

    def cap(self, day: date) -> int:
        """The most on a day; before the start as much as on the first day."""
        days = max((day - self.start).days, 0)
        if days * math.log1p(self.growth / 100) > math.log(_LARGEST_CAP):
            return _LARGEST_CAP
        return min(int(self.first * (1 + self.growth / 100) ** days), _LARGEST_CAP)


@dataclass(frozen=True)
class Limit:
    """What may go to some domains. Limits with the same key share their bucket and counter."""

    key: str
    name: str = ""
    domains: tuple[str, ...] = ()  # as in an address, `*` for anything; empty: everybody
    per_second: float | None = None
    per_day: int | None = None
    warm_up: WarmUp | None = None

    def covers(self, domain: str) -> bool:
        return not self.domains or any(fnmatchcase(domain, pattern) for pattern in self.domains)

    def cap(self, day: date) -> int | None:
        """The most on a day, None for no such limit."""
        caps = [self.per_day] if self.per_day is not None else []
        if self.warm_up:
            caps.append(self.warm_up.cap(day))
        return min(caps, default=None)

    @property
    def burst(self) -> float:
        """Tokens that the bucket holds."""
        return max(1.0, (self.per_second or 0) * BURST_SECONDS)


# The limits that cover a recipient, all of which must have room; () for somebody whom none covers.
Group = tuple[Limit, ...]


def label(group: Group) -> str:
    """A short name of a group, by which its waiting batches are found."""
    return "+".join(limit.key for limit in group)


def window(group: Group) -> int:
    """How many of a group go at once: a tenth of a second of the allowed rate, at most 100."""
    rates = [limit.per_second for limit in group if limit.per_second]
    return min(LARGEST_WINDOW, max(1, math.ceil(min(rates) * WINDOW_SECONDS))) if rates else LARGEST_WINDOW


@dataclass(frozen=True)
class Rules:
    """The limits that hold for some mail, and to which group an address belongs."""

    limits: tuple[Limit, ...]
    _groups: dict[str, Group] = field(default_factory=dict, compare=False, repr=False)

    def group(self, domain: str) -> Group:
        """The group of a recipient's domain, in lower case and ASCII."""
        found = self._groups.get(domain)
        if found is None:
            found = self._groups[domain] = tuple(limit for limit in self.limits if limit.covers(domain))
        return found


class Grant(NamedTuple):
    """What a group may do."""

    now: int  # so many may go
    more_at: datetime | None = None  # when others may; None if all may go
    is_day_spent: bool = False  # they wait for another day


# KEYS: two for each limit, its bucket and its counter of the day. ARGV: {"now", "limits": [{rate, burst, cap}],
# "groups": [{want, limits: [places]}]}. A bucket never runs back, and one from a future that cannot be (a clock that
# was set back) starts again now. Answers for each group: granted, milliseconds until more, 1 if a day is spent.
_TAKE = """
local asked = cjson.decode(ARGV[1])
local now = asked.now
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local tokens, at, left = {}, {}, {}
for i, limit in ipairs(asked.limits) do
    if limit.rate then
        local held = redis.call('HMGET', KEYS[2 * i - 1], 'tokens', 'at')
        tokens[i], at[i] = tonumber(held[1]) or limit.burst, tonumber(held[2]) or now
        if at[i] > now + 60 then at[i] = now end
        tokens[i] = math.min(limit.burst, tokens[i] + math.max(0, now - at[i]) * limit.rate)
        at[i] = math.max(at[i], now)
    end
    if limit.cap then left[i] = limit.cap - (tonumber(redis.call('GET', KEYS[2 * i])) or 0) end
end
local taken, granted = {}, {}
for g, group in ipairs(asked.groups) do
    local n = group.want
    for _, i in ipairs(group.limits) do
        if tokens[i] then n = math.min(n, math.floor(tokens[i] + 0.001)) end
        if left[i] then n = math.min(n, math.max(0, left[i])) end
    end
    granted[g] = n
    for _, i in ipairs(group.limits) do
        taken[i] = (taken[i] or 0) + n
        if tokens[i] then tokens[i] = tokens[i] - n end
        if left[i] then left[i] = left[i] - n end
    end
end
for i, limit in ipairs(asked.limits) do
    if tokens[i] then
        redis.call('HSET', KEYS[2 * i - 1], 'tokens', string.format('%.6f', tokens[i]),
                   'at', string.format('%.6f', at[i]))
        redis.call('EXPIRE', KEYS[2 * i - 1], 3600)
    end
    if taken[i] and taken[i] > 0 then
        redis.call('INCRBY', KEYS[2 * i], taken[i])
        redis.call('EXPIRE', KEYS[2 * i], 259200)
    end
end
local answer = {}
for g, group in ipairs(asked.groups) do
    local missing, wait, spent = group.want - granted[g], 0, 0
    if missing > 0 then
        for _, i in ipairs(group.limits) do
            if left[i] and left[i] < 1 then spent = 1 end
            if tokens[i] then
                local needed = math.min(asked.limits[i].burst, missing) - tokens[i]
                wait = math.max(wait, needed / asked.limits[i].rate)
            end
        end
    end
    answer[#answer + 1] = granted[g]
    answer[#answer + 1] = math.ceil(wait * 1000)
    answer[#answer + 1] = spent
end
return answer
"""


class Throttle:
    """The buckets and counters of all workers, in a Valkey that evicts nothing.

    `zone` says when a day begins. Buckets go by the server's clock, since those of workers differ; with
    `uses_server_time=False` they go by the `now` of the calls.
    """

    def __init__(self, client: "redis.Redis", *, zone: tzinfo, uses_server_time: bool = True) -> None:
        self._client = client
        self._zone = zone
        self._uses_server_time = uses_server_time
        self._take: Script = client.register_script(_TAKE)

    def take(self, wants: Mapping[Group, int], *, now: datetime) -> dict[Group, Grant]:
        """Take room for so many of each group; whatever is granted counts as sent. Raises Unavailable."""
        limits = list(dict.fromkeys(limit for group in wants for limit in group))
        places = {limit: place for place, limit in enumerate(limits, start=1)}
        day = now.astimezone(self._zone).date()
        asked = {
            "now": None if self._uses_server_time else now.timestamp(),
            "limits": [{"rate": one.per_second, "burst": one.burst, "cap": one.cap(day)} for one in limits],
            "groups": [{"want": want, "limits": [places[limit] for limit in group]} for group, want in wants.items()],
        }
        keys = [key for limit in limits for key in (_bucket(limit), _counter(limit, day))]
        try:
            answer = self._take(keys=keys, args=[json.dumps(_without_nulls(asked))])
        except redis.RedisError as error:
            raise Unavailable(f"The throttle's server does not answer: {error}") from error
        grants: dict[Group, Grant] = {}
        for place, (group, want) in enumerate(wants.items()):
            granted, wait_ms, is_spent = answer[3 * place : 3 * place + 3]
            if granted >= want:
                grants[group] = Grant(granted)
            elif is_spent:
                grants[group] = Grant(granted, self._next_day(day), is_day_spent=True)
            else:
                grants[group] = Grant(granted, now + timedelta(milliseconds=max(wait_ms, 1)))
        return grants

    def give_back(self, unused: Mapping[Group, int], *, now: datetime) -> None:
        """Put back what was granted and not sent, as far as Valkey answers; else it counts as sent."""
        day = now.astimezone(self._zone).date()
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for group, count in unused.items():
                    for limit in group if count else ():
                        if limit.per_second:
                            pipeline.hincrbyfloat(_bucket(limit), "tokens", count)
                        pipeline.decrby(_counter(limit, day), count)
                pipeline.execute()
        except redis.RedisError:
            return

    def sent_today(self, limits: Iterable[Limit], *, now: datetime) -> dict[Limit, int]:
        """How many have gone today under each limit. Raises Unavailable."""
        day, listed = now.astimezone(self._zone).date(), list(limits)
        try:
            counts = self._client.mget([_counter(limit, day) for limit in listed]) if listed else []
        except redis.RedisError as error:
            raise Unavailable(str(error)) from error
        return {limit: int(count or 0) for limit, count in zip(listed, counts, strict=True)}

    def _next_day(self, day: date) -> datetime:
        following = day + timedelta(days=1)
        return datetime(following.year, following.month, following.day, tzinfo=self._zone)


def _bucket(limit: Limit) -> str:
    return f"throttle:{limit.key}"


def _counter(limit: Limit, day: date) -> str:
    return f"throttle:{limit.key}:{day.isoformat()}"


def _without_nulls(value: object) -> object:
    """JSON for Lua, in which a null would be neither nil nor false."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value
