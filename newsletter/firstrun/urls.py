"""The addresses of the first run."""

from django.urls import path

from newsletter.firstrun import views

urlpatterns = [
    path("", views.first_run, name="setup"),
    path("domain/", views.domain, name="setup-domain"),
]
