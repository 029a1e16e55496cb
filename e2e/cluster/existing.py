"""The cluster of a given KUBECONFIG. It is somebody's: never made, never deleted; only what was installed goes again.

- `IMAGE_REGISTRY` (`registry.example.org/team`) says where images are pushed to, so that its nodes can pull them.
  Whoever runs this is logged in there already.
- `INGRESS_URL` says where its ingress controller answers. Its default ingress class is used then, and Traefik is not
  installed.
"""

import os
from pathlib import Path

from . import addons, images, postgres
from .errors import ClusterError
from .progress import note, step
from .provider import Image, Provider

NO_REGISTRY = (
    "images have to reach the nodes of the cluster in KUBECONFIG: set IMAGE_REGISTRY to a registry that they can pull "
    "from and you are logged in to, for example IMAGE_REGISTRY=registry.example.org/team"
)
NO_INGRESS = (
    "where does the ingress of the cluster in KUBECONFIG answer? Set INGRESS_URL, for example "
    "INGRESS_URL=http://203.0.113.7. Traefik was installed as a NodePort service (port "
    f"{addons.INGRESS_NODE_PORT} of every node) where no ingress class is the default"
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

    def up(self) -> None:
        if not self.answers():
            raise ClusterError(
                f"the cluster of KUBECONFIG={self.kubeconfig} does not answer. Repair it, or unset KUBECONFIG to "
                "get a cluster made here"
            )
        if not self._has_default_ingress_class():
            addons.apply_ingress(self, addons.TRAEFIK_OFFICIAL)
        note(f"cluster of {self.kubeconfig} ready, ingress at {self.ingress_url}")

    def down(self) -> None:
        if not self.answers():
            raise ClusterError(f"the cluster of KUBECONFIG={self.kubeconfig} does not answer: nothing was removed")
        postgres.remove(self)
        addons.remove_ingress(self)

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

    def _has_default_ingress_class(self) -> bool:
        path = r"{.items[*].metadata.annotations.ingressclass\.kubernetes\.io/is-default-class}"
        return "true" in self.kubectl("get", "ingressclasses", "-o", f"jsonpath={path}").split()
