"""Names that are defined once and used in several places."""

import attr

from synapse_rendezvous.config import DialectsConfig, RendezvousConfig
from synapse_rendezvous.dialects.msc3886 import MSC3886Dialect
from synapse_rendezvous.dialects.msc4108 import MSC4108Dialect
from synapse_rendezvous.dialects.msc4388 import MSC4388Dialect
from synapse_rendezvous.limits import LimitName


def test_dialects() -> None:
    """Each dialect has a section of its name in the configuration, and an id prefix of its own."""
    dialects = (MSC3886Dialect, MSC4108Dialect, MSC4388Dialect)
    assert [field.name for field in attr.fields(DialectsConfig)] == [dialect.name for dialect in dialects]
    assert 3 == len({dialect.id_prefix for dialect in dialects})


def test_limits() -> None:
    """Each limit is named as the option that sets it."""
    config = RendezvousConfig()
    for limit in LimitName:
        value: object = config
        for name in limit.value.split("."):
            value = getattr(value, name)
