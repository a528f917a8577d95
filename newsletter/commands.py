"""What the commands of the contract share: one JSON object with --json, a sentence without, exit 2 on bad input."""

import json
from datetime import datetime
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper
from django.utils.dateparse import parse_datetime
from django.utils.timezone import get_default_timezone_name, is_naive, make_aware


class Refusal(CommandError):
    """Bad input: one clear line on standard error, exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()), returncode=2)


class OneLineParser(CommandParser):
    """Says what is wrong with the arguments in one line, without the usage before it."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        for argument in args or ():
            if not is_text(argument):
                self.error(f"the argument {argument!a} is not UTF-8 text")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if not self.called_from_command_line:
            super().error(message)
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def is_text(argument: str) -> bool:
    """Whether a database can keep it: bytes of a shell that are no UTF-8 arrive as halves of characters."""
    return "\0" not in argument and argument.encode(errors="ignore").decode() == argument


def one_line_errors(parser: CommandParser) -> None:
    """Let this parser, and those of subcommands made after this call, say errors in one line."""
    # Django makes the parser itself and asks only for arguments, so that this is the place to choose its class.
    parser.__class__ = OneLineParser


class JsonCommand(BaseCommand):
    """A command whose `run` returns the JSON object of the contract; domain errors of `refusals` become exit 2."""

    refusals: tuple[type[Exception], ...] = ()

    def add_arguments(self, parser: CommandParser) -> None:
        one_line_errors(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            result = self.run(**options)
        except self.refusals as error:
            raise Refusal(str(error)) from error
        self.stdout.write(json.dumps(result, ensure_ascii=False) if options["json"] else self.summary(result))

    def run(self, **options: Any) -> dict[str, Any]:
        """Do it and return what --json prints."""
        raise NotImplementedError

    def summary(self, result: dict[str, Any]) -> str:
        """The same for people."""
        return "\n".join(f"{name}: {value}" for name, value in result.items())


class Bar:
    """How far something is, on one line of a terminal; nothing where standard error is none (a file, a pipe)."""

    WIDTH = 30

    def __init__(self, stderr: OutputWrapper) -> None:
        self._stderr = stderr
        self.is_shown = stderr.isatty()

    def show(self, done: int, total: int, pace: str) -> None:
        """Draw it anew; `pace` says how fast and how long."""
        if self.is_shown:
            full = self.WIDTH * done // total if total else 0
            drawn = "█" * full + "░" * (self.WIDTH - full)
            self._stderr.write(f"\r\x1b[K{drawn} {done:,} of {total:,}  {pace}", ending="")
            self._stderr.flush()

    def clear(self) -> None:
        if self.is_shown:
            self._stderr.write("\r\x1b[K", ending="")


def moment(text: str, *, stderr: OutputWrapper) -> datetime:
    """A moment as an option names it. Without a time zone it is the installation's, which is said on standard error.

    Raises Refusal.
    """
    try:
        found = parse_datetime(text)
    except ValueError:
        found = None
    if found is None:
        raise Refusal(f"“{text}” is not a time such as 2027-03-01T08:00+01:00.")
    if not is_naive(found):
        return found
    stderr.write(f"“{text}” names no time zone; it is taken as {get_default_timezone_name()}.")
    return make_aware(found)
