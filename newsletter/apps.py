"""The project's own app: checks, commands and the wiring of flows."""

from django.apps import AppConfig


class NewsletterConfig(AppConfig):
    name = "newsletter"

    def ready(self) -> None:
        from newsletter import checks, flows  # noqa: F401  (registering is their import)
