"""The one settings file. What differs between a laptop and a server comes through the environment (env.py)."""

from urllib.parse import urlsplit

import django_stubs_ext
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from django.urls import reverse_lazy
from django.utils.translation import gettext_lazy as _

from newsletter import env as environment
from newsletter.env import BASE_DIR, DATA_DIR, env

django_stubs_ext.monkeypatch()
environment.load()

# What this installation is -------------------------------------------------------------------------------
DEMO = env.bool("DEMO", default=False)
# Where the demo's mail server keeps what it took; the inbox page reads it.
DEMO_MAILBOX = env.str("DEMO_MAILBOX", default=str(DATA_DIR / "mail"))
DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="")
# Purposes are derived from these by tokens.py; "id:secret,id:secret", the first signs, all verify.
TOKEN_KEYS = env.list("TOKEN_KEYS", default=[])
# Opens the first-run page while there is no owner; one is derived from SECRET_KEY and logged where none is set.
SETUP_TOKEN = env.str("SETUP_TOKEN", default="")
# Keyed hash of suppressed addresses. It cannot be rotated (the addresses are gone), so it stands apart.
SUPPRESSION_KEY = env.str("SUPPRESSION_KEY", default="")
if not (SECRET_KEY and TOKEN_KEYS and SUPPRESSION_KEY):
    raise ImproperlyConfigured(
        "SECRET_KEY, TOKEN_KEYS and SUPPRESSION_KEY must be set. `make run` makes them for a laptop; "
        "for a server copy .env.example to .env and fill it in."
    )

# Where it lives ------------------------------------------------------------------------------------------
SITE_URL = env.str("SITE_URL", default="http://127.0.0.1:8000").rstrip("/")
# Pixel and links; the same host unless the edge has one of its own.
EDGE_URL = env.str("EDGE_URL", default=SITE_URL).rstrip("/")
_hosts = {urlsplit(SITE_URL).hostname or "", urlsplit(EDGE_URL).hostname or ""}
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=sorted(_hosts | {"127.0.0.1", "localhost"}))
CSRF_TRUSTED_ORIGINS = [SITE_URL]
_https = SITE_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
SECURE_SSL_REDIRECT = env.bool("SECURE_SSL_REDIRECT", default=_https)
SECURE_HSTS_SECONDS = env.int("SECURE_HSTS_SECONDS", default=31_536_000 if _https else 0)
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.bool("SECURE_HSTS_INCLUDE_SUBDOMAINS", default=False)
SECURE_HSTS_PRELOAD = env.bool("SECURE_HSTS_PRELOAD", default=False)
# How many proxies in front of us may be believed about the client's address.
TRUSTED_PROXIES = env.int("TRUSTED_PROXIES", default=0)
if TRUSTED_PROXIES:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "SAMEORIGIN"
# The composer shows its preview in a frame of this very site.
SILENCED_SYSTEM_CHECKS = ["security.W019"]

# Applications --------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "anymail",
    "newsletter",
    "subscribers",
    "campaigns",
    "tracking",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "newsletter.urls"
WSGI_APPLICATION = "newsletter.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "admin:login"
# Unfold's login form opened directly has no `next`; without this it ends at /accounts/profile/.
LOGIN_REDIRECT_URL = reverse_lazy("admin:index")
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]

# PostgreSQL ----------------------------------------------------------------------------------------------
try:
    DATABASES = {
        "default": environment.database(
            env.str("DATABASE_URL", default="postgres://newsletter@127.0.0.1:5432/newsletter"),
            pool=env.int("DATABASE_POOL", default=8),
        )
    }
except ValueError as error:
    raise ImproperlyConfigured(str(error)) from error
ATOMIC_REQUESTS = False

# Valkey: broker, stream and cache are three databases (or servers) ------------------------------------------
REDIS_URL = env.str("REDIS_URL", default="redis://127.0.0.1:6379")
STREAM_URL = env.str("STREAM_URL", default=environment.redis_database(REDIS_URL, 0))
BROKER_URL = env.str("BROKER_URL", default=environment.redis_database(REDIS_URL, 1))
CACHE_URL = env.str("CACHE_URL", default=environment.redis_database(REDIS_URL, 2))
CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": CACHE_URL}}

# Celery: rows are the queue, messages are hints, so tasks are acknowledged early and nothing is kept ------------
CELERY_BROKER_URL = environment.celery_broker(BROKER_URL)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = False
# Batches give way to all other tasks (0 comes first): the many of a long campaign must not keep a confirmation, the
# next launch or the sweep waiting.
CELERY_TASK_ROUTES = {"campaigns.send_batch": {"priority": 9}}
# Celery would end the whole pool of database connections after each task; celery.py gives them back instead.
CELERY_DB_REUSE_MAX = 1_000_000_000
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False  # a traceback would become a log line a word
CELERY_TIMEZONE = "UTC"

# Mail ------------------------------------------------------------------------------------------------------
EMAIL_URL = env.str("EMAIL_URL", default="smtp://127.0.0.1:25")
ANYMAIL = {"WEBHOOK_SECRET": env.str("ANYMAIL_WEBHOOK_SECRET", default="")} if "ANYMAIL_WEBHOOK_SECRET" in env else {}
try:
    MAIL_TRANSPORT = environment.email_url(EMAIL_URL)
    ANYMAIL.update(environment.anymail_settings(MAIL_TRANSPORT))
    EMAIL_BACKEND = environment.email_backend(MAIL_TRANSPORT)
except ValueError as error:
    raise ImproperlyConfigured(str(error)) from error
EMAIL_TIMEOUT = 30
# The envelope sender by VERP is bounce+TOKEN@…; without a mailbox for it, mail bounces to the sender's own address.
BOUNCE_ADDRESS = env.str("BOUNCE_ADDRESS", default="")
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", default="newsletter@localhost")
# What newsletter/dns.py looks for and whom it asks ("address" or "address:port"; empty: the system's resolver).
DKIM_SELECTOR = env.str("DKIM_SELECTOR", default="")
# What we sign with under that selector, where the mail server does not: a file, or a folder of files DOMAIN.pem.
DKIM_KEY_FILE = env.str("DKIM_KEY_FILE", default="")
try:
    DKIM_KEYS = environment.dkim_keys(
        path=DKIM_KEY_FILE, pem=env.str("DKIM_PRIVATE_KEY", default=""), selector=DKIM_SELECTOR
    )
except ValueError as error:
    raise ImproperlyConfigured(f"{error}.") from error
DNS_SERVERS = env.list("DNS_SERVERS", default=[])

# The house's own rules ---------------------------------------------------------------------------------------
BATCH_SIZE = env.int("BATCH_SIZE", default=2_000)  # most recipients of one Celery task
UNDO_SEND_SECONDS = env.int("UNDO_SEND_SECONDS", default=60)  # what the admin sends can be taken back so long
BATCH_LEASE_SECONDS = env.int("BATCH_LEASE_SECONDS", default=120)
# A campaign pauses itself at so many failures of the transport in a row, and past so many bounces or complaints of a
# hundred mails once so many were sent; 0 switches one off. Gmail's guidelines ask for less than 0.3 % complaints.
BREAKER_FAILURES = env.int("BREAKER_FAILURES", default=20)
BREAKER_BOUNCE_PERCENT = env.float("BREAKER_BOUNCE_PERCENT", default=5.0)
BREAKER_BOUNCE_AFTER = env.int("BREAKER_BOUNCE_AFTER", default=200)
BREAKER_COMPLAINT_PERCENT = env.float("BREAKER_COMPLAINT_PERCENT", default=0.3)
BREAKER_COMPLAINT_AFTER = env.int("BREAKER_COMPLAINT_AFTER", default=500)
SETTLING_SECONDS = env.int("SETTLING_SECONDS", default=300)  # a verdict is provisional until then
OPPORTUNITY_HOURS = env.int("OPPORTUNITY_HOURS", default=72)  # a campaign counts for hygiene after this
CONFIRMATION_DAYS = 7

# Languages, files, logs ------------------------------------------------------------------------------------
LANGUAGE_CODE = env.str("LANGUAGE_CODE", default="en")
LANGUAGES = [("en", _("English"))]
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
USE_TZ = True
USE_I18N = True
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "static"]
# Without DEBUG whitenoise serves what collectstatic gathered; a laptop needs no such step.
WHITENOISE_USE_FINDERS = DEMO
WHITENOISE_AUTOREFRESH = False
MEDIA_ROOT = env.str("MEDIA_ROOT", default=str(DATA_DIR / "media"))
MEDIA_URL = "media/"
FILE_UPLOAD_PERMISSIONS = 0o640

UNFOLD = {
    "SITE_TITLE": _("Newsletter"),
    "SITE_HEADER": _("Newsletter"),
    "SITE_SYMBOL": "mail",
    "SHOW_HISTORY": True,
    "DASHBOARD_CALLBACK": "newsletter.dashboard.dashboard",
    "SIDEBAR": {"navigation": "newsletter.navigation.navigation"},
    "STYLES": [lambda request: static("admin-ui/admin.css")],
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("admin-ui/icon.svg")},
    ],
    "COLORS": {
        "primary": {
            "50": "240 253 244",
            "100": "220 252 231",
            "200": "187 247 208",
            "300": "134 239 172",
            "400": "74 222 128",
            "500": "34 160 84",
            "600": "22 128 66",
            "700": "21 101 56",
            "800": "22 78 47",
            "900": "20 64 40",
            "950": "5 40 22",
        }
    },
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env.str("LOG_LEVEL", default="INFO")},
    # A line for each periodic task would hide what matters; a task that fails is still logged.
    "loggers": {name: {"level": "WARNING"} for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat")},
}
