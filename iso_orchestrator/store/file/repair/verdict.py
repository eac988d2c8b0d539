"""How a file is, in a word and in words."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from enum import StrEnum

import attrs

from iso_orchestrator.errors import CorruptRecordError, StoreError
from iso_orchestrator.store.file.files import store_error
from iso_orchestrator.system.filesystem import FileSystem

__all__ = ["FileCheck", "Verdict", "WorkflowCheck", "by_error", "judge", "unless_linked", "worst"]


class Verdict(StrEnum):
    """How a file is, from well to worst."""

    SOUND = "sound"
    TORN = "torn"  # by a crash or by a writer at work: no damage, the next opening deals with it
    REFUSED = "refused"  # it cannot be looked at, or is none that the library would open
    CONFLICT = "conflict"  # sound files that do not belong together
    DAMAGED = "damaged"


@attrs.frozen
class FileCheck:
    """One file.

    Attributes:
        says: What is the matter with it, or what is in it, in words.
        offset: Where the damage or the torn tail begins, in bytes.
    """

    path: str
    verdict: Verdict
    says: str
    offset: int | None = None


@attrs.frozen
class WorkflowCheck:
    """The files of one workflow, or what else has a name in the root.

    Attributes:
        name: That of its files, without a suffix.
        workflow_id: None where no file can be read that says it.
        facts: How many facts are in the record; None where it cannot be read.
    """

    name: str
    workflow_id: str | None
    facts: int | None
    files: tuple[FileCheck, ...]

    @property
    def verdict(self) -> Verdict:
        """That of its worst file."""
        return worst(file.verdict for file in self.files)


def worst(verdicts: Iterator[Verdict]) -> Verdict:
    """The worst of them; sound where there are none."""
    return max(verdicts, key=list(Verdict).index, default=Verdict.SOUND)


def judge(path: str, look: Callable[[], str]) -> FileCheck:
    """How a file is of which *look* says what is in it, or raises."""
    try:
        return FileCheck(path, Verdict.SOUND, look())
    except StoreError as error:
        return by_error(path, error, getattr(error, "offset", None))
    except OSError as error:
        return by_error(path, store_error(path, error), None)


def by_error(path: str, error: StoreError, offset: int | None) -> FileCheck:
    """How a file is that cannot be read."""
    if isinstance(error, CorruptRecordError):
        return FileCheck(path, Verdict.DAMAGED, f"{error.reason}; {error.kept}", offset)
    return FileCheck(path, Verdict.REFUSED, str(error))


def unless_linked(fs: FileSystem, file: FileCheck) -> FileCheck:
    """*file*, refused where the library would not open it."""
    try:
        info = fs.identify_path(file.path)
    except OSError as error:
        return by_error(file.path, store_error(file.path, error), None)
    if info is None:
        return file
    if not stat.S_ISREG(info.st_mode):
        return FileCheck(file.path, Verdict.REFUSED, "it is not a regular file: remove it")
    if info.st_nlink > 1:
        return FileCheck(file.path, Verdict.REFUSED, "it has another name (a hard link): remove the other")
    return file
