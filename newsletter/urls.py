"""Addresses: each app brings its own; what only a demo has is mounted only there."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("setup/", include("newsletter.firstrun.urls")),
    path("", include("subscribers.urls")),
    path("", include("campaigns.urls")),
    path("", include("tracking.urls")),
]
if settings.DEMO:
    urlpatterns.append(path("", include("newsletter.demo.urls")))
