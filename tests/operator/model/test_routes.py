"""URL templates."""

from __future__ import annotations

import pytest

from userrealtime_operator.model.routes import Route, RouteError, parse_url, parse_url_template


@pytest.mark.parametrize(
    ("template", "url", "parts"),
    [
        ("http://localhost/{name}", "http://localhost/n1", Route("http", "localhost", None, "/n1")),
        ("https://{name}.rt.example.com", "https://n1.rt.example.com", Route("https", "n1.rt.example.com", None, "")),
        ("https://h:8443/u/{name}/", "https://h:8443/u/n1", Route("https", "h", 8443, "/u/n1")),
        (
            "https://{name}-{namespace}.example.com",
            "https://n1-users.example.com",
            Route("https", "n1-users.example.com", None, ""),
        ),
    ],
)
def test_a_template_gives_each_user_a_route(template: str, url: str, parts: Route) -> None:
    route = parse_url_template(template).of("users", "n1")
    assert route == parts
    assert route.url == url


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("localhost/{name}", "must be http"),
        ("ftp://localhost/{name}", "must be http"),
        ("http://Localhost/{name}", "must be http"),
        ("http://localhost/{name}?x=1", "must be http"),
        ("http://localhost//{name}", "must be http"),
        ("http://localhost/ü/{name}", "must be http"),
        ("http://localhost/", r"must contain \{name\}"),
        ("http://localhost/{user}/{name}", r"has an unknown placeholder"),
        ("http://localhost/{name", r"has an unknown placeholder"),
    ],
)
def test_what_cannot_be_a_template_is_explained(template: str, complaint: str) -> None:
    with pytest.raises(RouteError, match=complaint):
        parse_url_template(template)


def test_a_url_of_ones_own_needs_no_placeholder() -> None:
    assert parse_url("https://alice.example.com").of("users", "n1").url == "https://alice.example.com"
