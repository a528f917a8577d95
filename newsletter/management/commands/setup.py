"""manage.py setup [--owner ADDRESS --list-name NAME --from ADDRESS --postal-address TEXT …] [--json]"""

import getpass
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from newsletter.commands import JsonCommand
from newsletter.dns import Record
from newsletter.firstrun import founding, sending
from newsletter.firstrun.founding import Answers, BadAnswer, Founded

# Option → question; asked only of a person at a terminal.
QUESTIONS = {
    "owner": "Your e-mail address (you log in with it)",
    "list_name": "Name of the newsletter",
    "sender": "Its mail comes from (an address at your domain)",
    "postal_address": "Postal address (it stands below every mail)",
}


class Command(JsonCommand):
    help = (
        "Make the owner, the sender and a first list; show what the DNS lacks. What is not given is asked for at a "
        "terminal. The password comes from SETUP_PASSWORD, is asked for, or else is made up and shown once. "
        "The same answers again change nothing."
    )
    refusals = (BadAnswer,)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--owner", default="", metavar="ADDRESS", help="who may do everything; the login's name")
        parser.add_argument("--list-name", default="", metavar="NAME", help="the newsletter's name")
        parser.add_argument("--slug", default="", help="its short name in addresses; made from the name without")
        parser.add_argument("--from", dest="sender", default="", metavar="ADDRESS", help="whom its mail comes from")
        parser.add_argument("--sender-name", default="", metavar="NAME", help="the list's name without")
        parser.add_argument("--postal-address", default="", metavar="TEXT", help="stands below every mail")
        parser.add_argument("--selector", default="", help="the DKIM selector that your mail server signs with")
        parser.add_argument("--test-mail", default="", metavar="ADDRESS", help="send a test mail there")
        parser.add_argument("--skip-dns", action="store_true", help="do not look the DNS records up")

    def run(self, **options: Any) -> dict[str, Any]:
        given = self._answered(options)
        password, is_made_up = self._password(given["owner"])
        made = founding.found(
            Answers(
                owner_email=given["owner"],
                password=password,
                list_name=given["list_name"],
                sender_email=given["sender"],
                postal_address=given["postal_address"],
                sender_name=options["sender_name"],
                slug=options["slug"],
            )
        )
        selector = options["selector"]
        records = [] if options["skip_dns"] else sending.records(made.sender, selector=selector, refresh=True)
        result = self._result(made, records, password=password if is_made_up and made.is_new else "")
        return {**result, **self._tested(made, options["test_mail"])}

    def _answered(self, options: dict[str, Any]) -> dict[str, str]:
        answers = {name: str(options[name]).strip() for name in QUESTIONS}
        for name, question in QUESTIONS.items():
            if not answers[name] and sys.stdin.isatty() and not options["json"]:
                answers[name] = input(f"{question}: ").strip()
        missing = [
            f"--{'from' if name == 'sender' else name.replace('_', '-')}" for name in QUESTIONS if not answers[name]
        ]
        if missing:
            raise BadAnswer("", f"Missing: {', '.join(missing)}.")
        return answers

    def _password(self, owner: str) -> tuple[str, bool]:
        """The owner's password, and whether it was made up here. One who is there already keeps theirs."""
        given = os.environ.get("SETUP_PASSWORD", "")
        if given or founding.has_owner(owner):
            return given, False
        if sys.stdin.isatty():
            given = getpass.getpass("A password (empty: one is made up): ")
        return (given, False) if given else (secrets.token_urlsafe(15), True)

    def _tested(self, made: Founded, to: str) -> dict[str, Any]:
        """A mail that does not leave is said, not refused: the rest is made, and a made-up password must be shown."""
        if not to:
            return {}
        try:
            return {"test_mail": sending.send_test(made.sender, to)}
        except sending.NotSent as error:
            return {"test_mail": None, "test_mail_error": str(error)}

    def _result(self, made: Founded, records: Sequence[Record], *, password: str) -> dict[str, Any]:
        return {
            "owner": made.owner.get_username(),
            "created": made.is_new,
            "sender": made.sender.email,
            "list": made.list.slug,
            **({"password": password} if password else {}),
            "dns": [{**asdict(record), "standing": str(record.standing)} for record in records],
        }

    def summary(self, result: dict[str, Any]) -> str:
        lines = [
            f"Owner   {result['owner']}" + ("" if result["created"] else " (was there already)"),
            *([f"        password {result['password']} (shown only now)"] if "password" in result else []),
            f"Sender  {result['sender']}",
            f"List    {result['list']}",
        ]
        for record in result["dns"]:
            lines.append(f"{record['kind']:<7} {record['standing']}: {record['message']}")
            if record["standing"] != "ok":
                lines.append(f"        publish at {record['host']}  {record['type']}  {record['publish']}")
        if "test_mail" in result:
            lines.append(result.get("test_mail_error") or f"A test mail is on its way to {result['test_mail']}.")
        return "\n".join(lines)
