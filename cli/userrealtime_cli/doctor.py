"""`userrealtime doctor`: finds the reason why a user receives no events, and prints advice."""

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
"""The time limit of a request that wakes a sleeping user."""
TRANSPORTS: Final[tuple[tuple[Transport, str], ...]] = (
    (
        "websocket",
        "the proxies in front of the pod must forward `Upgrade` (docs/routes.md); clients fall back to SSE or polling",
    ),
    ("sse", "the proxies in front of the pod must not buffer responses (docs/routes.md)"),
)


def add_to(commands: Any) -> None:
    """Add the command to argparse."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="find out why a user receives no events",
        description="Check everything between a user and the user's events, in order: the resource, the operator, the "
        "database, the pod, the key of the tokens, the route, and each transport. The command needs permission to get "
        "the UserRealtime and its Secret. It connects as a client of the user, and publishes nothing.",
        epilog="Exit status: 0 if events arrive; 1 if there is a problem, which is printed with advice.",
    )
    add_who(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, connect: Connect) -> int:
    """Print the findings."""
    return asyncio.run(_examine(options, connect))


async def _examine(options: argparse.Namespace, connect: Connect) -> int:
    errors = 0
    async for finding in _findings(options, connect):
        print(finding, flush=True)
        errors += finding.verdict == "error"
    print("no problems found" if not errors else f"problems: {errors}")
    return 1 if errors else 0


async def _findings(options: argparse.Namespace, connect: Connect) -> AsyncIterator[Finding]:
    """Yield the result of each check, up to the first check that depends on a failed one."""
    try:
        cluster = await asyncio.to_thread(connect)
        resource = await asyncio.to_thread(resource_of, options, cluster)
    except CommandError as error:
        yield Finding("resource", "error", str(error))
        return
    yield Finding("resource", "ok", f"{cluster.namespace}/{resource['metadata']['name']} exists")
    for finding in of_resource(resource):
        yield finding
    token, finding = await asyncio.to_thread(_make_token, options, cluster, resource)
    yield finding
    try:
        url = url_of(resource)
    except CommandError as error:
        yield Finding("route", "error", str(error))
        return
    async with http.session(REQUEST_S) as session:
        route = await _try_route(session, url)
        yield route
        if route.verdict == "error" or token is None:
            return
        accepted = await _try_token(session, url, token)
        yield accepted
        if accepted.verdict == "error":
            return
        for transport, advice in TRANSPORTS:
            yield await _try_transport(session, url, token, transport, advice)


def _make_token(options: argparse.Namespace, cluster: Cluster, resource: Any) -> tuple[str | None, Finding]:
    try:
        key = signing_key(cluster, resource)
    except CommandError as error:
        return None, Finding("key", "error", str(error))
    if len(key) < 32:
        do = f"delete the Secret {resource['status']['tokenSecret']['name']}: the operator creates a new one"
        return None, Finding("key", "error", "it is too short for a key", do)
    return mint(key, resource, TOKEN_LIFE_S, options.claim), Finding("key", "ok", "it is readable")


async def _try_route(session: aiohttp.ClientSession, url: str) -> Finding:
    """Check that the relay or the activator answers a request without a token, which does not wake the user."""
    host = urlsplit(url).hostname
    try:
        async with session.get(f"{url}/poll", allow_redirects=False) as answer:
            return of_answer(answer.status, answer.headers.get("WWW-Authenticate", "") == "Bearer")
    except aiohttp.ClientConnectorDNSError:
        return Finding("route", "error", f"{host} does not resolve", "create the DNS record, or correct route.url")
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as error:
        do = "check the certificate: route.tlsSecretName, or the listener of the Gateway"
        return Finding("route", "error", f"the TLS handshake failed: {error}", do)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        do = "can this machine reach the ingress controller? does its Service of type LoadBalancer have an address?"
        return Finding("route", "error", f"{url} does not answer: {error or type(error).__name__}", do)


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
        return Finding("token", "error", f"no answer: {error or type(error).__name__}", "check the pod's log")


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
            return Finding(transport, "note", f"no connection: {why}", advice)
        place = client.position
    at = f", position {place.id}" if place is not None else ""
    return Finding(transport, "ok", f"connected{at}")
