"""The modules of the relay in one file, with which its imports need a fifth less CPU.

A start imports 340 modules from files. Most of the system calls for these only find the files. With the bundle, there
are 4,100 fewer: one is left for each module.

`python -m userrealtime_relay.bundling` writes the bundle when an image is built. It is used only by the same
version of Python with the same optimization, and only while no directory with a module in it has changed; otherwise,
and for all other modules, Python imports as usual. An image that is based on this one and adds packages can write the
bundle again.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Final, cast

PATH: Final = __file__.rsplit(os.sep, 3)[0] + "/userrealtime_relay.bundle"
"""Beside the package: a bundle in a directory with modules would change it."""
_LENGTH: Final = 8
"""The bytes before the index, which contain its length."""
_Place = tuple[int, int, str, str | None, bool]
"""A module: where its code begins in the bundle, the size of the code, its file and its compiled file, and whether it
is a package."""


class _Loader(SourceFileLoader):
    """Python's loader of source files, with the code from the bundle."""

    def __init__(self, name: str, origin: str, file: int, offset: int, size: int) -> None:
        super().__init__(name, origin)
        self._file = file
        self._offset = offset
        self._size = size

    def get_code(self, fullname: str) -> CodeType:
        code = os.pread(self._file, self._size, self._offset)
        return cast(CodeType, marshal.loads(code))  # noqa: S302  (a file of the image, as the modules themselves)


class _Finder:
    """Finds the modules of a bundle. It comes first in `sys.meta_path`."""

    def __init__(self, file: int, start: int, places: dict[str, _Place]) -> None:
        self._file = file
        self._start = start
        self._places = places

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module in the bundle, None for any other module."""
        found = self._places.get(name)
        if found is None:
            return None
        offset, size, origin, cached, package = found
        spec = ModuleSpec(name, _Loader(name, origin, self._file, self._start + offset, size), origin=origin)
        spec.has_location = True
        spec.cached = cached
        if package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec


def install(path: str = PATH) -> bool:
    """Import modules from a bundle from now on. Returns False if there is none that can be used."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        length = int.from_bytes(os.pread(file, _LENGTH, 0), "little")
        python, directories, places = marshal.loads(os.pread(file, length, _LENGTH))  # noqa: S302  (as above)
        usable = python == _python() and all(_changed(each) == time for each, time in directories.items())
    except (OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError):
        usable = False
    if not usable:
        os.close(file)
        return False
    sys.meta_path.insert(0, _Finder(file, _LENGTH + length, places))
    return True


def write(path: str = PATH) -> int:
    """Write a bundle of the modules that are imported now; return their number.

    Raises:
        OSError: it cannot be written.
    """
    places: dict[str, _Place] = {}
    codes: list[bytes] = []
    offset = 0
    for name, module in sys.modules.items():
        spec = getattr(module, "__spec__", None)
        if name == "__main__" or spec is None or not isinstance(spec.loader, SourceFileLoader):
            continue
        code = marshal.dumps(spec.loader.get_code(name))
        package = spec.submodule_search_locations is not None
        places[name] = (offset, len(code), spec.origin, spec.cached, package)
        codes.append(code)
        offset += len(code)
    directories = {os.path.dirname(origin) for _, _, origin, _, _ in places.values()}
    index = marshal.dumps((_python(), {each: _changed(each) for each in directories}, places))
    with open(path, "wb") as file:
        file.write(len(index).to_bytes(_LENGTH, "little") + index + b"".join(codes))
    return len(places)


def _python() -> tuple[str, int]:
    """Return what the code of a module depends on, besides its source."""
    return sys.version, sys.flags.optimize


def _changed(directory: str) -> int:
    """Return the time of the last change of a directory in seconds: layers of images have no fractions of it."""
    return int(os.stat(directory).st_mtime)
