from django.urls import path

from campaigns import views

urlpatterns = [path("w/<str:token>", views.web_version, name="web-version")]
