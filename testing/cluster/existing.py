"""The cluster of a given KUBECONFIG. It is never created or deleted; only what was installed is removed again.

- `INGRESS_URL` (`http://203.0.113.7`) is the address of its ingress controller. It has one, with a default class:
  a second one beside it would only compete for the same Ingresses.
- `IMAGE_REGISTRY` (`registry.example.org/team`) is the registry that images are pushed to and nodes pull from.
  The user of these commands is logged in there already.
"""

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from . import images, postgres, tools
from .errors import ClusterError, UnknownError
from .progress import note, step
from .provider import Image, Provider

NO_REGISTRY = (
    "images have to reach the nodes of the cluster in KUBECONFIG: set IMAGE_REGISTRY to a registry that they can pull "
    "from and you are logged in to, for example IMAGE_REGISTRY=registry.example.org/team"
)
NO_INGRESS = (
    "set INGRESS_URL to where the ingress controller of the cluster in KUBECONFIG answers, for example "
    "INGRESS_URL=http://203.0.113.7; if it has none, install one, such as Traefik, as the default ingress class. Or "
    "unset KUBECONFIG: a cluster is created on this machine then"
)


class ExistingCluster(Provider):
    name = "existing"

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    @property
    def kubeconfig(self) -> Path:
        return self._kubeconfig

    @property
    def ingress_url(self) -> str:
        url = os.environ.get("INGRESS_URL", "").rstrip("/")
        if not url:
            raise ClusterError(NO_INGRESS)
        return url

    def kubectl_path(self) -> Path:
        # The cluster is of any version, and its owner's kubectl fits it.
        found = shutil.which("kubectl")
        return Path(found) if found else tools.kubectl()

    def up(self) -> None:
        problems = [] if os.environ.get("INGRESS_URL") else [NO_INGRESS]
        if not os.environ.get("IMAGE_REGISTRY"):
            problems.append(NO_REGISTRY)
        tools.obtain(self.kubectl_path, self.helm_path, images.require_builder, problems=problems)
        url = self.ingress_url
        if not self.answers():
            raise ClusterError(
                f"the cluster of KUBECONFIG={self.kubeconfig} does not answer. Repair it, or unset KUBECONFIG to "
                "get a cluster made here"
            )
        note(f"cluster of {self.kubeconfig} answers, ingress at {url}")

    def down(self) -> None:
        if not self.answers():
            raise ClusterError(f"the cluster of KUBECONFIG={self.kubeconfig} does not answer: nothing was removed")
        postgres.remove(self)
        note(f"the cluster of {self.kubeconfig} itself stays")

    def status(self) -> str:
        return f"existing: API server of {self.kubeconfig} {'answers' if self.answers() else 'does not answer'}"

    def load_image(self, image: Image) -> str:
        registry = os.environ.get("IMAGE_REGISTRY", "").rstrip("/")
        if not registry:
            raise ClusterError(NO_REGISTRY)
        reference = f"{registry}/{image.name}:{image.digest}"
        with step(f"pushing {reference}", usual="under a minute") as current:
            images.push(current, image, reference)
        return reference

    def enforcing_policies(self) -> AbstractContextManager[None]:
        raise UnknownError(
            "it is unknown whether the network plugin of the cluster in KUBECONFIG enforces NetworkPolicies"
        )
