-- The modality worklist: one row for each scheduled procedure step, with its requested procedure,
-- imaging service request, visit and patient. Text is decoded Unicode, '' where absent; several
-- values stand with a backslash between them, the parts of a code with ^: value^scheme^meaning.

CREATE TABLE worklist (
  id                     INTEGER PRIMARY KEY AUTOINCREMENT,
  state                  TEXT NOT NULL,     -- EntryState
  origin                 TEXT NOT NULL,     -- EntryOrigin
  source                 TEXT NOT NULL,     -- who said so: a sending application, an AE title, a user
  key                    TEXT NOT NULL,     -- by which its source tells it from others
  as_of_ms               INTEGER NOT NULL,  -- when its source last said so
  created_ms             INTEGER NOT NULL,
  changed_ms             INTEGER NOT NULL,  -- of the values or the state
  search_text            TEXT NOT NULL,     -- folded name, IDs, accession number, descriptions
  folded_name            TEXT NOT NULL,     -- name as queries compare it
  patient_id             TEXT NOT NULL,     -- (0010,0020)
  issuer                 TEXT NOT NULL,     -- (0010,0021)
  name                   TEXT NOT NULL,     -- (0010,0010)
  birth_date             TEXT NOT NULL,     -- (0010,0030)
  sex                    TEXT NOT NULL,     -- (0010,0040)
  weight                 TEXT NOT NULL,     -- (0010,1030) kg
  size                   TEXT NOT NULL,     -- (0010,1020) m
  other_ids              TEXT NOT NULL,     -- (0010,1002) each ID^ISSUER
  pregnancy              TEXT NOT NULL,     -- (0010,21C0) 1 to 4
  allergies              TEXT NOT NULL,     -- (0010,2110)
  alerts                 TEXT NOT NULL,     -- (0010,2000)
  patient_state          TEXT NOT NULL,     -- (0038,0500)
  special_needs          TEXT NOT NULL,     -- (0038,0050)
  confidentiality        TEXT NOT NULL,     -- (0040,3001)
  study_instance_uid     TEXT NOT NULL,     -- (0020,000D)
  accession_number       TEXT NOT NULL,     -- (0008,0050)
  admission_id           TEXT NOT NULL,     -- (0038,0010), the visit number
  procedure_id           TEXT NOT NULL,     -- (0040,1001)
  procedure_description  TEXT NOT NULL,     -- (0032,1060)
  procedure_code         TEXT NOT NULL,     -- (0032,1064)
  procedure_priority     TEXT NOT NULL,     -- (0040,1003)
  referring_physician    TEXT NOT NULL,     -- (0008,0090)
  requesting_physician   TEXT NOT NULL,     -- (0032,1032)
  requesting_service     TEXT NOT NULL,     -- (0032,1033)
  placer_order           TEXT NOT NULL,     -- (0040,2016)
  filler_order           TEXT NOT NULL,     -- (0040,2017)
  step_id                TEXT NOT NULL,     -- (0040,0009)
  step_description       TEXT NOT NULL,     -- (0040,0007)
  step_code              TEXT NOT NULL,     -- (0040,0008)
  modality               TEXT NOT NULL,     -- (0008,0060)
  station_ae             TEXT NOT NULL,     -- (0040,0001)
  station_name           TEXT NOT NULL,     -- (0040,0010)
  start_date             TEXT NOT NULL,     -- (0040,0002)
  start_time             TEXT NOT NULL,     -- (0040,0003)
  performing_physician   TEXT NOT NULL,     -- (0040,0006)
  location               TEXT NOT NULL,     -- (0040,0011) where it will be done
  laterality             TEXT NOT NULL,     -- (0020,0060) R, L or B
  comments               TEXT NOT NULL,     -- (0040,0400)
  patient_location       TEXT NOT NULL,     -- (0038,0300) where the patient is
  transport              TEXT NOT NULL,     -- (0040,1004)
  pre_medication         TEXT NOT NULL,     -- (0040,0012)
  contrast_agent         TEXT NOT NULL,     -- (0032,1070)
  UNIQUE (origin, source, key)
) STRICT;
CREATE INDEX worklist_state ON worklist (state, start_date);
CREATE INDEX worklist_patient ON worklist (patient_id, issuer);
CREATE INDEX worklist_study ON worklist (study_instance_uid);
CREATE INDEX worklist_order ON worklist (accession_number) WHERE accession_number != '';
CREATE INDEX worklist_start ON worklist (start_date, start_time, id);

-- Which entries an AE title is shown: those for one of these stations or for none in particular,
-- and of one of these modalities; '' for any, else with a backslash between them.
ALTER TABLE ae ADD COLUMN sees_stations TEXT NOT NULL DEFAULT '';
ALTER TABLE ae ADD COLUMN sees_modalities TEXT NOT NULL DEFAULT '';
