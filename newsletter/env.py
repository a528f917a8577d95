"""Typed readings of the environment, so that settings.py holds decisions and no parsing.

Three sources, the first that has a name wins: the process environment, `.env` in the project's folder (for a
server without a secret store), and `.data/env`, which `make run` writes at its first start.
"""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import environ

if TYPE_CHECKING:
    from newsletter.mailing.signing import Keys

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("DATA_DIR", BASE_DIR / ".data"))

env = environ.Env()


def load() -> None:
    """Read the files of settings; what the process environment already holds is kept."""
    for path in (BASE_DIR / ".env", DATA_DIR / "env"):
        if path.is_file() and os.access(path, os.R_OK):
            env.read_env(str(path), overwrite=False)


# What may follow the `?` of an SMTP server. A misspelt `starttls` must not send passwords in the clear.
SMTP_OPTIONS = frozenset({"ca", "connections", "starttls", "weight"})


@dataclass(frozen=True)
class EmailUrl:
    """A mail transport as `EMAIL_URL` names it: `smtp://user:password@host:port?starttls=1`, `mailgun://KEY@DOMAIN`.

    Where it names several SMTP servers, this is the first and `others` are the rest.
    """

    scheme: str
    host: str
    port: int | None
    username: str
    password: str
    options: dict[str, str] = field(default_factory=dict)
    others: tuple["EmailUrl", ...] = ()

    @property
    def servers(self) -> tuple["EmailUrl", ...]:
        """All that are named, in order."""
        return (replace(self, others=()), *self.others)

    @property
    def is_smtp(self) -> bool:
        return self.scheme in {"smtp", "smtps"}

    def flag(self, name: str) -> bool:
        """Whether an option such as `starttls=1` is switched on."""
        return self.options.get(name, "").lower() in {"1", "true", "yes", "on"}


def email_url(value: str) -> EmailUrl:
    """Take `EMAIL_URL` apart. Raises ValueError with a sentence that names what is wrong.

    Several SMTP servers stand one after the other, with spaces or commas between them.
    """
    first, *others = [_one_email_url(part) for part in re.split(r"[\s,]+(?=[A-Za-z][\w+.-]*://)", value.strip())]
    if others and not all(url.is_smtp for url in (first, *others)):
        raise ValueError("EMAIL_URL names several services; only SMTP servers (smtp://, smtps://) can stand together")
    return replace(first, others=tuple(others))


def _one_email_url(value: str) -> EmailUrl:
    parts = urlsplit(value)
    if not parts.scheme or "://" not in value:
        raise ValueError("EMAIL_URL must look like smtp://host:port or mailgun://KEY@DOMAIN")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"EMAIL_URL has a port that is not a number: {error}") from error
    url = EmailUrl(
        scheme=parts.scheme.lower(),
        host=parts.hostname or "",
        port=port,
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        options=dict(parse_qsl(parts.query)),
    )
    _check_options(url)
    return url


def _check_options(url: EmailUrl) -> None:
    for name, noun in (("connections", "connections"), ("weight", "as weight")):
        given = url.options.get(name, "1")
        if not (given.isdecimal() and given.isascii() and int(given)):
            raise ValueError(f"EMAIL_URL asks for {given} {noun}; write a number from 1 on")
    known = SMTP_OPTIONS if url.is_smtp else _esp_options(url.scheme)
    unknown = sorted(set(url.options) - known) if known else []
    if unknown:
        raise ValueError(f"EMAIL_URL has an option unknown here: {unknown[0]} (known: {', '.join(sorted(known))})")
    if url.scheme == "smtps" and url.flag("starttls"):
        raise ValueError("EMAIL_URL asks for smtps:// and starttls=1; smtps:// is TLS from the start, so drop starttls")


def dkim_keys(*, path: str, pem: str, selector: str) -> "Keys | None":
    """The keys of DKIM_KEY_FILE or DKIM_PRIVATE_KEY. Raises ValueError with a sentence."""
    if not (path or pem):
        return None  # without loading what signs
    from newsletter.mailing import signing

    return signing.read_keys(path=path, pem=pem, selector=selector)


class Esp(NamedTuple):
    """How an ESP of Anymail is named in settings, and how EMAIL_URL is written for it.

    `needs` are parts of the URL beside the key: "host", "password", or the names of options. `options` are those of
    Anymail's settings that an operator may want to turn, beside the address of the API.
    """

    backend: str
    key: str
    example: str
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


ESP_BACKENDS: dict[str, Esp] = {
    "brevo": Esp("brevo", "BREVO_API_KEY", "brevo://KEY@"),
    "mailersend": Esp("mailersend", "MAILERSEND_API_TOKEN", "mailersend://TOKEN@", options=("signing_secret",)),
    "mailgun": Esp(
        "mailgun", "MAILGUN_API_KEY", "mailgun://KEY@DOMAIN", needs=("host",), options=("webhook_signing_key",)
    ),
    "mailjet": Esp("mailjet", "MAILJET_API_KEY", "mailjet://KEY:SECRET@", needs=("password",)),
    "mailtrap": Esp("mailtrap", "MAILTRAP_API_TOKEN", "mailtrap://TOKEN@", options=("sandbox_id", "tracking_secret")),
    "mandrill": Esp("mandrill", "MANDRILL_API_KEY", "mandrill://KEY@", options=("webhook_key", "webhook_url")),
    "postal": Esp(
        "postal",
        "POSTAL_API_KEY",
        "postal://KEY@?api_url=https://postal.example.org",
        needs=("api_url",),
        options=("webhook_key",),
    ),
    "postmark": Esp(
        "postmark",
        "POSTMARK_SERVER_TOKEN",
        "postmark://TOKEN@?message_stream=broadcast",
        options=("message_stream",),
    ),
    "resend": Esp("resend", "RESEND_API_KEY", "resend://KEY@", options=("signing_secret",)),
    "scaleway": Esp(
        "scaleway",
        "SCALEWAY_SECRET_KEY",
        "scaleway://KEY@?project_id=ID",
        needs=("project_id",),
        options=("project_id", "region"),
    ),
    "sendgrid": Esp(
        "sendgrid",
        "SENDGRID_API_KEY",
        "sendgrid://KEY@",
        options=("generate_message_id", "tracking_webhook_verification_key"),
    ),
    "ses": Esp(
        "amazon_ses",
        "",
        "ses://KEY:SECRET@?region=eu-west-1",
        options=(
            "auto_confirm_sns_subscriptions",
            "configuration_set_name",
            "endpoint_url",
            "message_tag_name",
            "region",
        ),
    ),
    "sparkpost": Esp(
        "sparkpost",
        "SPARKPOST_API_KEY",
        "sparkpost://KEY@",
        options=("subaccount", "track_initial_open_as_opened"),
    ),
    "unisender-go": Esp(
        "unisender_go",
        "UNISENDER_GO_API_KEY",
        "unisender-go://KEY@?api_url=https://go1.unisender.ru/ru/transactional/api/v1",
        needs=("api_url",),
        options=("generate_message_id",),
    ),
}
# Options of EMAIL_URL that are ours, not Anymail's.
_OWN_OPTIONS = frozenset({"connections"})
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _esp_options(scheme: str) -> frozenset[str]:
    """What may follow the `?` of an ESP; empty where nobody speaks it. A misspelt api_url must not send elsewhere."""
    if scheme not in ESP_BACKENDS:
        return frozenset()
    api = () if scheme == "ses" else ("api_url",)
    return _OWN_OPTIONS | {*api, *ESP_BACKENDS[scheme].options}


def email_backend(url: EmailUrl) -> str:
    """The Django mail backend of a transport. Raises ValueError for a scheme that nobody speaks."""
    if url.is_smtp:
        return "newsletter.mailing.backend.EmailBackend"
    if url.scheme not in ESP_BACKENDS:
        known = ", ".join(["smtp", "smtps", *sorted(ESP_BACKENDS)])
        raise ValueError(f"EMAIL_URL names no mail service known here: {url.scheme} (known: {known})")
    return f"anymail.backends.{ESP_BACKENDS[url.scheme].backend}.EmailBackend"


def missing_from(url: EmailUrl) -> str:
    """What an ESP's EMAIL_URL lacks, as a noun; empty when it is whole."""
    if url.is_smtp or url.scheme not in ESP_BACKENDS:
        return ""
    esp = ESP_BACKENDS[url.scheme]
    if esp.key and not url.username:
        return "key"
    if url.username and url.scheme == "ses" and not url.password:
        return "secret key"
    words = {"host": "sending domain", "password": "secret key"}
    parts = {"host": url.host, "password": url.password}
    return next((words.get(need, need) for need in esp.needs if not parts.get(need, url.options.get(need))), "")


def anymail_settings(url: EmailUrl) -> dict[str, object]:
    """Anymail's settings for a transport: the key stands where the user name would, other options keep their names.

    `mailgun://KEY@DOMAIN?api_url=…&webhook_signing_key=…` gives MAILGUN_API_KEY, MAILGUN_SENDER_DOMAIN,
    MAILGUN_API_URL and MAILGUN_WEBHOOK_SIGNING_KEY.
    """
    if url.is_smtp:
        return {}
    email_backend(url)
    if url.scheme == "ses":
        return _amazon_settings(url)
    settings: dict[str, object] = {ESP_BACKENDS[url.scheme].key: url.username}
    if url.scheme == "mailgun" and url.host:
        settings["MAILGUN_SENDER_DOMAIN"] = url.host
    if url.scheme == "mailjet":
        settings["MAILJET_SECRET_KEY"] = url.password
    prefix = url.scheme.upper().replace("-", "_")
    options = {name: value for name, value in url.options.items() if name not in _OWN_OPTIONS}
    settings.update({f"{prefix}_{name.upper()}": _WORDS.get(value.lower(), value) for name, value in options.items()})
    return settings


def _amazon_settings(url: EmailUrl) -> dict[str, object]:
    """Amazon has no API URL and two halves of a key; other options (configuration_set_name) keep their names."""
    client = {
        "region_name": url.options.get("region"),
        "endpoint_url": url.options.get("endpoint_url"),
        "aws_access_key_id": url.username or None,
        "aws_secret_access_key": url.password or None,
        # A call that boto repeats by itself after a silence is a mail sent twice.
        "config": {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60},
    }
    own = {"region", "endpoint_url", *_OWN_OPTIONS}
    options = {f"AMAZON_SES_{name.upper()}": value for name, value in url.options.items() if name not in own}
    return {"AMAZON_SES_CLIENT_PARAMS": {name: value for name, value in client.items() if value}, **options}


def redis_database(url: str, number: int) -> str:
    """The same Valkey server, another of its databases (`redis://host:port/2`, `unix:///path?db=2`)."""
    if url.startswith("unix://"):
        return f"{url.split('?', maxsplit=1)[0]}?db={number}"
    return f"{url.rstrip('/')}/{number}" if urlsplit(url).path in {"", "/"} else url


def celery_broker(url: str) -> str:
    """The address in the form that Celery's transport takes (a Unix socket is `redis+socket:///path`)."""
    if url.startswith("unix://"):
        path, _, query = url.removeprefix("unix://").partition("?")
        return f"redis+socket://{path}?virtual_host={dict(parse_qsl(query)).get('db', '0')}"
    return url


def database(url: str, *, pool: int) -> dict[str, object]:
    """Django's settings for `postgres://user:password@host:port/name?sslmode=…`.

    A percent-encoded path in the host's place is a Unix socket's folder. Raises ValueError for any other engine:
    PostgreSQL is the only one.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ValueError("DATABASE_URL must start with postgres://, the only database that this product uses")
    authority = parts.netloc.rpartition("@")[2]  # urlsplit would lower the case of a socket's path
    host, _, port = authority.partition(":")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(host),
        "PORT": port,
        # A connection that died in the pool (the server was restarted) is noticed as it is taken.
        "CONN_HEALTH_CHECKS": True,
        # Whatever the server's default: what is committed is on disk (promise 1 rests on it).
        "OPTIONS": {
            "options": "-c synchronous_commit=on",
            # Statements that ask for it are prepared; a pooler in between must know how (PgBouncer from 1.21 on).
            "prepare_threshold": 5,
            **dict(parse_qsl(parts.query)),
            "pool": {"min_size": 0, "max_size": pool, "timeout": 10},
        },
    }
