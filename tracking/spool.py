"""Where groups wait on disk while the stream is down: files of lines, synced before anything is answered.

A file belongs to the writer that holds its lock. A file without a lock was closed, or its writer is gone; whoever
comes by (the edge's own watch, the ingest task of the same machine) sends its groups and removes it. Sending twice is
harmless, since groups keep their numbers.
"""

import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tracking.stream import Group

log = logging.getLogger(__name__)

REPLAY_GROUPS = 500
SUFFIX = ".spool"


class Spool:
    """The file of one writer; opened when it is first needed. Not safe for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None

    def append(self, groups: Sequence[Group]) -> None:
        """Write groups and sync them to disk. Raises OSError when the disk does not take them."""
        lines = "".join(f"{group.stream} {group.writer} {group.number} {group.payload}\n" for group in groups)
        file = self._file or self._open()
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())

    def _open(self) -> IO[bytes]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.folder / f"{secrets.token_hex(8)}.part"
        file = part.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Only a locked file gets the name that others look for.
        part.rename(part.with_suffix(SUFFIX))
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._file = file
        return file

    def close(self) -> None:
        """Leave the file to whoever replays it."""
        if self._file:
            self._file.close()
            self._file = None


def waiting(folder: Path) -> list[Path]:
    """The files that wait, oldest first (some may still be written)."""
    try:
        return sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
    except OSError:  # another process removed one meanwhile
        return []


def replay(folder: Path, send: Callable[[Sequence[Group]], None]) -> int:
    """Send the groups of every file that no writer holds, and remove it; the number of groups sent.

    An error of `send` ends the replay and is raised; what was not removed is sent again another time.
    """
    sent = 0
    for path in waiting(folder):
        with _adopted(path) as file:
            if file is None:
                continue
            groups: list[Group] = []
            for group in _read(file):
                groups.append(group)
                if len(groups) == REPLAY_GROUPS:
                    send(groups)
                    sent += len(groups)
                    groups = []
            if groups:
                send(groups)
                sent += len(groups)
            path.unlink()
    return sent


@contextmanager
def _adopted(path: Path) -> Iterator[IO[bytes] | None]:
    """The file with its lock, or None when a writer or another replay holds it or has removed it."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield file if path.exists() else None


def _read(file: IO[bytes]) -> Iterator[Group]:
    """The groups of a file. A torn last line was never answered for and is left out."""
    for line in file:
        if not line.endswith(b"\n"):
            return
        try:
            stream, writer, number, payload = line.decode().rstrip("\n").split(" ", 3)
            yield Group(int(stream), writer, int(number), payload)
        except ValueError:
            log.error("a line of the spool could not be read and is left out: %r", line[:200])
