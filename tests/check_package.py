"""Build the wheel and the sdist, install each into an empty environment beside Synapse, and start from it.

Run as a script; takes a minute or two.
"""

import pathlib
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile

ROOT = pathlib.Path(__file__).parent.parent
IN_WHEEL = {"__init__.py", "module.py", "py.typed", "sample_config.yaml", "demo_page/index.html"}
IN_SDIST = {"LICENSE", "README.md", "CHANGELOG.md", "sample_config.yaml", "setup.cfg", "docs/protocol.md"}


def run(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
    """Run a command elsewhere than in the source tree, and return what it printed."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}")
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


if __name__ == "__main__":
    main()
