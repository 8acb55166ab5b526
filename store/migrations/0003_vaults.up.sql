-- Secrets that have to be given back, sealed: see package vault. The owner is the id of
-- whatever object it is a secret of.
CREATE TABLE secrets (
  owner  TEXT NOT NULL,
  field  TEXT NOT NULL,
  key_id TEXT NOT NULL,                     -- of the key that it is wrapped by
  sealed TEXT NOT NULL,
  PRIMARY KEY (owner, field)
);
CREATE INDEX secrets_by_key ON secrets (key_id, owner, field);

CREATE TABLE vaults (
  id          TEXT PRIMARY KEY,
  body        TEXT NOT NULL,
  created_at  BIGINT NOT NULL,
  archived_at BIGINT
);
CREATE INDEX vaults_by_creation ON vaults (created_at, id);

CREATE TABLE credentials (
  id            TEXT PRIMARY KEY,
  vault_id      TEXT NOT NULL REFERENCES vaults (id),
  kind          TEXT NOT NULL,
  target        TEXT NOT NULL,              -- the server, or the variable, that it is for
  body          TEXT NOT NULL,
  version       BIGINT NOT NULL,            -- raised by every change of its secrets
  created_at    BIGINT NOT NULL,
  archived_at   BIGINT,
  refresh_owner TEXT NOT NULL,              -- who renews its token now
  refresh_until BIGINT NOT NULL,            -- until when; 0: nobody
  refreshed_at  BIGINT,                     -- when it was renewed last
  refused_at    BIGINT,                     -- when renewing was refused for good, at this version
  refused_why   TEXT NOT NULL
);
CREATE UNIQUE INDEX credentials_live ON credentials (vault_id, target) WHERE archived_at IS NULL;
CREATE INDEX credentials_by_creation ON credentials (vault_id, created_at, id);
