"""`make run`'s preparation in one process: tables, the admin's login, the demo."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, call_command, get_commands


class Command(BaseCommand):
    help = "Migrates, makes the login `admin` if there is none and loads the demo. Used by `make run`; safe to repeat."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--password-file", type=Path, required=True, help="holds the admin's first password")
        parser.add_argument("--without-demo", action="store_true", help="the demo was loaded before")

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        users = get_user_model()._default_manager
        if not users.filter(username="admin").exists():
            password = options["password_file"].read_text(encoding="utf-8").strip()
            users.create_superuser(username="admin", email="admin@localhost", password=password)
            self.stdout.write("made the login “admin”")
        if settings.DEMO and not options["without_demo"] and "load_demo" in get_commands():
            call_command("load_demo", stdout=self.stdout)
