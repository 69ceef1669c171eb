from django.apps import AppConfig


class CachingConfig(AppConfig):
    name = "cacheplane.caching"
    label = "caching"
