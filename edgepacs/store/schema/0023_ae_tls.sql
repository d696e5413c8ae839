-- How AE titles are called from here, for C-MOVE and reports of commitment, and in which character
-- set worklists upstream write what names none.

ALTER TABLE ae ADD COLUMN tls INTEGER NOT NULL DEFAULT 0;        -- 1: called by TLS
ALTER TABLE ae ADD COLUMN authority TEXT NOT NULL DEFAULT '';    -- PEM; '': what this machine trusts
ALTER TABLE ae ADD COLUMN certificate TEXT NOT NULL DEFAULT '';  -- PEM, shown to it
ALTER TABLE ae ADD COLUMN private_key TEXT NOT NULL DEFAULT '';  -- PEM, of the certificate
ALTER TABLE worklist_source ADD COLUMN character_set TEXT NOT NULL DEFAULT '';  -- (0008,0005)
