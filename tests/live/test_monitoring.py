"""What contrib/ has for Prometheus and Grafana, and docs/operations.md says of it, with a real Prometheus."""

import json
import math
import pathlib
import re
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from support.homeservers import running
from support.http_client import ask
from support.ports import free_port
from support.programs import needs
from support.recipes import DOCS, ROOT, recipe
from support.servers import Server
from support.until import wait_until
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

TESTS = pathlib.Path(__file__).parent / "alerts.yml"
RULES = ROOT / "contrib" / "prometheus" / "synapse_rendezvous.rules.yml"
ALERTS = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
TESTED = yaml.safe_load(TESTS.read_text())["tests"]
DASHBOARD = json.loads((ROOT / "contrib" / "grafana" / "synapse_rendezvous.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OPERATIONS = (DOCS / "operations.md").read_text()
PATH = "/_synapse/client/rendezvous"
BURST = 6
LABEL = re.compile(r"`(\w+)`(?: \((.*?)\))?")

promtool = needs("promtool", "prometheus")


@promtool
def test_alerts_fire_and_are_silent() -> None:
    """Each alert fires when it should, alone, and is silent when it should."""
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(TESTS)]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60, check=False)
        assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_is_tested_and_described(alert: dict[str, Any]) -> None:
    """There are both tests for each, and a section about it where its link leads."""
    name = alert["alert"]
    assert {"fires", "is"} == {test["name"].split()[1] for test in TESTED if test["name"].split()[0] == name}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert {"summary", "description", "runbook"} == set(alert["annotations"])
    assert f"docs/operations.md#{name.lower()}" == alert["annotations"]["runbook"]
    assert f"\n### {name}\n" in OPERATIONS


def test_dashboard() -> None:
    """Grafana can place and number the panels, and ask the data source and homeserver that were chosen."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert "${datasource}" == panel["datasource"]["uid"]
        assert len(panel["targets"]) == len({target["refId"] for target in panel["targets"]})
        for target in panel["targets"]:
            metrics = target["expr"].count("synapse_rendezvous_")
            assert metrics == target["expr"].count('{server_name=~"$server_name"'), target["expr"]
    assert ["datasource", "server_name"] == [variable["name"] for variable in DASHBOARD["templating"]["list"]]


class Prometheus(Server):
    """A Prometheus that scrapes a homeserver each second and evaluates the alerts as often.

    Args:
        directory: an empty folder.
        metrics_port: where the homeserver has its metrics.
    """

    health = "/-/ready"

    def __init__(self, directory: pathlib.Path, metrics_port: int) -> None:
        port = free_port()
        config = yaml.safe_load(recipe("yaml", "scrape_configs", "operations.md"))
        config["rule_files"] = [str(RULES.parent / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"{HOST}:{metrics_port}"]
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        super().__init__(
            directory,
            "prometheus",
            port,
            "prometheus",
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address={HOST}:{port}",
        )

    def get(self, path: str, **query: str) -> Any:
        """Return the data of an answer of its API."""
        answer = ask("GET", f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}")
        assert 200 == answer.status, answer.content
        return answer.json()["data"]

    def values(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Return the series of a query, each with its value now."""
        return [(series["metric"], float(series["value"][1])) for series in self.get("query", query=query)["result"]]


def play(url: str, metrics_url: str) -> None:
    """Let happen, once at least, whatever has a metric and can happen without Redis."""

    def session(path: str = "") -> tuple[str, str]:
        created = ask("POST", url + PATH, b"hello", Content_Type="text/plain")
        assert 200 == created.status
        return f"{url}{PATH}/{created.json()['id']}", created.etag

    def put(session: str, tag: str, content: bytes, expected: int = 202) -> str:
        written = ask("PUT", session, content, If_Match=tag, Content_Type="text/plain")
        assert expected == written.status
        return written.etag

    paired, first = session()
    session()  # of which nobody hears again
    assert 304 == ask("GET", paired, If_None_Match=first).status
    waiting = threading.Thread(target=ask, args=("GET", f"{paired}?timeout=9000"), kwargs={"If_None_Match": first})
    waiting.start()
    waits = b'\nsynapse_rendezvous_waiting{server_name="rendezvous.localhost"} 1.0'
    wait_until(lambda: waits in ask("GET", metrics_url).content)
    tag = put(paired, first, b"it is me")
    waiting.join()
    put(paired, first, b"it is me")  # once more, as a proxy might
    put(paired, first, b"too late", expected=412)
    for tell in ('W/"{}"', '"{}-gzip"', "{}"):
        tag = put(paired, tell.format(tag.strip('"')), tell.encode())
    assert 304 == ask("GET", f"{paired}?timeout=1", If_None_Match=tag).status
    assert 204 == ask("DELETE", paired).status
    assert 404 == ask("GET", paired).status
    assert 201 == ask("POST", f"{url}{PATH}/msc4108", Content_Type="text/plain").status
    assert 200 == ask("POST", f"{url}/_synapse/client/io.element.msc4388/rendezvous", b'{"data": ""}').status
    for _ in range(BURST - 4):
        session()
    assert 429 == ask("POST", url + PATH, b"hello").status


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that knows of a few pairings, refusals and waits."""
    port, metrics_port = free_port(), free_port()
    settings = yaml.safe_load(recipe("yaml", "enable_metrics", "operations.md"))
    settings["listeners"][0]["port"] = metrics_port
    client = {"port": port, "bind_addresses": [HOST], "type": "http", "resources": [{"names": ["client"]}]}
    settings["listeners"].append(client)
    homeserver = ThrowawayHomeserver(
        tmp_path_factory.mktemp("homeserver"),
        port=port,
        modules=[
            {
                "module": "synapse_rendezvous.RendezvousModule",
                "config": {"ttl": "12s", "per_client": {"create": {"per_second": 0.001, "burst_count": BURST}}},
            }
        ],
        settings=settings,
    )
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), metrics_port)
    with running(homeserver), prometheus:
        # From zero on, or the first of each would not count as an increase.
        wait_until(lambda: prometheus.values("synapse_rendezvous_created_total") != [])
        play(homeserver.url, f"http://{HOST}:{metrics_port}/_synapse/metrics")
        yield prometheus


@needs("prometheus", "prometheus")
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_shows_something(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    """Each query of the dashboard returns numbers."""
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "1m").replace("$server_name", ".*")

        def is_shown(query: str = query) -> bool:
            values = [value for _, value in prometheus.values(query)]
            return values != [] and not any(map(math.isnan, values))

        wait_until(is_shown, about=query)
        labels = re.findall(r"{{(\w+)}}", target["legendFormat"])
        assert all(set(labels) <= set(series) for series, _ in prometheus.values(query)), (query, labels)


@needs("prometheus", "prometheus")
def test_every_alert_is_evaluated(prometheus: Prometheus) -> None:
    """No alert fails on real metrics, and those fire that should."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()))
    assert [alert["alert"] for alert in ALERTS] == [rule["name"] for rule in rules()]
    fires = 'ALERTS{alertname="RendezvousProxyRewritesTags", alertstate="firing"}'
    wait_until(lambda: {"weak", "suffix", "unquoted"} == {series["kind"] for series, _ in prometheus.values(fires)})
    others = 'ALERTS{severity="critical"} or ALERTS{alertname="RendezvousErrors"}'
    assert [] == [series["alertname"] for series, _ in prometheus.values(others)]


@needs("prometheus", "prometheus")
def test_every_metric_is_documented(prometheus: Prometheus) -> None:
    """docs/operations.md has each metric, with its labels and their values, and no other."""
    real: dict[str, dict[str, set[str]]] = {}
    for series, _ in prometheus.values('{__name__=~"synapse_rendezvous_.+"}'):
        labels = real.setdefault(re.sub(r"_(bucket|sum|count)$", "", series.pop("__name__")), {})
        for label in series.keys() - {"instance", "job", "le", "server_name"}:
            labels.setdefault(label, set()).add(series[label])
    table = re.findall(r"^\| `(synapse_rendezvous_\w+)` \| \w+ \| (.*?) \|", OPERATIONS, re.MULTILINE)
    assert sorted(real) == sorted(name for name, _ in table)
    for name, cell in table:
        documented = {label: set(re.findall(r"`(\w+)`", values)) for label, values in LABEL.findall(cell)}
        assert real[name].keys() == documented.keys(), name
        for label, values in documented.items():
            assert not values or values == real[name][label], (name, label)
    outcomes = set(re.findall(r"^\| `(\w+)` \| \d", OPERATIONS, re.MULTILINE))
    assert outcomes == real["synapse_rendezvous_requests_total"]["outcome"]
