"""System checks: a combination of settings that would hurt is said before anything starts, with what to do about it."""

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from newsletter.env import BASE_DIR, DATA_DIR, ESP_BACKENDS, EmailUrl, missing_from
from newsletter.mailing.tokens import Keyring
from newsletter.mailing.transports.smtp_opening import BadAuthorities, tls_context

SHORTEST_SECRET = 16  # characters; demo_keys() makes 43


def is_loopback(url: str) -> bool:
    """Whether an address can be reached from this machine only."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@register(Tags.security)
def the_demo_stays_on_this_machine(**_: Any) -> list[CheckMessage]:
    """The demo shows every mail to everybody and its password lies in a file: never under a public name."""
    if not settings.DEMO:
        return []
    urls = {"SITE_URL": settings.SITE_URL, "EDGE_URL": settings.EDGE_URL}
    found = [f"{name} is {url}" for name, url in urls.items() if not is_loopback(url)]
    named = {urlsplit(url).hostname for url in urls.values()}  # hosts that are allowed since their URL is ours
    others = [host for host in settings.ALLOWED_HOSTS if host not in named and not is_loopback(f"http://{host}")]
    found += [f"ALLOWED_HOSTS holds {host}" for host in others]
    hint = "Set DEMO=0 for an installation that others can reach, or use an address such as http://127.0.0.1:8000."
    return [Error(f"DEMO is on and {one}, which others can reach.", hint=hint, id="newsletter.E001") for one in found]


@register(Tags.security)
def addresses_are_whole(**_: Any) -> list[CheckMessage]:
    """SITE_URL and EDGE_URL stand in every mail: a scheme, a host and nothing more."""
    problems: list[CheckMessage] = []
    for name, url in (("SITE_URL", settings.SITE_URL), ("EDGE_URL", settings.EDGE_URL)):
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path or parts.query or parts.fragment:
            hint = "It must be a scheme and a host, with a port if needed: https://news.example.org"
            problems.append(
                Error(f"{name} is {url or 'empty'}, which is no address of a site.", hint=hint, id="newsletter.E002")
            )
    return problems


@register(Tags.security)
def token_keys_can_be_read(**_: Any) -> list[CheckMessage]:
    try:
        Keyring.parse(list(settings.TOKEN_KEYS))
    except ValueError as error:
        hint = "Write TOKEN_KEYS=1:SECRET; to change keys put a new one in front: TOKEN_KEYS=2:NEW,1:OLD"
        return [Error(f"{error}.", hint=hint, id="newsletter.E003")]
    return []


@register()
def stream_and_cache_are_apart(**_: Any) -> list[CheckMessage]:
    """Clearing the cache would throw away opens and clicks that were answered."""
    problems: list[CheckMessage] = []
    for name, url in (("CACHE_URL", settings.CACHE_URL), ("BROKER_URL", settings.BROKER_URL)):
        if url == settings.STREAM_URL:
            hint = f"Give {name} another database number or another server than STREAM_URL."
            problems.append(Error(f"STREAM_URL and {name} are the same database.", hint=hint, id="newsletter.E004"))
    return problems


@register(Tags.security)
def the_mail_service_has_what_it_needs(**_: Any) -> list[CheckMessage]:
    transport: EmailUrl = settings.MAIL_TRANSPORT
    if transport.is_smtp and not all(server.host for server in transport.servers):
        hint = "EMAIL_URL=smtp://user:password@mail.example.org:587?starttls=1"
        return [Error("EMAIL_URL names no mail server.", hint=hint, id="newsletter.E005")]
    missing = missing_from(transport)
    if missing:
        hint = f"EMAIL_URL={ESP_BACKENDS[transport.scheme].example}"
        number = "E006" if missing == "key" else "E007"
        return [Error(f"EMAIL_URL holds no {missing} for the mail service.", hint=hint, id=f"newsletter.{number}")]
    return []


@register(Tags.security)
def authorities_can_be_read(**_: Any) -> list[CheckMessage]:
    """A mail server's certificate is verified by the file that `?ca=` names."""
    problems: list[CheckMessage] = []
    for server in settings.MAIL_TRANSPORT.servers if settings.MAIL_TRANSPORT.is_smtp else ():
        try:
            tls_context(server)
        except BadAuthorities as error:
            hint = "Name a file of certificates in PEM that this user may read, or drop ?ca= for the system's own."
            problems.append(Error(f"EMAIL_URL: {error}.", hint=hint, id="newsletter.E008"))
    return problems


@register(Tags.security)
def mail_is_signed_once(**_: Any) -> list[CheckMessage]:
    """An e-mail service signs by itself, and its API takes no signature of ours."""
    if not settings.DKIM_KEYS or settings.MAIL_TRANSPORT.is_smtp:
        return []
    hint = "Remove DKIM_KEY_FILE or DKIM_PRIVATE_KEY, and publish the key that the service shows you."
    return [Warning("There is a DKIM key, but an e-mail service signs.", hint=hint, id="newsletter.W006")]


@register(Tags.security)
def dkim_keys_are_private(**_: Any) -> list[CheckMessage]:
    """Whoever has the key can write mail in the sender's name."""
    problems: list[CheckMessage] = []
    for file in settings.DKIM_KEYS.files if settings.DKIM_KEYS else ():
        if file.stat().st_mode & 0o077:
            text = f"The DKIM key {file} can be read by other users of this machine."
            problems.append(Warning(text, hint=f"chmod 600 {file}", id="newsletter.W007"))
        resolved = file.resolve()
        if resolved.is_relative_to(BASE_DIR) and not resolved.is_relative_to(DATA_DIR.resolve()):
            text = f"The DKIM key {file} lies among the program's files, from where it could be published."
            problems.append(Warning(text, hint=f"Move it to {DATA_DIR / 'dkim'}.", id="newsletter.W008"))
    return problems


@register(Tags.security, deploy=True)
def passwords_travel_encrypted(**_: Any) -> list[CheckMessage]:
    transport: EmailUrl = settings.MAIL_TRANSPORT
    return [
        Warning(
            f"EMAIL_URL sends its password to {server.host} unencrypted.",
            hint="Add ?starttls=1, or use smtps:// where the server speaks TLS from the start.",
            id="newsletter.W009",
        )
        for server in transport.servers
        if server.scheme == "smtp"
        and server.password
        and not server.flag("starttls")
        and not is_loopback(f"smtp://{server.host}")
    ]


@register(Tags.security, deploy=True)
def a_server_is_reached_by_tls(**_: Any) -> list[CheckMessage]:
    """Tokens in links are secrets of their readers."""
    if settings.DEMO:
        return []
    return [
        Warning(
            f"{name} is {url}: passwords and the links in mails travel unencrypted.",
            hint=f"Put a proxy with TLS in front and set {name}=https://…",
            id="newsletter.W001",
        )
        for name, url in (("SITE_URL", settings.SITE_URL), ("EDGE_URL", settings.EDGE_URL))
        if url.startswith("http://") and not is_loopback(url)
    ]


@register(Tags.security, deploy=True)
def secrets_are_long_and_apart(**_: Any) -> list[CheckMessage]:
    """A guessed key unsubscribes anybody; the suppression key cannot be changed later, so it may not share a fate."""
    problems: list[CheckMessage] = []
    token_secrets = [str(entry).partition(":")[2] for entry in settings.TOKEN_KEYS]
    if any(len(secret) < SHORTEST_SECRET for secret in (*token_secrets, settings.SUPPRESSION_KEY)):
        hint = "Make each by: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        text = f"TOKEN_KEYS or SUPPRESSION_KEY holds a secret of less than {SHORTEST_SECRET} characters."
        problems.append(Warning(text, hint=hint, id="newsletter.W002"))
    if settings.SUPPRESSION_KEY in {settings.SECRET_KEY, *token_secrets}:
        hint = "Give SUPPRESSION_KEY a secret of its own: it stays when the others are changed."
        problems.append(Warning("SUPPRESSION_KEY is the same as another secret.", hint=hint, id="newsletter.W003"))
    return problems


@register(Tags.security, deploy=True)
def mails_come_from_an_address_of_ours(**_: Any) -> list[CheckMessage]:
    domain = str(settings.DEFAULT_FROM_EMAIL).rpartition("@")[2].rstrip(">")
    if settings.DEMO or (domain and domain != "localhost"):
        return []
    hint = "Set DEFAULT_FROM_EMAIL to an address of your domain, such as news@example.org."
    return [Warning("Confirmation mails would come from an address at localhost.", hint=hint, id="newsletter.W004")]


@register(Tags.security, deploy=True)
def the_proxy_is_known(**_: Any) -> list[CheckMessage]:
    """Behind an unknown proxy every visitor has the proxy's address, and a redirect to https never ends."""
    if settings.DEMO or settings.TRUSTED_PROXIES or not settings.SITE_URL.startswith("https://"):
        return []
    hint = "Set TRUSTED_PROXIES to the number of proxies in front of this server (1 with the compose file)."
    return [Warning("SITE_URL is https and no proxy is trusted.", hint=hint, id="newsletter.W005")]
