"""The parameters of the first process in the namespaces, which receives them as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Import:
    """An image to import: its name, a tar file of its root directory, and lines of a Dockerfile."""

    reference: str
    root: str
    changes: Sequence[str]


@dataclass(frozen=True)
class Spec:
    """The engine's packages, the images to import, and the command to run with its additional environment."""

    packages: str
    images: Sequence[Import]
    command: Sequence[str]
    environment: Mapping[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Spec":
        value = json.loads(text)
        value["images"] = [Import(**image) for image in value["images"]]
        return Spec(**value)
