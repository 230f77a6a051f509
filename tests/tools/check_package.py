"""Build the wheel and the sdist, install each into an empty environment beside Synapse, and start from it.

Then do what docs/install.md says with pip. Run as a script; takes a minute or two.
"""

import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from support.recipes import ROOT, blocks, recipe

IN_WHEEL = {
    "__init__.py",
    "module.py",
    "py.typed",
    "sample_config.yaml",
    "snippets/templates/nginx.conf",
    "check/problems.yaml",
}
IN_WHEEL |= {"demo/static/index.html", "snippets/templates/nginx.conf"}
IN_SDIST = {
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "sample_config.yaml",
    "setup.cfg",
    "docs/protocol.md",
    "contrib/nginx/rendezvous.conf",
    "contrib/prometheus/synapse_rendezvous.rules.yml",
    "contrib/grafana/synapse_rendezvous.json",
    "docs/monitoring.png",
    "tests/live/alerts.yml",
    "tests/support/sign_in/package-lock.json",
    "docs/openapi.yaml",
    "examples/rendezvous.py",
}


def run(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
    """Run a command elsewhere than in the source tree, and return what it printed."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


class InstallPage:
    """The commands of docs/install.md, run in an environment that has Synapse, with the packages that were built.

    Args:
        environment: the environment, without our package.
        packages: the folder of the packages.
        directory: an empty folder to work in.
    """

    def __init__(self, environment: pathlib.Path, packages: pathlib.Path, directory: pathlib.Path) -> None:
        self._python = environment / "bin" / "python"
        self._directory = directory
        self._places = {
            "sudo ": "",
            "/path/to/synapse/env": str(environment),
            "/opt/venvs/matrix-synapse": str(environment),
            "/opt/synapse-modules": str(directory / "modules"),
        }
        self._environment = {
            **os.environ,
            "PATH": f"{environment}/bin:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",  # what pip finds is what was built
            "PIP_FIND_LINKS": str(packages),
        }
        minimal = {
            "server_name": "localhost",
            "report_stats": False,
            "macaroon_secret_key": "secret",
            "signing_key": "ed25519 a_key AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "database": {"name": "sqlite3", "args": {"database": ":memory:"}},
            "trusted_key_servers": [],
        }
        lines = blocks("yaml", "install.md")[0]
        (directory / "homeserver.yaml").write_text(f"{yaml.safe_dump(minimal)}\n{lines}")

    def follow(self) -> None:
        """Install in each way, see that Synapse finds the module, and remove it as the page says."""
        (remove,) = (block for block in blocks("sh", "install.md") if "uninstall" in block)
        (read,) = (block for block in blocks("sh", "install.md") if "-c homeserver.yaml" in block)
        ways = {"a virtual environment": "env/bin/pip install", "the Debian package": "matrix-synapse/bin/pip install"}
        for way, part in ways.items():
            self._try(way, recipe("sh", part, "install.md"), read, remove)
        for image in recipe("dockerfile", "FROM", "install.md"), recipe("yaml", "dockerfile_body", "install.md"):
            (line,) = (line for line in image.splitlines() if line.strip().startswith("RUN "))
            self._try("an image", line.strip().removeprefix("RUN "), read, remove)
        (target,) = (line for line in recipe("sh", "--target", "install.md").splitlines() if "--target" in line)
        self._environment["PYTHONPATH"] = self._places["/opt/synapse-modules"]
        self._try("a folder", target, read, "rm -r /opt/synapse-modules")

    def _try(self, way: str, install: str, read: str, remove: str) -> None:
        self._run(install)
        printed = self._run(read)
        if "RendezvousModule" not in printed:
            raise SystemExit(f"{install} leads to:\n{printed}")
        self._run(f"{self._python} -m synapse_rendezvous --version")
        self._run(remove)
        # And if the module is still in the list, or was forgotten:
        printed = self._run(f"{read.strip()} 2>&1 || true")
        if "No module named 'synapse_rendezvous'" not in printed:
            raise SystemExit(f"After {remove.strip()}, Synapse says:\n{printed}")
        print(f"docs/install.md: installed into {way}, found by Synapse, removed")

    def _run(self, command: str) -> str:
        for there, here in self._places.items():
            command = command.replace(there, here)
        done = subprocess.run(
            command, shell=True, cwd=self._directory, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout


def main() -> None:
    """Build, look inside, install, start."""
    with tempfile.TemporaryDirectory() as name:
        temporary = pathlib.Path(name)
        run(sys.executable, "-m", "build", "--outdir", temporary / "dist", ROOT, cwd=temporary)
        (wheel,) = temporary.glob("dist/*.whl")
        (sdist,) = temporary.glob("dist/*.tar.gz")
        with zipfile.ZipFile(wheel) as archive:
            missing = {f"synapse_rendezvous/{file}" for file in IN_WHEEL} - set(archive.namelist())
            others = {file.split("/")[0] for file in archive.namelist() if ".dist-info/" not in file}
        if missing or others != {"synapse_rendezvous"}:
            raise SystemExit(f"{wheel.name}: missing {missing}, top level {others}")
        with tarfile.open(sdist) as archive_:
            missing = IN_SDIST - {file.partition("/")[2] for file in archive_.getnames()}
        if missing:
            raise SystemExit(f"{sdist.name}: missing {missing}")
        environment = temporary / "environment"
        venv.create(environment, with_pip=True)
        pip: list[str | pathlib.Path] = [
            environment / "bin" / "python",
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
        ]
        for package in (wheel, sdist):
            run(*pip, "install", "--force-reinstall", "--no-deps", package, cwd=temporary)
            run(*pip, "install", package.name.split("-")[0].replace("_", "-"), "matrix-synapse>=1.140", cwd=temporary)
            printed = run(environment / "bin" / "synapse-rendezvous", "demo", "--once", "--port", "0", cwd=temporary)
            if "8. It is gone." not in printed:
                raise SystemExit(f"{package.name}: the demonstration did not get to its end:\n{printed}")
            print(f"{package.name}: installed, started, paired")
        run(*pip, "uninstall", "--yes", "synapse-rendezvous", cwd=temporary)
        (temporary / "page").mkdir()
        InstallPage(environment, temporary / "dist", temporary / "page").follow()


if __name__ == "__main__":
    main()
