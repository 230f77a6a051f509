"""The Synapse module: reads its options, puts the parts together and mounts them."""

import logging

import synapse
from synapse.module_api import ModuleApi

from synapse_rendezvous import __version__
from synapse_rendezvous.admission import Admission
from synapse_rendezvous.config import RendezvousConfig
from synapse_rendezvous.dialects import MSC3886Dialect
from synapse_rendezvous.homeserver import Homeserver, require_supported
from synapse_rendezvous.resource import RendezvousResource
from synapse_rendezvous.store import MemorySessionStore

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_MS = 10_000
"""How often expired sessions leave memory. None is served in between: each is checked when asked for."""


class RendezvousModule:
    """What an operator names in homeserver.yaml; Synapse makes one in each process.

    Args:
        config: what `parse_config` returned.
        api: Synapse's interface for modules.

    Raises:
        ConfigError: another part of homeserver.yaml contradicts this module.
    """

    def __init__(self, config: RendezvousConfig, api: ModuleApi) -> None:
        homeserver = Homeserver(api)
        homeserver.refuse_conflicts(MSC3886Dialect.path)
        store = MemorySessionStore(
            homeserver.clock.time_msec,
            ttl_ms=config.ttl_ms,
            max_sessions=config.max_sessions,
            max_total_bytes=config.max_total_bytes,
        )
        dialect = MSC3886Dialect(public_baseurl=api.public_baseurl, max_bytes=config.max_bytes, ttl_ms=config.ttl_ms)
        resource = RendezvousResource(
            clock=homeserver.clock,
            dialect=dialect,
            store=store,
            admission=Admission(homeserver, config),
            strict_etags=config.strict_etags,
        )
        api.register_web_resource(dialect.path, resource)
        api.looping_background_call(
            store.sweep, SWEEP_INTERVAL_MS, desc="synapse_rendezvous_sweep", run_on_all_instances=True
        )
        logger.info(
            "synapse_rendezvous %s on %s: %s, creation %s, ttl %g s, at most %d bytes a payload, %d sessions and %d"
            " bytes in all; a client may create %s, read %s, write %s and miss %s; X-Forwarded-For believed from %s%s",
            __version__,
            api.worker_name or "main",
            dialect.path,
            config.create_policy,
            config.ttl_ms / 1000,
            config.max_bytes,
            config.max_sessions,
            config.max_total_bytes,
            config.per_client.create,
            config.per_client.read,
            config.per_client.write,
            config.per_client.miss,
            ", ".join(map(str, config.trusted_proxies)) or "nobody",
            "; entity tags strict" if config.strict_etags else "",
        )

    @staticmethod
    def parse_config(config: object) -> RendezvousConfig:
        """Read the module's options; called by Synapse when it reads homeserver.yaml, before anything starts.

        Raises:
            ConfigError: an option is wrong, or Synapse is too old.
        """
        require_supported(synapse.__version__)
        return RendezvousConfig.parse(config)
