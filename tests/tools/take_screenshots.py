"""Take the pictures of the page that the documents show.

Run as a script, after a change of the page; takes half a minute. It plays one pairing of a laptop and a phone.
"""

import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from PIL import Image

from support.chromium import Device, start_chromium
from support.homeservers import new_homeserver
from support.recipes import ROOT
from support.until import wait_until
from synapse_rendezvous.demo.page import Page
from synapse_rendezvous.demo.throwaway_homeserver import HOST

PICTURES = ROOT / "docs" / "pictures"
COLOURS = 64
"""As many as the page needs; the files are then a third as large."""


def take(device: Device, name: str, scheme: str) -> None:
    """Save what the device shows, in the `light` or `dark` colour scheme."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    device.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    path = PICTURES / f"{name}.png"
    device.chrome.save_screenshot(path)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KB")


def main() -> None:
    """Play, and take the pictures on the way."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        with (
            new_homeserver(directory) as server,
            Page(homeserver_url=server.url, host=HOST, port=0) as page,
        ):
            laptop = Device(start_chromium(directory / "laptop", "--hide-scrollbars"), 1280, 860)
            phone = Device(start_chromium(directory / "phone", "--hide-scrollbars"), 390, 844)
            try:
                play(laptop, phone, page.url)
            finally:
                laptop.chrome.quit()
                phone.chrome.quit()


def play(laptop: Device, phone: Device, url: str) -> None:
    """Pair, talk, and wait long enough to see that nobody polls."""
    laptop.open(url)
    laptop.wait_for("start")
    laptop.click("#create")
    laptop.wait_for("invite")
    time.sleep(4)
    take(laptop, "invite", "light")
    phone.open(laptop.scanned())
    for device in laptop, phone:
        device.wait_for("compare")
    time.sleep(1)
    take(phone, "compare", "light")
    for device in laptop, phone:
        device.click("#match")
        device.wait_for("talk")
    time.sleep(22)  # a pause, in which the requests wait
    for count, message in enumerate(("Hello, it is me.", "The sign-in goes on here."), 1):
        for device, other in (laptop, phone), (phone, laptop):
            device.send(message if device is laptop else ("Good to see you!", "Done, thank you.")[count - 1])
            wait_until(lambda other=other, count=count: count == len(other.messages("there")))  # type: ignore[misc]
            time.sleep(1)
    time.sleep(3)
    for scheme in "light", "dark":
        take(laptop, f"talk-{scheme}", scheme)
    take(phone, "talk-phone", "dark")


if __name__ == "__main__":
    main()
