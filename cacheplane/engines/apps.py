from django.apps import AppConfig


class EnginesConfig(AppConfig):
    name = "cacheplane.engines"
    label = "engines"
