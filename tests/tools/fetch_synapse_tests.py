"""Fetch the test harness of the installed Synapse: it is in Synapse's source distribution only.

It stays in build/ and is never committed: its licence (AGPL) is not ours. Run as a script; does nothing if the harness
is there already.
"""

import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version

VERSION = version("matrix-synapse")
HARNESS = pathlib.Path(__file__).parent.parent.parent / "build" / f"synapse-tests-{VERSION}"

# pip asks a package's build backend for the metadata of a source distribution even if it only downloads it, and
# Synapse's backend wants a Rust tool chain for that. This one answers with what we know already.
_BACKEND = """
import os
import pathlib


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, f"matrix_synapse-{os.environ['SYNAPSE_VERSION']}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\\nName: matrix-synapse\\nVersion: {os.environ['SYNAPSE_VERSION']}\\n"
    )
    (folder / "WHEEL").write_text("Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return folder.name
"""


def main() -> None:
    """Fetch the harness into `HARNESS`."""
    if (HARNESS / "tests" / "__init__.py").exists():
        return
    with tempfile.TemporaryDirectory() as name:
        temporary = pathlib.Path(name)
        for backend in ("maturin/__init__.py", "poetry/core/masonry/api.py"):  # newer and older releases
            path = temporary / backend
            path.parent.mkdir(parents=True)
            path.write_text(_BACKEND)
        download = ["pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "matrix-synapse"]
        subprocess.run(
            [sys.executable, "-m", *download, "--dest", name, f"matrix-synapse=={VERSION}"],
            env={**os.environ, "PYTHONPATH": name, "SYNAPSE_VERSION": VERSION},
            check=True,
        )
        (source,) = temporary.glob("*.tar.gz")
        top = f"matrix_synapse-{VERSION}/"
        with tarfile.open(source) as archive:
            for member in archive.getmembers():
                # Not its `synapse` folder, which lacks the compiled parts and would hide the installed package.
                if member.name.startswith(f"{top}tests/"):
                    member.name = member.name.removeprefix(top)
                    archive.extract(member, HARNESS, filter="data")


if __name__ == "__main__":
    main()
