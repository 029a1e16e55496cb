"""TLS to API servers and issuers: which certificates are accepted, by all that connect to one."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from kubernetes.client import CustomObjectsApi

from examples import provision, provision_http
from examples.demo.cluster import Cluster as DemoCluster
from testing.cluster.local import pki
from testing.patience import PATIENCE_S
from userrealtime_cli import http
from userrealtime_cli.cluster import Cluster as CliCluster
from userrealtime_client import Client as UserRealtimeClient
from userrealtime_core.auth import jwks
from userrealtime_core.trust import client_context, kept_current, reloading
from userrealtime_operator.kube.client import Api
from userrealtime_operator.kube.login import login

IDENTITIES = (
    pki.Identity("server", "/CN=server", ("DNS:localhost", "IP:127.0.0.1")),
    pki.Identity("another", "/CN=another", ("DNS:another.test",)),
    pki.Identity("me", "/CN=me", ("DNS:me",)),
)


@dataclass
class Endpoint:
    """An HTTPS server, and the files of a client that trusts one authority."""

    url: str
    home: Path
    authority: Path
    requests: list[str] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        path = self.home / "kubeconfig"
        path.write_text(
            pki.kubeconfig(self.url, self.authority / "ca.crt", self.authority / "me.crt", self.authority / "me.key")
        )
        return path


async def as_kopf(endpoint: Endpoint) -> None:
    connection = login(logger=logging.getLogger(), settings=kopf.OperatorSettings())
    assert connection is not None
    connector = aiohttp.TCPConnector(ssl=connection.as_ssl_context())
    async with aiohttp.ClientSession(connector=connector) as session, session.get(connection.server):
        pass


async def as_operator(endpoint: Endpoint) -> None:
    async with await Api.connect() as api:
        await api.get("Secret", "users", "alice")


async def as_relay(endpoint: Endpoint) -> None:
    await jwks.fetch(endpoint.url)


async def as_cli(endpoint: Endpoint) -> None:
    cluster = CliCluster.connect(kubeconfig=endpoint.kubeconfig, context=None, namespace=None)
    await asyncio.to_thread(cluster.secret, "alice")


async def as_cli_client(endpoint: Endpoint) -> None:
    async with http.session() as session, session.get(endpoint.url):
        pass


async def as_python_client(endpoint: Endpoint) -> None:
    async with UserRealtimeClient(endpoint.url, token="a token") as events:
        while not endpoint.requests and events.state != "waiting":
            await asyncio.sleep(0.01)


async def as_demo(endpoint: Endpoint) -> None:
    async with DemoCluster.connect("users") as cluster:
        await cluster.token("alice")


async def as_example(endpoint: Endpoint) -> None:
    with provision.connect() as api:
        await asyncio.to_thread(provision.create, CustomObjectsApi(api), "users", "alice")


async def as_http_example(endpoint: Endpoint) -> None:
    token = endpoint.home / "token"
    token.write_text("t")
    cluster = provision_http.Cluster(endpoint.url, endpoint.authority / "ca.crt", token)
    await asyncio.to_thread(cluster.call, "GET", "/")


Client = Callable[[Endpoint], Awaitable[None]]


@pytest.fixture(
    params=[
        as_kopf,
        as_operator,
        as_relay,
        as_cli,
        as_cli_client,
        as_python_client,
        as_demo,
        as_example,
        as_http_example,
    ],
    ids=lambda client: client.__name__,
)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Client:
    if not ssl.create_default_context().verify_flags & ssl.VERIFY_X509_STRICT:  # noqa: TID251
        default = ssl.create_default_context  # noqa: TID251

        def strict(*arguments: Any, **options: Any) -> ssl.SSLContext:
            context = default(*arguments, **options)
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            return context

        # The default of Python 3.13: with it these tests can fail on every version.
        monkeypatch.setattr(ssl, "create_default_context", strict)
    found: Client = request.param
    return found


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[pki.Extensions, Path]:
    made = {}
    for extensions in pki.Extensions:
        made[extensions] = tmp_path_factory.mktemp(extensions.value)
        pki.make(made[extensions], IDENTITIES, extensions)
        make_expired(made[extensions])
    return made


def make_expired(authority: Path) -> None:
    """Make a certificate like the server's that was valid until yesterday, with the same key."""
    old = x509.load_pem_x509_certificate((authority / "server.crt").read_bytes())
    issuer = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
    key = load_pem_private_key((authority / "ca.key").read_bytes(), None)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(issuer.subject)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now - datetime.timedelta(days=1))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    certificate = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    (authority / "expired.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (authority / "expired.key").write_bytes((authority / "server.key").read_bytes())


@contextlib.contextmanager
def serving(authority: Path, identity: str, trusted: Path, home: Path) -> Iterator[Endpoint]:
    """A server with a certificate of one authority, and a client that trusts another, or the same."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            requests.append(self.path)
            body = json.dumps({"kind": "Status", "metadata": {}, "message": "as you like"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that rejects the certificate ends the handshake

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / f"{identity}.crt", authority / f"{identity}.key")
    with Server(("127.0.0.1", 0), Handler) as server:
        # The handshake is left to the thread of the connection.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Endpoint(f"https://localhost:{server.server_port}", home, trusted, requests)
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)


async def reaches(client: Client, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the client accepts the server: its request arrives only then, whatever it makes of the answer."""
    kubeconfig = str(endpoint.kubeconfig)
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    for module in ("kubernetes.config", "kubernetes.aio.config"):
        monkeypatch.setattr(f"{module}.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", kubeconfig)
    monkeypatch.setenv("SSL_CERT_FILE", str(endpoint.authority / "ca.crt"))
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(Exception):
            await client(endpoint)
    return endpoint.requests != []


@pytest.mark.parametrize("extensions", pki.Extensions)
async def test_a_certificate_of_a_trusted_authority_is_accepted(
    client: Client,
    extensions: pki.Extensions,
    authorities: dict[pki.Extensions, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = authorities[extensions]
    with serving(authority, "server", authority, tmp_path) as endpoint:
        assert await reaches(client, endpoint, monkeypatch)


@pytest.mark.parametrize("extensions", pki.Extensions)
@pytest.mark.parametrize("identity", ["expired", "another"])
async def test_an_expired_certificate_and_one_for_another_host_are_rejected(
    client: Client,
    extensions: pki.Extensions,
    identity: str,
    authorities: dict[pki.Extensions, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = authorities[extensions]
    with serving(authority, identity, authority, tmp_path) as endpoint:
        assert not await reaches(client, endpoint, monkeypatch)


async def test_a_certificate_of_another_authority_is_rejected(
    client: Client, authorities: dict[pki.Extensions, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, another = authorities[pki.Extensions.MINIMAL], authorities[pki.Extensions.COMPLETE]
    with serving(another, "server", trusted, tmp_path) as endpoint:
        assert not await reaches(client, endpoint, monkeypatch)


def test_a_context_verifies_chains_and_host_names(authorities: dict[pki.Extensions, Path]) -> None:
    context = client_context(authorities[pki.Extensions.MINIMAL] / "ca.crt")
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1


def test_a_file_without_certificates_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")
    with pytest.raises(OSError, match=r"(?i)no.certificate"):
        client_context(tmp_path / "ca.crt")


async def test_authorities_that_are_replaced_while_a_process_runs_are_loaded(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        pki.make(folder, [pki.Identity("server", "/CN=server", ("DNS:localhost", "IP:127.0.0.1"))])
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes((old / "ca.crt").read_bytes())
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(new / "server.crt", new / "server.key")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]
    context = kept_current(client_context(trusted), trusted)

    async def connect() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.close()

    async with server, reloading(0.01):
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect()
        for contents in (b"", b"half of it"):  # a file that is being written is read again
            trusted.write_bytes(contents)
            await asyncio.sleep(0.05)
        # Half way through a rotation, both authorities are in the file.
        trusted.write_bytes((old / "ca.crt").read_bytes() + (new / "ca.crt").read_bytes())
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(ssl.SSLCertVerificationError):
                    await connect()
                    break
                await asyncio.sleep(0.01)
