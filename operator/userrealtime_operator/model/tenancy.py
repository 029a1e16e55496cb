"""What a resource may select for itself: only the images and hosts that the platform allows. Pure.

The operator creates pods and routes with its own rights. Without these limits, the right to write a resource would
include the right to run any image and to receive the traffic of any host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .errors import ResourceError

IMAGE_PATTERN: Final = r"[^\s*]+\*?|\*"
"""A regular expression of an entry in `relay.allowedImages`, which values.schema.json contains too."""
HOST_PATTERN: Final = r"\*|(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
"""A regular expression of an entry in `route.allowedHosts`, which values.schema.json contains too."""


class ImageNotAllowed(ResourceError):
    """The platform does not allow the image of a resource."""

    reason = "ImageNotAllowed"


class HostNotAllowed(ResourceError):
    """The platform does not allow the host in the URL of a resource."""

    reason = "RouteNotAllowed"


def check_image(image: str | None, allowed: Sequence[str]) -> None:
    """Check the image that a resource selects. An entry that ends in `*` allows all images that begin with the rest.

    Raises:
        ImageNotAllowed: no entry allows it.
    """
    if image is None or any(
        image.startswith(entry[:-1]) if entry.endswith("*") else image == entry for entry in allowed
    ):
        return
    raise ImageNotAllowed(
        "spec.relay.image is not allowed on this platform: remove the field, or add the image to relay.allowedImages "
        "in the chart's values"
    )


def check_host(host: str, allowed: Sequence[str]) -> None:
    """Check the host of the URL that a resource selects.

    `*.example.com` allows all hosts with one more label, and `*` allows all hosts.

    Raises:
        HostNotAllowed: no entry allows it.
    """
    _, _, parent = host.partition(".")
    if any(entry in ("*", host) or (parent and entry == f"*.{parent}") for entry in allowed):
        return
    raise HostNotAllowed(
        "spec.route.url is not allowed on this platform: remove the field, or add the host to route.allowedHosts in "
        "the chart's values"
    )
