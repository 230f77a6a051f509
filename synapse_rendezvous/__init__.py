"""A rendezvous server for Matrix homeservers: a Synapse module.

Operators name `synapse_rendezvous.RendezvousModule` in `homeserver.yaml`; nothing else here is public.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synapse_rendezvous.module import RendezvousModule

__all__ = ["RendezvousModule", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Synapse is imported only when the module itself is asked for, so that the command line can say in one
    # sentence that Synapse is missing instead of dying of an ImportError.
    if name == "RendezvousModule":
        from synapse_rendezvous.module import RendezvousModule

        return RendezvousModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
