"""`synapse-rendezvous check`: asks a server through its public URL as clients do, and names what is in their way."""
