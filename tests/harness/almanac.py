"""A clock tests can move: days pass for the node in no time (`edgepacs/clock.py`)."""

from pathlib import Path


class Almanac:
    """How far the clocks of the nodes that use it are ahead; they all read one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.wall = self.monotonic = 0.0
        self._write()

    def env(self) -> dict[str, str]:
        """What a node's environment needs for it."""
        return {"EDGEPACS_CLOCK": str(self.file)}

    def pass_(self, *, days: float = 0.0, seconds: float = 0.0) -> None:
        """Time goes by, on both clocks."""
        self.wall += 86_400 * days + seconds
        self.monotonic += 86_400 * days + seconds
        self._write()

    def set_wrong(self, *, seconds: float) -> None:
        """The clock on the wall jumps, forwards or back; no time goes by."""
        self.wall += seconds
        self._write()

    def _write(self) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{self.wall:.3f} {self.monotonic:.3f}")
        fresh.replace(self.file)  # whoever reads meanwhile reads the one or the other
