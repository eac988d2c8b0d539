"""Install the peers, each in its own environment, from the usual registries: `python benchmarks/install.py [NAME]`.

An environment that exists is left as it is. Remove its folder in `benchmarks/.peers/` to install it again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ENVIRONMENTS = Path(__file__).parent / ".peers"

PYTHON = {
    "dbos": ["dbos==3.4.0", "psycopg[binary]==3.3.9"],
    "durastep": ["durastep==0.1.0"],
    "mundane": ["mundane-sdk==0.1.0"],
    "diskcache": ["diskcache==5.6.3"],
    "plot": ["matplotlib==3.11.2"],
}
NODE = {"npm": ["@razroo/iso-orchestrator@0.2.0"]}


def python_of(name: str) -> Path:
    """The path of an environment's interpreter, which need not exist."""
    return ENVIRONMENTS / name / "bin" / "python"


def is_installed(name: str) -> bool:
    """Whether an environment is complete."""
    return (ENVIRONMENTS / name / "installed.json").is_file()


def install(name: str) -> None:
    """Make one environment, if it is not complete."""
    if is_installed(name):
        return
    folder = ENVIRONMENTS / name
    shutil.rmtree(folder, ignore_errors=True)
    if name in NODE:
        folder.mkdir(parents=True)
        run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *NODE[name])
    else:
        venv.create(folder, with_pip=True)
        run(str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PYTHON[name])
    (folder / "installed.json").write_text(json.dumps(versions(name), indent=1) + "\n")


def versions(name: str) -> dict[str, str]:
    """The installed version of each package that was asked for."""
    wanted = NODE.get(name) or PYTHON[name]
    if name in NODE:
        return dict(package.rsplit("@", 1) for package in wanted)
    listed = run(str(python_of(name)), "-m", "pip", "list", "--format=json", "--disable-pip-version-check")
    found = {package["name"].lower(): package["version"] for package in json.loads(listed)}
    asked = [package.partition("==")[0].partition("[")[0] for package in wanted]
    return {package: found[package] for package in asked}


def run(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def main() -> int:
    known = [*NODE, *PYTHON]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all without one")
    names = parser.parse_args().names or known
    if unknown := set(names) - set(known):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    ENVIRONMENTS.mkdir(exist_ok=True)
    (ENVIRONMENTS / ".gitignore").write_text("*\n")
    failed = []
    for name in names:
        print(f"{name}: ", end="", flush=True)
        try:
            install(name)
        except (OSError, subprocess.CalledProcessError) as error:
            failed.append(name)
            print(f"failed: {error}")
        else:
            print((ENVIRONMENTS / name / "installed.json").read_text().replace("\n", " "))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
