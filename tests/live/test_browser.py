"""Nothing to host: what a real browser does with payloads that are pages, images, styles and programs.

Each payload calls a server of the test's own where it runs, and is red where it is shown. Served by that server, which
is as careless as can be, it does so; so each test can fail.
"""

import json
import pathlib
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from support.chromium import start_chromium
from support.homeservers import new_homeserver, running
from support.http_client import ask
from support.proxies import ReverseProxy
from support.servers import UNLIMITED
from support.until import wait_until
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PATH = "/_synapse/client/rendezvous"

EMPTY_PAGE = "<style>iframe, object, embed, img { width: 90px; height: 90px }</style><body>"
PAGES = {"html", "svg", "untyped"}

Outcome = tuple[set[str], bool]
"""Which payloads ran, and whether any was shown."""
NOTHING: Outcome = set(), False


class Site:
    """A server on an origin of its own, in a `with` statement: an empty page, the payloads, and a place to call.

    Attributes:
        url: the empty page.
        payloads: content type and content of each.
        ran: the payloads that called.
    """

    def __init__(self) -> None:
        site = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, _, name = self.path[1:].partition("/")
                if kind == "ran":
                    site.ran.add(name)
                content_type, content = site.payloads[name] if kind == "payload" else ("text/html", EMPTY_PAGE)
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Answer)
        origin = f"http://{HOST}:{self._server.server_port}"
        self.url = f"{origin}/"
        self.ran: set[str] = set()
        # What is synchronous is over when the page has loaded. Service workers know nothing of the kind.
        call = (
            f"try {{ const x = new XMLHttpRequest(); x.open('GET', '{origin}/ran/%s', false); x.send() }} catch {{ }}"
        )
        page = f"<!DOCTYPE html><body style='background: red'><script>{call}</script>"
        image = f"<rect width='90' height='90' fill='red'/><script>{call}</script>"
        self.payloads = {
            "html": ("text/html", page % "html"),
            "untyped": ("unknown/unknown", page % "untyped"),  # browsers look what is in it
            "svg": ("image/svg+xml", f"<svg xmlns='http://www.w3.org/2000/svg'>{image}</svg>" % "svg"),
            "js": ("text/javascript", call % "js" + "; try { postMessage('ran') } catch { }"),
            "css": ("text/css", "body { background: red }"),
        }

    def payload_url(self, name: str) -> str:
        return f"{self.url}payload/{name}"

    def __enter__(self) -> "Site":
        threading.Thread(target=self._server.serve_forever).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A homeserver that refuses the second request for what is not there."""
    config = {"per_client": {**UNLIMITED, "miss": {"per_second": 0.001, "burst_count": 1}}}
    server = new_homeserver(tmp_path_factory.mktemp("homeserver"), config)
    with running(server):
        yield server


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory, downloads: pathlib.Path) -> Iterator["Chrome"]:
    preferences = {"download.default_directory": str(downloads)}
    chrome = start_chromium(tmp_path_factory.mktemp("profile"), preferences=preferences)
    yield chrome
    chrome.quit()


class Browser:
    """A tab of a browser, and a site that it visits.

    Attributes:
        chrome: its remote control.
        site: the site.
    """

    def __init__(self, chrome: "Chrome", site: Site) -> None:
        self.chrome = chrome
        self.site = site

    def run(self, script: str, *args: Any) -> Any:
        """Run the body of an async function in the page. Return what it returns or, as a string, what it throws."""
        body = (
            f"const [args, done] = arguments; (async () => {{ {script} }})().then(done, error => done(`${{error}}`));"
        )
        return self.chrome.execute_async_script(body, args)

    def fetch(self, url: str, **options: Any) -> Any:
        """Fetch; return status, text, and all header fields that the page's scripts may read, in lower case."""
        return self.run(
            """const response = await fetch(...args);
            return {status: response.status, text: await response.text(), ...Object.fromEntries(response.headers)};""",
            url,
            options,
        )

    def outcome(self) -> Outcome:
        """Return what happened in the page, and leave it."""
        picture = f"data:image/png;base64,{self.chrome.get_screenshot_as_base64()}"
        self.chrome.get("data:text/html,<body>")  # where we may look at it
        is_red = self.run(
            """const image = new Image();
            image.src = args[0];
            await image.decode();
            const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
            context.drawImage(image, 0, 0);
            const {data} = context.getImageData(0, 0, image.width, image.height);
            return data.some((value, at) => at % 4 == 0 && value > 200 && data[at + 1] < 50 && data[at + 2] < 50);""",
            picture,
        )
        return set(self.site.ran), is_red

    def visit(self, url: str) -> Outcome:
        """Open a URL in the tab."""
        self.site.ran.clear()
        self.chrome.get(url)
        return self.outcome()

    def embed(self, urls: Iterable[str], *ways: str) -> Outcome:
        """Embed all these in the site's page, in each of these ways."""
        self.site.ran.clear()
        self.chrome.get(self.site.url)
        self.run(
            """const add = (tag, attributes) => new Promise(settled => {
                const element = document.createElement(tag);
                document.body.append(Object.assign(element, {onload: settled, onerror: settled}, attributes));
            });
            const work = url => new Promise(settled => {
                Object.assign(new Worker(url), {onmessage: settled, onerror: settled});
            });
            const known = {
                iframe: url => add("iframe", {src: url}),
                object: url => add("object", {data: url}),
                embed: url => add("embed", {src: url}),
                img: url => add("img", {src: url}),
                script: url => add("script", {src: url}),
                module: url => import(url),
                stylesheet: url => add("link", {rel: "stylesheet", href: url}),
                worker: work,
                importScripts: url => work(URL.createObjectURL(new Blob([`importScripts("${url}")`]))),
            };
            const embedded = args[0].flatMap(url => args[1].map(way => known[way](url)));
            // A frame whose content became a download does not settle.
            await Promise.race([Promise.allSettled(embedded), new Promise(over => setTimeout(over, 3000))]);""",
            list(urls),
            ways,
        )
        return self.outcome()


@pytest.fixture
def browser(chrome: "Chrome") -> Iterator[Browser]:
    with Site() as site:
        yield Browser(chrome, site)


@pytest.fixture
def stored(server: ThrowawayHomeserver, browser: Browser) -> dict[str, str]:
    """The paths of sessions that hold the payloads."""
    return {
        name: f"{PATH}/{ask('POST', server.url + PATH, content.encode(), Content_Type=content_type).json()['id']}"
        for name, (content_type, content) in browser.site.payloads.items()
    }


@pytest.mark.parametrize("name", ["html", "untyped", "svg", "js"])
def test_opened_in_a_tab(server: ThrowawayHomeserver, browser: Browser, stored: dict[str, str], name: str) -> None:
    """Who opens a session's address, typed or from a link, reads that it is not for display."""
    assert ({name} & PAGES, name in PAGES) == browser.visit(browser.site.payload_url(name))
    url = server.url + stored[name]
    assert NOTHING == browser.visit(url)
    browser.chrome.get(browser.site.url)
    browser.chrome.execute_script("location = arguments[0];", url)
    wait_until(lambda: browser.chrome.current_url == url)
    answer = "return [performance.getEntriesByType('navigation')[0].responseStatus, document.body.innerText];"
    status, text = browser.chrome.execute_script(answer)
    assert (403, "M_FORBIDDEN") == (status, json.loads(text)["errcode"])
    assert NOTHING == browser.outcome()


UNPROTECTED: dict[str, Outcome] = {
    "iframe": (PAGES, True),
    "object": (PAGES, True),
    "embed": (PAGES, True),
    "img": (set(), True),
    "script": ({"js"}, False),
    "module": ({"js"}, False),
    "stylesheet": (set(), True),
    "worker": ({"js"}, False),
    "importScripts": ({"js"}, False),
}
"""All ways to embed something, and what happens if nothing is done about it."""


@pytest.mark.parametrize("way", UNPROTECTED)
def test_embedded(server: ThrowawayHomeserver, browser: Browser, stored: dict[str, str], way: str) -> None:
    """A page on another origin can neither run nor show a payload, however it embeds it."""
    assert UNPROTECTED[way] == browser.embed(map(browser.site.payload_url, browser.site.payloads), way)
    assert NOTHING == browser.embed((server.url + path for path in stored.values()), way)


def test_fetched(server: ThrowawayHomeserver, browser: Browser) -> None:
    """Scripts on other origins exchange messages: preflights allow what they need, and they can read what they need."""
    browser.chrome.get(browser.site.url)
    text = {"Content-Type": "text/plain"}
    created = browser.fetch(server.url + PATH, method="POST", body="first", headers=text)
    assert (200, "10240") == (created["status"], created["x-max-bytes"])
    session, tag = server.url + created["location"], created["etag"]
    read = browser.fetch(session)
    assert (200, "first", tag, "text/plain") == (read["status"], read["text"], read["etag"], read["content-type"])
    unchanged = browser.fetch(session, headers={"If-None-Match": tag})
    assert (304, "", tag) == (unchanged["status"], unchanged["text"], unchanged["etag"])
    written = browser.fetch(session, method="PUT", body="second", headers={**text, "If-Match": tag})
    assert (202, True) == (written["status"], written["etag"] != tag)
    stale = browser.fetch(session, method="PUT", body="third", headers={**text, "If-Match": tag})
    assert (412, written["etag"]) == (stale["status"], stale["etag"])
    changed = browser.fetch(session, headers={"If-None-Match": tag})
    assert (200, "second", written["etag"]) == (changed["status"], changed["text"], changed["etag"])
    assert "TypeError: Failed to fetch" == browser.fetch(session, headers={"X-Not-Allowed": "by the preflight"})
    assert 204 == browser.fetch(session, method="DELETE")["status"]
    assert 404 == browser.fetch(session)["status"]
    refused = browser.fetch(session)
    assert (429, True) == (refused["status"], int(refused["retry-after"]) > 0)


def test_service_worker(server: ThrowawayHomeserver, browser: Browser, stored: dict[str, str]) -> None:
    """No payload becomes a service worker, not even of a page on the homeserver's own origin."""
    register = "return (await navigator.serviceWorker.register(args[0])).scope;"
    browser.chrome.get(browser.site.url)
    assert browser.site.payload_url("") == browser.run(register, browser.site.payload_url("js"))
    assert "SecurityError" in browser.run(register, server.url + stored["js"])
    browser.chrome.get(f"{server.url}/_matrix/static/")
    assert "A bad HTTP response code (403)" in browser.run(register, stored["js"])


@pytest.mark.parametrize(
    ("hidden", "running"),
    [
        ([], set()),
        (["Content-Disposition"], set()),
        (["Content-Security-Policy"], set()),
        (["Content-Disposition", "Content-Security-Policy"], {"html", "svg"}),
        (["Content-Disposition", "Content-Security-Policy", "X-Content-Type-Options"], PAGES),
    ],
)
def test_without_fetch_metadata(
    tmp_path: pathlib.Path,
    server: ThrowawayHomeserver,
    browser: Browser,
    stored: dict[str, str],
    downloads: pathlib.Path,
    hidden: list[str],
    running: set[str],
) -> None:
    """Where nobody says what a request is for, a payload is downloaded and, shown all the same, does not run.

    Old browsers do not say it, nor do any to a server without TLS on another machine; here, nginx hides it. Each of two
    fields of the answer does it, and the third for what has no type that browsers know; without them, payloads do run.
    """
    lines = [f'proxy_set_header Sec-Fetch-{name} "";' for name in ("Dest", "Mode", "Site", "User")]
    proxy = ReverseProxy(
        tmp_path, "nginx", server.url, " ".join([*lines, *(f"proxy_hide_header {name};" for name in hidden)])
    )
    with proxy:
        urls = {name: proxy.url + path for name, path in stored.items()}
        assert running == {name for name in PAGES if name in browser.visit(urls[name])[0]}
        assert (running, bool(running)) == browser.embed(urls.values(), "iframe", "object", "embed")
        assert NOTHING == browser.embed(urls.values(), "img", "script", "stylesheet", "importScripts")
    if "Content-Disposition" not in hidden:
        ids = {stored[name].rpartition("/")[2] for name in PAGES}
        wait_until(lambda: ids <= {file.stem for file in downloads.iterdir()})
