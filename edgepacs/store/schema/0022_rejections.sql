-- Rejection notes that came from elsewhere (edgepacs/store/rejections.py), and what they name.

-- One row for each Key Object Selection Document that came from elsewhere, whatever it says.
CREATE TABLE rejection_note (
  instance  INTEGER PRIMARY KEY REFERENCES instance (id),
  title     TEXT NOT NULL DEFAULT '',       -- Title; '' where it rejects nothing, or is not read yet
  named     INTEGER NOT NULL DEFAULT 0,     -- instances it names, here or not
  words     TEXT NOT NULL DEFAULT '',       -- why it could not be read, or that it was withdrawn
  read_ms   INTEGER                         -- NULL: it waits to be read
) STRICT;
CREATE INDEX rejection_note_unread ON rejection_note (instance) WHERE read_ms IS NULL;
CREATE TRIGGER rejection_note_arrived AFTER INSERT ON instance
  WHEN NEW.sop_class_uid = '1.2.840.10008.5.1.4.1.1.88.59' AND NEW.origin != 'local'
  BEGIN INSERT INTO rejection_note (instance) VALUES (NEW.id); END;

-- What is rejected, by UID: what comes after its note is named by it all the same.
CREATE TABLE rejected (
  sop_instance_uid  TEXT NOT NULL,
  note              INTEGER NOT NULL REFERENCES instance (id),
  title             TEXT NOT NULL,          -- as in rejection_note
  PRIMARY KEY (sop_instance_uid, note)
) STRICT, WITHOUT ROWID;
CREATE INDEX rejected_note ON rejected (note);

-- Deliveries that were on the line when their instance was rejected: seen to when they are not.
CREATE TABLE rejected_under_way (
  delivery  INTEGER PRIMARY KEY REFERENCES delivery (id) ON DELETE CASCADE
) STRICT;
-- Until then it must not begin anew.
CREATE TRIGGER rejected_waits AFTER UPDATE OF state ON delivery
  WHEN OLD.state = 'sending' AND NEW.state = 'queued'
    AND EXISTS (SELECT 1 FROM rejected_under_way WHERE delivery = NEW.id)
  BEGIN
    UPDATE delivery SET next_ms = MAX(next_ms, NEW.changed_ms + 60000) WHERE id = NEW.id;
  END;

-- hidden, 1: it is here, and neither query nor retrieve offers it. The counts are of what stands,
-- and so a part of instance_count. 113001 is the one title that hides nothing.
ALTER TABLE instance ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0;
ALTER TABLE series ADD COLUMN hidden_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE study ADD COLUMN hidden_count INTEGER NOT NULL DEFAULT 0;

CREATE TRIGGER instance_hidden_from_the_start AFTER INSERT ON instance
  WHEN EXISTS (SELECT 1 FROM rejected
    WHERE sop_instance_uid = NEW.sop_instance_uid AND title != '113001')
  BEGIN UPDATE instance SET hidden = 1 WHERE id = NEW.id; END;
CREATE TRIGGER rejected_added AFTER INSERT ON rejected WHEN NEW.title != '113001'
  BEGIN
    UPDATE instance SET hidden = 1 WHERE sop_instance_uid = NEW.sop_instance_uid AND NOT hidden;
  END;
CREATE TRIGGER rejected_removed AFTER DELETE ON rejected WHEN OLD.title != '113001'
  BEGIN
    UPDATE instance SET hidden = 0 WHERE sop_instance_uid = OLD.sop_instance_uid AND hidden
      AND NOT EXISTS (SELECT 1 FROM rejected
        WHERE sop_instance_uid = OLD.sop_instance_uid AND title != '113001');
  END;
CREATE TRIGGER instance_hidden AFTER UPDATE OF hidden, state ON instance
  WHEN (OLD.hidden AND OLD.state = 'stored') != (NEW.hidden AND NEW.state = 'stored')
  BEGIN
    UPDATE series
      SET hidden_count = hidden_count + iif(NEW.hidden AND NEW.state = 'stored', 1, -1)
      WHERE id = NEW.series;
    UPDATE study
      SET hidden_count = hidden_count + iif(NEW.hidden AND NEW.state = 'stored', 1, -1)
      WHERE id = NEW.study;
  END;
