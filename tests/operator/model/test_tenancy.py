"""Which images and hosts a resource may select."""

from __future__ import annotations

import re

import pytest

from userrealtime_operator.model.tenancy import (
    HOST_PATTERN,
    IMAGE_PATTERN,
    HostNotAllowed,
    ImageNotAllowed,
    check_host,
    check_image,
)


@pytest.mark.parametrize(
    ("image", "allowed", "accepted"),
    [
        (None, (), True),
        ("relay:2", (), False),
        ("relay:2", ("relay:2",), True),
        ("relay:20", ("relay:2",), False),
        ("relay:2", ("other:1", "relay:*"), True),
        ("relay-of-mallory:2", ("relay:*",), False),
        ("registry.example.com/relay@sha256:ab", ("registry.example.com/*",), True),
        ("registry.example.com.evil.example/relay", ("registry.example.com/*",), False),
        ("anything", ("*",), True),
        ("", ("relay:*",), False),
    ],
)
def test_images(image: str | None, allowed: tuple[str, ...], accepted: bool) -> None:
    assert all(re.fullmatch(IMAGE_PATTERN, entry) for entry in allowed)
    if accepted:
        check_image(image, allowed)
    else:
        with pytest.raises(ImageNotAllowed, match=r"spec\.relay\.image .* relay\.allowedImages"):
            check_image(image, allowed)


@pytest.mark.parametrize(
    ("host", "allowed", "accepted"),
    [
        ("alice.example.com", (), False),
        ("alice.example.com", ("alice.example.com",), True),
        ("alice.example.com", ("example.com",), False),
        ("alice.example.com", ("*.example.com",), True),
        ("example.com", ("*.example.com",), False),
        ("a.alice.example.com", ("*.example.com",), False),
        ("example.com.evil.example", ("*.example.com", "example.com"), False),
        ("evilexample.com", ("*.example.com", "example.com"), False),
        ("localhost", ("localhost",), True),
        ("localhost", ("*.",), False),
        ("anything.example", ("*",), True),
    ],
)
def test_hosts(host: str, allowed: tuple[str, ...], accepted: bool) -> None:
    if accepted:
        assert all(re.fullmatch(HOST_PATTERN, entry) for entry in allowed)
        check_host(host, allowed)
    else:
        with pytest.raises(HostNotAllowed, match=r"spec\.route\.url .* route\.allowedHosts"):
            check_host(host, allowed)


@pytest.mark.parametrize("entry", ["", "a b", "a*b", "**", "*a"])
def test_entries_that_are_no_images(entry: str) -> None:
    assert not re.fullmatch(IMAGE_PATTERN, entry)


@pytest.mark.parametrize("entry", ["", "*.", "https://example.com", "example.com/path", "Example.com", "a.*.com", "*a"])
def test_entries_that_are_no_hosts(entry: str) -> None:
    assert not re.fullmatch(HOST_PATTERN, entry)
