"""The peers, each in an environment of its own, from the ordinary registries: `python benchmarks/install.py [NAME]`.

What is there is left as it is: remove a folder of `benchmarks/.peers/` to have it made again.
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
    "langgraph": ["langgraph==1.2.24", "langgraph-checkpoint-sqlite==3.1.2"],
    "redun": ["redun==0.44.1"],
    "prefect": ["prefect==3.9.1"],
    "joblib": ["joblib==1.6.0"],
    "diskcache": ["diskcache==5.6.3"],
    "plot": ["matplotlib==3.11.2"],
}
NODE = {"npm": ["@razroo/iso-orchestrator@0.2.0"]}


def python_of(name: str) -> Path:
    """The interpreter of an environment, whether it is there or not."""
    return ENVIRONMENTS / name / "bin" / "python"


def is_installed(name: str) -> bool:
    """Whether an environment was made to its end."""
    return (ENVIRONMENTS / name / "installed.json").is_file()


def install(name: str) -> None:
    """Make one environment; nothing to do when it is there."""
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
    """What stands in an environment, by the name that was asked for."""
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
