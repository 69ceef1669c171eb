from django.apps import AppConfig


class CacheplaneConfig(AppConfig):
    """Carries the system checks and the management commands; owns no table."""

    name = "cacheplane"

    def ready(self) -> None:
        from cacheplane import checks  # noqa: F401  (registers the checks)
