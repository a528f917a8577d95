"""manage.py dkim_key DOMAIN [--selector NAME] [--ed25519] [--file PATH] [--json]"""

import re
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from newsletter.commands import JsonCommand
from newsletter.dns import DKIM_SUFFIX, ascii_domain
from newsletter.env import DATA_DIR
from newsletter.mailing import signing

DEFAULT_SELECTOR = "news1"
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")
_PIECE = 255  # characters of one string in a TXT record


class Command(JsonCommand):
    help = (
        "Make a key that signs a domain's mail by DKIM, for a mail server that does not sign, and show the DNS record "
        "and the settings that go with it. A key that is there already is kept and shown."
    )
    refusals = (signing.KeyProblem,)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("domain", help="the domain of the sender's address")
        parser.add_argument("--selector", default="", help=f"its name in the DNS; DKIM_SELECTOR or {DEFAULT_SELECTOR}")
        parser.add_argument("--ed25519", action="store_true", help="short and fast, but few receivers verify it yet")
        parser.add_argument("--file", default="", metavar="PATH", help=f"without: {DATA_DIR / 'dkim'}/DOMAIN.pem")

    def run(self, **options: Any) -> dict[str, Any]:
        domain = ascii_domain(options["domain"])
        if not _DOMAIN.fullmatch(domain):
            raise signing.KeyProblem(f"“{options['domain']}” is no domain such as example.org")
        selector = options["selector"] or settings.DKIM_SELECTOR or DEFAULT_SELECTOR
        signing.check_selector(selector)
        path = Path(options["file"] or DATA_DIR / "dkim" / f"{domain}.pem").absolute()
        key, is_new = signing.key_at(path, ed25519=options["ed25519"])
        named = path if options["file"] else path.parent
        return {
            "file": str(path),
            "is_new": is_new,
            "host": f"{selector}.{DKIM_SUFFIX}.{domain}",
            "type": "TXT",
            "value": signing.record_of(key),
            "settings": {"DKIM_SELECTOR": selector, "DKIM_KEY_FILE": str(named)},
        }

    def summary(self, result: dict[str, Any]) -> str:
        value = result["value"]
        pieces = " ".join(f'"{value[at : at + _PIECE]}"' for at in range(0, len(value), _PIECE))
        wanted = "\n".join(f"  {name}={setting}" for name, setting in result["settings"].items())
        return (
            f"{'Made' if result['is_new'] else 'Kept'} {result['file']}.\n\n"
            f"1. Publish this record (TXT) at {result['host']}:\n  {value}\n"
            f"   In a zone file:\n  {result['host']}. IN TXT {pieces}\n\n"
            f"2. When it is there, set these and start all processes again:\n{wanted}"
        )
