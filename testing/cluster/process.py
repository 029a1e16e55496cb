"""Helpers for programs and servers: run a program, wait for a server, forward a port."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import ClusterError

PORT_FORWARD_LIMIT = 60.0


def run(
    program: Path | str, *args: str, env: dict[str, str] | None = None, input: str | None = None, timeout: float
) -> str:
    """Run a program to its end and return its standard output.

    Raises:
        ClusterError: it failed (with its standard error), is not there, or ran longer than `timeout` seconds.
    """
    name = Path(program).name
    shown = " ".join([name, *args[:6]])
    try:
        done = subprocess.run(
            [program, *args],
            env=env,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except FileNotFoundError:
        raise ClusterError(f"{name} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{shown}` took longer than {timeout:.0f} s") from None
    if done.returncode != 0:
        raise ClusterError(f"`{shown}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait_http(url: str, timeout: float) -> None:
    """Wait until a server answers HTTP at `url`, with any status.

    Raises:
        ClusterError: none has answered after `timeout` seconds.
    """
    host, _, port = url.removeprefix("http://").split("/")[0].partition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((host, int(port or 80)), timeout=2) as connection:
                connection.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                if connection.recv(5) == b"HTTP/":
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise ClusterError(f"{url} does not answer after {timeout:.0f} s")
        time.sleep(0.2)


@contextmanager
def port_forward(
    kubectl: Path, environment: Mapping[str, str], namespace: str, target: str, port: int
) -> Iterator[tuple[str, int]]:
    """Run `kubectl port-forward` while the block runs; yield its host and port on this machine.

    Raises:
        ClusterError: it does not forward; the text has its first line.
    """
    command = [str(kubectl), "-n", namespace, "port-forward", "--address=127.0.0.1", target, f":{port}"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield "127.0.0.1", _forwarded_port(process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()


def _forwarded_port(process: "subprocess.Popen[str]") -> int:
    # kubectl itself fails on a pod that does not exist; the timer is for a kubectl that prints nothing.
    alarm = threading.Timer(PORT_FORWARD_LIMIT, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
    finally:
        alarm.cancel()
    prefix = "Forwarding from 127.0.0.1:"
    if not first.startswith(prefix):
        reason = first.strip() or f"no output within {PORT_FORWARD_LIMIT:.0f} s"
        raise ClusterError(f"kubectl port-forward: {reason}")
    return int(first.removeprefix(prefix).split(" ")[0])
