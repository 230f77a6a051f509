"""A real browser, and the page of the demonstration as a person uses it."""

import io
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from support.until import wait_until

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# Without a sandbox, because it cannot have one where root starts it.
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync"""


def start_chromium(profile: pathlib.Path, *flags: str, preferences: dict[str, str] | None = None) -> "Chrome":
    """Start a browser that knows nothing of others. Skips the test where there is none.

    Args:
        profile: an empty folder for its data.
        flags: more of its command line.
        preferences: what is set in it.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed; `make test` installs it")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), *flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", preferences or {})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Both programs are named, so that selenium downloads none.
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))  # type: ignore[no-any-return]


class Device:
    """A browser on the page of the demonstration.

    Args:
        chrome: its remote control.
        width: how many CSS pixels its window has.
        height: the same.

    Attributes:
        chrome: its remote control.
    """

    def __init__(self, chrome: "Chrome", width: int, height: int) -> None:
        self.chrome = chrome
        size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, url: str) -> None:
        """Open a page anew, also where only the fragment differs."""
        self.chrome.get("about:blank")
        self.chrome.get(url)

    def wait_for(self, step: str) -> None:
        """Wait until the page shows this step; it must fit into the width of the window."""
        wait_until(lambda: step == self._of("pairing", "dataset.now"))
        assert self.chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth;")

    def text(self, name: str) -> str:
        """Return what the element with this id shows."""
        return str(self._of(name, "innerText"))

    def value(self, name: str) -> str:
        """Return what stands in the field with this id."""
        return str(self._of(name, "value"))

    def is_shown(self, selector: str) -> bool:
        """Tell whether the first element that fits can be seen."""
        return bool(
            self.chrome.execute_script("return document.querySelector(arguments[0]).checkVisibility();", selector)
        )

    def click(self, selector: str) -> None:
        """Click on the only element that fits and is shown."""
        (button,) = [one for one in self.chrome.find_elements("css selector", selector) if one.is_displayed()]
        button.click()

    def send(self, message: str) -> None:
        """Type a message and press Enter."""
        self.chrome.find_element("id", "text").send_keys(message + "\n")

    def messages(self, side: str) -> list[str]:
        """Return the messages from `here` or from `there`."""
        script = "return [...document.getElementsByClassName(arguments[0])].map((item) => item.lastChild.data);"
        return list(self.chrome.execute_script(script, side))

    def requests(self) -> list[list[str]]:
        """Return the rows of the list of requests, oldest first: method, status, ETag, milliseconds, meaning."""
        script = (
            "return [...document.getElementById('list').rows].map((row) => [...row.cells].map((c) => c.innerText));"
        )
        return list(reversed(self.chrome.execute_script(script)))

    def scanned(self) -> str:
        """Return what the QR code on the screen says."""
        zxingcpp = pytest.importorskip("zxingcpp", reason="zxing-cpp is not installed; `make test` installs it")
        image = pytest.importorskip("PIL.Image", reason="Pillow is not installed; it comes with Synapse")
        wait_until(lambda: bool(self.chrome.execute_script("return document.getElementById('qr').naturalWidth;")))
        screen = image.open(io.BytesIO(self.chrome.get_screenshot_as_png())).convert("L")
        (code,) = zxingcpp.read_barcodes(screen, formats=zxingcpp.BarcodeFormat.QRCode)
        return str(code.text)

    def log(self, kind: str) -> list[Any]:
        """Return what was logged since the last call, in the console (`browser`) or of requests (`performance`)."""
        return list(self.chrome.get_log(kind))  # type: ignore[no-untyped-call]

    def _of(self, name: str, attribute: str) -> Any:
        return self.chrome.execute_script(f"return document.getElementById(arguments[0])?.{attribute};", name)
