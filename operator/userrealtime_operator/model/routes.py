"""The public URL of a user, from a template with the scheme, host, port and path of all routes.

`https://realtime.example.com/{name}` gives each user a path, and `https://{name}.realtime.example.com` a host. `{name}`
is the name of the user's objects. `{namespace}` distinguishes users with the same userId in several namespaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .errors import ResourceError

_HOST = r"[a-z0-9{]([-a-z0-9.{}]*[a-z0-9}])?"
_PORT = r"[0-9]{1,5}"
_PATH = r"(/[A-Za-z0-9._~{}-]+)*"
URL: Final = rf"https?://{_HOST}(:{_PORT})?{_PATH}/?"
"""A regular expression, which the CRD and the chart's values.schema.json also contain."""
_PARTS = re.compile(rf"(?P<scheme>https?)://(?P<host>{_HOST})(:(?P<port>{_PORT}))?(?P<path>{_PATH})/?")


class RouteError(ResourceError):
    """A URL or a URL template cannot be used; the message has the reason."""

    reason = "InvalidRoute"


@dataclass(frozen=True, slots=True)
class Route:
    """The parts of a URL. `path` has no trailing slash, and is empty for the whole host."""

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def url(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.path}"

    def of(self, namespace: str, name: str) -> Route:
        """Return the route of one user, with the placeholders replaced."""

        def filled(text: str) -> str:
            return text.replace("{namespace}", namespace).replace("{name}", name)

        return Route(self.scheme, filled(self.host), self.port, filled(self.path))


def parse_url(url: str) -> Route:
    """Return the parts of a URL, which can contain `{name}` and `{namespace}`.

    Raises:
        RouteError: the URL is invalid.
    """
    match = _PARTS.fullmatch(url)
    if match is None:
        raise RouteError(
            "must be http(s)://host[:port][/path] with a host in lower case and a path of unreserved characters"
        )
    if not set(re.findall(r"\{[^}]*\}?|\}", url)) <= {"{name}", "{namespace}"}:
        raise RouteError("has an unknown placeholder; only {name} and {namespace} are supported")
    return Route(match["scheme"], match["host"], int(match["port"]) if match["port"] else None, match["path"])


def parse_url_template(template: str) -> Route:
    """Return the parts of the URL template for all users.

    Raises:
        RouteError: the URL is invalid or does not contain `{name}`.
    """
    route = parse_url(template)
    if "{name}" not in route.host + route.path:
        raise RouteError("must contain {name} in its host or path, because each user needs a different URL")
    return route
