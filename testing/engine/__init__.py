"""A real Docker engine for one command, in separate namespaces: `python -m testing.engine --help`.

It serves machines on which no engine runs and no image registry can be reached, such as CI's. The engine is Debian's
`docker.io`; the images that the registries would provide are replaced by stand-ins (`images`). README.md in this
directory describes them, and what a passing run therefore does not show.
"""
