"""The kinds of people on the demo's list, as one table: how many there are and how each behaves.

The shares are chosen so that every trap of HYGIENE.md can be met: people who read and leave no trace, machines that
leave traces where nobody reads, and people who have really gone. What a mail client sends is taken from life.
"""

from dataclasses import dataclass
from enum import StrEnum


class Client(StrEnum):
    """What fetches, in a person's hand or on a machine's own account."""

    WEBMAIL = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
    YAHOO = "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html"
    THUNDERBIRD = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.4.0"
    OUTLOOK = "Mozilla/4.0 (compatible; MSIE 7.0; Windows NT 10.0; WOW64; Trident/7.0; Microsoft Outlook 16.0.17928)"
    APPLE_PROXY = "Mozilla/5.0"
    CHROME = (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/131.0.0.0 Safari/537.36"
    )
    FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"
    PHONE = (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.1 Mobile/15E148 Safari/604.1"
    )
    ANDROID = (
        "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/131.0.0.0 Mobile Safari/537.36"
    )
    SCANNER = (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/119.0.0.0 Safari/537.36"
    )


@dataclass(frozen=True)
class Persona:
    """How one kind of person lives with the letter. Chances are per issue and differ from person to person."""

    name: str
    share: float  # of the list
    reads: tuple[float, float]  # a personal chance to read an issue lies between these
    clicks: tuple[float, float]  # … and to follow a link of an issue that is read
    shows_images: bool  # reading fetches the pixel by the person's own client
    readers: tuple[Client, ...]  # what they read with, where images are shown
    browsers: tuple[Client, ...]  # where links open
    prefetches: float = 0.0  # chance that Apple's proxy fetches the pixel, read or not
    scans: float = 0.0  # chance that a gateway opens the mail and follows every link
    drifts: bool = False  # stops reading for good at some point of the year
    is_new: bool = False  # joined within the last weeks


PERSONAS: tuple[Persona, ...] = (
    Persona(
        "shows images", 0.42, (0.30, 0.95), (0.05, 0.25), True,
        (Client.WEBMAIL, Client.WEBMAIL, Client.WEBMAIL, Client.YAHOO, Client.THUNDERBIRD),
        (Client.CHROME, Client.FIREFOX, Client.ANDROID),
    ),
    Persona("blocks images", 0.13, (0.45, 0.95), (0.25, 0.55), False, (), (Client.FIREFOX, Client.CHROME)),
    Persona(
        "reads with Apple Mail", 0.22, (0.50, 0.95), (0.30, 0.55), False, (), (Client.PHONE,), prefetches=0.93
    ),
    Persona(
        "sits behind a scanner", 0.11, (0.20, 0.80), (0.10, 0.30), True,
        (Client.OUTLOOK,), (Client.CHROME,), scans=0.85,
    ),
    Persona(
        "drifted off", 0.03, (0.35, 0.90), (0.05, 0.25), True,
        (Client.WEBMAIL, Client.YAHOO), (Client.CHROME, Client.ANDROID), drifts=True,
    ),
    Persona(
        "drifted off from Apple Mail", 0.012, (0.40, 0.90), (0.20, 0.45), False,
        (), (Client.PHONE,), prefetches=0.93, drifts=True,
    ),
    Persona("never read", 0.01, (0.0, 0.0), (0.0, 0.0), False, (), (Client.CHROME,)),
    Persona(
        "newcomer", 0.06, (0.60, 0.98), (0.15, 0.35), True,
        (Client.WEBMAIL, Client.THUNDERBIRD), (Client.CHROME, Client.ANDROID), is_new=True,
    ),
)  # fmt: skip
