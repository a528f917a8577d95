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


# The look of static/public/public.css, whole in itself: the edge may have a host of its own and serves no files.
_STYLE = """
:root { color-scheme: light dark; --paper: #f7f6f1; --ink: #1c231f; --quiet: #545f58; --accent: #166534; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #121614; --ink: #e9ece7; --quiet: #a9b3ac; --accent: #86d5a2; }
}
body { margin: 0; padding: 0 1.25rem; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, main { max-inline-size: 33rem; margin-inline: auto; }
header { display: flex; align-items: center; gap: .6rem; padding-block: 1.85rem 0; color: var(--accent);
  font-weight: 600; }
svg { inline-size: 1.6rem; block-size: 1.6rem; flex: none; }
main { padding-block: 2.6rem 3rem; }
h1 { margin: 0 0 .75rem; font: 600 clamp(1.9rem, 1.5rem + 2vw, 2.5rem)/1.18 "Iowan Old Style", "Palatino Linotype",
  Palatino, "Book Antiqua", Georgia, "Noto Serif", serif; letter-spacing: -.012em; text-wrap: balance; }
p { margin: 0; color: var(--quiet); font-size: 1.125rem; text-wrap: pretty; }
"""
_MARK = (
    '<svg viewBox="0 0 32 32" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="2.5" '
    'stroke-linecap="round" stroke-linejoin="round"><rect x="2.5" y="6.5" width="27" height="20" rx="5"/>'
    '<path d="m4.5 10 10 8.2a2.4 2.4 0 0 0 3 0L27.5 10"/></svg>'
)


def _page(title: str, text: str) -> bytes:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>{_MARK}<span>Newsletters</span></header>
<main><h1>{title}</h1><p>{text}</p></main>
</body>
</html>
""".encode()


NOT_FOUND = Reply(
    404,
    _PAGE,
    _page(
        "This link leads nowhere",
        "Mail programs sometimes cut long links. Please open the mail again and click the link itself, or copy all of "
        "it.",
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
