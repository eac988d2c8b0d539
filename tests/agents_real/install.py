"""Installs the three agents' command lines for the tests that run them: `python tests/agents_real/install.py`.

From npm into `.ci/agents` of the repository, or the folder that is given: about 1 GB. Needs Node 20 or later.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".ci" / "agents"

# Those that the recorded transcripts are of.
PACKAGES = ["@openai/codex@0.169.0", "@anthropic-ai/claude-code@2.1.197", "opencode-ai@1.18.33"]


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    npm = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([*npm, *PACKAGES], check=True)
    for name in ("codex", "claude", "opencode"):
        print(subprocess.run([program(name, folder), "--version"], capture_output=True, text=True).stdout.strip())


def program(name: str, folder: Path = FOLDER) -> Path:
    """Where an agent is installed, whether it is there or not."""
    return folder / "node_modules" / ".bin" / name


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
