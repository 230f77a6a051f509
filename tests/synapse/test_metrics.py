"""What Prometheus and the log are told."""

import logging
import logging.config
import re
from typing import Any, ClassVar

import yaml
from prometheus_client import REGISTRY, generate_latest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from support.recipes import ROOT
from support.rendezvous_case import RendezvousTestCase

OBSERVATIONS = "synapse_rendezvous.observer"
SERVER = "test"
PUBLIC = "11.0.0.1"  # those for documentation count as private


class MetricsTestCase(RendezvousTestCase):
    """One homeserver; what others in this process counted before is subtracted."""

    options: ClassVar[dict[str, Any]] = {
        "per_client": {"max_sessions": 3, "miss": {"per_second": 0.01, "burst_count": 2}},
    }

    def prepare(self, reactor: Any, clock: Any, homeserver: Any) -> None:
        self.before = self.samples()

    @staticmethod
    def samples() -> dict[str, float]:
        """Return what a scrape says of us, by name and labels."""
        lines = generate_latest(REGISTRY).decode().splitlines()
        ours = [line for line in lines if line.startswith("synapse_rendezvous_") and f'"{SERVER}"' in line]
        samples = dict(line.rsplit(" ", 1) for line in ours)
        return {
            name.replace(f'server_name="{SERVER}"', "").replace(",}", "}").replace("{}", ""): float(value)
            for name, value in samples.items()
        }

    def counted(self, prefix: str) -> dict[str, float]:
        """Return which counters of a family have grown, and by how much."""
        after = self.samples()
        return {
            name.removeprefix(f"synapse_rendezvous_{prefix}"): value - self.before.get(name, 0)
            for name, value in after.items()
            if re.match(rf"synapse_rendezvous_{prefix}($|{{)", name) and value != self.before.get(name, 0)
        }

    def now(self, name: str) -> float:
        return self.samples()[f"synapse_rendezvous_{name}"]

    def test_a_session(self) -> None:
        """A pairing is counted from its creation to its end; the log has one line of it."""
        below, tag = self.create(b"x" * 300, client_ip=PUBLIC)
        self.reactor.advance(1.5)
        self.assertEqual(304, self.call("GET", below, b"", ("If-None-Match", tag)).code)
        tag = self.tag(self.call("PUT", below, b"there", ("If-Match", tag)))
        self.call("PUT", below, b"back", ("If-Match", tag))
        self.call("GET", below)
        self.reactor.advance(8.5)
        with self.assertLogs(OBSERVATIONS, "INFO") as logs:
            self.call("DELETE", below)

        self.assertRegex(
            logs.output[0],
            rf"^INFO:{OBSERVATIONS}:Session {below[1:7]}\.\.\. has ended: paired, written 2 times,"
            r" deleted after 10\.0 s$",
        )
        self.assertEqual(1, len(logs.output))
        self.assertEqual({'{dialect="msc3886"}': 1}, self.counted("created_total"))
        self.assertEqual({'{outcome="paired",reason="deleted"}': 1}, self.counted("ended_total"))
        self.assertEqual(
            {
                '{method="POST",outcome="ok"}': 1,
                '{method="GET",outcome="not_modified"}': 1,
                '{method="GET",outcome="ok"}': 1,
                '{method="PUT",outcome="ok"}': 2,
                '{method="DELETE",outcome="ok"}': 1,
            },
            self.counted("requests_total"),
        )
        self.assertEqual({"": 3}, self.counted("body_bytes_count"))
        self.assertEqual({"": 309}, self.counted("body_bytes_sum"))
        self.assertEqual({"": 1}, self.counted("first_reply_seconds_count"))
        self.assertAlmostEqual(1.5, self.counted("first_reply_seconds_sum")[""], 1)
        self.assertAlmostEqual(10, self.counted("duration_seconds_sum")['{outcome="paired"}'], 1)
        self.assertEqual({}, self.counted("unidentified_creates_total"))

    def test_sessions_that_expire(self) -> None:
        """What is held is told every ten seconds; who ends unheard is counted as lonely."""
        for _ in range(2):
            self.create(b"12345")
        self.reactor.advance(10)
        self.assertEqual([2, 10, 1], [self.now(name) for name in ("live", "payload_bytes", "clients")])
        with self.assertLogs(OBSERVATIONS, "INFO") as logs:
            self.reactor.advance(302)
        self.assertEqual(2, len(logs.output))
        self.assertIn("lonely, written 0 times, expired after 300.0 s", logs.output[1])
        self.assertEqual([0, 0, 0], [self.now(name) for name in ("live", "payload_bytes", "clients")])
        self.assertEqual({'{outcome="lonely",reason="expired"}': 2}, self.counted("ended_total"))

    def test_refusals(self) -> None:
        """Each limit is counted under its own name, and every kind of answer by its method."""
        for _ in range(4):
            self.call("POST", "", b"")
        for method in ("GET", "GET", "PUT", "DELETE", "PATCH"):
            self.call(method, "/" + "x" * 22, b"")
        self.call("PUT", "/" + "x" * 22, b"x" * 20_000, client_ip=PUBLIC)
        self.assertEqual(
            {'{limit="per_client.max_sessions"}': 1, '{limit="per_client.miss"}': 2}, self.counted("rejected_total")
        )
        self.assertEqual(
            {
                '{method="POST",outcome="ok"}': 3,
                '{method="POST",outcome="limited"}': 1,
                '{method="GET",outcome="not_found"}': 2,
                '{method="PUT",outcome="limited"}': 1,
                '{method="DELETE",outcome="limited"}': 1,
                '{method="other",outcome="bad_request"}': 1,
                '{method="PUT",outcome="too_large"}': 1,
            },
            self.counted("requests_total"),
        )
        self.assertEqual({"": 3}, self.counted("unidentified_creates_total"))

    def test_what_proxies_do(self) -> None:
        """Tags that were changed on the way are counted by what was done to them, and so are writes that come twice."""
        below, tag = self.create()
        opaque = tag.strip(b'"')
        for known in (b"W/" + tag, b'"%b-gzip"' % opaque, opaque, b'W/"%b-br"' % opaque, tag):
            self.assertEqual(304, self.call("GET", below, b"", ("If-None-Match", known)).code)
        for _ in range(2):
            self.assertEqual(202, self.call("PUT", below, b"again", ("If-Match", b"W/" + tag)).code)
        self.assertEqual(
            {'{kind="weak"}': 4, '{kind="suffix"}': 2, '{kind="unquoted"}': 1}, self.counted("tags_normalised_total")
        )
        self.assertEqual({"": 1}, self.counted("replayed_puts_total"))

    def test_waiting(self) -> None:
        """Waits are counted by how they end, and who waits now is told at each scrape."""
        below, tag = self.create()
        waits = [
            self.make_request(
                b"GET",
                (self.path + below + "?timeout=4000").encode(),
                b"",
                shorthand=False,
                custom_headers=[(b"If-None-Match", tag)],
                await_result=False,
            )
            for _ in range(5)
        ]
        self.assertEqual([True] + [False] * 4, [wait.is_finished() for wait in waits])
        self.assertEqual(4, self.now("waiting"))
        waits[1].request.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(3, self.now("waiting"))
        self.reactor.advance(4)
        self.assertEqual(0, self.now("waiting"))
        self.assertEqual(
            {
                '{asked_by="client",outcome="displaced"}': 1,
                '{asked_by="client",outcome="left"}': 1,
                '{asked_by="client",outcome="timed_out"}': 3,
            },
            self.counted("waits_total"),
        )

    def test_there_at_zero(self) -> None:
        """Every family is there before anything happened, with all values of its labels, and no others."""
        samples = self.samples()
        names = {name.partition("{")[0].removeprefix("synapse_rendezvous_") for name in samples}
        documented = re.findall(r"^\| `synapse_rendezvous_(\w+)", (ROOT / "docs" / "operations.md").read_text(), re.M)
        families = {re.sub("_(bucket|sum|count|created)$", "", name) for name in names if name != "created_total"}
        self.assertEqual(sorted(documented), sorted((families | {"created_total"}) - {"created"}))
        self.assertEqual(5000, samples['synapse_rendezvous_limit{kind="count"}'])
        self.assertIn('process="main"', next(name for name in samples if "_info{" in name))
        self.call("GET", "/" + "x" * 22)
        self.call("BREW")
        self.assertEqual(set(samples), set(self.samples()))


def test_quiet_polls(caplog: Any) -> None:
    """The lines for `log_config` in the documents keep unchanged polls out of the access log, and nothing else."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (lines,) = (block for block in re.findall(r"```yaml\n(.*?)```", page, re.S) if "QuietPolls" in block)
    config = yaml.safe_load(lines)
    quiet = logging.config.DictConfigurator(config)
    (name,) = config["filters"]
    polls = quiet.configure_filter(config["filters"][name])

    def line(code: str, method: str, uri: str, logger: str = "synapse.access.http.8008") -> logging.LogRecord:
        said = ("127.0.0.1", "8008", "None", 0.1, 2, code, method, uri, "1.1", "curl")
        return logging.LogRecord(logger, logging.INFO, "", 0, "%s", said, None)

    session = "/_synapse/client/rendezvous/" + "x" * 22
    assert not polls.filter(line("304", "GET", session))
    assert not polls.filter(line("304", "GET", session + "?timeout=10000"))
    assert polls.filter(line("200", "GET", session))
    assert polls.filter(line("304", "GET", "/_matrix/media/v3/thumbnail"))
    assert polls.filter(line("304", "GET", session, "synapse.other"))
    assert polls.filter(line("202", "PUT", session))
