"""What the DNS says about a sender's domain: SPF, DKIM, DMARC and MX, in plain words.

The big receivers ask for the first three (MAIL.md); without them mail is put aside as spam or refused. A lookup has a
time limit and is remembered for some minutes; "could not look up" is a finding of its own and never a failure.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import dns.exception
import dns.nameserver
import dns.resolver
from django.conf import settings
from django.core.cache import cache
from django.utils.translation import gettext as _

LOOKUP_SECONDS = 3.0  # of one question; all are asked side by side
REMEMBER_SECONDS = 300
DKIM_SUFFIX = "_domainkey"
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


class Standing(StrEnum):
    """How one record stands; the word is stable, the message is for people."""

    OK = "ok"
    MISSING = "missing"
    WRONG = "wrong"
    UNKNOWN = "unknown"  # could not be looked up, or we do not know what to look for


@dataclass(frozen=True)
class Record:
    """One record of a domain: where it stands, what was found, what to publish."""

    kind: str  # "SPF", "DKIM", "DMARC" or "MX"
    host: str
    type: str  # the DNS type to publish it as
    standing: Standing
    message: str
    found: tuple[str, ...] = ()
    publish: str = ""

    @property
    def is_fine(self) -> bool:
        return self.standing is Standing.OK


@dataclass(frozen=True)
class Service:
    """What a mail service wants in the sender's DNS."""

    name: str
    spf: str = ""  # the mechanism that names its servers
    selectors: tuple[str, ...] = ()  # the DKIM selectors it uses for everybody


# By the scheme of EMAIL_URL; from each service's own page on authenticating a domain.
SERVICES: dict[str, Service] = {
    "brevo": Service("Brevo", "include:spf.brevo.com", ("brevo1", "brevo2", "mail")),
    "mailersend": Service("MailerSend", "include:_spf.mailersend.net", ("mlsend2", "mlsend")),
    "mailgun": Service("Mailgun", "include:mailgun.org", ("mailo", "smtp", "mx", "k1", "pic", "krs")),
    "mailjet": Service("Mailjet", "include:spf.mailjet.com", ("mailjet",)),
    "mandrill": Service("Mandrill", "include:spf.mandrillapp.com", ("mte1", "mandrill")),
    "postmark": Service("Postmark", "include:spf.mtasv.net"),
    "resend": Service("Resend", "include:amazonses.com", ("resend",)),
    "scaleway": Service("Scaleway", "include:_spf.tem.scaleway.com"),
    "sendgrid": Service("SendGrid", "include:sendgrid.net", ("s1", "s2")),
    "ses": Service("Amazon SES", "include:amazonses.com"),
    "sparkpost": Service("SparkPost", "include:sparkpostmail.com"),
}

# The texts of one name and type; () when there are none, None when nobody could say.
Lookup = Callable[[str, str], tuple[str, ...] | None]


def resolver() -> dns.resolver.Resolver:
    """The system's resolver, or the servers of `DNS_SERVERS` ("address" or "address:port")."""
    if not settings.DNS_SERVERS:
        return dns.resolver.Resolver()
    chosen = dns.resolver.Resolver(configure=False)
    servers = (entry.partition(":") for entry in settings.DNS_SERVERS)
    chosen.nameservers = [dns.nameserver.Do53Nameserver(host, int(port or 53)) for host, _colon, port in servers]
    return chosen


def lookup_with(chosen: dns.resolver.Resolver, *, seconds: float = LOOKUP_SECONDS) -> Lookup:
    """A lookup by this resolver that answers within `seconds`."""

    def lookup(name: str, kind: str) -> tuple[str, ...] | None:
        try:
            answer = chosen.resolve(name, kind, lifetime=seconds, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return ()
        except (dns.exception.DNSException, OSError):
            return None
        if kind == "TXT":
            return tuple(b"".join(entry.strings).decode("utf-8", "replace") for entry in answer)
        return tuple(entry.to_text() for entry in answer)

    return lookup


def check_domain(
    domain: str, *, selector: str = "", transport: str = "", smtp_host: str = "", refresh: bool = False
) -> list[Record]:
    """How SPF, DKIM, DMARC and MX of a sender's domain stand, in this order.

    `selector` is the DKIM selector to look for ("" tries those that the mail service is known to use), `transport` the
    scheme of EMAIL_URL, `smtp_host` the relay when it is SMTP (several with spaces between them). Takes at most about
    `LOOKUP_SECONDS`; remembered for `REMEMBER_SECONDS` unless `refresh`, and not at all when something could not be
    looked up.
    """
    domain = ascii_domain(domain)
    selector = selector or settings.DKIM_SELECTOR
    # Who signs by themselves knows what must be published; it holds under their own selector only.
    signs = selector == settings.DKIM_SELECTOR and transport in {"smtp", "smtps"}
    public = settings.DKIM_KEYS.record(domain) if signs and settings.DKIM_KEYS else ""
    key = ":".join(("dns", domain, selector, transport, smtp_host.replace(" ", ","), public[-16:]))
    remembered: list[Record] | None = None if refresh else cache.get(key)
    if remembered is not None:
        return remembered
    lookup = lookup_with(resolver())
    records = check_with(lookup, domain, selector=selector, transport=transport, smtp_host=smtp_host, public_key=public)
    if all(record.standing is not Standing.UNKNOWN for record in records):
        cache.set(key, records, REMEMBER_SECONDS)
    return records


def check_with(
    lookup: Lookup, domain: str, *, selector: str, transport: str, smtp_host: str, public_key: str = ""
) -> list[Record]:
    """`check_domain` by a lookup of one's own, nothing remembered. `public_key` is the DKIM record that ours needs."""
    own = Service("" if smtp_host in THIS_MACHINE else smtp_host or transport, _relay_mechanisms(smtp_host))
    service = SERVICES.get(transport, own)
    selectors = (selector,) if selector else service.selectors
    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="dns") as pool:
        parts = [
            pool.submit(_spf, lookup, domain, service),
            pool.submit(_dkim, lookup, domain, selectors, service, public_key),
            pool.submit(_dmarc, lookup, domain),
            pool.submit(_mx, lookup, domain),
        ]
        return [part.result() for part in parts]


def ascii_domain(domain: str) -> str:
    """A domain as the DNS knows it: lower case, A-labels. An impossible one is returned as it is."""
    domain = domain.strip().rstrip(".").lower()
    with contextlib.suppress(UnicodeError):
        return domain.encode("idna").decode("ascii")
    return domain


def _relay_mechanisms(smtp_hosts: str) -> str:
    """How SPF names relays of one's own."""
    return " ".join(dict.fromkeys(_relay_mechanism(host) for host in smtp_hosts.split() or [""]))


def _relay_mechanism(smtp_host: str) -> str:
    """By its name, or by its address."""
    if not smtp_host or smtp_host in THIS_MACHINE:
        return "mx"
    if smtp_host.replace(".", "").isdigit():
        return f"ip4:{smtp_host}"
    return f"ip6:{smtp_host}" if ":" in smtp_host else f"a:{smtp_host}"


def _tagged(texts: tuple[str, ...], version: str) -> tuple[str, ...]:
    """The TXT records of one purpose, which start with their version."""
    return tuple(text for text in texts if text.lower().replace(" ", "").startswith(version))


def _spf(lookup: Lookup, domain: str, service: Service) -> Record:
    publish = f"v=spf1 {service.spf or 'mx'} ~all"

    def record(standing: Standing, message: str, found: tuple[str, ...] = ()) -> Record:
        return Record("SPF", domain, "TXT", standing, message, found, publish)

    texts = lookup(domain, "TXT")
    if texts is None:
        return record(Standing.UNKNOWN, _("Could not be looked up just now."))
    found = tuple(text for text in texts if text.lower().split(" ")[0] == "v=spf1")
    if not found:
        return record(Standing.MISSING, _("No record says which servers may send for this domain."))
    if len(found) > 1:
        return record(Standing.WRONG, _("There are several SPF records; receivers then ignore all. Merge them."), found)
    terms = found[0].lower().split()
    if {"all", "+all"} & set(terms):
        return record(Standing.WRONG, _("It ends in “+all”, which lets anybody send as you."), found)
    if service.spf and service.spf != "mx" and not _names(terms, service.spf):
        message = _("It does not name %(service)s yet: add “%(term)s” before the last word.")
        return record(Standing.WRONG, message % {"service": service.name, "term": service.spf}, found)
    return record(Standing.OK, _("Says which servers may send for this domain."), found)


def _names(terms: list[str], mechanism: str) -> bool:
    """Whether an SPF record holds a mechanism. A relay of one's own may be named by any other: believed."""
    if mechanism in {term.lstrip("+?~-") for term in terms}:
        return True
    return not mechanism.startswith("include:") and any(term.lstrip("+?~-") != "all" for term in terms[1:])


def _dkim(lookup: Lookup, domain: str, selectors: tuple[str, ...], service: Service, public_key: str) -> Record:
    hint = _("the key that %(service)s shows you") % {"service": service.name or _("your mail server")}
    first = selectors[0] if selectors else "SELECTOR"

    def record(standing: Standing, message: str, selector: str = first, found: tuple[str, ...] = ()) -> Record:
        host = f"{selector}.{DKIM_SUFFIX}.{domain}"
        return Record("DKIM", host, "TXT", standing, message, found, public_key or f"v=DKIM1; k=rsa; p=<{hint}>")

    if not selectors:
        return record(
            Standing.UNKNOWN,
            _("Name the selector your mail server signs with, and it will be looked up."),
        )
    with ThreadPoolExecutor(len(selectors), thread_name_prefix="dkim") as pool:
        hosts = [f"{selector}.{DKIM_SUFFIX}.{domain}" for selector in selectors]
        answers = dict(zip(selectors, pool.map(lookup, hosts, ["TXT"] * len(hosts)), strict=True))
    for selector, texts in answers.items():
        keys = tuple(text for text in texts or () if "p=" in text)
        if public_key and keys and not any(_key_of(text) == _key_of(public_key) for text in keys):
            message = _("Another key than the one we sign with is published: receivers will call our mail forged.")
            return record(Standing.WRONG, message, selector, keys)
        if any(_key_of(text) for text in keys):
            return record(Standing.OK, _("The public key is there; signatures can be verified."), selector, keys)
        if keys:
            return record(Standing.WRONG, _("The key was withdrawn (“p=” is empty)."), selector, keys)
    if None in answers.values():
        return record(Standing.UNKNOWN, _("Could not be looked up just now."))
    message = _("No key at %(hosts)s.") % {"hosts": ", ".join(f"{name}.{DKIM_SUFFIX}" for name in selectors)}
    return record(Standing.MISSING, message)


def _key_of(text: str) -> str:
    tags = dict(part.strip().partition("=")[::2] for part in text.split(";") if "=" in part)
    return "".join(tags.get("p", "").split())


def _dmarc(lookup: Lookup, domain: str) -> Record:
    """The policy of the domain, or of the nearest parent that has one (RFC 7489 asks the organisational domain)."""
    publish = f"v=DMARC1; p=none; rua=mailto:dmarc@{domain}"

    def record(standing: Standing, message: str, at: str = domain, found: tuple[str, ...] = ()) -> Record:
        return Record("DMARC", f"_dmarc.{at}", "TXT", standing, message, found, publish)

    labels = domain.split(".")
    for start in range(max(1, len(labels) - 1)):
        at = ".".join(labels[start:])
        texts = lookup(f"_dmarc.{at}", "TXT")
        if texts is None:
            return record(Standing.UNKNOWN, _("Could not be looked up just now."))
        found = _tagged(texts, "v=dmarc1")
        if len(found) > 1:
            return record(Standing.WRONG, _("There are several DMARC records; receivers then ignore all."), at, found)
        if found and not any(part.strip().lower().startswith("p=") for part in found[0].split(";")):
            return record(Standing.WRONG, _("It names no policy (“p=none” is enough to begin with)."), at, found)
        if found:
            return record(Standing.OK, _("Tells receivers what to do with mail that only pretends."), at, found)
    return record(Standing.MISSING, _("No policy. “p=none” is enough, and the big receivers ask for it."))


def _mx(lookup: Lookup, domain: str) -> Record:
    def record(standing: Standing, message: str, found: tuple[str, ...] = ()) -> Record:
        return Record("MX", domain, "MX", standing, message, found, f"10 mail.{domain}.")

    found = lookup(domain, "MX")
    if found is None:
        return record(Standing.UNKNOWN, _("Could not be looked up just now."))
    if any(entry.split()[-1] == "." for entry in found):
        return record(Standing.WRONG, _("The domain says that it takes no mail, so replies are lost."), found)
    if found:
        return record(Standing.OK, _("Replies and bounces have somewhere to go."), found)
    addresses = [lookup(domain, kind) for kind in ("A", "AAAA")]
    if any(addresses):
        return record(Standing.OK, _("No MX, but the domain has an address that mail falls back to."))
    if None in addresses:
        return record(Standing.UNKNOWN, _("Could not be looked up just now."))
    return record(Standing.MISSING, _("The domain takes no mail, so replies and bounces are lost."))
