"""A lease's journal: which messages were begun, which were answered, in a file that outlives a killed worker.

A record is made before the write that holds a message's final dot and another after its answer. The file is mapped
into memory: a record is one store of eight bytes (a kill leaves it whole or not there) into the page cache, which a
killed process does not take along. A crash of the machine may, and then the journal is of another boot and nobody
believes it. So at most one message a connection is in doubt for each kill (DESIGN, promise 1).
"""

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from django.conf import settings

_RECORD_BYTES = 8  # the subscriber's id above, what happened to them in the lowest byte
_HEAD_BYTES = 64  # the boot's id and a line's end, filled up with NUL
_GROWTH_RECORDS = 1_024
_BEGUN = 0xFF  # any other number is the DeliveryState that the answer led to


@dataclass(frozen=True)
class Told:
    """What a journal says: people whose message was begun and never answered, and the answers of the others."""

    begun: frozenset[int] = frozenset()
    answered: dict[int, int] = field(default_factory=dict)


def folder() -> Path:
    return Path(settings.DATA_DIR) / "journal"


@cache
def boot_id() -> str:
    """What changes when the machine starts anew; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


class Journal:
    """The open journal of one lease. Raises OSError when there is no room for it."""

    def __init__(self, lease: int) -> None:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder() / f"{lease}"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(self._file, f"{boot_id()}\n".encode("ascii").ljust(_HEAD_BYTES, b"\0"))
        self._room = 0
        self._used = 0
        self._grow()

    def begins(self, subscriber_id: int) -> None:
        """The next write may complete this person's message."""
        self._record(subscriber_id << 8 | _BEGUN)

    def answered(self, subscriber_id: int, state: int) -> None:
        """What became of a person, as a DeliveryState."""
        self._record(subscriber_id << 8 | state)

    def _record(self, record: int) -> None:
        if self._used == self._room:
            self._grow()
        self._records[self._used] = record
        self._used += 1

    def _grow(self) -> None:
        """Make room by writing zeros: a full disk says so here, not by a signal at a store into the map."""
        os.lseek(self._file, 0, os.SEEK_END)
        wanted = _GROWTH_RECORDS * _RECORD_BYTES
        if os.write(self._file, bytes(wanted)) < wanted:
            raise OSError(f"There is no room for the journal {self.path}.")
        self._room += _GROWTH_RECORDS
        # The map that was is freed with the last reference to it.
        mapped = mmap.mmap(self._file, _HEAD_BYTES + self._room * _RECORD_BYTES)
        self._records = memoryview(mapped)[_HEAD_BYTES:].cast("Q")

    def close(self) -> None:
        """Everything of this lease stands in the ledger: the journal is not needed any more."""
        self.path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Let go of the file and leave it for the sweep."""
        self._records.release()
        os.close(self._file)


def read(lease: int) -> Told | None:
    """What the journal of a lease says; None when there is none here, or it is of another boot."""
    try:
        content = (folder() / f"{lease}").read_bytes()
    except OSError:
        return None
    head = content[:_HEAD_BYTES]
    if len(head) < _HEAD_BYTES or head.partition(b"\n")[0].decode("ascii", "replace") != boot_id():
        return None
    begun: set[int] = set()
    answered: dict[int, int] = {}
    for subscriber_id, what in _records(content[_HEAD_BYTES:]):
        if what == _BEGUN:
            begun.add(subscriber_id)
        else:
            begun.discard(subscriber_id)
            answered[subscriber_id] = what
    return Told(frozenset(begun), answered)


def _records(content: bytes) -> Iterator[tuple[int, int]]:
    """The records up to the first that was never made."""
    whole = len(content) - len(content) % _RECORD_BYTES
    for record in memoryview(content)[:whole].cast("Q"):
        if not record:
            return
        yield record >> 8, record & 0xFF


def forget(lease: int) -> None:
    """Remove a journal that the sweep has read."""
    (folder() / f"{lease}").unlink(missing_ok=True)
