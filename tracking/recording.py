"""The stream's entrance for Django: the mounted edge of a small installation, and webhooks."""

import logging
import os
import threading
import time
from collections.abc import Sequence

import redis
from django.conf import settings

from newsletter.env import DATA_DIR
from tracking import spool, stream
from tracking.stream import Sighting

log = logging.getLogger(__name__)

DOWN_SECONDS = 1.0  # how long the spool takes everything after a failure, so that no request waits in vain


class Recorder:
    """Appends to the stream, or to the spool when that is down. One a process, shared by its threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._client = stream.connect(settings.STREAM_URL)
        self._writer = stream.Writer()
        self._spool = spool.Spool(DATA_DIR / "spool")
        self._down_until = 0.0
        self._timer: threading.Timer | None = None

    def record(self, sightings: Sequence[Sighting]) -> None:
        """Return when the sightings are durable. Raises OSError when neither stream nor disk takes them."""
        encoded = [(stream.stream_of(one.campaign_id, one.subscriber_id), one.encode()) for one in sightings]
        with self._lock:
            groups = self._writer.groups(encoded)
            if time.monotonic() >= self._down_until:
                try:
                    stream.append(self._client, groups)
                except redis.RedisError as error:
                    self._down_until = time.monotonic() + DOWN_SECONDS
                    log.warning("the stream does not answer, opens and clicks go to the spool: %s", error)
                else:
                    return
            self._spool.append(groups)
            self._leave_soon()

    def _leave_soon(self) -> None:
        """Let go of the spool's file after a moment, so that the ingest task may send it though nobody asks again."""
        if self._timer is None or not self._timer.is_alive():
            self._timer = threading.Timer(DOWN_SECONDS, self.leave_spool)
            self._timer.daemon = True
            self._timer.start()

    def leave_spool(self) -> None:
        """Close the spool's file; the next failure opens another."""
        with self._lock:
            self._spool.close()


_recorder: Recorder | None = None
_making = threading.Lock()


def record(*sightings: Sighting) -> None:
    """Make sightings durable. Raises OSError when that is not possible."""
    global _recorder  # noqa: PLW0603  one a process; a fork makes its own
    with _making:
        if _recorder is None or _recorder.pid != os.getpid():
            _recorder = Recorder()
    _recorder.record(sightings)
