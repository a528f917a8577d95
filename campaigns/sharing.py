"""What many pages ask for at once and costs a pass over many rows: worked out once, and shared through the cache.

For two seconds, and for as long as keeps all such work below a twentieth of the time. While one process works it out
anew, the others are given what was known. A cache that is down costs that everybody works it out, nothing else.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from django.core.cache import cache

log = logging.getLogger(__name__)
T = TypeVar("T")

SHARED_SECONDS = 2.0
MOST_OF_THE_TIME = 0.05
KEPT_SECONDS = 600  # what is old is better than a second one at work
WORKING_SECONDS = 60  # then whoever works it out is taken for dead


def shared(key: str, work: Callable[[], T]) -> T:
    """What `work` gives, at most some seconds old; it must be picklable."""
    try:
        kept = cache.get(key)
        if kept is not None and kept[0] > time.time():
            return kept[1]  # type: ignore[no-any-return]
        if kept is not None and not cache.add(f"{key}:working", 1, timeout=WORKING_SECONDS):
            return kept[1]  # type: ignore[no-any-return]
    except (redis.RedisError, OSError) as error:
        log.warning("the cache does not answer, %s is worked out for each who asks: %s", key, error)
        return work()
    started = time.monotonic()
    found = work()
    seconds = max(SHARED_SECONDS, (time.monotonic() - started) / MOST_OF_THE_TIME)
    try:
        cache.set(key, (time.time() + seconds, found), timeout=KEPT_SECONDS)
        cache.delete(f"{key}:working")
    except (redis.RedisError, OSError) as error:
        log.warning("the cache does not take %s: %s", key, error)
    return found
