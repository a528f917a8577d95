"""A lease's journal: which messages were begun, which were answered, in a file that outlives a killed worker.

A record is made before the write that holds a message's final dot and another after its answer. The file is mapped
into memory: a record is one store of eight bytes (a kill leaves it whole or not there) into the page cache, which a
killed process does not take along. A crash of the machine may, and then the journal is of another boot and nobody
believes it. So at most one message a connection is in doubt for each kill (DESIGN, promise 1).

Its writer holds a lock on the file, which the kernel lets go of when the process ends, however it ends. So whoever can
take the lock knows that the writer is gone: no clock, no process number and no container's name is asked.
"""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from django.conf import settings

_RECORD_BYTES = 8  # the subscriber's id above, what happened to them in the lowest byte
_HEAD_BYTES = 256  # the boot's id and the worker's name, a line each, filled up with NUL
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

    def __init__(self, lease: int, *, worker: str) -> None:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder() / f"{lease}"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: the sweep waits for the lease's end
                fcntl.flock(self._file, fcntl.LOCK_EX)
            # A number can come again after the database was restored from a backup: nothing of the old is kept.
            os.ftruncate(self._file, 0)
            os.write(self._file, _head(worker))
            self._room = 0
            self._used = 0
            self._grow()
        except OSError:
            os.close(self._file)
            raise

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


def _head(worker: str) -> bytes:
    return f"{boot_id()}\n{worker}\n".encode("utf-8", "replace")[:_HEAD_BYTES].ljust(_HEAD_BYTES, b"\0")


def read(lease: int, *, worker: str) -> Told | None:
    """What the journal that this worker kept of a lease says; None when there is none here, or it is of another boot.

    Another worker's journal of the same number is left from before the database was restored: it says nothing.
    """
    try:
        content = (folder() / f"{lease}").read_bytes()
    except OSError:
        return None
    if content[:_HEAD_BYTES] != _head(worker):
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


def is_abandoned(lease: int, *, worker: str) -> bool:
    """Whether this worker's journal lies here and its writer is gone. One that lies elsewhere may be alive: False."""
    try:
        file = os.open(folder() / f"{lease}", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.read(file, _HEAD_BYTES) == _head(worker)
    except OSError:
        return False
    finally:
        os.close(file)


def _records(content: bytes) -> Iterator[tuple[int, int]]:
    """The records up to the first that was never made."""
    whole = len(content) - len(content) % _RECORD_BYTES
    for record in memoryview(content)[:whole].cast("Q"):
        if not record:
            return
        yield record >> 8, record & 0xFF


def forget(lease: int) -> None:
    """Remove a journal that the sweep has read. One that stays does no harm: the number does not come again."""
    with contextlib.suppress(OSError):
        (folder() / f"{lease}").unlink()
