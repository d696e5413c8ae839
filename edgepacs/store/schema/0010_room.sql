-- Room: what was evicted of a study, and what was last found out about the space there is.

ALTER TABLE study ADD COLUMN evicted_count INTEGER NOT NULL DEFAULT 0;   -- tombstones
ALTER TABLE series ADD COLUMN evicted_count INTEGER NOT NULL DEFAULT 0;

-- The last survey (edgepacs/store/room.py).
CREATE TABLE room (
  only         INTEGER PRIMARY KEY CHECK (only = 1),
  measured_ms  INTEGER NOT NULL,
  evictable    INTEGER NOT NULL,   -- bytes that may go
  blocked      TEXT NOT NULL,      -- JSON: bytes that may not, by member of Kept
  daily        INTEGER NOT NULL,   -- bytes that arrive in a day
  alarm        TEXT NOT NULL       -- what was last said about it in the trail, '' for nothing
) STRICT;
