"""A home of its own for each run: nothing of the user's, no account, and only the stand-in model to talk to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import attrs
from agents_real.model_server import REFUSALS, SCRIPTS

__all__ = ["Home"]

_CODEX = """
model_provider = "lab"
[model_providers.lab]
name = "lab"
base_url = "{url}/v1"
env_key = "LAB_API_KEY"
wire_api = "responses"
[features]
plugins = false
[analytics]
enabled = false
"""


@attrs.frozen
class Home:
    """A home, a folder to work in, and one for temporary files, under *root*."""

    root: Path

    @classmethod
    def make(cls, root: Path, url: str) -> Home:
        """A new one, set up for a model at *url*."""
        home = cls(root)
        for folder in (home.home / ".codex", home.home / ".config" / "opencode", home.work, root / "tmp"):
            folder.mkdir(parents=True)
        (home.home / ".codex" / "config.toml").write_text(_CODEX.format(url=url))
        (home.home / ".config" / "opencode" / "opencode.json").write_text(json.dumps(_opencode(url)))
        subprocess.run(["git", "init", "--quiet", str(home.work)], env=home._base, check=True)
        return home

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def work(self) -> Path:
        return self.root / "work"

    def environment(self, url: str) -> dict[str, str]:
        """All that a CLI gets to see."""
        return {**self._base, **_CREDENTIALS, **_LOOPBACK, "ANTHROPIC_BASE_URL": url}

    @property
    def _base(self) -> dict[str, str]:
        # UTC: codex tells a limit's end in local time.
        path = "/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.home), "TMPDIR": str(self.root / "tmp"), "LANG": "C.UTF-8", "TZ": "UTC"}


_CREDENTIALS = {
    "LAB_API_KEY": "dummy",
    "ANTHROPIC_API_KEY": "dummy",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL": "lab-ok",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_SHARE": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
}


_NOWHERE = "http://127.0.0.1:9"

# In a new home opencode installs something from npm; where it can, it is deaf to SIGINT and SIGTERM from then on.
_LOOPBACK = {
    "HTTP_PROXY": _NOWHERE,
    "HTTPS_PROXY": _NOWHERE,
    "NO_PROXY": "127.0.0.1",
    "NPM_CONFIG_REGISTRY": _NOWHERE,
}


def _opencode(url: str) -> dict[str, object]:
    model = {"tool_call": True, "limit": {"context": 100_000, "output": 4000}, "cost": {"input": 1, "output": 2}}
    models = {f"lab-{name}": {"name": f"lab-{name}", **model} for name in (*SCRIPTS, *REFUSALS)}
    options = {"baseURL": f"{url}/v1", "apiKey": "dummy"}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "lab", "options": options, "models": models}
    return {
        "autoupdate": False,
        "share": "disabled",
        "enabled_providers": ["lab"],
        "model": "lab/lab-ok",
        "small_model": "lab/lab-ok",
        "provider": {"lab": provider},
    }
