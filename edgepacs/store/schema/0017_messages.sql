-- HL7 v2 messages, the orders they speak of, the worklists asked upstream, and entries of the
-- worklist that may be one and the same.

CREATE TABLE message (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,  -- also the order in which they are applied
  received_ms  INTEGER NOT NULL,
  changed_ms   INTEGER NOT NULL,            -- of the state
  host         TEXT NOT NULL,               -- the address it came from
  sender       TEXT NOT NULL,               -- MSH-3 and MSH-4 with | between
  control_id   TEXT NOT NULL,               -- MSH-10
  kind         TEXT NOT NULL,               -- MSH-9, e.g. ORM^O01
  digest       BLOB NOT NULL,               -- of what it says: the same again is a repeat
  raw          BLOB NOT NULL,               -- as it came, without its framing
  state        TEXT NOT NULL,               -- MessageState
  code         TEXT NOT NULL DEFAULT '',    -- MSA-1 as answered: AA, AE or AR
  place        TEXT NOT NULL DEFAULT '',    -- ERR-2: segment, sequence, field, component
  error        INTEGER NOT NULL DEFAULT 0,  -- ERR-3, HL7 table 0357
  words        TEXT NOT NULL DEFAULT '',    -- ERR-8, or what came of it
  repeats      INTEGER NOT NULL DEFAULT 0   -- how often it came again
) STRICT;
CREATE INDEX message_sent ON message (sender, control_id, digest);
CREATE INDEX message_waiting ON message (id) WHERE state = 'received';

-- Which entries of the worklist a message changed.
CREATE TABLE message_entry (
  message  INTEGER NOT NULL REFERENCES message (id) ON DELETE CASCADE,
  entry    INTEGER NOT NULL,
  PRIMARY KEY (message, entry)
) STRICT, WITHOUT ROWID;
CREATE INDEX message_entry_entry ON message_entry (entry);

-- An order of a sender, by whichever of its numbers a message names it; its steps are entries.
CREATE TABLE hl7_order (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  source  TEXT NOT NULL                     -- the sending application, or what the mapping says
) STRICT;
CREATE TABLE hl7_order_number (
  source     TEXT NOT NULL,
  kind       TEXT NOT NULL,                 -- placer or filler
  number     TEXT NOT NULL,
  hl7_order  INTEGER NOT NULL REFERENCES hl7_order (id) ON DELETE CASCADE,
  PRIMARY KEY (source, kind, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE hl7_order_step (
  hl7_order  INTEGER NOT NULL REFERENCES hl7_order (id) ON DELETE CASCADE,
  step       TEXT NOT NULL,                 -- its ID as the sender says, or its place in the order
  entry      INTEGER NOT NULL,
  PRIMARY KEY (hl7_order, step)
) STRICT, WITHOUT ROWID;

-- A worklist that is asked on a schedule: the central RIS.
CREATE TABLE worklist_source (
  name          TEXT PRIMARY KEY,
  ae_title      TEXT NOT NULL,
  host          TEXT NOT NULL,
  port          INTEGER NOT NULL,
  tls           INTEGER NOT NULL,           -- 1: by TLS, with a certificate this machine trusts
  interval_s    INTEGER NOT NULL,           -- how often it is asked
  stale_s       INTEGER NOT NULL,           -- older copies are called stale
  days          INTEGER NOT NULL,           -- how far ahead it is asked for; a day back always
  modality      TEXT NOT NULL,              -- only these, a backslash between; '' for all
  created_ms    INTEGER NOT NULL,
  tried_ms      INTEGER NOT NULL DEFAULT 0,
  as_of_ms      INTEGER NOT NULL DEFAULT 0, -- when it was last heard in full
  entries       INTEGER NOT NULL DEFAULT 0, -- that it had then
  doubts        INTEGER NOT NULL DEFAULT 0, -- how often in a row it had nothing where it had some
  words         TEXT NOT NULL DEFAULT ''    -- what came of the last attempt
) STRICT, WITHOUT ROWID;

-- Two entries that may be one: what was entered here, and what an order says now.
CREATE TABLE twin (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  entered     INTEGER NOT NULL,             -- the entry made here
  ordered     INTEGER NOT NULL,             -- the entry of HL7 or upstream
  state       TEXT NOT NULL,                -- TwinState
  words       TEXT NOT NULL,                -- by which rule, or why a person is needed
  created_ms  INTEGER NOT NULL,
  changed_ms  INTEGER NOT NULL,
  UNIQUE (entered, ordered)
) STRICT;
CREATE INDEX twin_ordered ON twin (ordered);
CREATE INDEX twin_open ON twin (id) WHERE state = 'open';
