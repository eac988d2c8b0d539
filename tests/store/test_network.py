"""Roots on another machine's file system."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from iso_orchestrator import Workflow
from iso_orchestrator.store import FileStore
from iso_orchestrator.store.file.store import network_type
from iso_orchestrator.system.filesystem import FileSystem

MOUNTS = r"""
22 28 0:21 / /proc rw,relatime shared:12 - proc proc rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 28 0:40 / /mnt/team\040share rw,relatime shared:5 master:2 - nfs4 files:/team rw,vers=4.2
32 31 254:1 / /mnt/team\040share/local rw - xfs /dev/vdb rw
33 28 0:41 / /mnt/far rw - fuse.sshfs me@far:/ rw
34 28 0:42 / /run/user/1000/doc rw - fuse.portal portal rw
35 28 0:43 / /mnt/hidden rw - cifs //far/x rw
36 28 254:2 / /mnt/hidden rw - ext4 /dev/vdc rw
37 28 0:44 / /mnt/host rw - virtiofs host rw
38 28 0:45 / /media/sf_host rw - vboxsf host rw
39 28 0:46 / /mnt/hgfs rw - fuse.vmhgfs-fuse vmhgfs-fuse rw
40 28 0:47 / /mnt/old-hgfs rw - vmhgfs .host:/ rw
41 28 0:48 / /gpfs rw - gpfs gpfs rw
42 28 0:49 / /mnt/unnamed rw - fuse far rw
43 28 254:3 / /mnt/windows rw - fuseblk /dev/vdd rw
not a line of it
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/.iso-orchestrator", None),
        ("/mnt/team share/x", "nfs4"),
        ("/mnt/team share", "nfs4"),
        ("/mnt/team shares/x", None),
        ("/mnt/team share/local/x", None),
        ("/mnt/far/x", "fuse.sshfs"),
        ("/run/user/1000/doc/x", None),
        ("/mnt/hidden/x", None),
        ("/mnt/host/x", "virtiofs"),
        ("/media/sf_host/x", "vboxsf"),
        ("/mnt/hgfs/x", "fuse.vmhgfs-fuse"),
        ("/mnt/old-hgfs/x", "vmhgfs"),
        ("/gpfs/x", "gpfs"),
        ("/mnt/unnamed/x", "fuse"),
        ("/mnt/windows/x", None),
    ],
)
def test_the_innermost_mount_says_what_a_folder_is_on(path: str, kind: str | None) -> None:
    """The innermost mount around a folder counts, and of two on one folder the later."""
    assert network_type(MOUNTS, path) == kind


def test_a_root_on_a_network_file_system_is_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The warning names the root and the type, and does not come with every opening."""

    class Network(FileSystem):
        def mounts(self) -> str:
            return f"28 1 254:0 / / rw - ext4 /dev/vda rw\n31 28 0:40 / {tmp_path} rw - nfs4 files:/team rw"

    with caplog.at_level(logging.WARNING, "iso_orchestrator"):
        for _ in range(2):
            workflow = Workflow("w", store=FileStore(tmp_path / "root", Network()))
            workflow.append_event("note")
            workflow.close()
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path / "root") in message
    assert "nfs4" in message


def test_a_machine_that_does_not_say_what_is_mounted_is_used_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Elsewhere than on Linux nothing is known, and nothing is said."""

    class Silent(FileSystem):
        def mounts(self) -> str:
            return ""

    Workflow("w", store=FileStore(tmp_path / "root", Silent())).append_event("note")
    assert not caplog.records
