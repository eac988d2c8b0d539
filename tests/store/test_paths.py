from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iso_orchestrator.store.file.paths import Paths
from iso_orchestrator.store.names import mutex_file_name, record_names

# What the npm package 0.2.0 makes of these ids, written down by Node.
NPM_NAMES = json.loads((Path(__file__).parents[1] / "data/npm-0.2.0/names.json").read_text("ascii"))

# Two ids whose short names are one.
TWINS = ("batch!/!///!!///!/!!/", "batch!!/!!//!!/!!!//!")

ids = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text("./\\~\x00\n -", min_size=1),
    st.sampled_from(["../" * 9 + "etc/passwd", "/etc/passwd", "C:\\x", "CON", "a" * 255, "é" * 128, "x" * 10_000]),
).filter(lambda text: not text.isspace())


@pytest.mark.parametrize(("workflow_id", "name"), NPM_NAMES, ids=[name for _, name in NPM_NAMES])
def test_short_name_is_the_npm_packages(workflow_id: str, name: str) -> None:
    """Both languages find the same record."""
    assert record_names(workflow_id).short == name


def test_ids_can_fall_on_one_short_name_but_not_on_one_full_name() -> None:
    """Two ids of one short name are told apart by their full ones."""
    one, other = map(record_names, TWINS)
    assert one.short == other.short == "batch-fd13d083"
    assert one.full != other.full


@given(ids)
def test_no_id_leads_out_of_the_root(text: str) -> None:
    """Every file of every id is directly in its folder, under a name that every file system takes."""
    for paths in Paths.candidates("/root", text):
        assert os.path.dirname(os.path.normpath(paths.snapshot)) == "/root/workflows"
        assert os.path.dirname(os.path.normpath(paths.journal)) == "/root/workflows"
        assert os.path.dirname(os.path.normpath(paths.torn(10**12))) == "/root/workflows"
        assert os.path.dirname(os.path.normpath(paths.locks)) == "/root/locks"
        assert paths.locks != "/root/locks/_store"
        assert all(len(os.path.basename(path)) <= 128 for path in (paths.torn(10**12), paths.locks))
    file_name = mutex_file_name(text)
    assert os.path.basename(os.path.normpath(file_name)) == file_name
    assert file_name.isascii()
    assert file_name == file_name.lower()
    assert len(file_name) <= 128


@given(ids, ids)
def test_full_names_and_mutexes_are_as_distinct_as_their_ids(one: str, other: str) -> None:
    """Different ids share no file for ever, and different keys no lock."""
    assert (record_names(one).full == record_names(other).full) is (one == other)
    assert (mutex_file_name(one) == mutex_file_name(other)) is (one == other)
