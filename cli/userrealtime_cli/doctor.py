"""`userrealtime doctor`: what is wrong between a user and their events, and what to do about it."""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from userrealtime_client import Client, Options
from userrealtime_client.machine import Transport

from . import http
from .cluster import Cluster
from .errors import CommandError
from .findings import Finding, of_answer, of_resource, of_token
from .users import Connect, add_who, mint, resource_of, signing_key, url_of

TOKEN_LIFE_S: Final = 300.0
REQUEST_S: Final = 10.0
WAKE_S: Final = 35.0
"""A pod that sleeps may take this long to answer who brings a token."""
TRANSPORTS: Final[tuple[tuple[Transport, str], ...]] = (
    (
        "websocket",
        "whatever stands in front must pass `Upgrade` (docs/routes.md); clients fall back to streams or polls",
    ),
    ("sse", "whatever stands in front must not buffer answers (docs/routes.md)"),
)


def add_to(commands: Any) -> None:
    """Tell argparse of the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="find what is wrong between a user and their events",
        description="Look at all that stands between a user and their events, in order: the resource, the operator, "
        "the database, the pod, the key of their tokens, the route, and each transport through it. It takes the right "
        "to get the UserRealtime and its Secret, and connects as a client of the user would, without moving or "
        "publishing anything.",
        epilog="Exit status: 0 if events arrive; 1 if something is wrong, with what to do about it.",
    )
    add_who(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, connect: Connect) -> int:
    """Print what is found."""
    return asyncio.run(_examine(options, connect))


async def _examine(options: argparse.Namespace, connect: Connect) -> int:
    wrong = 0
    async for finding in _findings(options, connect):
        print(finding, flush=True)
        wrong += finding.verdict == "wrong"
    print("all is well" if not wrong else f"wrong: {wrong}")
    return 1 if wrong else 0


async def _findings(options: argparse.Namespace, connect: Connect) -> AsyncIterator[Finding]:
    """One look after the other, as long as the next has something to rest on."""
    try:
        cluster = await asyncio.to_thread(connect)
        resource = await asyncio.to_thread(resource_of, options, cluster)
    except CommandError as error:
        yield Finding("resource", "wrong", str(error))
        return
    yield Finding("resource", "ok", f"{cluster.namespace}/{resource['metadata']['name']} is there")
    for finding in of_resource(resource):
        yield finding
    token, finding = await asyncio.to_thread(_make_token, options, cluster, resource)
    yield finding
    try:
        url = url_of(resource)
    except CommandError as error:
        yield Finding("route", "wrong", str(error))
        return
    async with http.session(REQUEST_S) as session:
        route = await _try_route(session, url)
        yield route
        if route.verdict == "wrong" or token is None:
            return
        accepted = await _try_token(session, url, token)
        yield accepted
        if accepted.verdict == "wrong":
            return
        for transport, advice in TRANSPORTS:
            yield await _try_transport(session, url, token, transport, advice)


def _make_token(options: argparse.Namespace, cluster: Cluster, resource: Any) -> tuple[str | None, Finding]:
    try:
        key = signing_key(cluster, resource)
    except CommandError as error:
        return None, Finding("key", "wrong", str(error))
    if len(key) < 32:
        do = f"delete the Secret {resource['status']['tokenSecret']['name']}: the operator makes another"
        return None, Finding("key", "wrong", "it is too short to be one", do)
    return mint(key, resource, TOKEN_LIFE_S, options.claim), Finding("key", "ok", "it can be read")


async def _try_route(session: aiohttp.ClientSession, url: str) -> Finding:
    """Ask without a token, which wakes nobody and tells whether the relay, or the activator, is at the other end."""
    host = urlsplit(url).hostname
    try:
        async with session.get(f"{url}/poll", allow_redirects=False) as answer:
            return of_answer(answer.status, answer.headers.get("WWW-Authenticate", "") == "Bearer")
    except aiohttp.ClientConnectorDNSError:
        return Finding("route", "wrong", f"{host} has no address", "make the DNS record, or correct route.url")
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as error:
        do = "look at the certificate: route.tlsSecretName, or the Gateway's listener"
        return Finding("route", "wrong", f"TLS fails: {error}", do)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        do = "does this machine reach the ingress at all? is its Service of type LoadBalancer given an address?"
        return Finding("route", "wrong", f"{url} does not answer: {error or type(error).__name__}", do)


async def _try_token(session: aiohttp.ClientSession, url: str, token: str) -> Finding:
    headers = {"Authorization": f"Bearer {token}"}
    limit = aiohttp.ClientTimeout(total=WAKE_S)
    try:
        async with session.get(
            f"{url}/poll?timeout=5", headers=headers, timeout=limit, allow_redirects=False
        ) as answer:
            try:
                body = json.loads(await answer.read())
            except ValueError:
                body = {}
            return of_token(answer.status, str(body.get("error", "")) if isinstance(body, dict) else "")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return Finding("token", "wrong", f"no answer: {error or type(error).__name__}", "look at the relay's log")


async def _try_transport(
    session: aiohttp.ClientSession, url: str, token: str, transport: Transport, advice: str
) -> Finding:
    reasons: list[str] = []
    connected = asyncio.Event()
    options = Options(transports=(transport,), open_timeout=1000 * REQUEST_S)

    async with Client(
        url,
        token=token,
        session=session,
        options=options,
        on_state=lambda state: connected.set() if state.state == "connected" else reasons.append(state.reason),
    ) as client:
        try:
            async with asyncio.timeout(REQUEST_S):
                await connected.wait()
        except TimeoutError:
            why = next((reason for reason in reversed(reasons) if reason), "no answer")
            return Finding(transport, "note", f"it does not come through: {why}", advice)
        place = client.position
    at = f", at event {place.id}" if place is not None else ""
    return Finding(transport, "ok", f"events come through{at}")
