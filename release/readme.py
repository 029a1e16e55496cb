"""The README of the chart, which Artifact Hub and `helm show readme` print. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from .project import Project

_README: Final = """\
# userrealtime

{description}

The [documentation]({documentation}) of this version describes all parts.

## Install

The Secret `database` contains the URL of a Postgres database, as `DATABASE_URL`.

```sh
helm install userrealtime {charts}/userrealtime --version {version} \\
  --set database.existingSecret.name=database \\
  --set 'route.url=https://realtime.example.com/{{name}}'
helm test userrealtime
```

`helm test` succeeds when an operator leads, and renews its Lease.

## Verify

The chart and the images are signed by the workflow that built them.

```sh
cosign verify {registry}/charts/userrealtime:{version} \\
  --certificate-identity {url}/.github/workflows/release.yml@refs/tags/v{version} \\
  --certificate-oidc-issuer https://token.actions.githubusercontent.com
```

## Values

{values}"""


def chart_readme(project: Project, version: str, metadata: Mapping[str, Any], values: str) -> str:
    """Return the README.

    Args:
        metadata: the content of Chart.yaml.
        values: the page with the chart's values, in Markdown, with a heading of the first level.
    """
    _, _, tables = values.partition("\n\n")
    return _README.format(
        description=metadata["description"],
        documentation=project.page("README.md", version),
        charts=project.charts,
        registry=project.registry,
        url=project.url,
        version=version,
        # Below the heading of this page.
        values=re.sub(r"^## ", "### ", tables, flags=re.MULTILINE),
    )
