-- Reconciliation: studies matched with their orders, and corrected by them. `corrects` is the row of
-- the received version an instance stands for, written anew; NULL where it is as it was received.

ALTER TABLE instance ADD COLUMN corrects INTEGER REFERENCES instance (id);

-- What was found when a study was last looked at, and what a person said of it.
CREATE TABLE reconciliation (
  study         INTEGER PRIMARY KEY REFERENCES study (id),
  entry         INTEGER REFERENCES worklist (id),  -- NULL: no order was found
  found_by      TEXT NOT NULL,                     -- FoundBy
  flags         TEXT NOT NULL,                     -- of Mismatch, space between; '' for the same
  sides         TEXT NOT NULL,                     -- JSON: of each Mismatch [study, order]
  kept          INTEGER NOT NULL DEFAULT 0,        -- 1: a person said it stays as it is
  by            TEXT NOT NULL DEFAULT '',          -- whoever linked or kept it
  series_count  INTEGER NOT NULL,                  -- of the study, when it was looked at
  looked_ms     INTEGER NOT NULL
) STRICT;
CREATE INDEX reconciliation_entry ON reconciliation (entry) WHERE entry IS NOT NULL;

-- One correction of a study, carried out behind the page that asked for it.
CREATE TABLE correction (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  study       INTEGER NOT NULL REFERENCES study (id),
  entry       INTEGER NOT NULL REFERENCES worklist (id),
  state       TEXT NOT NULL,                       -- CorrectionState
  sides       TEXT NOT NULL,                       -- as in reconciliation, before it
  actor       TEXT NOT NULL,
  instances   INTEGER NOT NULL DEFAULT 0,          -- written anew
  result      INTEGER REFERENCES study (id),       -- where they are, once it is carried out
  words       TEXT NOT NULL DEFAULT '',            -- why it failed, in plain words
  asked_ms    INTEGER NOT NULL,
  changed_ms  INTEGER NOT NULL
) STRICT;
CREATE INDEX correction_study ON correction (study);
CREATE INDEX correction_waiting ON correction (id) WHERE state = 'waiting';

-- The acts on the worklist alone, in their order: they are looked for every second.
CREATE INDEX audit_worklist ON audit (id) WHERE kind = 'worklist';

-- Up to which study and act has been looked: what was here before is looked at when it changes.
CREATE TABLE reconciliation_mark (
  only   INTEGER PRIMARY KEY CHECK (only = 1),
  study  INTEGER NOT NULL,
  audit  INTEGER NOT NULL
) STRICT;
INSERT INTO reconciliation_mark
  SELECT 1, (SELECT COALESCE(MAX(id), 0) FROM study), (SELECT COALESCE(MAX(id), 0) FROM audit);
