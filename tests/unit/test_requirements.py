"""What setup.cfg requires is what the tests run with."""

import configparser
import re

from support.recipes import ROOT

CONSTRAINTS = (ROOT / "tests" / "constraints-oldest.txt").read_text()


def test_lowest() -> None:
    """The lane with the oldest Synapse has the lowest release of each requirement, and no other limits on them."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = setup["options"]["install_requires"] + setup["options.extras_require"]["redis"]
    lowest = dict(re.findall(r"^(\w+)>=([\d.]+)", declared, re.MULTILINE))
    assert {"attrs", "prometheus_client", "twisted", "txredisapi"} == lowest.keys()

    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", CONSTRAINTS, re.MULTILINE))
    assert {"matrix-synapse", *lowest} == pinned.keys()
    assert lowest == {name: version for name, version in pinned.items() if name in lowest}
