"""The addresses that subscribers see. Those with a token stand in mails already sent: never change them."""

from django.urls import path

from subscribers import views

app_name = "subscribers"
urlpatterns = [
    path("", views.home, name="home"),
    path("subscribe/<slug:slug>/", views.subscribe, name="subscribe"),
    path("confirm/<str:token>", views.confirm, name="confirm"),
    path("u/<str:token>", views.unsubscribe, name="unsubscribe"),
    path("p/<str:token>", views.preferences, name="preferences"),
]
