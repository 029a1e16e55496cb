"""Requests for UserRealtime resources."""

from __future__ import annotations

from userrealtime_operator.kube.client import Api, ApiError
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.resource import USERREALTIMES


async def patch_status(api: Api, namespace: str, name: str, status: Object) -> None:
    """Replace the named fields of a resource's status. Do nothing if the resource does not exist.

    Raises:
        ApiError: the API server rejected the status, or did not answer.
    """
    try:
        await api.merge_status(*USERREALTIMES, namespace, name, {"status": status})
    except ApiError as error:
        if error.status != 404:
            raise


async def resource_uids(api: Api, namespace: str) -> set[str]:
    """Return the uids of all resources of a namespace.

    Raises:
        ApiError: the API server did not answer.
    """
    return await api.uids(*USERREALTIMES, namespace)
