"""The plugin `kubectl userrealtime` for krew: a program and a manifest. No I/O.

The plugin is the command line of the Python package. Its program runs it with uv or pipx, because an archive with the
compiled dependencies would be needed for each platform and each version of Python.
"""

from __future__ import annotations

from typing import Final

import yaml

from .project import Project

PROGRAM: Final = "kubectl-userrealtime"
MANIFEST: Final = "userrealtime-krew.yaml"
SUMMARY: Final = "Tokens, events and checks of UserRealtimes"
"""krew accepts at most 50 characters."""

_PROGRAM: Final = """\
#!/bin/sh
# kubectl userrealtime: the command line of the Python package of the same version, run with uv or pipx.
package='userrealtime[cli]=={version}'
if command -v uvx >/dev/null; then
  exec uvx --quiet --from "$package" {program} "$@"
fi
if command -v pipx >/dev/null; then
  exec pipx run --spec "$package" {program} "$@"
fi
echo 'kubectl userrealtime: install uv (https://docs.astral.sh/uv) or pipx (https://pipx.pypa.io) to run it' >&2
exit 127
"""
_DESCRIPTION: Final = """\
Prints tokens of users, shows a user's events as they arrive, publishes events, and checks the way from Postgres to a
client, with advice for each problem.
"""
_CAVEATS: Final = "The plugin runs with uv (https://docs.astral.sh/uv) or pipx (https://pipx.pypa.io).\n"


def archive(version: str) -> str:
    """Return the name of the plugin's archive."""
    return f"{PROGRAM}-{version}.tar.gz"


def program(version: str) -> str:
    """Return the program of the plugin."""
    return _PROGRAM.format(version=version, program=PROGRAM)


def manifest(project: Project, version: str, checksum: str) -> str:
    """Return the manifest of the plugin.

    Args:
        checksum: the SHA-256 of the archive, in hexadecimal digits.
    """
    content = {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": project.name},
        "spec": {
            "version": f"v{version}",
            "homepage": project.url,
            "shortDescription": SUMMARY,
            "description": _DESCRIPTION,
            "caveats": _CAVEATS,
            "platforms": [
                {
                    "selector": {"matchExpressions": [{"key": "os", "operator": "In", "values": ["darwin", "linux"]}]},
                    "uri": project.download(archive(version), version),
                    "sha256": checksum,
                    "files": [{"from": name, "to": "."} for name in (PROGRAM, "LICENSE")],
                    "bin": PROGRAM,
                }
            ],
        },
    }
    return yaml.safe_dump(content, sort_keys=False, width=120)
