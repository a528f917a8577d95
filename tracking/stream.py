"""The streams between edge and ingest: their names, what an entry holds, and how it is written.

An entry is a group: what one writer saw within one commit, so that a stream costs one append however many clients ask
at once. A delivery always lands in the same stream, so that a scanner's burst is judged in one place. Each writer (an
edge's event loop, a web process) numbers its groups for each stream from 1; ingest stores every number once, and so a
group whose append may or may not have happened can safely be sent again (spool.py).

No Django models here: the edge starts without them.
"""

import json
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.typing import EncodableT, FieldT

# More streams, more consumers at once. Before lowering it, let ingest drain the ones that go.
STREAMS = 4
TIMEOUT_SECONDS = 1.0  # of an append; then it goes to the spool
USER_AGENT_LIMIT = 300
# Groups that may wait for ingest in one stream; past it the edge spools to disk, since the server's memory is finite.
WAITING_LIMIT = 500_000

# 2020 to 2100: what an edge's clock may say.
_EARLIEST_MS, _LATEST_MS = 1_577_836_800_000, 4_102_444_800_000
OPEN, CLICK = 1, 2  # as models.EventKind
EDGE = "edge"


def name(stream: int) -> str:
    """The key of a stream in Valkey."""
    return f"events:{stream}"


def stream_of(campaign_id: int, subscriber_id: int) -> int:
    """The stream of a delivery (the same arithmetic stands in ingesting's SQL)."""
    return (campaign_id * 31 + subscriber_id) % STREAMS


class Sighting(NamedTuple):
    """One open or click as it came in."""

    kind: int
    campaign_id: int
    subscriber_id: int
    link: int | None
    at_ms: int  # Unix time, milliseconds
    method: str
    ip: str
    user_agent: str | None  # None: not reported
    flags: list[str]
    source: str

    def encode(self) -> str:
        return json.dumps(self, separators=(",", ":"))


_TYPES: tuple[Any, ...] = (int, int, int, int | None, int, str, str, str | None, list, str)


def decode(payload: str) -> list[Sighting]:
    """The sightings of a group. Raises ValueError when it is no such thing."""
    items = json.loads(payload)
    if not isinstance(items, list):
        raise ValueError("a group must be a list")
    found = []
    for item in items:
        if not isinstance(item, list) or len(item) != len(_TYPES):
            raise ValueError("a sighting must be a list of ten")
        if not all(isinstance(value, wanted) for value, wanted in zip(item, _TYPES, strict=True)):
            raise ValueError("a sighting holds a value of another kind")
        found.append(_checked(Sighting(*item)))
    return found


def _checked(sighting: Sighting) -> Sighting:
    """A sighting whose values fit where they are stored."""
    if sighting.kind not in (OPEN, CLICK):
        raise ValueError("a sighting must be an open or a click")
    if not (0 < sighting.campaign_id < 1 << 32 and 0 < sighting.subscriber_id < 1 << 48):
        raise ValueError("no delivery has such a key")
    if not 0 <= (sighting.link or 0) < 1 << 15:
        raise ValueError("no link has such a number")
    if not _EARLIEST_MS < sighting.at_ms < _LATEST_MS:
        raise ValueError("the clock that saw it was wrong")
    if not sighting.method.isalpha() or not all(isinstance(flag, str) for flag in sighting.flags):
        raise ValueError("a sighting holds a value of another kind")
    return sighting


class Group(NamedTuple):
    """One entry of a stream."""

    stream: int
    writer: str
    number: int
    payload: str  # a JSON list of sightings

    def fields(self) -> dict[FieldT, EncodableT]:
        """The entry's fields, as ingest reads them."""
        return {"w": self.writer, "n": self.number, "d": self.payload}


class Writer:
    """Numbers groups. One for each event loop or process; its numbers end with it."""

    def __init__(self) -> None:
        self.id = secrets.token_hex(8)
        self._numbers = [0] * STREAMS

    def groups(self, sightings: Iterable[tuple[int, str]]) -> list[Group]:
        """One group a stream of (stream, encoded sighting)."""
        by_stream: dict[int, list[str]] = {}
        for stream, encoded in sightings:
            by_stream.setdefault(stream, []).append(encoded)
        return [self._group(stream, encoded) for stream, encoded in by_stream.items()]

    def _group(self, stream: int, encoded: Sequence[str]) -> Group:
        self._numbers[stream] += 1
        return Group(stream, self.id, self._numbers[stream], f"[{','.join(encoded)}]")


def connect(url: str) -> redis.Redis:
    """A client that gives up soon and never tries again by itself: trying again is the spool's part."""
    return redis.Redis.from_url(
        url,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        encoding_errors="replace",  # what is not UTF-8 is not ours; it shall not stop what is
    )


def append(client: redis.Redis, groups: Sequence[Group]) -> None:
    """Append groups in their order. After an error (redis.RedisError) any of them may or may not be in the stream."""
    with client.pipeline(transaction=False) as pipeline:
        for group in groups:
            pipeline.xadd(name(group.stream), group.fields())
        pipeline.execute()
