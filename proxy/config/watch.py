"""Whether the files of a configuration have changed: by looking at them now and then.

Looking works everywhere: file events do not cross network file systems, and a ConfigMap changes by a
symbolic link two levels up. A change counts when it is there at two looks in a row, so that a file that is
being written is not read half, and when the content is another, so that `touch` reloads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

Marks = tuple[int, int, int, int]  # what changes with a file: device, inode, time, size


class Watch:
    """Some files, and what they held when a configuration was made of them."""

    def __init__(self, files: Iterable[Path] = ()) -> None:
        self._seen: dict[Path, tuple[Marks, bytes]] = {}
        self._known: dict[Path, bytes | None] = {}
        self._latest: dict[Path, bytes | None] = {}
        self.follow(files)

    def follow(self, files: Iterable[Path]) -> None:
        """Watch these files from now on; those that are new are known as they are."""
        self._known = {
            file: self._known[file] if file in self._known else self._digest(file) for file in files
        }
        self._latest = dict(self._known)

    def take(self) -> None:
        """Know all files as they are: to be called before they are read."""
        self._known = self._latest = self._look()

    def has_changed(self) -> bool:
        """Look; tell whether the files are not what they were, and stayed so since the last look."""
        before, self._latest = self._latest, self._look()
        return self._latest == before and self._latest != self._known

    def _look(self) -> dict[Path, bytes | None]:
        return {file: self._digest(file) for file in self._known}

    def _digest(self, file: Path) -> bytes | None:
        """Return what stands for a file's content, `None` while it can't be read."""
        try:
            found = file.stat()
            marks = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            seen = self._seen.get(file)
            if seen is None or seen[0] != marks:
                seen = self._seen[file] = (marks, sha256(file.read_bytes()).digest())
        except OSError:
            self._seen.pop(file, None)
            return None
        return seen[1]
