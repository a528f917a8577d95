from django.apps import AppConfig


class CampaignsConfig(AppConfig):
    name = "campaigns"

    def ready(self) -> None:
        """Fill the registries of the apps below with what only campaigns know."""
        from campaigns import reaching_down

        reaching_down.register()
