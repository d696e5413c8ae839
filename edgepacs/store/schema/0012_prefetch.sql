-- Priors: studies of the same patient, fetched from a destination before somebody asks for them.

ALTER TABLE destination ADD COLUMN priors TEXT NOT NULL DEFAULT 'none';       -- PriorsBy
ALTER TABLE destination ADD COLUMN priors_most INTEGER NOT NULL DEFAULT 3;    -- studies a patient
ALTER TABLE destination ADD COLUMN priors_mib INTEGER NOT NULL DEFAULT 500;   -- for all of them
ALTER TABLE destination ADD COLUMN priors_years INTEGER NOT NULL DEFAULT 5;   -- none older is asked

-- One patient whose priors are fetched from one destination, for one reason.
CREATE TABLE prefetch (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  destination  INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  reason       TEXT NOT NULL,              -- PrefetchReason
  subject      INTEGER NOT NULL,           -- the study's or worklist entry's row
  patient_id   TEXT NOT NULL,
  issuer       TEXT NOT NULL,
  state        TEXT NOT NULL,              -- PrefetchState
  attempts     INTEGER NOT NULL DEFAULT 0, -- begun, each recorded before anything is asked
  next_ms      INTEGER NOT NULL DEFAULT 0, -- not before
  studies      INTEGER NOT NULL DEFAULT 0, -- fetched whole
  instances    INTEGER NOT NULL DEFAULT 0,
  byte_size    INTEGER NOT NULL DEFAULT 0,
  words        TEXT NOT NULL DEFAULT '',   -- what came of it, in plain words
  created_ms   INTEGER NOT NULL,
  changed_ms   INTEGER NOT NULL,
  moving_uid   TEXT NOT NULL DEFAULT '',   -- the study a C-MOVE under way is about, or ''
  moving_id    INTEGER NOT NULL DEFAULT 0, -- Message ID of that C-MOVE
  UNIQUE (destination, reason, subject)
) STRICT;
CREATE INDEX prefetch_open ON prefetch (destination, state, next_ms)
  WHERE state IN ('waiting', 'asking', 'fetching');

-- Up to which study has been considered: those that were here before are nobody's next patients.
CREATE TABLE prefetch_mark (
  only       INTEGER PRIMARY KEY CHECK (only = 1),
  considered INTEGER NOT NULL
) STRICT;
INSERT INTO prefetch_mark SELECT 1, COALESCE(MAX(id), 0) FROM study;

-- What eviction looks at first. Nothing else that is received costs a page more for it.
CREATE INDEX instance_prefetched ON instance (series) WHERE origin = 'prefetch';

-- Studies of which a part may be here: fetching them was begun and has not come to its end.
CREATE TABLE prefetch_begun (
  study_instance_uid  TEXT PRIMARY KEY,
  begun_ms            INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
