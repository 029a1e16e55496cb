"""The build of a release: `make release VERSION=x.y.z` (docs/releases.md).

`checks`, `changelog`, `chart`, `commands`, `project` and `sbom` are pure; `build` runs git, hatchling, npm and Helm.
"""
