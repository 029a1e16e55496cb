import base64
import json
import subprocess
from pathlib import Path

from testing.cluster.local import pki
from testing.cluster.local.pki import Identity
from testing.patience import PATIENCE_S

SERVER = Identity("server", "/O=group/CN=server", ("DNS:server.test", "IP:127.0.0.1"))


def openssl(*args: str) -> str:
    return subprocess.run(["openssl", *args], check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def test_certificates_are_signed_and_carry_their_names(tmp_path: Path) -> None:
    pki.make(tmp_path, [SERVER])
    certificate = str(tmp_path / "server.crt")
    assert "OK" in openssl("verify", "-CAfile", str(tmp_path / "ca.crt"), certificate)
    text = openssl("x509", "-in", certificate, "-noout", "-text")
    assert "DNS:server.test" in text
    assert "IP Address:127.0.0.1" in text
    assert (tmp_path / "sa.pub").read_text().startswith("-----BEGIN PUBLIC KEY-----")


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    pki.make(tmp_path, [SERVER])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.crt")}
    pki.make(tmp_path, [SERVER, Identity("client", "/CN=client", ("DNS:client",))])
    after = {path.name: path.read_bytes() for path in tmp_path.glob("*.crt")}
    assert after.items() > before.items()
    assert set(after) == {"ca.crt", "server.crt", "client.crt"}


def test_a_kubeconfig_holds_the_certificates_themselves(tmp_path: Path) -> None:
    for name in ("ca.crt", "me.crt", "me.key"):
        (tmp_path / name).write_text(name)
    text = pki.kubeconfig("https://x", tmp_path / "ca.crt", tmp_path / "me.crt", tmp_path / "me.key")
    config = json.loads(text)
    user, cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
    assert cluster["server"] == "https://x"
    assert base64.b64decode(cluster["certificate-authority-data"]) == b"ca.crt"
    assert base64.b64decode(user["client-key-data"]) == b"me.key"
    assert str(tmp_path) not in text
