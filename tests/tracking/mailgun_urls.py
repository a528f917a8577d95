"""Addresses of an installation that sends by Mailgun."""

from django.urls import include, path

from tracking import providers

SIGNING_KEY = "a-signing-key"

urlpatterns = [
    path("", include("newsletter.urls")),
    *providers.webhook_patterns({"MAILGUN_WEBHOOK_SIGNING_KEY": SIGNING_KEY}),
]
