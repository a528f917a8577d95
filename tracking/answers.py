"""What the edge is asked and what it answers: pure, so that the edge and Django speak with one mouth."""

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import quote

from newsletter.mailing.tokens import BadToken, DeliveryKey, Keyring, Purpose, read_delivery
from tracking.stream import EDGE, USER_AGENT_LIMIT, Sighting

PATH_LIMIT = 256
REQUEST_LIMIT = 2048  # characters of path and query

Headers = tuple[tuple[str, str], ...]


class Reply(NamedTuple):
    status: int
    headers: Headers
    body: bytes


class Pixel(NamedTuple):
    """Somebody fetched a pixel; `delivery` is None when the token is not ours, which the fetcher is not told."""

    delivery: DeliveryKey | None


class Click(NamedTuple):
    delivery: DeliveryKey
    link: int


_CLICK = re.compile(r"/c/([A-Za-z0-9_-]{28})/(0|[1-9][0-9]{0,4})\Z")
_PRIVATE: Headers = (
    ("cache-control", "no-store, private"),
    ("referrer-policy", "no-referrer"),
    ("x-robots-tag", "noindex, nofollow"),
    ("x-content-type-options", "nosniff"),
)
_PAGE: Headers = (
    ("content-type", "text/html; charset=utf-8"),
    ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    *_PRIVATE,
)

# One transparent dot.
_GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c000000000100010000020144003b")
PIXEL = Reply(200, (("content-type", "image/gif"), *_PRIVATE), _GIF)


def _page(title: str, text: str) -> bytes:
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #f6f7f4; --card: #fff; --text: #1c2420; --soft: #55605a; --line: #dfe4de; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #121815; --card: #1b2320; --text: #e9eeea; --soft: #a9b5ae; --line: #2e3934; }}
}}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--page); color: var(--text);
  font: 1.05rem/1.6 system-ui, sans-serif; }}
main {{ box-sizing: border-box; width: min(34rem, 100% - 2rem); margin: 2rem 0; padding: 2rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .75rem; }}
h1 {{ margin: 0 0 .75rem; font-size: 1.5rem; line-height: 1.25; }}
p {{ margin: 0; color: var(--soft); }}
</style>
<main><h1>{title}</h1><p>{text}</p></main>
</html>
""".encode()


NOT_FOUND = Reply(
    404,
    _PAGE,
    _page(
        "This link leads nowhere",
        "It may have been cut in two by a mail program. Open the mail again and follow the link there, or copy the "
        "whole of it into the address bar.",
    ),
)
UNAVAILABLE = Reply(
    503,
    (*_PAGE, ("retry-after", "10")),
    _page("One moment", "We cannot look up this link just now. Please try again in a few seconds."),
)
TOO_LONG = Reply(414, (("content-type", "text/plain"), *_PRIVATE), b"This address is too long.\n")
NOT_ALLOWED = Reply(
    405, (("content-type", "text/plain"), ("allow", "GET, HEAD"), *_PRIVATE), b"Only GET and HEAD are answered here.\n"
)


def read(method: str, path: str, query_length: int, keyring: Keyring) -> Pixel | Click | Reply:
    """What a request asks for: a pixel, a link, or the reply it gets at once."""
    if len(path) + query_length > REQUEST_LIMIT:
        return TOO_LONG
    if method not in {"GET", "HEAD"}:
        return NOT_ALLOWED
    if path.startswith("/o/"):
        return Pixel(_delivery(path.removeprefix("/o/").removesuffix(".gif"), keyring))
    found = _CLICK.match(path) if len(path) <= PATH_LIMIT else None
    if not found:
        return NOT_FOUND
    delivery = _delivery(found[1], keyring)
    return Click(delivery, int(found[2])) if delivery else NOT_FOUND


def _delivery(token: str, keyring: Keyring) -> DeliveryKey | None:
    try:
        return read_delivery(keyring, Purpose.TRACK, token)
    except BadToken:
        return None


# What may stand in a header as it is; anything else a stored target holds is percent-encoded.
_URL_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F))


def redirect(target: str) -> Reply:
    """To a stored target and nowhere else; the target comes from the campaign, never from the request."""
    if not target.lower().startswith(("http://", "https://")):
        return NOT_FOUND
    return Reply(302, (("location", quote(target, safe=_URL_CHARACTERS)), *_PRIVATE), b"")


def client_address(peer: str, forwarded: str, proxies: int) -> str:
    """The client's address, or "". Each trusted proxy appends whom it talked to; what is further left is hearsay."""
    hops = [peer]
    if proxies:
        hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()][-proxies:] or hops
    try:
        return str(ipaddress.ip_address(hops[0]))
    except ValueError:
        return ""


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def sighting(
    *, kind: int, delivery: DeliveryKey, link: int | None, at_ms: int, method: str, ip: str, user_agent: str
) -> Sighting:
    """What the stream is told of a fetch; `at_ms` is Unix time in milliseconds."""
    agent = _UNPRINTABLE.sub(" ", user_agent[:USER_AGENT_LIMIT])
    return Sighting(kind, delivery.campaign_id, delivery.subscriber_id, link, at_ms, method, ip, agent, [], EDGE)
