from django.apps import AppConfig


class KvConfig(AppConfig):
    name = "cacheplane.kv"
    label = "kv"
    verbose_name = "KV"
