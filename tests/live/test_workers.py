"""Sessions shared by workers through Redis, with real processes."""

import asyncio
import itertools
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from support.devices import LostWithRedis, Pair, Record
from support.homeservers import errors
from support.http_client import NoAnswer, ask
from support.programs import needs
from support.pulse import Pulse
from support.servers import WorkerStack

RENDEZVOUS = int(os.environ.get("RENDEZVOUS", "200"))
RACES = int(os.environ.get("RACES", "300"))
AT_A_TIME = 8
# To each is added how long any answer takes meanwhile; see Pulse.
LONGEST_S = 3.0  # two are promised; the third is for workers that start meanwhile
RECOVERY_S = 5.0

PATH = "/_synapse/client/rendezvous"
MSC4388 = "/_synapse/client/io.element.msc4388/rendezvous"

pytestmark = [needs("redis-server", "redis-server"), needs("nginx", "nginx-light")]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerStack]:
    with WorkerStack(tmp_path_factory.mktemp("stack"), nginx=True) as stack:
        yield stack
    for log in stack.logs:
        assert [] == errors(log)


def exchange(path: str, first: str, second: str) -> str:
    """Play the sequence that fails where each process has sessions of its own; return the session's path."""
    is_json = path == MSC4388

    def content(data: str, tag: str = "") -> bytes:
        return (json.dumps({"data": data, "sequence_token": tag}) if is_json else data).encode()

    def read(url: str) -> tuple[int, object]:
        answer = ask("GET", url + session)
        return answer.status, answer.json().get("data") if is_json else answer.content.decode()

    answer = ask("POST", first + path, content("hello"), Content_Type="text/plain")
    created = answer.json()
    assert answer.status in (200, 201)
    session = f"{path}/{created['url'].rpartition('/')[2] if 'url' in created else created['id']}"
    tag = created["sequence_token"] if is_json else answer.headers["ETag"]
    assert (200, "hello") == read(second)
    put = {"Content-Type": "text/plain", "If-Match": tag}
    assert (200 if is_json else 202) == ask("PUT", first + session, content("answer", tag), put).status
    assert (409 if is_json else 412) == ask("PUT", second + session, content("stale", tag), put).status
    assert (200, "answer") == read(second)
    assert (200 if is_json else 204) == ask("DELETE", second + session).status
    assert 404 == ask("GET", first + session).status
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
    described = [ask("GET", url + path).json() for url in stack.urls for path in (PATH, f"{PATH}/msc4108")]
    assert len(stack.urls) == len({about["process"] for about in described})
    assert {"redis"} == {about["store"] for about in described}


async def rendezvous(pair: Pair) -> None:
    """Play a whole one. Nothing may be wrong with any answer."""
    payloads = [pair.payload() for _ in range(3)]
    created = await pair.ask("POST", PATH, payloads[0])
    assert 200 == created.status
    path, etag = f"{PATH}/{json.loads(created.content)['id']}", created.etag
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
        async with Pair(record, stack.urls, seed=seed, patient=patient) as pair:
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
        async with Pair(Record(), stack.urls) as pair:
            created = await pair.ask("POST", PATH)
            path, etag = f"{PATH}/{json.loads(created.content)['id']}", created.etag
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

    asyncio.run(race())
    print(f"Races won: {dict(winners)}")


def test_races_of_transactions(stack: WorkerStack) -> None:
    """Two writers, who send each PUT several times to any processes: one is done, once; each copy is answered alike."""
    winners: Counter[str] = Counter()
    tokens: set[str] = set()

    async def race(pair: Pair, session: str, token: str, number: int) -> str:
        """Let two write at once; return the new token."""
        names = [f"{number}-{name}" for name in "AB"] * 2
        names += random.choices(names, k=random.randrange(5))
        random.shuffle(names)
        puts = {}
        for copy, name in enumerate(names):
            body = json.dumps({"sequence_token": token, "data": f"{name} {copy}"}).encode()
            puts[copy] = asyncio.ensure_future(pair.ask("PUT", f"{session}/{name}", body, at=random.choice(stack.urls)))
        await asyncio.gather(*puts.values())
        answers = {(name, (puts[copy].result().status, puts[copy].result().content)) for copy, name in enumerate(names)}
        assert 2 == len(answers), answers
        (winner, (status, content)), (_, conflict) = sorted(answers, key=lambda answer: answer[1][0])
        assert (200, 409) == (status, conflict[0])
        new: str = json.loads(content)["sequence_token"]
        winners[winner[-1]] += 1
        current = json.loads((await pair.ask("GET", session)).content)
        assert (new, winner) == (current["sequence_token"], current["data"].split()[0])
        assert new not in tokens
        tokens.add(new)
        return new

    async def races() -> None:
        async with Pair(Record(), stack.urls) as pair:
            for begin in range(0, RACES, 20):
                created = json.loads((await pair.ask("POST", MSC4388, b'{"data": ""}')).content)
                session, token = f"{MSC4388}/{created['id']}", created["sequence_token"]
                for number in range(begin, min(begin + 20, RACES)):
                    token = await race(pair, session, token, number)

    asyncio.run(races())
    print(f"Races won: {dict(winners)}")


def test_a_worker_dies_before_it_answers(stack: WorkerStack) -> None:
    """A write that was done, but whose worker was killed before its answer, is answered by another worker as done."""

    async def write() -> str:
        """Return the data that are there once the writer has tried again with other data."""
        async with Pair(Record(), [stack.workers[1].url]) as pair:
            created = json.loads((await pair.ask("POST", MSC4388, b'{"data": ""}')).content)
            session, token = f"{MSC4388}/{created['id']}", created["sequence_token"]
            for url in stack.urls:  # so that each has the script in Redis, and its connection
                await pair.ask("PUT", f"{session}/warm", b'{"sequence_token": "", "data": ""}', at=url)
            stack.redis.pause()
            body = {"sequence_token": token, "data": "first"}
            url = f"{stack.workers[0].url}{session}/one"
            first = asyncio.ensure_future(asyncio.to_thread(ask, "PUT", url, json.dumps(body).encode()))
            await asyncio.sleep(0.2)  # by then, the worker has asked Redis; else the test tries again
            await asyncio.to_thread(stack.workers[0].kill)
            stack.redis.resume()
            with pytest.raises(NoAnswer):
                await first
            again = await pair.ask("PUT", f"{session}/one", json.dumps({**body, "data": "second"}).encode())
            current = json.loads((await pair.ask("GET", session)).content)
            assert (200, current["sequence_token"]) == (again.status, json.loads(again.content)["sequence_token"])
            return str(current["data"])

    for _ in range(5):
        try:
            data = asyncio.run(write())
        finally:
            stack.workers[0].start()
        if data == "first":
            return
    pytest.fail("no write was done before its worker was killed")


@pytest.mark.timing
def test_faults(stack: WorkerStack) -> None:
    """Whatever breaks, no answer is wrong: trouble is 503, in time, and no session is missed that is still there."""
    record = Record()
    recovery_s = []
    begin_s = time.monotonic()

    async def recover(url: str) -> None:
        async with Pair(record, [url], patient=True) as pair:
            await rendezvous(pair)

    async def all_recover() -> None:
        begin_s = time.monotonic()
        await asyncio.gather(*map(recover, stack.urls))
        recovery_s.append(time.monotonic() - begin_s)
        print(f"{record.phase}: all processes serve after {recovery_s[-1]:.1f} s")

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

    with Pulse(stack.urls) as pulse:
        asyncio.run(asyncio.wait_for(play_meanwhile(), 300))
    print(f"Faults: {record}\nAny answer took {pulse.longest_s * 1000:.0f} ms at most.")
    assert max(recovery_s) < RECOVERY_S + pulse.longest_s
    for phase, statuses in record.statuses.items():
        trouble = {503} if "Redis" in phase else {0, 503} if "worker" in phase else set()
        assert set(statuses) <= {200, 202, 204, 304, 404} | trouble
        assert record.longest_s[phase] < LONGEST_S + pulse.longest_s
    assert record.statuses["Redis hangs"][503]
    assert record.statuses["Redis is dead"][503]
    for log in stack.logs:
        lives = log.read_text().split("***** STARTING SERVER *****")[1:]
        warnings = [len(re.findall(r"^\S+ \S+ - synapse_rendezvous\S* - \d+ - WARNING", life, re.M)) for life in lives]
        assert warnings[0]
        assert max(warnings) <= 1 + (time.monotonic() - begin_s) // 60
        assert [] == errors(log)
