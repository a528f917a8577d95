"""A lease's journal: which messages were begun, which were answered, in a file that outlives a killed worker.

A record is appended before the write that holds a message's final dot and another after its answer. They go to the page
cache, which a killed process does not take along; a crash of the machine may, and then the journal is of another boot
and nobody believes it. So at most one message a connection is in doubt for each kill (DESIGN, promise 1).
"""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings

_RECORD = struct.Struct("<bQ")  # what happened, to whom
BEGUN = -1  # any other number is the DeliveryState that the answer led to


@dataclass(frozen=True)
class Told:
    """What a journal says: people whose message was begun and never answered, and the answers of the others."""

    begun: frozenset[int] = frozenset()
    answered: dict[int, int] = field(default_factory=dict)


def folder() -> Path:
    return Path(settings.DATA_DIR) / "journal"


def boot_id() -> str:
    """What changes when the machine starts anew; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


class Journal:
    """The open journal of one lease."""

    def __init__(self, lease: int) -> None:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder() / f"{lease}"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, f"{boot_id()}\n".encode("ascii"))

    def begins(self, subscriber_id: int) -> None:
        """The next write may complete this person's message."""
        os.write(self._file, _RECORD.pack(BEGUN, subscriber_id))

    def answered(self, outcomes: Iterable[tuple[int, int]]) -> None:
        """What became of people, as (subscriber, DeliveryState)."""
        os.write(self._file, b"".join(_RECORD.pack(state, subscriber_id) for subscriber_id, state in outcomes))

    def close(self) -> None:
        """Everything of this lease stands in the ledger: the journal is not needed any more."""
        self.path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Let go of the file and leave it for the sweep."""
        os.close(self._file)


def read(lease: int) -> Told | None:
    """What the journal of a lease says; None when there is none here, or it is of another boot."""
    try:
        content = (folder() / f"{lease}").read_bytes()
    except OSError:
        return None
    boot, _, records = content.partition(b"\n")
    if boot.decode("ascii", "replace") != boot_id():
        return None
    begun: set[int] = set()
    answered: dict[int, int] = {}
    for what, subscriber_id in _records(records):
        if what == BEGUN:
            begun.add(subscriber_id)
        else:
            begun.discard(subscriber_id)
            answered[subscriber_id] = what
    return Told(frozenset(begun), answered)


def _records(records: bytes) -> Iterator[tuple[int, int]]:
    """Whole records; a last one that was cut off by the kill says nothing."""
    whole = len(records) - len(records) % _RECORD.size
    yield from _RECORD.iter_unpack(records[:whole])


def forget(lease: int) -> None:
    """Remove a journal that the sweep has read."""
    (folder() / f"{lease}").unlink(missing_ok=True)
