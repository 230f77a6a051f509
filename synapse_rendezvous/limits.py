"""The names of all limits: rate limits, quotas, and addresses that are denied."""

import enum


class LimitName(enum.Enum):
    """A limit, named as the option that sets it: in the log, in the metric `rejected`, and in Synapse's limiters."""

    DENY = "deny"
    CLIENT_CREATE = "per_client.create"
    CLIENT_READ = "per_client.read"
    CLIENT_MISS = "per_client.miss"
    CLIENT_SESSIONS = "per_client.max_sessions"
    CLIENT_CROWDED_SESSIONS = "per_client.crowded_sessions"
    SESSION_READ = "per_session.read"
    SESSION_WRITE = "per_session.write"
    USER_CREATE = "per_user.create"
    MAX_SESSIONS = "max_sessions"
    MAX_TOTAL_BYTES = "max_total_bytes"
    MAX_UPDATES = "max_updates"

    @property
    def is_for_server(self) -> bool:
        """Whether it bounds what the server holds rather than what a client or a session may do."""
        return self.value.startswith("max_")
