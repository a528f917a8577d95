"""From the streams into PostgreSQL, exactly once.

One consumer a stream, by an advisory lock. The id of the last entry is stored in the transaction that stores its rows,
and only what is stored is trimmed from the stream: killed at any point, ingest goes on where its last commit stood. A
group that came twice (over the spool) is known by its writer's number. What cannot be read is set aside and counted.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import redis
from django.conf import settings
from django.db import DataError, IntegrityError, connection, transaction
from django.db.models import F

from newsletter.env import DATA_DIR
from tracking import judging, spool, stream
from tracking.judging import Counts
from tracking.models import IngestCursor, SetAside, StreamWriter
from tracking.stream import Sighting

log = logging.getLogger(__name__)

ENTRIES_A_BATCH = 1_000
SIGHTINGS_A_BATCH = 20_000
# Any number that no other advisory lock of this product uses; the second key is the stream.
LOCK_CLASS = 7_260_401

_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(%s, %s)"


class Entry(NamedTuple):
    """One entry of a stream that could be read."""

    id: str
    payload: str
    sightings: list[Sighting]


@dataclass
class Positions:
    """Which of a writer's numbers are stored: everything to `highest` but the `missing` ranges."""

    highest: int = 0
    missing: list[list[int]] = field(default_factory=list)

    def take(self, number: int) -> bool:
        """Mark a number as stored; False when it already was."""
        if number > self.highest:
            if number > self.highest + 1:
                self.missing.append([self.highest + 1, number - 1])
            self.highest = number
            return True
        for index, (first, last) in enumerate(self.missing):
            if first <= number <= last:
                halves = [[first, number - 1], [number + 1, last]]
                self.missing[index : index + 1] = [half for half in halves if half[0] <= half[1]]
                return True
        return False


def ingest_once(now: datetime) -> int:
    """One batch of every stream that nobody else is reading; the number of entries taken. Raises redis.RedisError."""
    with stream.connect(settings.STREAM_URL) as client:
        return sum(ingest_stream(client, number, now=now) for number in range(stream.STREAMS))


def ingest_stream(client: redis.Redis, number: int, *, now: datetime) -> int:
    """One batch of one stream; 0 when it is empty or another consumer has it."""
    name = stream.name(number)
    with transaction.atomic():
        if not _lock(number):
            return 0
        cursor, _is_new = IngestCursor.objects.get_or_create(stream=name)
        batch = _read(client, name, cursor.last_id)
        if not batch.last_id:
            return 0
        counts = _take(name, batch.entries, now=now)
        IngestCursor.objects.filter(stream=name).update(
            last_id=batch.last_id,
            updated_at=now,
            stored=F("stored") + counts.stored,
            foreign=F("foreign") + counts.foreign,
            unwanted=F("unwanted") + counts.unwanted,
            duplicates=F("duplicates") + batch.duplicates,
            set_aside=F("set_aside") + len(batch.poison),
        )
        _set_aside(name, batch.poison, now=now)
    # Only now: what is trimmed is committed. A trim that fails is made up for by the next.
    client.xtrim(name, minid=_after(batch.last_id), approximate=False)
    return batch.taken


def settle(*, now: datetime) -> int:
    """Judge for good what has had its settling time; the number of deliveries judged."""
    judged = 0
    for number in range(stream.STREAMS):
        with transaction.atomic():
            if _lock(number):
                judged += judging.settle(number, streams=stream.STREAMS, now=now)
    return judged


def replay_spool() -> int:
    """Send what edges and web processes of this machine left on disk; the number of groups. Raises redis.RedisError."""
    folder = DATA_DIR / "spool"
    if not spool.waiting(folder):
        return 0
    with stream.connect(settings.STREAM_URL) as client:
        return spool.replay(folder, lambda groups: stream.append(client, groups))


def lag() -> dict[str, int]:
    """How many entries wait in each stream. Raises redis.RedisError."""
    with stream.connect(settings.STREAM_URL) as client:
        return {stream.name(number): int(client.xlen(stream.name(number))) for number in range(stream.STREAMS)}


def _lock(number: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(_TRY_LOCK, [LOCK_CLASS, number])
        return bool(cursor.fetchone()[0])


# Reading ---------------------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    last_id: str = ""
    taken: int = 0
    duplicates: int = 0
    entries: list[Entry] = field(default_factory=list)
    poison: list[SetAside] = field(default_factory=list)


def _read(client: redis.Redis, name: str, after: str) -> _Batch:
    """The next entries of a stream, without those whose number was stored before."""
    batch = _Batch()
    answer: Any = client.xread({name: after}, count=ENTRIES_A_BATCH)
    found: Sequence[tuple[str, Mapping[str, str]]] = answer[0][1] if answer else []
    writers = _Writers(name, {fields.get("w", "") for _id, fields in found})
    sightings = 0
    for entry_id, fields in found:
        if sightings >= SIGHTINGS_A_BATCH:
            break
        batch.last_id = entry_id
        batch.taken += 1
        try:
            entry = Entry(entry_id, fields["d"], stream.decode(fields["d"]))
            is_new = writers.take(fields["w"], int(fields["n"]))
        except (KeyError, ValueError, RecursionError) as error:
            batch.poison.append(_aside(name, entry_id, error, str(dict(fields))))
            continue
        if is_new:
            batch.entries.append(entry)
            sightings += len(entry.sightings)
        else:
            batch.duplicates += 1
    writers.save()
    return batch


class _Writers:
    """The positions of a batch's writers, read and written once a batch."""

    def __init__(self, name: str, writers: Iterable[str]) -> None:
        self.stream = name
        stored = StreamWriter.objects.filter(stream=name, writer__in=list(writers))
        self._positions = {one.writer: Positions(one.highest, one.missing) for one in stored}

    def take(self, writer: str, number: int) -> bool:
        if not 0 < len(writer) <= 40 or not writer.isalnum() or not 0 < number < 1 << 62:
            raise ValueError("a group has no writer or number")
        return self._positions.setdefault(writer, Positions()).take(number)

    def save(self) -> None:
        StreamWriter.objects.bulk_create(
            [
                StreamWriter(stream=self.stream, writer=writer, highest=one.highest, missing=one.missing)
                for writer, one in sorted(self._positions.items())
            ],
            update_conflicts=True,
            unique_fields=["stream", "writer"],
            update_fields=["highest", "missing", "updated_at"],
        )


# Taking ----------------------------------------------------------------------------------------------------------


def _take(name: str, entries: Sequence[Entry], *, now: datetime) -> Counts:
    """Store and judge a batch; an entry that PostgreSQL refuses is found by halving and set aside."""
    if not entries:
        return Counts()
    try:
        with transaction.atomic():
            return judging.take([one for entry in entries for one in entry.sightings], now=now)
    except (DataError, IntegrityError, OverflowError, ValueError) as error:
        if len(entries) == 1:
            log.exception("entry %s of %s is set aside", entries[0].id, name)
            _set_aside(name, [_aside(name, entries[0].id, error, entries[0].payload)], now=now)
            IngestCursor.objects.filter(stream=name).update(set_aside=F("set_aside") + 1)
            return Counts()
    middle = len(entries) // 2
    first, second = _take(name, entries[:middle], now=now), _take(name, entries[middle:], now=now)
    return Counts(first.stored + second.stored, first.foreign + second.foreign, first.unwanted + second.unwanted)


def _aside(name: str, entry_id: str, error: Exception, payload: str) -> SetAside:
    return SetAside(
        stream=name,
        entry=entry_id,
        reason=f"{type(error).__name__}: {error}".replace("\0", "")[:200],
        payload=payload.replace("\0", "")[:10_000],
    )


def _set_aside(name: str, entries: Sequence[SetAside], *, now: datetime) -> None:
    for one in entries:
        one.at = now
    SetAside.objects.bulk_create(entries)
    if entries:
        log.warning("%s entries of %s could not be read and are set aside", len(entries), name)


def _after(entry_id: str) -> str:
    """The smallest id after this one."""
    milliseconds, _, sequence = entry_id.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"
