-- What each line has carried, how it has been, and what was measured on it.

ALTER TABLE destination ADD COLUMN stat_mib INTEGER NOT NULL DEFAULT 0;  -- STAT, beyond a quota

CREATE TABLE line_usage (
  destination    INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  day            TEXT NOT NULL,           -- local date, e.g. 2026-11-23; the last 400
  bytes          INTEGER NOT NULL,        -- given to the line, headers of TCP and IP not counted
  PRIMARY KEY (destination, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE line_measure (
  destination    INTEGER PRIMARY KEY REFERENCES destination (id) ON DELETE CASCADE,
  rate           INTEGER NOT NULL DEFAULT 0,  -- bytes a second while sending; 0: not known
  round_trip_ms  INTEGER NOT NULL DEFAULT 0   -- of a TCP connect; 0: not known
) STRICT;

-- The last changes of the state of a line, 200 a destination.
CREATE TABLE line_change (
  id             INTEGER PRIMARY KEY,
  destination    INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  at_ms          INTEGER NOT NULL,
  link           TEXT NOT NULL,           -- LinkState
  words          TEXT NOT NULL            -- why, in plain words
) STRICT;
CREATE INDEX line_change_destination ON line_change (destination, id);
