from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iso_orchestrator.checks import check_key, mutex_file_name, record_names
from iso_orchestrator.store.file.files import Paths

# What the npm package 0.2.0 makes of these ids, written down by Node.
NPM_NAMES = json.loads((Path(__file__).parent / "data/npm-0.2.0/names.json").read_text("ascii"))

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


def test_ids_with_one_short_name_have_two_full_names() -> None:
    """Full names tell apart two ids whose short names are equal."""
    one, other = map(record_names, TWINS)
    assert one.short == other.short == "batch-fd13d083"
    assert one.full != other.full


@given(ids)
def test_no_id_leads_out_of_the_root(text: str) -> None:
    """Every file of every id is directly in its folder, under a name that every file system accepts."""
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
    """Different ids never share a file, and different keys never share a lock."""
    assert (record_names(one).full == record_names(other).full) is (one == other)
    assert (mutex_file_name(one) == mutex_file_name(other)) is (one == other)


@pytest.mark.parametrize("key", ["a", " a ", "\x00", "..", "/", "line\nbreak", "😀", "x" * 10_000])
def test_any_text_that_is_not_blank_is_a_key(key: str) -> None:
    """A key is kept as it is, however odd."""
    assert check_key(key, "the key") == key


@pytest.mark.parametrize("key", ["", " ", "\t\n", "\u00a0\u2003", "a\ud800", "\udfff"])
def test_blank_and_unencodable_keys_are_refused(key: str) -> None:
    """A key that is blank, or that UTF-8 cannot encode, raises ValueError, which names its purpose."""
    with pytest.raises(ValueError, match="the mutex key"):
        check_key(key, "the mutex key")


@pytest.mark.parametrize("key", [None, 7, b"bytes", ["list"]])
def test_keys_of_other_types_are_refused(key: object) -> None:
    """A key that is not a str raises TypeError, which names the type."""
    with pytest.raises(TypeError, match=f"workflow_id must be a str, not {type(key).__name__}"):
        check_key(key, "workflow_id")
