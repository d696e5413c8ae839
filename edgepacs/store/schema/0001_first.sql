-- The index. Times are milliseconds since 1970 UTC; text is decoded Unicode, '' where absent.
-- States are the members of the enums in edgepacs/model.py, whose transition tables rule them.

CREATE TABLE patient (
  id            INTEGER PRIMARY KEY,
  patient_id    TEXT NOT NULL,            -- (0010,0020), '' where absent
  issuer        TEXT NOT NULL,            -- (0010,0021)
  alone_in      TEXT NOT NULL,            -- Study Instance UID where patient_id is '', else ''
  name          TEXT NOT NULL,            -- as first received
  birth_date    TEXT NOT NULL,
  sex           TEXT NOT NULL,
  created_ms    INTEGER NOT NULL,
  UNIQUE (patient_id, issuer, alone_in)
) STRICT;

CREATE TABLE study (
  id                   INTEGER PRIMARY KEY,
  study_instance_uid   TEXT NOT NULL,
  patient              INTEGER NOT NULL REFERENCES patient (id),
  state                TEXT NOT NULL,
  state_by             TEXT NOT NULL DEFAULT '',
  state_ms             INTEGER NOT NULL,
  patient_name         TEXT NOT NULL,     -- demographics as received with this study
  patient_id           TEXT NOT NULL,
  issuer               TEXT NOT NULL,
  birth_date           TEXT NOT NULL,
  sex                  TEXT NOT NULL,
  study_date           TEXT NOT NULL,
  study_time           TEXT NOT NULL,
  study_id             TEXT NOT NULL,
  accession_number     TEXT NOT NULL,
  description          TEXT NOT NULL,
  referring_physician  TEXT NOT NULL,
  institution          TEXT NOT NULL,
  modalities           TEXT NOT NULL,     -- distinct, backslash between
  series_count         INTEGER NOT NULL DEFAULT 0,
  instance_count       INTEGER NOT NULL DEFAULT 0,
  byte_size            INTEGER NOT NULL DEFAULT 0,
  flags                TEXT NOT NULL DEFAULT '',  -- words, space between
  search_text          TEXT NOT NULL,     -- folded name, ID, accession number, description
  created_ms           INTEGER NOT NULL,
  received_ms          INTEGER NOT NULL,  -- the last instance
  UNIQUE (study_instance_uid, patient)
) STRICT;
CREATE INDEX study_received ON study (received_ms DESC, id DESC);
CREATE INDEX study_patient ON study (patient);

CREATE TABLE series (
  id                   INTEGER PRIMARY KEY,
  study                INTEGER NOT NULL REFERENCES study (id),
  series_instance_uid  TEXT NOT NULL,
  modality             TEXT NOT NULL,
  number               TEXT NOT NULL,
  description          TEXT NOT NULL,
  body_part            TEXT NOT NULL,
  station_name         TEXT NOT NULL,
  laterality           TEXT NOT NULL,
  instance_count       INTEGER NOT NULL DEFAULT 0,
  byte_size            INTEGER NOT NULL DEFAULT 0,
  created_ms           INTEGER NOT NULL,
  received_ms          INTEGER NOT NULL,
  UNIQUE (study, series_instance_uid)
) STRICT;

CREATE TABLE association (
  id              INTEGER PRIMARY KEY,
  calling_ae      TEXT NOT NULL,
  called_ae       TEXT NOT NULL,
  host            TEXT NOT NULL,
  implementation  TEXT NOT NULL,
  started_ms      INTEGER NOT NULL
) STRICT;

-- The id is also the order of arrival, whatever the clock says.
CREATE TABLE instance (
  id                    INTEGER PRIMARY KEY AUTOINCREMENT,
  series                INTEGER NOT NULL REFERENCES series (id),
  study                 INTEGER NOT NULL REFERENCES study (id),
  sop_instance_uid      TEXT NOT NULL,
  sop_class_uid         TEXT NOT NULL,
  transfer_syntax_uid   TEXT NOT NULL,    -- of the sealed data set
  received_syntax_uid   TEXT NOT NULL,    -- as received
  state                 TEXT NOT NULL,
  version               INTEGER NOT NULL, -- 1 for the first content under this UID
  object_id             BLOB NOT NULL,    -- a tombstone keeps it: the sweep asks
  byte_length           INTEGER NOT NULL, -- of the sealed data set
  sealed_length         INTEGER NOT NULL,
  received_sha256       BLOB NOT NULL,    -- of the data set as received
  native_sha256         BLOB,             -- of the native pixel data, once known
  pixel_offset          INTEGER NOT NULL, -- of the pixel data element, -1 where none was seen
  instance_number       TEXT NOT NULL,
  rows                  INTEGER NOT NULL,
  columns               INTEGER NOT NULL,
  frames                INTEGER NOT NULL, -- 0 where there are no pixels
  flags                 TEXT NOT NULL DEFAULT '',
  origin                TEXT NOT NULL,
  source                TEXT NOT NULL,    -- calling AE title or user
  association           INTEGER REFERENCES association (id),
  received_ms           INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX instance_current ON instance (sop_instance_uid) WHERE state = 'stored';
CREATE INDEX instance_uid ON instance (sop_instance_uid);
CREATE INDEX instance_series ON instance (series);
CREATE INDEX instance_study ON instance (study);
CREATE INDEX instance_waiting ON instance (state) WHERE state IN ('comparing', 'quarantined');
CREATE UNIQUE INDEX instance_object ON instance (object_id);

CREATE TABLE ae (
  title       TEXT PRIMARY KEY,
  host        TEXT NOT NULL,              -- address or name; '*' for any
  port        INTEGER NOT NULL,
  services    TEXT NOT NULL,              -- members of Service, space between
  created_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE refused (
  calling_ae  TEXT NOT NULL,
  called_ae   TEXT NOT NULL,
  host        TEXT NOT NULL,
  reason      TEXT NOT NULL,
  times       INTEGER NOT NULL,
  first_ms    INTEGER NOT NULL,
  last_ms     INTEGER NOT NULL,
  PRIMARY KEY (calling_ae, called_ae, host, reason)
) STRICT, WITHOUT ROWID;

CREATE TABLE destination (
  id          INTEGER PRIMARY KEY,
  name        TEXT NOT NULL UNIQUE,
  transport   TEXT NOT NULL,              -- 'dimse'
  ae_title    TEXT NOT NULL,
  host        TEXT NOT NULL,
  port        INTEGER NOT NULL,
  link        TEXT NOT NULL,              -- LinkState
  link_ms     INTEGER NOT NULL,           -- since when
  link_note   TEXT NOT NULL DEFAULT '',   -- why, in plain words
  created_ms  INTEGER NOT NULL
) STRICT;

CREATE TABLE rule (
  id            INTEGER PRIMARY KEY,
  destination   INTEGER REFERENCES destination (id) ON DELETE CASCADE,  -- NULL: every destination
  match         TEXT NOT NULL,            -- '' matches everything
  hold          INTEGER NOT NULL,         -- 1: held until the study is verified
  priority      INTEGER NOT NULL,
  created_ms    INTEGER NOT NULL
) STRICT;

CREATE TABLE delivery (
  id              INTEGER PRIMARY KEY AUTOINCREMENT,
  kind            TEXT NOT NULL,
  subject         INTEGER NOT NULL,       -- instance.id for kind 'instance'
  study           INTEGER REFERENCES study (id),
  destination     INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  ordering_key    TEXT NOT NULL DEFAULT '',  -- strict order within one key; '' has none
  state           TEXT NOT NULL,
  hold_reason     TEXT NOT NULL DEFAULT '',
  priority        INTEGER NOT NULL DEFAULT 0,  -- higher first
  attempts        INTEGER NOT NULL DEFAULT 0,
  next_ms         INTEGER NOT NULL DEFAULT 0,  -- not before
  last_error      TEXT NOT NULL DEFAULT '',
  proof           TEXT NOT NULL DEFAULT '',
  created_ms      INTEGER NOT NULL,
  changed_ms      INTEGER NOT NULL,
  UNIQUE (kind, subject, destination)
) STRICT;
CREATE INDEX delivery_due ON delivery (destination, priority DESC, id) WHERE state = 'queued';
CREATE INDEX delivery_open ON delivery (destination, state) WHERE state IN ('sending', 'awaiting_commitment');
CREATE INDEX delivery_study ON delivery (study, state);
CREATE INDEX delivery_state ON delivery (state);

CREATE TABLE attempt (
  id           INTEGER PRIMARY KEY,
  delivery     INTEGER NOT NULL REFERENCES delivery (id) ON DELETE CASCADE,
  started_ms   INTEGER NOT NULL,
  ended_ms     INTEGER,                   -- NULL while under way or broken off
  result       TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX attempt_delivery ON attempt (delivery);

-- What one role asks of another, e.g. the console an echo of forward/.
CREATE TABLE errand (
  id         INTEGER PRIMARY KEY,
  role       TEXT NOT NULL,
  act        TEXT NOT NULL,
  subject    INTEGER NOT NULL,
  asked_by   TEXT NOT NULL,
  asked_ms   INTEGER NOT NULL,
  done_ms    INTEGER,
  succeeded  INTEGER,
  result     TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX errand_open ON errand (role) WHERE done_ms IS NULL;

CREATE TABLE user (
  name           TEXT PRIMARY KEY,
  role           TEXT NOT NULL,
  password       TEXT NOT NULL,           -- Argon2id, PHC string
  one_time       INTEGER NOT NULL,        -- 1: must be changed at the next login
  failures       INTEGER NOT NULL DEFAULT 0,
  locked_ms      INTEGER NOT NULL DEFAULT 0,  -- until
  created_ms     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE session (
  token_sha256  BLOB PRIMARY KEY,
  user          TEXT NOT NULL REFERENCES user (name) ON DELETE CASCADE,
  csrf          TEXT NOT NULL,
  created_ms    INTEGER NOT NULL,
  seen_ms       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE token (
  id            INTEGER PRIMARY KEY,
  token_sha256  BLOB NOT NULL UNIQUE,
  role          TEXT NOT NULL,
  created_ms    INTEGER NOT NULL
) STRICT;

CREATE TABLE audit (
  id       INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms    INTEGER NOT NULL,
  actor    TEXT NOT NULL,                 -- user, AE title or role
  act      TEXT NOT NULL,
  kind     TEXT NOT NULL,                 -- table the subject is a row of
  subject  INTEGER,
  detail   TEXT NOT NULL,
  chain    BLOB NOT NULL                  -- SHA-256 over the former row's chain and this row
) STRICT;
CREATE INDEX audit_subject ON audit (kind, subject);
