"""Pixel, links and the providers' webhooks. Included at the root: mails hold these addresses."""

from django.conf import settings
from django.urls import re_path

from tracking import providers, views

app_name = "tracking"
urlpatterns = [
    re_path(r"^o/", views.edge, name="pixel"),
    re_path(r"^c/", views.edge, name="click"),
    *providers.webhook_patterns(settings.ANYMAIL),
]
