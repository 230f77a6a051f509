"""The URL paths at which the dialects are mounted by default."""

ETAG_PREFIX = "/_synapse/client/rendezvous"
"""Below this path, and nowhere else, Synapse lets browsers send If-Match and If-None-Match."""

MSC3886 = ETAG_PREFIX
MSC4108 = f"{ETAG_PREFIX}/msc4108"
MSC4388 = "/_synapse/client/io.element.msc4388/rendezvous"

PREFIXES = (ETAG_PREFIX, MSC4388)
"""What a reverse proxy must pass on: all of the above are at or below one of these."""

CLIENT_API_PREFIX = "/_matrix/client/"
"""Where Synapse's own resource for clients is mounted."""

UNSTABLE_MSC4108 = f"{CLIENT_API_PREFIX}unstable/org.matrix.msc4108/rendezvous"
UNSTABLE_MSC4388 = f"{CLIENT_API_PREFIX}unstable/io.element.msc4388/rendezvous"
STABLE_MSC4388 = f"{CLIENT_API_PREFIX}v1/rendezvous"
"""Where clients look for these two by the proposals."""
