"""Who asks, and how often they may. Counters live in the Valkey cache and end by themselves."""

import ipaddress
import logging
from datetime import datetime

from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest
from redis import RedisError

log = logging.getLogger(__name__)


def allow(scope: str, who: str, *, limit: int, seconds: int, now: datetime) -> bool:
    """Count one more and say whether it is within `limit` for the current window of `seconds`.

    Windows are fixed, so twice the limit may pass across the edge of two. With the cache down everybody may: a broken
    counter shall not close the door.
    """
    key = f"ratelimit:{scope}:{who}:{int(now.timestamp()) // seconds}"
    try:
        cache.add(key, 0, timeout=seconds)
        return cache.incr(key) <= limit
    except (RedisError, ValueError) as error:  # ValueError: the window ended between the two calls
        log.warning("rate limit %s could not be counted: %s", scope, error)
        return True


def client_address(request: HttpRequest) -> str:
    """The client's address, or "" if unknown (a Unix socket).

    Each of the TRUSTED_PROXIES in front of us appends whom it talked to, so the client stands that many places from
    the right of X-Forwarded-For; what is further left is the client's own claim.
    """
    hops = [str(request.META.get("REMOTE_ADDR", ""))]
    if settings.TRUSTED_PROXIES:
        forwarded = str(request.META.get("HTTP_X_FORWARDED_FOR", "")).split(",")
        hops = [hop.strip() for hop in forwarded if hop.strip()][-settings.TRUSTED_PROXIES :] or hops
    try:
        return str(ipaddress.ip_address(hops[0]))
    except ValueError:
        return ""


def network(address: str, *, prefix4: int = 24, prefix6: int = 48) -> str:
    """An address cut to its network, which names no single household: 203.0.113.0/24, 2001:db8:1::/48. "" stays ""."""
    if not address:
        return ""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return str(ipaddress.ip_network((ip, prefix4 if ip.version == 4 else prefix6), strict=False))
