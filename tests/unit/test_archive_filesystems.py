"""Filesystems on which an archive would be lost."""

from pathlib import Path

import pytest

from operations.archive import filesystems
from operations.archive.errors import ArchiveError
from operations.archive.filesystems import check_lasting, volatile_filesystem

MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
25 24 0:23 / /dev/shm rw,relatime shared:4 master:1 - tmpfs tmpfs rw,size=24684096k
40 27 0:40 / /tmp rw - tmpfs tmpfs rw
41 40 254:1 / /tmp/disk\\040one rw - xfs /dev/vdb rw
42 27 254:2 / /mnt/later rw - ext4 /dev/vdc rw
43 42 0:43 / /mnt/later rw - ramfs ramfs rw
44 27 0:44 / /mnt/nfs rw - nfs4 server:/export rw
an incomplete line
"""
IN_A_CONTAINER = """\
500 400 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
501 500 0:51 / /tmp rw - tmpfs tmpfs rw
502 500 254:0 /srv/archive /archive rw - ext4 /dev/vda rw
"""
CASES = [
    ("/srv/archive", MOUNTS, None),
    ("/dev/shm/archive", MOUNTS, "tmpfs"),
    ("/dev/shmarchive", MOUNTS, None),
    ("/tmp", MOUNTS, "tmpfs"),
    ("/tmp/disk one/archive", MOUNTS, None),
    ("/mnt/later/archive", MOUNTS, "ramfs"),
    ("/mnt/nfs/archive", MOUNTS, None),
    ("/data/archive", IN_A_CONTAINER, "overlay"),
    ("/tmp/archive", IN_A_CONTAINER, "tmpfs"),
    ("/archive", IN_A_CONTAINER, None),
    ("/archive/2026", IN_A_CONTAINER, None),
    ("/srv/archive", "", None),
]


@pytest.mark.parametrize(("path", "mounts", "expected"), CASES)
def test_a_filesystem_that_forgets_is_known_by_its_longest_mount_point(
    path: str, mounts: str, expected: str | None
) -> None:
    assert volatile_filesystem(Path(path), mounts) == expected


def test_a_directory_that_would_be_lost_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(IN_A_CONTAINER)
    monkeypatch.setattr(filesystems, "MOUNTS", tmp_path / "mountinfo")
    check_lasting(Path("/archive"))
    with pytest.raises(ArchiveError, match=r"/data is on overlay \(the layer of a container\).*--allow-volatile"):
        check_lasting(Path("/data"))
    monkeypatch.setattr(filesystems, "MOUNTS", tmp_path / "none")
    check_lasting(Path("/data"))
