"""The demo's addresses; newsletter/urls.py mounts them only where settings.DEMO is on."""

from django.urls import path

from newsletter.demo import views

urlpatterns = [
    path("inbox/", views.show, name="inbox"),
    path("inbox/count", views.count, name="inbox-count"),
    path("inbox/<int:message_id>/", views.show, name="inbox-message"),
    path("inbox/<int:message_id>/html", views.frame, name="inbox-frame"),
    path("inbox/<int:message_id>/unsubscribe", views.unsubscribe, name="inbox-unsubscribe"),
]
