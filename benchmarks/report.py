"""Turn the numbers of the benchmarks into the tables and plots of docs/performance.md.

The page has markers, `<!-- begin NAME -->` and `<!-- end NAME -->`; what stands between them is replaced.
"""

import argparse
import hashlib
import json
import operator
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from load import percentile
from servers import SERVERS

ROOT = pathlib.Path(__file__).parent.parent
NUMBERS = ROOT / "benchmarks" / "results" / "reference.json"
PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"

BARE = "bare"
OPERATIONS = {
    "poll": "A poll that brings nothing new",
    "read": "A GET of 1 KiB",
    "write": "A PUT of 1 KiB",
    "create": "A POST of 1 KiB",
}
PHASES = {"quiet": "in quiet", "flood": "in the flood"}

INK = "#6e7781"
"""Readable on white and on black."""

COLOURS = {
    "bare": "#8c959f",
    "ours": "#0a7d33",
    "ours_msc4108": "#3fa45f",
    "ours_msc4388": "#86c79a",
    "ours_redis": "#2f81f7",
    "synapse_msc4108": "#d29922",
    "synapse_msc4388": "#b0690a",
    "rust": "#cf3f36",
}

Run = Mapping[str, Any]
T = TypeVar("T")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; the first column is text, the others are figures."""
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and, in brackets, the least and the greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def label(name: str) -> str:
    """Return what a server is called; ours in bold."""
    return f"**{SERVERS[name].label}**" if name.startswith("ours") else SERVERS[name].label


def ordered(by_name: Mapping[str, T]) -> Iterable[tuple[str, T]]:
    """Return what there is for each server, in the order of the servers."""
    return [(name, by_name[name]) for name in SERVERS if name in by_name]


def cost_us(run: Run) -> float:
    """Return the CPU time of Synapse for one request."""
    return float(run["cpu_seconds"] / run["requests"] * 1e6)


def throughput(run: Run) -> float:
    """Return how many requests a second were answered."""
    return float(run["requests"] / run["seconds"])


def ratios(runs: Mapping[str, Sequence[Run]], name: str, figure: Callable[[Run], float]) -> list[float]:
    """Return a figure of a server as a multiple of the bare resource's of the same round."""
    return [figure(one) / figure(bare) for one, bare in zip(runs[name], runs[BARE], strict=True)]


def median(runs: Sequence[Run], figure: Callable[[Run], float]) -> float:
    """Return the median of a figure over the rounds."""
    return statistics.median(map(figure, runs))


def measured(numbers: Mapping[str, Any], operation: str) -> list[Mapping[str, Any]]:
    """Return the measurements of an operation, those with few sessions first."""
    return [each for each in numbers["comparison"]["measurements"] if each["operation"] == operation]


def environment(numbers: Mapping[str, Any]) -> str:
    """Say what was measured on what."""
    facts = numbers["comparison"]["environment"]
    return table(["", ""], [[name, f"`{facts[name]}`"] for name in facts if name != "command"]).replace("--:", "---")


def operations(numbers: Mapping[str, Any]) -> str:
    """Return a table for each operation."""
    parts = []
    for operation, title in OPERATIONS.items():
        runs = measured(numbers, operation)[0]["runs"]
        rows = []
        for name, of_server in ordered(runs):
            figures = (
                (cost_us, 0, "µs"),
                (throughput, 0, "/s"),
                (lambda run: run["p50_ms"], 2, "ms"),
                (lambda run: run["p99_ms"], 2, "ms"),
            )
            cells = (
                f"{spread(ratios(runs, name, figure))} · {median(of_server, figure):,.{digits}f} {unit}"
                for figure, digits, unit in figures
            )
            rows.append([label(name), *cells])
        part = f"**{title}**\n\n" + table(["", "CPU of Synapse", "throughput", "answered in, p50", "p99"], rows)
        if "ours_redis" in runs:
            redis_us = median(runs["ours_redis"], lambda run: run["redis_cpu_seconds"] / run["requests"] * 1e6)
            part += f"\n\nRedis itself takes another {redis_us:.0f} µs."
        parts.append(part)
    return "\n\n".join(parts)


def sizes(numbers: Mapping[str, Any]) -> str:
    """Return a table of what a poll costs while many sessions live."""
    polls = {each["sessions"]: each["runs"] for each in measured(numbers, "poll")}
    rows = []
    for name, holds in ordered(numbers["comparison"]["holds"]):
        cells = [spread(ratios(runs, name, cost_us)) if name in runs else "" for runs in polls.values()]
        if cells[-1] or holds:
            limit = f"{holds}, then it ends the oldest" if holds else "what it is told to"
            rows.append([label(name), *cells, "" if name == BARE else limit])
    return table(["live sessions", *(f"{size:,}" for size in polls), "holds"], rows)


def handshakes(numbers: Mapping[str, Any]) -> str:
    """Return a table of what a whole handshake costs."""
    played = numbers["comparison"]["handshakes"]
    rows = [
        [
            label(name),
            spread(ratios(played, name, lambda run: run["cpu_ms"])),
            f"{median(runs, lambda run: run['cpu_ms']):.1f} ms",
            f"{median(runs, lambda run: run['redis_cpu_ms']):.1f} ms" if name == "ours_redis" else "",
            f"{median(runs, lambda run: run['p50_ms']):.0f} ms",
        ]
        for name, runs in ordered(played)
    ]
    return table(["", "CPU of Synapse", "", "of Redis", "time in all"], rows)


def memory(numbers: Mapping[str, Any]) -> str:
    """Return a table of what a session takes beside its payload."""
    rows = []
    for name, taken in ordered(numbers["comparison"]["memory"]):
        where = "in Redis, by what it says itself" if "process_bytes" in taken else "resident memory of Synapse"
        rows.append([label(name), f"{taken['bytes']:,.0f} bytes", f"{taken['sessions']:,}", where])
    return table(["", "a session, without its payload", "measured with", "where"], rows)


def shares(numbers: Mapping[str, Any]) -> str:
    """Return a table of what the process does while it is polled."""
    looks = numbers["shares"]["looks"]
    rows = sorted(looks.items(), key=operator.itemgetter(1), reverse=True)
    return table(["", "of the time"], [[name, f"{count / sum(looks.values()):.0%}"] for name, count in rows])


def waiting(numbers: Mapping[str, Any]) -> str:
    """Return tables of what waiting brings and takes."""
    found = numbers["waiting"]
    titles = {
        "memory": "waiting, sessions in memory",
        "Redis": "waiting, in Redis, each device at another worker",
        "polling": "polling each second",
    }
    rows = [
        [title, *(f"{percentile(found['late_ms'][name], percent):.1f} ms" for percent in (50, 99))]
        for name, title in titles.items()
    ]
    delivery = table(["from a PUT to the other device's having it", "p50", "p99"], rows)
    shares = []
    for store in ("memory", "Redis"):
        runs = found["cpu"][store]
        relative = [one / other for one, other in zip(runs["waiting"], runs["polling"], strict=True)]
        cells = (f"{statistics.median(runs[name]) * 100:.1f} %" for name in ("waiting", "polling"))
        shares.append([f"sessions in {store}", *cells, spread(relative, 3)])
    cpu = table([f"CPU of Synapse for {found['devices']} devices", "waiting", "polling", "waiting / polling"], shares)
    requests, held = found["requests"], found["held"]
    slower = [one / other for one, other in zip(held["held_ms"], held["quiet_ms"], strict=True)]
    return (
        f"{delivery}\n\n{cpu}\n\nA device sends {requests['waiting']:.1f} requests a minute while it waits, and"
        f" {requests['polling']:.1f} while it polls. While {held['requests']:,} requests wait at once, each takes"
        f" {held['bytes'] / 1024:.1f} KiB of memory, and another client's poll takes {spread(slower)} times as long as"
        " in quiet."
    )


def flooded(runs: Sequence[Run], percent: int) -> float:
    """Return how long polls took in all rounds together."""
    return percentile([took_ms for run in runs for took_ms in run["late_ms"]], percent)


def flood(numbers: Mapping[str, Any]) -> str:
    """Return a table of what a flood does to an honest client."""
    rows = []
    for name, phases in ordered(numbers["flood"]["polls"]):
        polls = [f"{flooded(runs, 50):.1f}, {flooded(runs, 99):.1f} ms" for runs in (phases["quiet"], phases["flood"])]
        runs = phases["flood"]
        lost = sum(run["lost"] for run in runs) / sum(len(run["late_ms"]) for run in runs)
        rates = [f"{median(runs, operator.itemgetter(what)):,.0f}" for what in ("created", "refused")]
        rows.append([label(name), *polls, f"{lost:.0%}", *rates, f"{median(runs, lambda run: run['cpu_share']):.0%}"])
    head = [
        "",
        "poll in quiet, p50, p99",
        "in the flood",
        "answered 404",
        "created a second",
        "refused",
        "CPU",
    ]
    return table(head, rows)


def million(numbers: Mapping[str, Any]) -> str:
    """Return a table of what a client notices of a million sessions."""
    found = numbers["million"]
    kinds = sorted({kind for phase in found["phases"] for kind in phase["longest_ms"]})
    rows = [
        [
            phase["name"],
            f"{phase['polls']:,}",
            *(f"{phase[figure]:.1f} ms" for figure in ("p50_ms", "p99_ms", "max_ms")),
            *(f"{phase['longest_ms'].get(kind, 0):.1f} ms" for kind in kinds),
        ]
        for phase in found["phases"]
    ]
    head = [f"{found['sessions']:,} sessions", "polls", "p50", "p99", "slowest", *(f"longest {kind}" for kind in kinds)]
    return f"{table(head, rows)}\n\nOne takes {found['bytes']:,.0f} bytes, 64 of them payload."


CLIENT_SERVERS = ("this module", "this module, default_wait: 0", "Synapse's own")
"""The servers that real clients were at, that which the others are compared with last."""


def clients(numbers: Mapping[str, Any]) -> str:
    """Return a table of how long real clients take to sign in, and how often they ask."""
    found, names = numbers["clients"], CLIENT_SERVERS
    rows = []
    for combination in found["seconds"][names[0]]:
        took = [statistics.median(found["seconds"][name][combination]) for name in names]
        asked = [statistics.median(found["requests"][name][combination]) for name in names]
        cells = [
            f"{seconds:.2f} s ({seconds / took[-1]:.2f}) · {count:.0f} ({count / asked[-1]:.2f})"
            for seconds, count in zip(took, asked, strict=True)
        ]
        rows.append([combination, *cells])
    return table(["seconds from the scan to the end · requests", *names], rows)


def capacity(numbers: Mapping[str, Any]) -> str:
    """Return a table of how many pairings half a core carries, by what devices took that polled or waited."""
    found = numbers["waiting"]
    rows = []
    for store, name in (("memory", "ours"), ("Redis", "ours_redis")):
        handshake_ms = median(numbers["comparison"]["handshakes"][name], lambda run: run["cpu_ms"])
        pairings = (
            0.5 / statistics.median(found["cpu"][store][how]) * found["devices"] / 2 for how in ("polling", "waiting")
        )
        rows.append([f"sessions in {store}", f"{handshake_ms:.0f} ms", *(f"{count:,.0f}" for count in pairings)])
    head = ["half a core", "CPU of a handshake", "pairings under way, polling each second", "waiting"]
    return table(head, rows)


PARTS = {
    function.__name__: function
    for function in (
        *(environment, operations, sizes, handshakes, memory, clients, waiting, flood, million, capacity, shares),
    )
}
"""What stands between the markers of these names."""


def page(text: str, numbers: Mapping[str, Any]) -> str:
    """Return the page with its generated parts replaced."""
    for name, part in PARTS.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{PAGE.name} must have {begin} and {end} once.")
        content = part(numbers)
        text = pattern.sub(lambda _, begin=begin, content=content, end=end: f"{begin}\n{content}\n{end}", text)  # type: ignore[misc]
    return text


def digest(numbers: Mapping[str, Any]) -> str:
    """Return what tells whether plots are of these numbers."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


def plot(numbers: Mapping[str, Any], directory: pathlib.Path) -> None:
    """Draw all plots."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "synapse_rendezvous",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        }
    )
    from matplotlib import pyplot as plt

    def save(figure: Any, name: str, title: str) -> None:
        metadata = {"Title": title, "Description": digest(numbers), "Date": None, "Creator": None}
        figure.savefig(directory / f"{name}.svg", transparent=True, bbox_inches="tight", metadata=metadata)
        plt.close(figure)

    directory.mkdir(exist_ok=True)
    above: dict[str, Any] = {"frameon": False, "fontsize": 7, "loc": "lower left", "bbox_to_anchor": (0, 1)}

    figure, axes = plt.subplots(figsize=(7, 3.2))
    names = [name for name, _ in ordered(measured(numbers, "poll")[0]["runs"])]
    for index, name in enumerate(names):
        heights = [median(measured(numbers, each)[0]["runs"][name], cost_us) for each in OPERATIONS]
        places = [place + (index - len(names) / 2) * 0.1 for place in range(len(OPERATIONS))]
        axes.bar(places, heights, width=0.09, color=COLOURS[name], label=SERVERS[name].label)
    axes.set_xticks(range(len(OPERATIONS)), ["poll", "GET of 1 KiB", "PUT of 1 KiB", "POST of 1 KiB"])
    axes.set_ylabel("CPU of Synapse, µs a request")
    axes.legend(**above, ncols=2)
    save(figure, "cost", "CPU time of Synapse a request")

    figure, axes = plt.subplots(figsize=(7, 2.8))
    polls = {each["sessions"]: each["runs"] for each in measured(numbers, "poll")}
    for name in names:
        points = [(size, median(runs[name], cost_us)) for size, runs in polls.items() if name in runs]
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[name], label=SERVERS[name].label)
    axes.set_xscale("log")
    axes.set_xticks(list(polls), [f"{size:,}" for size in polls])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("live sessions")
    axes.set_ylabel("CPU of Synapse, µs a poll")
    axes.legend(**above, ncols=2)
    save(figure, "sizes", "CPU time of Synapse a poll, by the number of live sessions")

    figure, axes = plt.subplots(figsize=(7, 2.8))
    floods = dict(ordered(numbers["flood"]["polls"]))
    lines = range(len(floods))
    for offset, (phase, title), colour in zip((-0.2, 0.2), PHASES.items(), ("#2f81f7", "#cf3f36"), strict=True):
        widths = [flooded(floods[name][phase], 99) for name in floods]
        axes.barh([line + offset for line in lines], widths, height=0.36, color=colour, label=title)
    axes.set_yticks(lines, [SERVERS[name].label for name in floods])
    axes.invert_yaxis()
    axes.set_xlabel("how long an honest client's poll takes, p99, ms")
    axes.legend(**above, ncols=2)
    save(figure, "flood", "How long an honest client's poll takes in quiet and in a flood")

    figure, axes = plt.subplots(figsize=(7, 3.6))
    seconds = numbers["clients"]["seconds"]
    combinations = list(seconds[CLIENT_SERVERS[0]])
    for index, (name, colour) in enumerate(zip(CLIENT_SERVERS, ("#2f81f7", "#8fb8f6", "#b0690a"), strict=True)):
        widths = [statistics.median(seconds[name][combination]) for combination in combinations]
        places = [place + (index - 1) * 0.27 for place in range(len(combinations))]
        axes.barh(places, widths, height=0.25, color=colour, label=name)
    axes.set_yticks(range(len(combinations)), combinations)
    axes.invert_yaxis()
    axes.set_xlabel("from the scan until both devices are done, seconds")
    axes.legend(**above, ncols=3)
    save(figure, "clients", "How long real clients take to sign in by QR code")


def main() -> int:
    """Rewrite the page and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="?", type=pathlib.Path, default=NUMBERS, help="default: %(default)s")
    file = parser.parse_args().numbers
    numbers = json.loads(file.read_text())
    scripts = {
        "shares": "shares.py",
        "comparison": "compare.py",
        "flood": "flood.py",
        "waiting": "waiting.py",
        "clients": "clients.py",
        "million": "million.py",
    }
    if missing := [script for part, script in scripts.items() if part not in numbers]:
        print(f"{file} is not complete; these add to it with --json: {', '.join(missing)}", file=sys.stderr)
        return 1
    PAGE.write_text(page(PAGE.read_text(), numbers))
    plot(numbers, PLOTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
