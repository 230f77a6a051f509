"""The demonstration: a throw-away homeserver, one rendezvous on it, and a page to pair devices."""
