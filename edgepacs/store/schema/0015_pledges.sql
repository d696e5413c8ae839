-- Pledges: storage commitment that modalities have asked us for (PS3.4 J.3), and what became of it.

CREATE TABLE pledge (
  id               INTEGER PRIMARY KEY AUTOINCREMENT,
  ae               TEXT NOT NULL,         -- who asked; reports go to its host and port
  called_ae        TEXT NOT NULL,         -- what it called us
  host             TEXT NOT NULL,         -- the address it asked from
  transaction_uid  TEXT NOT NULL,
  state            TEXT NOT NULL,         -- PledgeState
  asked_ms         INTEGER NOT NULL,
  checked_ms       INTEGER NOT NULL DEFAULT 0,
  changed_ms       INTEGER NOT NULL,
  attempts         INTEGER NOT NULL DEFAULT 0,  -- to deliver the report
  next_ms          INTEGER NOT NULL DEFAULT 0,  -- nothing is done before
  words            TEXT NOT NULL DEFAULT '',    -- why it is not delivered, in plain words
  UNIQUE (ae, transaction_uid)
) STRICT;
CREATE INDEX pledge_open ON pledge (next_ms) WHERE state IN ('asked', 'checked');

CREATE TABLE pledge_item (
  pledge            INTEGER NOT NULL REFERENCES pledge (id) ON DELETE CASCADE,
  position          INTEGER NOT NULL,
  sop_class_uid     TEXT NOT NULL,
  sop_instance_uid  TEXT NOT NULL,
  reason            INTEGER,              -- NULL until looked at; 0 committed, else PS3.3 C.14-1
  PRIMARY KEY (pledge, position)
) STRICT, WITHOUT ROWID;
