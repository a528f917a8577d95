"""The addresses of an installation that was started as a demo."""

from django.urls import include, path

urlpatterns = [path("", include("newsletter.urls")), path("", include("newsletter.demo.urls"))]
