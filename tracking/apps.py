from django.apps import AppConfig


class TrackingConfig(AppConfig):
    name = "tracking"

    def ready(self) -> None:
        """Fill the registries of the apps below with what only tracking knows."""
        from tracking import reaching_down

        reaching_down.register()
