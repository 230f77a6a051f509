"""The documents, the sample configuration and the code agree."""

import re
from collections.abc import Iterator
from typing import Any

import attr
import pytest
import yaml
from synapse.config._base import Config
from synapse.module_api.errors import ConfigError

from support.recipes import ROOT
from synapse_rendezvous import RendezvousModule, __version__
from synapse_rendezvous.config import RendezvousConfig

SAMPLE = yaml.safe_load((ROOT / "sample_config.yaml").read_text())
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()


def options(section: Any, path: str = "") -> Iterator[str]:
    """Name every option of a section and of those below it."""
    for field in attr.fields(type(section)):
        value = getattr(section, field.name)
        name = path + field.metadata["key"]
        if attr.has(type(value)):
            yield from options(value, f"{name}.")
        else:
            yield name


def written(section: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return what a YAML section says of each option."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        found.update(written(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value})
    return found


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return the options with one set; another one, which bounds it, is out of the way."""
    if path == "long_poll.default_wait":
        return {"long_poll": {"max_wait": "60s", "default_wait": value}}
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def rows() -> dict[str, list[str]]:
    """Return the table of options: default, from, to."""
    found = {}
    for line in CONFIGURATION.splitlines():
        if row := re.fullmatch(r"\| `([a-z0-9_.]+)` \|(.*)\|", line):
            cells = [cell.strip().strip("`") for cell in row[2].split("|")]
            if len(cells) == 4:
                found[row[1]] = cells[1:]
    return found


OPTIONS = list(options(RendezvousConfig()))
CONFIG = SAMPLE["modules"][0]["config"]


def test_sample_has_every_option_with_its_default() -> None:
    """The sample is the default configuration, written out."""
    assert "synapse_rendezvous.RendezvousModule" == SAMPLE["modules"][0]["module"]
    assert sorted(OPTIONS) == sorted(written(CONFIG))
    assert RendezvousModule.parse_config({}) == RendezvousModule.parse_config(CONFIG)


def test_every_option_is_documented() -> None:
    """The table has every option and no other, and its defaults are the sample's."""
    assert sorted(OPTIONS) == sorted(rows())
    for option, (default, _, _) in rows().items():
        value = written(CONFIG)[option]
        if option == "trusted_proxies":
            assert all(f"`{network}`" in CONFIGURATION for network in value)
        else:
            assert yaml.safe_load(default) == value, option


@pytest.mark.parametrize("option", [option for option, row in rows().items() if row[1]])
def test_documented_bounds(option: str) -> None:
    """What the table gives as bounds is accepted; what lies past them is not."""
    _, low, high = rows()[option]
    widest = {"max_total_bytes": "16G", "max_bytes": "1"}
    for bound in (low, high):
        if bound in OPTIONS:
            continue
        value = yaml.safe_load(bound)
        RendezvousConfig.parse({**widest, **nested(option, value)})
        step = 0.0001 if option.endswith("per_second") else 1
        if isinstance(value, str):
            value = Config.parse_duration(value) if value[-1] in "smh" else Config.parse_size(value)
        beyond = value - step if bound == low else value + step
        with pytest.raises(ConfigError):
            RendezvousConfig.parse({**widest, **nested(option, beyond)})


def test_readme() -> None:
    """The README names every option, and what it shows of an answer is true."""
    readme = (ROOT / "README.md").read_text()
    for field in attr.fields(RendezvousConfig):
        assert f"| `{field.metadata['key']}` |" in readme
    assert f'"version":"{__version__}","max_bytes":10240,"ttl_ms":300000,"max_wait_ms":10000,"process":"' in readme


def test_links() -> None:
    """Links between the documents lead somewhere."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
