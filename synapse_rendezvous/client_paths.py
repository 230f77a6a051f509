"""The paths at which clients look for the server: below `/_matrix/client`, which Synapse keeps for itself.

Its resource for clients is a leaf, so what a module mounts below is reached on listeners without it only. But that
resource is filled by functions, which Synapse looks up when it starts to listen, after it has made the modules. One
more function there makes it pass on what is ours. And Synapse tells clients of MSC4108 that there is a server if its
configuration names one.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from synapse_rendezvous.homeserver import Homeserver
from synapse_rendezvous.paths import UNSTABLE_MSC4108
from synapse_rendezvous.resource import RendezvousResource

logger = logging.getLogger(__name__)

_RESOURCES = "_synapse_rendezvous_client_resources"
"""The attribute of a homeserver that has its resources, by their paths: so they live no longer than it does."""


def serve(homeserver: Homeserver, resources: Mapping[str, RendezvousResource], msc4108_url: str | None) -> None:
    """Serve clients at their own paths, on all listeners of this process that are for clients.

    If this Synapse does not let that happen, a warning says what the operator can do instead.

    Args:
        homeserver: what serves them.
        resources: what is served, by its path.
        msc4108_url: where MSC4108 is mounted, if `/versions` shall say that it is there.
    """
    try:
        homeserver.set_attribute(_RESOURCES, resources)
        _add_servlets()
        if msc4108_url is not None:
            _advertise(homeserver.experimental, msc4108_url)
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        logger.warning(
            "Clients do not find synapse_rendezvous by themselves, since this Synapse has changed (%r)."
            " To lead them to MSC4108, add to homeserver.yaml: experimental_features: {msc4108_delegation_endpoint: %s}"
            " For MSC4388, see docs/clients.md",
            error,
            msc4108_url or "the address of the dialect",
        )


def register_servlets(homeserver: Any, http_server: Any) -> None:
    """Called by Synapse for each of its resources for clients, with what takes their paths (`HttpServer`)."""
    for path, resource in getattr(homeserver, _RESOURCES, {}).items():
        # Sessions of MSC4108 are elsewhere, where Synapse lets browsers send entity tags.
        is_creation = path == UNSTABLE_MSC4108
        pattern = re.compile(f"^{re.escape(path)}/?$" if is_creation else f"^{re.escape(path)}(?:/|$)")
        for method in ("POST",) if is_creation else ("GET", "POST", "PUT", "DELETE"):
            http_server.register_paths(method, [pattern], resource.respond, RendezvousResource.__name__)


def _add_servlets() -> None:
    from synapse.rest import SERVLET_GROUPS

    groups: Any = SERVLET_GROUPS
    if register_servlets not in groups["client"]:
        groups["client"] = (register_servlets, *groups["client"])  # the first one that takes a path has it


def _advertise(experimental: Any, url: str) -> None:
    if experimental.msc4108_delegation_endpoint is None:  # an AttributeError if there is no such option any more
        experimental.msc4108_delegation_endpoint = url
