"""Which file systems are another machine's: locks and syncs may not hold there."""

from __future__ import annotations

import os
import re

__all__ = ["network_type"]

_TYPES = re.compile(
    r"9p|afs|beegfs|ceph|cifs|gfs2?|glusterfs|lustre|ncpfs|nfs4?|ocfs2|smb3|smbfs|(fuse\.(?!.*portal).+)"
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def network_type(mounts: str, path: str) -> str | None:
    r"""The type of the network file system that *path* is on; None where it is on none, or that is not known.

    Args:
        mounts: What `/proc/self/mountinfo` has: each line a mount, its folder the fifth word, its type behind a dash.
        path: Absolute.

    Example:
        >>> mounts = "36 35 98:0 / /home rw - ext4 /dev/sda1 rw\n40 36 0:5 / /home/me rw - nfs4 host:/me rw"
        >>> network_type(mounts, "/home/me/.iso-orchestrator"), network_type(mounts, "/home/you")
        ('nfs4', None)
    """
    found = (-1, "")
    for line in mounts.splitlines():
        head, _, tail = line.partition(" - ")
        words, kind = head.split(" "), tail.partition(" ")[0]
        if len(words) < 5 or not kind:
            continue
        folder = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), words[4])
        if _is_inside(path, folder):
            found = max((len(folder), kind), found, key=lambda mount: mount[0])  # the last one of a folder hides others
    return found[1] if _TYPES.fullmatch(found[1]) else None


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)
