-- Tunnels. A row is never removed: its domain must not be given out again.
CREATE TABLE tunnels (
  id           TEXT PRIMARY KEY,
  workspace_id TEXT NOT NULL,
  domain       TEXT NOT NULL UNIQUE,
  body         TEXT NOT NULL,
  created_at   BIGINT NOT NULL,
  archived_at  BIGINT
);
CREATE INDEX tunnels_by_creation ON tunnels (workspace_id, created_at, id);

-- What connectors attach with. Only the hash of a token, which is its id, is needed to
-- know it; its text is among the secrets, to be revealed, while it is the current one.
CREATE TABLE tunnel_tokens (
  id         TEXT PRIMARY KEY,
  tunnel_id  TEXT NOT NULL REFERENCES tunnels (id),
  slot       TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  ended_at   BIGINT                         -- not good from then on; null: until it is rotated
);
CREATE UNIQUE INDEX tunnel_tokens_current ON tunnel_tokens (tunnel_id, slot) WHERE ended_at IS NULL;
CREATE INDEX tunnel_tokens_of_tunnel ON tunnel_tokens (tunnel_id, created_at, id);

CREATE TABLE tunnel_certificates (
  id          TEXT PRIMARY KEY,
  tunnel_id   TEXT NOT NULL REFERENCES tunnels (id),
  fingerprint TEXT NOT NULL,
  pem         TEXT NOT NULL,
  body        TEXT NOT NULL,
  created_at  BIGINT NOT NULL,
  archived_at BIGINT
);
CREATE UNIQUE INDEX tunnel_certificates_live ON tunnel_certificates (tunnel_id, fingerprint) WHERE archived_at IS NULL;
CREATE INDEX tunnel_certificates_archived ON tunnel_certificates (archived_at, id) WHERE archived_at IS NOT NULL;
CREATE INDEX tunnel_certificates_of_tunnel ON tunnel_certificates (tunnel_id, created_at, id);

-- What a key is good for; of an access token, the rule it was given out by, and to whom.
-- The keys that could do everything so far may manage tunnels too.
ALTER TABLE keys ADD COLUMN scopes TEXT NOT NULL DEFAULT '';
ALTER TABLE keys ADD COLUMN rule_id TEXT NOT NULL DEFAULT '';
ALTER TABLE keys ADD COLUMN account_id TEXT NOT NULL DEFAULT '';
UPDATE keys SET scopes = 'workspace' WHERE kind = 'api_key';
UPDATE keys SET scopes = 'workspace tunnels' WHERE kind = 'api_key' AND shell = 1;
CREATE INDEX keys_by_rule ON keys (rule_id) WHERE rule_id <> '';
CREATE INDEX keys_expired ON keys (expires_at) WHERE rule_id <> '';

-- Identities of workloads: who they are here, whose word is taken for it, and what makes
-- one of another's the one of ours.
CREATE TABLE service_accounts (
  id          TEXT PRIMARY KEY,
  name        TEXT NOT NULL,
  body        TEXT NOT NULL,
  created_at  BIGINT NOT NULL,
  archived_at BIGINT
);
CREATE UNIQUE INDEX service_accounts_by_name ON service_accounts (name) WHERE archived_at IS NULL;
CREATE INDEX service_accounts_by_creation ON service_accounts (created_at, id);

CREATE TABLE federation_issuers (
  id          TEXT PRIMARY KEY,
  name        TEXT NOT NULL,
  body        TEXT NOT NULL,
  created_at  BIGINT NOT NULL,
  archived_at BIGINT
);
CREATE UNIQUE INDEX federation_issuers_by_name ON federation_issuers (name) WHERE archived_at IS NULL;
CREATE INDEX federation_issuers_by_creation ON federation_issuers (created_at, id);

CREATE TABLE federation_rules (
  id                 TEXT PRIMARY KEY,
  name               TEXT NOT NULL,
  issuer_id          TEXT NOT NULL REFERENCES federation_issuers (id),
  service_account_id TEXT NOT NULL REFERENCES service_accounts (id),
  body               TEXT NOT NULL,
  created_at         BIGINT NOT NULL,
  archived_at        BIGINT
);
CREATE UNIQUE INDEX federation_rules_by_name ON federation_rules (name) WHERE archived_at IS NULL;
CREATE INDEX federation_rules_by_creation ON federation_rules (created_at, id);
CREATE INDEX federation_rules_of_issuer ON federation_rules (issuer_id) WHERE archived_at IS NULL;

-- The assertions that were exchanged, for as long as they could be shown again.
CREATE TABLE federation_seen (
  issuer_id  TEXT NOT NULL,
  hash       TEXT NOT NULL,                 -- of the jti
  expires_at BIGINT NOT NULL,
  PRIMARY KEY (issuer_id, hash)
);
CREATE INDEX federation_seen_expired ON federation_seen (expires_at);

-- The newest attempts to exchange an assertion, and why they failed.
CREATE TABLE federation_events (
  id         TEXT PRIMARY KEY,
  rule_id    TEXT NOT NULL,
  body       TEXT NOT NULL,
  created_at BIGINT NOT NULL
);
CREATE INDEX federation_events_by_time ON federation_events (created_at, id);
CREATE INDEX federation_events_of_rule ON federation_events (rule_id, created_at, id);
