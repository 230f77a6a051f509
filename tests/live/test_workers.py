"""Sessions shared by workers through Redis, with real processes."""

import asyncio
import contextlib
import itertools
import json
import math
import os
import pathlib
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from test_deployment import ask, needs

from support.servers import WorkerStack

RENDEZVOUS = int(os.environ.get("RENDEZVOUS", "200"))
RACES = int(os.environ.get("RACES", "300"))
AT_A_TIME = 8
LONGEST_S = 3.0  # two are promised; the third is for a machine that starts workers meanwhile
RECOVERY_S = 5.0

PATH = "/_synapse/client/rendezvous"
MSC4388 = "/_synapse/client/io.element.msc4388/rendezvous"

# What Synapse's connection to Redis takes for a number, for text, or for neither.
ODD = [b"", b"0123", b"1e5", b"1_000", b"-1", b"+1", b".5", b"9" * 40, b"inf", b"None", b"h\xc3\xa9", b"\xff\xfe\0"]

pytestmark = [needs("redis-server", "redis-server"), needs("nginx", "nginx-light")]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerStack]:
    with WorkerStack(tmp_path_factory.mktemp("stack"), nginx=True) as stack:
        yield stack
    for log in stack.logs:
        assert [] == errors(log)


def errors(log: pathlib.Path) -> list[str]:
    """Return the records of what went wrong, but for what Synapse's replication says when it loses Redis."""
    records = re.split(r"^(?=\d{4}-\d\d-\d\d )", log.read_text(errors="replace"), flags=re.MULTILINE)
    wrong = [record for record in records if re.search(r" - (ERROR|CRITICAL) - |^Traceback", record, re.MULTILINE)]
    synapses = re.compile(r"\S+ \S+ - synapse\.metrics\.background_process_metrics .*txredisapi\.\w+Error", re.DOTALL)
    return [record for record in wrong if "synapse_rendezvous" in record or not synapses.match(record)]


def exchange(path: str, first: str, second: str) -> str:
    """Play the sequence that fails where each process has sessions of its own; return the session's path."""
    is_json = path == MSC4388

    def content(data: str, tag: str = "") -> bytes:
        return (json.dumps({"data": data, "sequence_token": tag}) if is_json else data).encode()

    def read(url: str) -> tuple[int, object]:
        code, _, body = ask(url + session, "GET")
        return code, json.loads(body).get("data") if is_json else body.decode()

    code, headers, body = ask(first + path, "POST", content("hello"), Content_Type="text/plain")
    created = json.loads(body)
    assert code in (200, 201)
    session = f"{path}/{created['url'].rpartition('/')[2] if 'url' in created else created['id']}"
    tag = created["sequence_token"] if is_json else headers["ETag"]
    assert (200, "hello") == read(second)
    put = {"Content_Type": "text/plain", "If_Match": tag}
    assert (200 if is_json else 202) == ask(first + session, "PUT", content("answer", tag), **put)[0]
    assert (409 if is_json else 412) == ask(second + session, "PUT", content("stale", tag), **put)[0]
    assert (200, "answer") == read(second)
    assert (200 if is_json else 204) == ask(second + session, "DELETE")[0]
    assert 404 == ask(first + session, "GET")[0]
    return session


@pytest.mark.parametrize("path", [PATH, f"{PATH}/msc4108", MSC4388])
def test_any_process_answers(stack: WorkerStack, path: str) -> None:
    """What was created at one process is read, written and ended at another, whichever the two are."""
    for first, second in itertools.permutations(stack.urls, 2):
        exchange(path, first, second)


@pytest.mark.parametrize("path", [PATH, f"{PATH}/msc4108", MSC4388])
def test_round_robin(stack: WorkerStack, path: str) -> None:
    """A proxy may spread the requests of one session over all workers."""
    session = exchange(path, stack.url, stack.url)
    for worker in stack.workers:
        assert f"{session} HTTP/1.1" in worker.log.read_text()


def test_processes_are_named(stack: WorkerStack) -> None:
    """The description tells processes apart, and that they share their sessions."""
    described = [json.loads(ask(url + path, "GET")[2]) for url in stack.urls for path in (PATH, f"{PATH}/msc4108")]
    assert len(stack.urls) == len({about["process"] for about in described})
    assert {"redis"} == {about["store"] for about in described}


class Record:
    """What all clients saw together.

    Attributes:
        phase: the name of what is going on.
        statuses: how many answers had which status, by phase; 0 stands for a broken connection.
        longest_s: how long the slowest answer took, by phase.
        memory_lost_s: when Redis last lost what it held.
        outcomes: how many rendezvous were completed, and how many lost with Redis' memory.
    """

    def __init__(self) -> None:
        self.phase = "calm"
        self.statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.longest_s: defaultdict[str, float] = defaultdict(float)
        self.memory_lost_s = -math.inf
        self.outcomes: Counter[str] = Counter()

    def add(self, status: int, took_s: float) -> None:
        self.statuses[self.phase][status] += 1
        self.longest_s[self.phase] = max(self.longest_s[self.phase], took_s)

    def __str__(self) -> str:
        phases = [
            f"\n  {phase}: {sorted(statuses.items())}, at most {self.longest_s[phase]:.3f} s"
            for phase, statuses in self.statuses.items()
        ]
        return f"{dict(self.outcomes)}{''.join(phases)}"


class Answer(NamedTuple):
    """An answer; `repeated` says whether the request may have had its effect before."""

    status: int
    body: bytes
    etag: str
    repeated: bool


class LostWithRedis(Exception):
    """The session is gone, and was created before Redis lost its memory."""


class Pair:
    """Two devices that send each request to a random process, on connections that they keep.

    Args:
        record: where answers are counted.
        urls: the processes.
        patient: whether they try again, at another process, after a 503 or a broken connection; else that is an error.
    """

    def __init__(self, record: Record, urls: Sequence[str], *, seed: int = 0, patient: bool = False) -> None:
        self._record = record
        self._urls = urls
        self._random = random.Random(seed)
        self._patient = patient
        self._created_s = math.inf
        self._idle: defaultdict[str, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = defaultdict(list)

    def close(self) -> None:
        for _, writer in itertools.chain.from_iterable(self._idle.values()):
            writer.close()

    def payload(self) -> bytes:
        """Return anything that a payload may be."""
        return self._random.choice([*ODD, self._random.randbytes(self._random.choice([20, 200, 4096, 10240]))])

    async def ask(self, method: str, path: str, content: bytes = b"", *, at: str = "", **fields: str) -> Answer:
        """Send a request, at first to the process `at` if that is named.

        Raises:
            LostWithRedis: see there.
        """
        created_s = self._created_s
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        request = "\r\n".join([*lines, "", ""]).encode() + content
        urls = self._random.sample(self._urls, len(self._urls))
        repeated = False
        for url in itertools.cycle([at, *urls] if at else urls):
            sent_s = time.monotonic()
            status, head, body = await self._send(url, request)
            self._record.add(status, time.monotonic() - sent_s)
            if status not in (0, 503):
                break
            assert self._patient, f"{status} from {url}"
            repeated = True
            await asyncio.sleep(float(head["retry-after"]) if status else 0.1)
        if status == 404 and created_s <= self._record.memory_lost_s:
            raise LostWithRedis
        if method == "POST":
            self._created_s = sent_s
        return Answer(status, body, head.get("etag", ""), repeated)

    async def poll(self, path: str, etag: str, writing: "asyncio.Future[Answer]") -> Answer:
        """Ask until there is another payload, which must be so once the write is acknowledged."""
        while True:
            acknowledged = writing.done()
            answer = await self.ask("GET", path, If_None_Match=etag)
            if answer.status != 304:
                return answer
            assert not acknowledged
            await asyncio.sleep(0.01)

    async def _send(self, url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, fields and body; status 0 if the connection broke."""
        idle, parts = self._idle[url], urlsplit(url)
        while idle and (idle[-1][0].at_eof() or idle[-1][1].is_closing()):
            idle.pop()[1].close()
        with contextlib.ExitStack() as if_broken:
            try:
                reader, writer = idle.pop() if idle else await asyncio.open_connection(parts.hostname, parts.port)
                if_broken.callback(writer.close)
                writer.write(request)
                first, *lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode().splitlines()[:-1]
                head = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(head.get("content-length", 0)))
            except (OSError, EOFError):
                return 0, {}, b""
            if_broken.pop_all()
        idle.append((reader, writer))
        status = int(first.split()[1])
        assert "*" == head["access-control-allow-origin"]
        if status >= 400:
            assert "application/json" == head["content-type"]
            assert {"errcode", "error"} <= set(json.loads(body))
        if status == 503:
            assert int(head["retry-after"]) > 0
        return status, head, body


async def rendezvous(pair: Pair) -> None:
    """Play a whole one. Nothing may be wrong with any answer."""
    payloads = [pair.payload() for _ in range(3)]
    created = await pair.ask("POST", PATH, payloads[0])
    assert 200 == created.status
    path, etag = f"{PATH}/{json.loads(created.body)['id']}", created.etag
    assert (200, payloads[0], etag) == (await pair.ask("GET", path))[:3]
    assert (304, b"", etag) == (await pair.ask("GET", path, If_None_Match=etag))[:3]
    for payload in payloads[1:]:
        writing = asyncio.ensure_future(pair.ask("PUT", path, payload, If_Match=etag))
        # A PUT sent again, because its first answer was lost, is no conflict with itself.
        written, seen = await asyncio.gather(writing, pair.poll(path, etag, writing))
        assert 202 == written.status
        assert (200, payload, written.etag) == seen[:3]
        etag = written.etag
    assert (200, payloads[-1], etag) == (await pair.ask("GET", path))[:3]
    deleted = await pair.ask("DELETE", path)
    assert 204 == deleted.status or (404 == deleted.status and deleted.repeated)
    assert 404 == (await pair.ask("GET", path)).status


async def play(stack: WorkerStack, record: Record, turns: Iterable[object], *, patient: bool = False) -> None:
    """Play as many rendezvous as there are turns, some at a time."""

    async def take_turns(seed: int) -> None:
        with contextlib.closing(Pair(record, stack.urls, seed=seed, patient=patient)) as pair:
            for _ in turns:
                try:
                    await rendezvous(pair)
                    record.outcomes["completed"] += 1
                except LostWithRedis:
                    record.outcomes["lost with Redis"] += 1

    await asyncio.gather(*(take_turns(seed) for seed in range(AT_A_TIME)))


def test_random_placement(stack: WorkerStack) -> None:
    """Wherever the requests go and whatever the payloads hold, no rendezvous is lost, and no byte."""
    record = Record()
    asyncio.run(play(stack, record, iter(range(RENDEZVOUS))))
    print(f"Random placement: {record}")
    assert {"completed": RENDEZVOUS} == record.outcomes


def test_races(stack: WorkerStack) -> None:
    """Of two writers who saw the same revision, one wins, whichever processes they ask; the loser learns its tag."""
    winners: Counter[str] = Counter()

    async def race() -> None:
        pair = Pair(Record(), stack.urls)
        created = await pair.ask("POST", PATH)
        path, etag = f"{PATH}/{json.loads(created.body)['id']}", created.etag
        for number in range(RACES):
            urls = random.sample(stack.urls, 2)
            puts = [pair.ask("PUT", path, f"{number} at {url}".encode(), at=url, If_Match=etag) for url in urls]
            answers = await asyncio.gather(*puts)
            assert [202, 412] == sorted(answer.status for answer in answers)
            assert 1 == len({answer.etag for answer in answers} - {etag})
            etag = answers[0].etag
            winner = urls[answers[1].status == 202]
            winners[winner] += 1
            assert (200, f"{number} at {winner}".encode(), etag) == (await pair.ask("GET", path))[:3]
        pair.close()

    asyncio.run(race())
    print(f"Races won: {dict(winners)}")


def test_faults(stack: WorkerStack) -> None:
    """Whatever breaks, no answer is wrong: trouble is 503, in time, and no session is missed that is still there."""
    record = Record()
    begin_s = time.monotonic()

    async def recover(url: str) -> None:
        with contextlib.closing(Pair(record, [url], patient=True)) as pair:
            await rendezvous(pair)

    async def all_recover() -> None:
        begin_s = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*map(recover, stack.urls)), RECOVERY_S)
        print(f"{record.phase}: all processes serve after {time.monotonic() - begin_s:.1f} s")

    async def break_everything() -> None:
        await asyncio.sleep(1)
        record.phase = "Redis hangs"
        stack.redis.pause()
        await asyncio.sleep(4)
        stack.redis.resume()
        record.phase = "Redis goes on"
        await all_recover()
        record.phase = "Redis is dead"
        stack.redis.kill()
        record.memory_lost_s = time.monotonic()
        await asyncio.sleep(4)
        record.phase = "Redis is new"
        await asyncio.to_thread(stack.redis.start)
        await all_recover()
        record.phase = "a worker is killed"
        stack.workers[0].kill()
        await asyncio.sleep(1)
        await asyncio.to_thread(stack.workers[0].start)
        record.phase = "workers are restarted"
        for worker in stack.workers:
            await asyncio.to_thread(worker.stop)
            await asyncio.to_thread(worker.start)
        record.phase = "calm again"
        await all_recover()
        await asyncio.sleep(1)

    async def play_meanwhile() -> None:
        breaking = asyncio.ensure_future(break_everything())
        await play(stack, record, iter(breaking.done, True), patient=True)
        await breaking

    asyncio.run(asyncio.wait_for(play_meanwhile(), 120))
    print(f"Faults: {record}")
    for phase, statuses in record.statuses.items():
        trouble = {503} if "Redis" in phase else {0, 503} if "worker" in phase else set()
        assert set(statuses) <= {200, 202, 204, 304, 404} | trouble
        assert record.longest_s[phase] < LONGEST_S
    assert record.statuses["Redis hangs"][503]
    assert record.statuses["Redis is dead"][503]
    for log in stack.logs:
        lives = log.read_text().split("***** STARTING SERVER *****")[1:]
        warnings = [len(re.findall(r"^\S+ \S+ - synapse_rendezvous\S* - \d+ - WARNING", life, re.M)) for life in lives]
        assert warnings[0]
        assert max(warnings) <= 1 + (time.monotonic() - begin_s) // 60
        assert [] == errors(log)
