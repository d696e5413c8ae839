-- How each destination is reached, what its line may carry, what proof of arrival is asked of it.
-- One column for each setting in edgepacs/store/destinations.py, which checks them.

ALTER TABLE destination ADD COLUMN url TEXT NOT NULL DEFAULT '';          -- of DICOMweb, for 'stow'
ALTER TABLE destination ADD COLUMN token TEXT NOT NULL DEFAULT '';        -- bearer, for 'stow'
ALTER TABLE destination ADD COLUMN tls INTEGER NOT NULL DEFAULT 0;        -- 1: DICOM over TLS
ALTER TABLE destination ADD COLUMN authority TEXT NOT NULL DEFAULT '';    -- PEM; '': the system's
ALTER TABLE destination ADD COLUMN certificate TEXT NOT NULL DEFAULT '';  -- PEM, shown to the peer
ALTER TABLE destination ADD COLUMN private_key TEXT NOT NULL DEFAULT '';  -- PEM
ALTER TABLE destination ADD COLUMN user_name TEXT NOT NULL DEFAULT '';    -- user identity, or ''
ALTER TABLE destination ADD COLUMN passcode TEXT NOT NULL DEFAULT '';
ALTER TABLE destination ADD COLUMN proof TEXT NOT NULL DEFAULT 'committed';   -- ProofWanted
ALTER TABLE destination ADD COLUMN callback TEXT NOT NULL DEFAULT 'unknown';  -- Callback, learnt
ALTER TABLE destination ADD COLUMN associations INTEGER NOT NULL DEFAULT 0;   -- most; 0: as measured
ALTER TABLE destination ADD COLUMN kbits INTEGER NOT NULL DEFAULT 0;          -- a second; 0: no cap
ALTER TABLE destination ADD COLUMN daily_mib INTEGER NOT NULL DEFAULT 0;      -- 0: no quota
ALTER TABLE destination ADD COLUMN monthly_mib INTEGER NOT NULL DEFAULT 0;    -- 0: no quota
ALTER TABLE destination ADD COLUMN hours TEXT NOT NULL DEFAULT '';            -- '22:00-06:00,...'
ALTER TABLE destination ADD COLUMN least_priority INTEGER NOT NULL DEFAULT 0; -- what is less waits
