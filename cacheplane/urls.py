"""Routes. `/v1/chat/completions` is not here: `cacheplane.asgi` serves it on the hot path."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView
from rest_framework.renderers import JSONOpenAPIRenderer

from cacheplane.api import (
    billing,
    caching,
    estimates,
    health,
    models,
    sandbox,
    savings,
    statements,
    tags,
    transfers,
    usage,
    users,
    webhooks,
)

handler400 = "cacheplane.api.exceptions.bad_request"
handler404 = "cacheplane.api.exceptions.page_not_found"
handler500 = "cacheplane.api.exceptions.server_error"


class Schema(SpectacularAPIView):
    renderer_classes = [JSONOpenAPIRenderer]
    authentication_classes: list[type] = []


class SchemaPage(SpectacularSwaggerView):
    authentication_classes: list[type] = []


urlpatterns = [
    path("livez", health.livez),
    path("readyz", health.readyz),
    path("admin/", admin.site.urls),
    path("v1/schema", Schema.as_view(), name="schema"),
    path("v1/schema/page", SchemaPage.as_view(url_name="schema"), name="schema-page"),
    path("v1/caching", caching.CachingList.as_view()),
    path("v1/caching/estimate", estimates.CachingEstimate.as_view()),
    path("v1/caching/<str:cache_id>", caching.CachingDetail.as_view()),
    path("v1/caching/<str:cache_id>/events", caching.CachingEvents.as_view()),
    path("v1/webhooks", webhooks.WebhookList.as_view()),
    path("v1/webhooks/<str:endpoint_id>", webhooks.WebhookDetail.as_view()),
    path("v1/webhooks/<str:endpoint_id>/test", webhooks.WebhookTest.as_view()),
    path("v1/webhooks/<str:endpoint_id>/rotate-secret", webhooks.WebhookRotation.as_view()),
    path("v1/webhooks/<str:endpoint_id>/deliveries", webhooks.WebhookDeliveries.as_view()),
    path("v1/caching/refs/tags", tags.TagList.as_view()),
    path("v1/caching/refs/tags/<str:tag>", tags.TagDetail.as_view()),
    path("v1/caching/refs/tags/<str:tag>/content", tags.TagContent.as_view()),
    path("v1/caching/refs/tags/<str:tag>/history", tags.TagHistory.as_view()),
    path("v1/models", models.ModelList.as_view()),
    path("v1/models/<str:name>", models.ModelDetail.as_view()),
    path("v1/tokenizers/estimate-token-count", models.EstimateTokenCount.as_view()),
    path("v1/users/me/balance", users.Balance.as_view()),
    path("v1/billing/balance", billing.BillingBalance.as_view()),
    path("v1/billing/prices", billing.BillingPrices.as_view()),
    path("v1/billing/transfers", transfers.BillingTransfers.as_view()),
    path("v1/billing/usage", usage.BillingUsage.as_view()),
    path("v1/billing/savings", savings.BillingSavings.as_view()),
    path("v1/billing/statements", statements.BillingStatements.as_view()),
    path("v1/billing/statements/<str:month>", statements.BillingStatement.as_view()),
    path("v1/billing/invoices", statements.BillingInvoices.as_view()),
    path("v1/sandbox/clock", sandbox.SandboxClock.as_view()),
]
