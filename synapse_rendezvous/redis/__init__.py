"""Sessions in the Redis that Synapse uses. Imported only where a homeserver has Redis."""
