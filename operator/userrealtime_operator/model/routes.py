"""The public URL of a user: one template says scheme, host, port and path of every route.

`https://realtime.example.com/{name}` gives each user a path, `https://{name}.realtime.example.com` a host; `{name}` is
the name of the user's objects. `{namespace}` tells namespaces apart, where several may have a resource of the same
user.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_HOST = r"[a-z0-9{]([-a-z0-9.{}]*[a-z0-9}])?"
_PORT = r"[0-9]{1,5}"
_PATH = r"(/[A-Za-z0-9._~{}-]+)*"
URL: Final = rf"https?://{_HOST}(:{_PORT})?{_PATH}/?"
"""A regular expression, which the CRD and the chart's values.schema.json contain too."""
_PARTS = re.compile(rf"(?P<scheme>https?)://(?P<host>{_HOST})(:(?P<port>{_PORT}))?(?P<path>{_PATH})/?")


class RouteError(ValueError):
    """The URL template cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Route:
    """A URL in parts. `path` has no slash at its end: it is empty for the whole host."""

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def url(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.path}"

    def of(self, namespace: str, name: str) -> Route:
        """The route of one user, the placeholders replaced."""

        def filled(text: str) -> str:
            return text.replace("{namespace}", namespace).replace("{name}", name)

        return Route(self.scheme, filled(self.host), self.port, filled(self.path))


def parse_url(url: str) -> Route:
    """The parts of a URL, which may hold `{name}` and `{namespace}`.

    Raises:
        RouteError: not a URL of the form.
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
    """The parts of a URL that serves all users.

    Raises:
        RouteError: not a URL of the form, or one without `{name}`, which all users would share.
    """
    route = parse_url(template)
    if "{name}" not in route.host + route.path:
        raise RouteError("must contain {name} in its host or path, because each user needs a different URL")
    return route
