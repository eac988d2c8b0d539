"""A model on 127.0.0.1 that does what the name of the model asked for says: answers, refuses, stalls, hangs up.

It speaks just enough of OpenAI's Responses (codex), OpenAI's chat completions (opencode) and Anthropic's Messages
(claude). The model `lab-NAME` behaves as NAME, one of `SCRIPTS` or `REFUSALS`; any other as `ok`.
"""

from agents_real.model_server.scripts import ANSWER, REFUSALS, SCRIPTS
from agents_real.model_server.server import ModelServer

__all__ = ["ANSWER", "REFUSALS", "SCRIPTS", "ModelServer"]
