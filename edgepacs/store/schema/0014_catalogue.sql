-- What C-FIND looks studies up by (edgepacs/store/catalogue.py). Only a new study writes these, not
-- each of its instances.

CREATE INDEX study_of_patient_id ON study (patient_id);
CREATE INDEX study_accession ON study (accession_number);
CREATE INDEX study_date ON study (REPLACE(study_date, '.', ''));
-- The folded name, which search_text begins with.
CREATE INDEX study_name ON study (SUBSTR(search_text, 1, INSTR(search_text, CHAR(10)) - 1));
-- Of names in several scripts also what stands behind the first.
CREATE INDEX study_names ON study (SUBSTR(search_text, 1, INSTR(search_text, CHAR(10)) - 1))
  WHERE INSTR(patient_name, '=');
