"""`completion`: a script for a shell, which asks the hidden command `__complete` for the words that fit."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from iso_orchestrator.checks import escape_terminal
from iso_orchestrator.errors import OrchestratorError, StoreError
from iso_orchestrator.store import Store

_LARGEST = 8_000_000  # bytes of a record whose steps are listed: a larger one takes too long to read

COMPLETE = ["__complete", "--"]
"""What the scripts call, in front of the words so far."""

SCRIPTS = {
    "bash": """\
_iso_orchestrator() {
    local IFS=$'\\n' current="${COMP_WORDS[COMP_CWORD]}" quoted word
    COMPREPLY=()
    while read -r word; do
        printf -v quoted '%q' "$word"
        COMPREPLY+=("$quoted")
    done < <(iso-orchestrator __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [ ${#COMPREPLY[@]} -eq 0 ]; then
        compopt -o default
    fi
}
complete -F _iso_orchestrator iso-orchestrator
""",
    "zsh": """\
#compdef iso-orchestrator
_iso_orchestrator() {
    local -a found
    found=("${(@f)$(iso-orchestrator __complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then
        compadd -a found
    else
        _files
    fi
}
compdef _iso_orchestrator iso-orchestrator
""",
    "fish": """\
function __iso_orchestrator_complete
    set -l words (commandline -opc) (commandline -ct)
    iso-orchestrator __complete -- $words[2..-1] 2>/dev/null
end
complete -c iso-orchestrator -f -a '(__iso_orchestrator_complete)'
""",
}
"""The script for each shell."""


def completions(
    parser: argparse.ArgumentParser, words: Sequence[str], store_of: Callable[[str | None, str | None], Store]
) -> list[str]:
    """The words that can stand in the place of the last one: commands, options, workflows, steps.

    Args:
        parser: Of the command line.
        words: Those of the command line so far, behind the program; the last one may be "".
        store_of: The store of `--store` and `--dir`.
    """
    *before, current = words or [""]
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    place = next((place for place, word in enumerate(before) if word in commands.choices), None)
    if place is None:
        known = [choice.dest for choice in commands._choices_actions]
        return _fitting([*known, *_options(parser)], current)
    command: argparse.ArgumentParser = commands.choices[before[place]]
    if before and (option := _option(command, before[-1])) is not None and option.nargs != 0:
        return _fitting(map(str, option.choices or ()), current)
    if current.startswith("-"):
        return _fitting(_options(command), current)
    given = _arguments(command, before[place + 1 :])
    positionals = [action for action in command._actions if not action.option_strings]
    if len(given) >= len(positionals):
        return []
    wanted = positionals[len(given)]
    if wanted.choices:
        return _fitting(map(str, wanted.choices), current)
    try:
        store = store_of(_value(before, "--store"), _value(before, "--dir"))
        names = _names(store, wanted.dest, given)
    except OrchestratorError:
        return []
    return _fitting((name for name in names if escape_terminal(name) == name), current)


def _names(store: Store, wanted: str, given: Sequence[str]) -> list[str]:
    if wanted == "workflow":
        return [found.workflow_id for found in store.list() if not isinstance(found, StoreError)]
    if wanted != "step" or not given or store.size_of(given[0]).record > _LARGEST:
        return []
    projection = store.read(given[0])
    return [] if projection is None else list(projection.steps)


def _arguments(command: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The words that are no options and no values of options."""
    found, is_value = list[str](), False
    for word in words:
        option = _option(command, word)
        if not is_value and not word.startswith("-"):
            found.append(word)
        is_value = option is not None and option.nargs != 0
    return found


def _option(command: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    return next((action for action in command._actions if word in action.option_strings), None)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [action.option_strings[-1] for action in parser._actions if action.option_strings]


def _value(words: Sequence[str], option: str) -> str | None:
    return next((value for word, value in pairwise(words) if word == option), None)


def _fitting(words: Iterable[str], current: str) -> list[str]:
    return sorted({word for word in words if word.startswith(current)})
