"""Settings from the environment of a process. No message and no repr contains the value of a secret.

Secrets can be files instead, in the directory that CREDENTIALS_DIR names: then child processes, crash dumps and
`kubectl exec … env` do not show them. A mounted Secret is such a directory.

All invalid variables are reported together, each with the accepted values: one message of a pod that does not start is
then enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from .auth.keys import CURRENT, PREVIOUS, TokenKeys, validate_key
from .database_url import validate_database_url
from .secret import Secret
from .wire.cors import validate_origin

CREDENTIALS_DIR: Final = "CREDENTIALS_DIR"
"""The variable with the directory of secrets. Each file has the name of the variable that it replaces."""
MAXIMUM_CREDENTIAL_BYTES: Final = 64 << 10
MAXIMUM_ID_LENGTH: Final = 253  # as userrealtime.publish checks it
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
BROKER_SCHEMES: Final = {
    "nats": ("nats", "tls"),
    "redis": ("redis", "rediss"),
    "kafka": ("kafka", "kafka+tls"),
}
"""The URL schemes of each broker; the second one uses TLS."""
_INSIDE: Final = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1|[a-z][a-z0-9-]*|.+\.svc(\.cluster\.local)?")
"""Hosts within the machine or the cluster, for which http is accepted."""


class ConfigError(Exception):
    """The environment is invalid. The message names every invalid variable and what it accepts."""


class Reader:
    """Reads variables and collects their problems. An invalid variable yields a value of the right type."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: list[str] = []

    def check(self) -> None:
        """
        Raises:
            ConfigError: something was wrong.
        """
        if self.problems:
            raise ConfigError("the environment is wrong:\n" + "\n".join(f"  {problem}" for problem in self.problems))

    def text(self, name: str, default: str) -> str:
        # An empty variable counts as unset: templates leave such variables.
        return self._environment.get(name, "") or default

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.text(name, str(default))
        if re.fullmatch(r"[0-9]{1,12}", text) and low <= int(text) <= high:
            return int(text)
        self.problems.append(f"{name}: {text!r} is not a whole number from {low} to {high}")
        return default

    def seconds(self, name: str, default: float, low: float, high: float) -> float:
        text = self.text(name, str(default))
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) and low <= float(text) <= high:
            return float(text)
        self.problems.append(f"{name}: {text!r} is not a number of seconds from {low} to {high}")
        return default

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        text = self.text(name, default)
        if text in choices:
            return text
        self.problems.append(f"{name}: {text!r} is not one of {', '.join(choices)}")
        return default

    def choices(self, name: str, choices: tuple[str, ...]) -> tuple[str, ...]:
        """Read a set of names with commas between; empty by default."""
        names = tuple(dict.fromkeys(part.strip() for part in self.text(name, "").split(",") if part.strip()))
        unknown = [each for each in names if each not in choices]
        self.problems += [f"{name}: {each!r} is not one of {', '.join(choices)}" for each in unknown]
        return names

    def user_id(self, name: str) -> str:
        text = self.text(name, "")
        if not text:
            self.problems.append(f"{name}: required: the id of the one user served here")
        elif len(text) > MAXIMUM_ID_LENGTH or re.search(r"[\x00-\x1f\x7f]", text) or not _is_utf8(text):
            self.problems.append(
                f"{name}: must be 1 to {MAXIMUM_ID_LENGTH} characters of UTF-8 without control characters, "
                "as userrealtime.publish accepts"
            )
        return text

    def credential(self, name: str) -> str | None:
        """Return a secret variable, as `read_credential` does. None after a problem."""
        try:
            return read_credential(self._environment, name)
        except ValueError as error:
            self.problems.append(f"{name}: {error}")
            return None

    def database_url(self, name: str) -> Secret:
        text = self.credential(name)
        if text is None:
            return Secret("")
        wanted = "a URL like postgresql://role:password@host:5432/database, a direct connection (no pooler)"
        if not text:
            self.problems.append(f"{name}: required: {wanted}")
        else:
            try:
                valid = urlsplit(text).scheme in ("postgresql", "postgres")
            except ValueError:
                valid = False
            if not valid:
                self.problems.append(f"{name}: must be {wanted} (its value is not shown here)")
            elif (problem := validate_database_url(text)) is not None:
                self.problems.append(f"{name}: {problem}")
        return Secret(text)

    def broker_url(self, broker: str) -> Secret:
        """Read the URL of one of `BROKER_SCHEMES`, such as NATS_URL."""
        name = f"{broker.upper()}_URL"
        text = self.credential(name)
        if text is None:
            return Secret("")
        if (problem := validate_broker_url(broker, text)) is not None:
            self.problems.append(f"{name}: {problem}")
        return Secret(text)

    def token_keys(self, directory_name: str, jwks_name: str) -> TokenKeys:
        current, previous = self.text(CURRENT, ""), self.text(PREVIOUS, "")
        directory = self.text(directory_name, "")
        if directory:
            return self._key_directory(directory_name, directory, given=bool(current or previous))
        if not current and (previous or not self.text(jwks_name, "")):
            self.problems.append(
                f"{CURRENT}: required: the HS256 key of this user's tokens (or {directory_name}, or {jwks_name})"
            )
        keys = {name: key for name, key in ((CURRENT, current), (PREVIOUS, previous)) if key}
        self.problems += [
            f"{name}: {problem}" for name, key in keys.items() if (problem := validate_key(key)) is not None
        ]
        return TokenKeys(*keys.values())

    def _key_directory(self, name: str, directory: str, *, given: bool) -> TokenKeys:
        if given:
            self.problems.append(f"{name}: set either it, or {CURRENT} and {PREVIOUS}")
        try:
            return TokenKeys.in_directory(Path(directory))
        except (OSError, ValueError) as error:
            self.problems.append(f"{name}: must be a directory with a file {CURRENT}, and perhaps {PREVIOUS}: {error}")
            return TokenKeys()

    def jwks_url(self, name: str) -> str | None:
        text = self.text(name, "")
        if not text:
            return None
        try:
            parts = urlsplit(text)
            valid = (
                re.fullmatch(r"[!-~]+", text) is not None
                and parts.hostname is not None
                and "@" not in parts.netloc
                and not parts.fragment
                and parts.port != 0
                and (
                    parts.scheme == "https"
                    or (parts.scheme == "http" and _INSIDE.fullmatch(parts.hostname) is not None)
                )
            )
        except ValueError:
            valid = False
        if not valid:
            self.problems.append(
                f"{name}: must be a URL like https://issuer.example/.well-known/jwks.json, without a password; http "
                "only for loopback or a Service of the cluster (its value is not shown here)"
            )
        return text

    def audience(self, name: str, jwks_name: str) -> str | None:
        """Return the audience of tokens, None for any. With a key set, `*` must allow any audience explicitly."""
        text = self.text(name, "")
        if not text and self.text(jwks_name, ""):
            self.problems.append(
                f"{name}: required with {jwks_name}: the value of `aud` in tokens for this application; or *, to "
                "accept tokens for all applications of the identity provider"
            )
        return text if text not in ("", "*") else None

    def user_keys(self, name: str, jwks_name: str) -> bool:
        """Return whether tokens of the user's own keys are accepted. Otherwise, a key set is required."""
        allowed = self.choice(name, "true", ("true", "false")) == "true"
        if not allowed and not self.text(jwks_name, ""):
            self.problems.append(f"{jwks_name}: required with {name}=false: otherwise no token would be accepted")
        return allowed

    def service_url(self, name: str) -> str | None:
        text = self.text(name, "")
        if text and not re.fullmatch(r"http://[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9./-]*)?", text):
            self.problems.append(f"{name}: must be an http:// URL of a Service of the cluster")
        return text or None

    def origins(self, name: str) -> tuple[str, ...]:
        origins = tuple(origin.strip() for origin in self.text(name, "").split(",") if origin.strip())
        self.problems += [f"{name}: {problem}" for problem in map(validate_origin, origins) if problem is not None]
        return origins

    def base_path(self, name: str) -> str:
        text = self.text(name, "")
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", text):
            self.problems.append(f"{name}: {text!r} is not a path like /alice (no slash at the end), or empty")
        return text


def read_credential(environment: Mapping[str, str], name: str) -> str:
    """Return a secret variable, or the contents of the file with its name in CREDENTIALS_DIR. Empty if it is not set.

    Raises:
        ValueError: the file is missing or invalid. The message does not contain the secret.
    """
    text, directory = environment.get(name, ""), environment.get(CREDENTIALS_DIR, "")
    if not directory:
        return text
    path = Path(directory) / name
    if text:
        raise ValueError(f"set either it, or {CREDENTIALS_DIR} with the file {path}")
    try:
        with path.open("rb") as file:
            content = file.read(MAXIMUM_CREDENTIAL_BYTES + 1)
    except FileNotFoundError:
        missing = f"the file {path} is missing: add the key {name} to the Secret that is mounted there"
        raise ValueError(missing) from None
    except OSError as error:
        unreadable = f"the file {path} cannot be read ({error.strerror}): make it readable for this user"
        raise ValueError(unreadable) from None
    if len(content) > MAXIMUM_CREDENTIAL_BYTES:
        raise ValueError(f"the file {path} has more than {MAXIMUM_CREDENTIAL_BYTES} bytes: it must contain only {name}")
    try:
        # Editors and `echo` add a line end, which is not part of the secret.
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"the file {path} must contain {name} as UTF-8 text") from None
    if not text:
        raise ValueError(f"the file {path} is empty: set the key {name} of the Secret that is mounted there")
    return text


def validate_broker_url(broker: str, url: str) -> str | None:
    """Return the problem of the URL of one of `BROKER_SCHEMES`, without quoting it; None if it is valid."""
    schemes = BROKER_SCHEMES[broker]
    if all(_is_server(each, schemes) for each in url.split(",")):
        return None
    wanted = (
        f"a URL like {schemes[0]}://user:password@host:port, or several with commas between; "
        f"{schemes[1]}:// is with TLS"
    )
    if not url:
        return f"required with {broker} as signal: {wanted}"
    return f"must be {wanted}. What is special in user and password is percent-encoded (the value is not shown here)"


def _is_server(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
