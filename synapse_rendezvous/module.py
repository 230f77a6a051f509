"""The Synapse module: reads its options, puts the parts together and mounts them."""

import contextlib
import functools
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence

import synapse
from synapse.module_api import ModuleApi
from synapse.module_api.errors import ConfigError

from synapse_rendezvous import __version__, client_paths, clock, paths
from synapse_rendezvous.admission import Admission
from synapse_rendezvous.clients import Clients
from synapse_rendezvous.config import DialectConfig, RendezvousConfig
from synapse_rendezvous.dialects.dialect import Dialect
from synapse_rendezvous.dialects.msc3886 import MSC3886Dialect
from synapse_rendezvous.dialects.msc4108 import MSC4108Dialect
from synapse_rendezvous.dialects.msc4388 import CONCURRENT_WRITE, STABLE_CONCURRENT_WRITE, MSC4388Dialect
from synapse_rendezvous.errors import StoreUnavailable
from synapse_rendezvous.homeserver import Homeserver, require_supported
from synapse_rendezvous.long_poll import Waiters
from synapse_rendezvous.memory_store import MemorySessionStore
from synapse_rendezvous.metrics import Metrics
from synapse_rendezvous.observer import REFUSALS_INTERVAL_MS, SOURCES_INTERVAL_MS, Observer
from synapse_rendezvous.rate_limit import Limits
from synapse_rendezvous.resource import RendezvousResource
from synapse_rendezvous.store import Quotas, SessionStore

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_MS = 10_000
"""How often expired sessions leave a store. None is served in between: each is checked when asked for."""

SWEEP_PAUSE_S = 0.005
"""How long requests come first, before the next ones leave where many have expired."""

PATIENCE_MS = 9000
"""How long any known client waits for an answer that it expects at once; okhttp gives up a second later."""

REREAD_INTERVAL_MS = 10_000
"""How often a request that waits looks into Redis by itself: a wake-up may be lost while a connection breaks."""


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
        process = api.worker_name or "main"
        kind = "redis" if homeserver.has_redis and config.store != "memory" else "memory"
        metrics = Metrics(api.server_name, version=__version__, process=process, store=kind, config=config)
        observer = Observer(metrics, clock.monotonic_s, ttl_ms=config.ttl_ms, is_enforced=not config.observe)
        limits = Limits(homeserver, config, observer)
        admission = Admission(homeserver, config, limits, observer)
        clients = Clients(config.trusted_proxies, config.exempt, config.deny)
        store = _store(homeserver, config, api, observer)
        waiters = _waiters(homeserver, config, store.changes_channel)
        observer.measure_waiting(waiters.__len__)
        for function, interval_ms in (
            (functools.partial(_sweep, store, observer, api.sleep), SWEEP_INTERVAL_MS),
            (observer.log_refusals, REFUSALS_INTERVAL_MS),
            (observer.log_dominant_source, SOURCES_INTERVAL_MS),
        ):
            api.looping_background_call(function, interval_ms, desc="synapse_rendezvous", run_on_all_instances=True)
        base_url = api.public_baseurl.rstrip("/")
        serves_client_paths = config.client_paths == "on" or (
            config.client_paths == "auto" and homeserver.delegates_authentication
        )
        mounts = _mounts(config, homeserver, store, base_url, kind, serves_client_paths=serves_client_paths)
        resources: dict[str, RendezvousResource] = {}
        for path, options, dialect in mounts:
            resources[path] = RendezvousResource(
                clock=homeserver.clock,
                sleep=api.sleep,
                path=path,
                dialect=dialect,
                create_policy=options.create_policy,
                clients=clients,
                admission=admission,
                limits=limits,
                store=store,
                waiters=waiters,
                observer=observer,
            )
            if path == options.path:
                _warn_of_path(dialect, options, serves_client_paths=serves_client_paths)
            elif homeserver.compresses_for_clients:
                continue  # only Synapse's own resource can have it below itself
            homeserver.refuse_conflicts(path)
            api.register_web_resource(path, resources[path])
        if serves_client_paths:
            for_clients = {path: each for path, each in resources.items() if path.startswith(paths.CLIENT_API_PREFIX)}
            msc4108_url = base_url + config.dialects.msc4108.path if paths.UNSTABLE_MSC4108 in resources else None
            client_paths.serve(homeserver, for_clients, msc4108_url)
        if config.long_poll.default_wait_ms > PATIENCE_MS:
            logger.warning(
                "long_poll.default_wait is %g s, but some clients (on okhttp) give up a request after 10 s, and then"
                " fail. Set it to 9s or less",
                config.long_poll.default_wait_ms / 1000,
            )
        if config.max_total_bytes < config.room_bytes:
            _warn_of_room(config)
        if store.changes_channel is None and homeserver.has_workers:
            _warn_of_memory(sorted(path for path, _, _ in mounts), api.worker_name, homeserver.port())
        mounted = (f"{dialect.name} at {path} (creation {options.create_policy})" for path, options, dialect in mounts)
        logger.info(
            "synapse_rendezvous %s on %s: %s; sessions in %s; %s",
            __version__,
            process,
            ", ".join(mounted),
            "Redis" if store.changes_channel else "the memory of this process",
            config.summary(),
        )

    @staticmethod
    def parse_config(config: object) -> RendezvousConfig:
        """Read the module's options; called by Synapse when it reads homeserver.yaml, before anything starts.

        Raises:
            ConfigError: an option is wrong, or Synapse is too old.
        """
        require_supported(synapse.__version__)
        return RendezvousConfig.parse(config)


def _mounts(
    config: RendezvousConfig,
    homeserver: Homeserver,
    store: SessionStore,
    base_url: str,
    kind: str,
    *,
    serves_client_paths: bool,
) -> list[tuple[str, DialectConfig, Dialect]]:
    """Return the paths that are served, each with the options of its dialect and the dialect as it is spoken there.

    What homeserver.yaml says of Synapse's own servers goes first. Without being told to, nothing is offered to clients
    that cannot create: those of MSC4108 have no access token to send.
    """
    of, is_told = config.dialects, config.client_paths == "on"
    etags = functools.partial(_etag_dialect, base_url=base_url, process=secrets.token_hex(4), store=kind, config=config)
    mounts: dict[str, tuple[DialectConfig, Dialect]] = {}
    if of.msc3886.enabled:
        mounts[of.msc3886.path] = of.msc3886, etags(MSC3886Dialect, of.msc3886.path, config.max_bytes)
    if of.msc4108.enabled:
        mounts[of.msc4108.path] = of.msc4108, etags(MSC4108Dialect, of.msc4108.path, MSC4108Dialect.MAX_BYTES)
        is_offered = is_told or of.msc4108.create_policy == "open"
        if serves_client_paths and is_offered and not homeserver.has_msc4108:
            mounts.setdefault(paths.UNSTABLE_MSC4108, mounts[of.msc4108.path])
    if of.msc4388.enabled:
        msc4388 = functools.partial(MSC4388Dialect, store.now_ms, max_wait_ms=config.long_poll.max_wait_ms)
        unstable = of.msc4388, msc4388(conflict_errcode=CONCURRENT_WRITE)
        stable = of.msc4388, msc4388(conflict_errcode=STABLE_CONCURRENT_WRITE)
        mounts[of.msc4388.path] = stable if of.msc4388.path == paths.STABLE_MSC4388 else unstable
        if serves_client_paths:
            if not homeserver.has_msc4388:
                mounts.setdefault(paths.UNSTABLE_MSC4388, unstable)
            mounts.setdefault(paths.STABLE_MSC4388, stable)
    return [(path, *mount) for path, mount in mounts.items()]


def _etag_dialect(
    dialect: type[MSC3886Dialect],
    path: str,
    max_bytes: int,
    *,
    base_url: str,
    process: str,
    store: str,
    config: RendezvousConfig,
) -> MSC3886Dialect:
    return dialect(
        base_url=base_url,
        path=path,
        max_bytes=max_bytes,
        ttl_ms=config.ttl_ms,
        max_wait_ms=config.long_poll.max_wait_ms,
        process=process,
        store=store,
        strict_etags=config.strict_etags,
    )


def _store(homeserver: Homeserver, config: RendezvousConfig, api: ModuleApi, observer: Observer) -> SessionStore:
    quotas = Quotas(
        ttl_ms=config.ttl_ms,
        max_sessions=config.max_sessions,
        max_total_bytes=config.max_total_bytes,
        max_updates=config.max_updates,
        max_outcomes=config.max_outcomes,
        max_client_sessions=config.per_client.max_sessions,
        crowded_sessions=math.ceil(config.max_sessions * config.crowded_at),
        crowded_client_sessions=min(config.per_client.crowded_sessions, config.per_client.max_sessions),
    )
    if config.store == "redis" and not homeserver.has_redis:
        raise ConfigError(
            "synapse_rendezvous has `store: redis`, but Synapse uses no Redis. Set `redis: {enabled: true}`, with host"
            " and port, or remove `store` from the module's config.",
            ("redis", "enabled"),
        )
    wall_ms = homeserver.clock.time_msec
    if config.store == "memory" or not homeserver.has_redis:
        return MemorySessionStore(wall_ms, clock.monotonic_ns, quotas, observer)
    # What they need is there only where Synapse has Redis.
    from synapse_rendezvous.redis.link import RedisLink
    from synapse_rendezvous.redis.store import RedisSessionStore

    link = RedisLink(homeserver.redis(), homeserver.reactor, clock.monotonic_s, observer)
    return RedisSessionStore(link, wall_ms, server_name=api.server_name, quotas=quotas, observer=observer)


async def _sweep(store: SessionStore, observer: Observer, sleep: Callable[[float], Awaitable[None]]) -> None:
    """Let a store forget what has expired, some at a time, and report what it holds then."""
    with contextlib.suppress(StoreUnavailable):  # which the observer knows
        while not (usage := await store.sweep()).is_swept:
            await sleep(SWEEP_PAUSE_S)
        observer.store_measured(usage)


def _waiters(homeserver: Homeserver, config: RendezvousConfig, changes_channel: str | None) -> Waiters:
    """Return the waiters; where sessions are shared, the writes of other processes wake them too."""
    waiters = Waiters(
        homeserver.call_later,
        max_wait_ms=config.long_poll.max_wait_ms,
        default_wait_ms=config.long_poll.default_wait_ms,
        max_waiting=config.long_poll.max_waiting,
        max_client_waiting=config.per_client.max_waiting,
        reread_ms=math.inf if changes_channel is None else REREAD_INTERVAL_MS,
    )
    if changes_channel is not None and config.long_poll.max_wait_ms > 0:
        homeserver.subscribe(changes_channel, received=waiters.wake, subscribed=waiters.wake_all)
    homeserver.before_shutdown(waiters.close)
    return waiters


def _warn_of_room(config: RendezvousConfig) -> None:
    """Say where strangers can take the room that pairings need which have begun."""
    logger.warning(
        "max_total_bytes (%d) has no room for max_sessions (%d) payloads of the longest kind. Strangers who fill it"
        " with sessions of their own get writes of pairings refused that have begun. Remove max_total_bytes, which then"
        " follows from max_sessions, or set it to %d or more. See docs/configuration.md",
        config.max_total_bytes,
        config.max_sessions,
        config.room_bytes,
    )


def _warn_of_memory(paths: Sequence[str], worker: str | None, port: int | None) -> None:
    """Say what `store: memory` asks of the reverse proxy where several processes serve the homeserver."""
    logger.warning(
        "Several processes serve this homeserver, but by `store: memory` each has sessions of its own: all requests for"
        " %s must go to one and the same process. To make it this one (%s), in nginx: %s Or remove `store`: sessions"
        " are then in Redis, where every process finds them. See docs/workers.md",
        " and ".join(paths),
        worker or "the main process",
        " ".join(f"location ^~ {path} {{ proxy_pass http://127.0.0.1:{port or 'PORT'}; }}" for path in paths),
    )


def _warn_of_path(dialect: Dialect, options: DialectConfig, *, serves_client_paths: bool) -> None:
    """Say where clients cannot get at a dialect, or web clients on other origins cannot use it.

    Synapse answers the preflights of browsers by the path alone.
    """
    if options.path.startswith(paths.CLIENT_API_PREFIX) and not serves_client_paths:
        logger.warning(
            "%s is reached only on listeners without Synapse's own `client` resource, such as those of a worker with"
            " `resources: []`. See docs/clients.md",
            options.path,
        )
    allows_etags = options.path.startswith(paths.ETAG_PREFIX)
    if allows_etags and options.create_policy == "authenticated":
        logger.warning(
            "Web clients cannot create sessions at %s: below %s, Synapse does not let browsers"
            " send Authorization. Other clients can. See dialects.%s.create_policy in docs/configuration.md",
            options.path,
            paths.ETAG_PREFIX,
            dialect.name,
        )
    if not allows_etags and dialect.uses_etags:
        logger.warning(
            "Web clients cannot use %s: only below %s, Synapse lets browsers send If-Match and"
            " If-None-Match. Other clients can. See dialects.%s.path in docs/configuration.md",
            options.path,
            paths.ETAG_PREFIX,
            dialect.name,
        )
