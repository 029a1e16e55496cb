"""Login of kopf to the API server."""

from __future__ import annotations

import dataclasses
import os
import ssl
from typing import Any

import kopf

from userrealtime_core.trust import accept_minimal, kept_current


class Connection(kopf.ConnectionInfo):
    """kopf's way to the API server, with the trust that `userrealtime_core.trust` describes."""

    def as_ssl_context(self) -> ssl.SSLContext:
        """Return the context that kopf connects with."""
        context = accept_minimal(super().as_ssl_context())
        return context if self.ca_path is None else kept_current(context, os.fsdecode(self.ca_path))


def login(**kwargs: Any) -> Connection | None:
    """Return the connection of the pod's service account, else that of the kubeconfig; None if there is neither.

    A handler of `kopf.on.login`.
    """
    found = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
    if found is None:
        return None
    return Connection(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})
