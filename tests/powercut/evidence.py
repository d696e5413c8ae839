"""Evidence: what may explain a finding, put aside before the campaign goes on over it."""

import shutil
import subprocess
from pathlib import Path

from harness.box import Box
from powercut.disk import Disk

_INDEX_MIB = 16  # a larger index is not copied at each cut
_PICTURE_MIB = 512
_LOG_BYTES = 256 << 10
_MOST = 5  # findings whose disk is kept as well


class Evidence:
    """Keeps in `before` what the last cut has left, and below `folder` what is worth a look."""

    def __init__(self, folder: Path, before: Path, box: Box) -> None:
        self.before = before
        self._folder = folder
        self._box = box
        self._kept = 0

    def remember(self) -> None:
        """Copy index and keystore as they lie there, and list the objects, before any start."""
        shutil.rmtree(self.before, ignore_errors=True)
        self.before.mkdir(parents=True)
        data = self._box.data
        if (data / "index.db").stat().st_size >> 20 > _INDEX_MIB:
            return
        for path in (*data.glob("index.db*"), data / "keystore"):
            shutil.copy2(path, self.before)
        names = sorted(path.name for path in data.glob("objects/??/*"))
        (self.before / "objects.txt").write_text("\n".join(names))

    def keep(self, name: str, words: str, disk: Disk) -> Path:
        """Put everything there is into a folder of that name; its path."""
        path = self._folder / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "report.txt").write_text(words + "\n")
        with self._box.log.open("rb") as log:
            log.seek(max(0, self._box.log.stat().st_size - _LOG_BYTES))
            (path / "node.log").write_bytes(log.read())
        if self.before.exists():
            shutil.copytree(self.before, path / "before", dirs_exist_ok=True)
        self._kept += 1
        if self._kept <= _MOST:
            self._picture(path / "disk.img", disk)
        return path

    def _picture(self, to: Path, disk: Disk) -> None:
        try:
            disk.picture(to, most_mib=_PICTURE_MIB)
        except subprocess.CalledProcessError as error:  # it has been cut a moment ago
            to.with_suffix(".txt").write_text(f"{error}: {error.stderr}\n")
