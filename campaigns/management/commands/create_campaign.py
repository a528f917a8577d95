"""`manage.py create_campaign --list SLUG --subject S --body FILE.md [--format FORMAT]`: a draft from a file."""

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db import transaction

from campaigns import composing
from campaigns.errors import CampaignError
from campaigns.models import MailTemplate
from newsletter.commands import JsonCommand, Refusal
from newsletter.mailing.compiling import FORMATS
from newsletter.mailing.headers import one_line
from subscribers.models import List


class Command(JsonCommand):
    help = "Make a draft campaign of a list from a Markdown, MJML or HTML file."
    refusals = (CampaignError,)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--list", required=True, metavar="SLUG")
        parser.add_argument("--subject", required=True)
        parser.add_argument("--preheader", default="")
        parser.add_argument("--body", required=True, metavar="FILE.md")
        parser.add_argument(
            "--format",
            choices=FORMATS,
            help="how the file is written; by its ending (.mjml, .html) or else Markdown unless told",
        )
        parser.add_argument("--layout", metavar="SLUG", help="a layout's short name; “letter” unless told")

    def run(self, **options: Any) -> dict[str, Any]:
        composing.default_layout()
        of_list = List.objects.filter(slug=options["list"]).first()
        if of_list is None:
            raise Refusal(f"There is no list “{options['list']}”.")
        layout = MailTemplate.objects.filter(slug=options["layout"] or composing.DEFAULT_LAYOUT).first()
        if layout is None:
            raise Refusal(f"There is no layout “{options['layout']}”.")
        if not one_line(options["subject"]):
            raise Refusal("The subject is empty.")
        try:
            body = Path(options["body"]).read_text(encoding="utf-8")
        except OSError as error:
            raise Refusal(f"The text {options['body']} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise Refusal(f"The text {options['body']} is not UTF-8.") from error
        if not body.strip():
            raise Refusal(f"The text {options['body']} is empty.")
        with transaction.atomic():
            campaign = composing.create(
                list=of_list,
                subject=options["subject"],
                preheader=options["preheader"],
                body=body,
                layout=layout,
                format=options["format"] or _format_of(options["body"]),
            )
            composing.compile_campaign(campaign)  # a text that cannot become a mail leaves no draft behind
        return {"campaign": campaign.pk}

    def summary(self, result: dict[str, Any]) -> str:
        return f"Campaign {result['campaign']} is a draft now."


def _format_of(name: str) -> str:
    return {".mjml": "mjml", ".html": "html", ".htm": "html"}.get(Path(name).suffix.lower(), "markdown")
