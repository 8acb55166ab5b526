-- Where tunnels run through: processes that connectors dial.
CREATE TABLE edges (
  id         TEXT PRIMARY KEY,
  name       TEXT NOT NULL,
  state      TEXT NOT NULL,
  key_id     TEXT NOT NULL,                 -- it registered with; '' for one within the server
  body       TEXT NOT NULL,
  sequence   BIGINT NOT NULL,               -- of the last report that was counted
  created_at BIGINT NOT NULL,
  seen_at    BIGINT NOT NULL,
  deadline   BIGINT,                        -- of the next report; null once it is silent or gone
  gone_at    BIGINT
);
CREATE UNIQUE INDEX edges_live ON edges (name) WHERE gone_at IS NULL;
CREATE INDEX edges_by_creation ON edges (created_at, id);
CREATE INDEX edges_deadlines ON edges (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX edges_gone ON edges (gone_at) WHERE gone_at IS NOT NULL;

-- Connections of connectors to edges, and for a while those that were.
CREATE TABLE attachments (
  id           TEXT PRIMARY KEY,
  tunnel_id    TEXT NOT NULL,
  edge_id      TEXT NOT NULL,
  token_id     TEXT NOT NULL,
  connector_id TEXT NOT NULL,
  version      TEXT NOT NULL,
  protocol     TEXT NOT NULL,
  remote       TEXT NOT NULL,
  attached_at  BIGINT NOT NULL,
  detached_at  BIGINT,
  reason       TEXT NOT NULL,               -- why it was detached
  cut          TEXT,                        -- why the edge is to end it; null: it is not
  streams      BIGINT NOT NULL,             -- open now
  to_gateway   BIGINT NOT NULL,             -- bytes
  from_gateway BIGINT NOT NULL
);
CREATE INDEX attachments_of_tunnel ON attachments (tunnel_id, attached_at) WHERE detached_at IS NULL;
CREATE INDEX attachments_of_edge ON attachments (edge_id) WHERE detached_at IS NULL;
CREATE INDEX attachments_cut ON attachments (edge_id) WHERE cut IS NOT NULL AND detached_at IS NULL;
CREATE INDEX attachments_former ON attachments (tunnel_id, detached_at) WHERE detached_at IS NOT NULL;
CREATE INDEX attachments_ended ON attachments (detached_at) WHERE detached_at IS NOT NULL;

-- What passed through a tunnel in an hour.
CREATE TABLE tunnel_usage (
  tunnel_id    TEXT NOT NULL,
  hour         BIGINT NOT NULL,             -- its first microsecond
  to_gateway   BIGINT NOT NULL,
  from_gateway BIGINT NOT NULL,
  streams      BIGINT NOT NULL,             -- opened
  PRIMARY KEY (tunnel_id, hour)
);
CREATE INDEX tunnel_usage_by_hour ON tunnel_usage (hour);

-- What went wrong last with a tunnel, at each stage.
CREATE TABLE tunnel_faults (
  tunnel_id TEXT NOT NULL,
  stage     TEXT NOT NULL,
  host      TEXT NOT NULL,
  detail    TEXT NOT NULL,
  count     BIGINT NOT NULL,
  first_at  BIGINT NOT NULL,
  last_at   BIGINT NOT NULL,
  PRIMARY KEY (tunnel_id, stage)
);
CREATE INDEX tunnel_faults_by_time ON tunnel_faults (last_at);

-- The certificate that a tunnel's gateway answered with last.
CREATE TABLE tunnel_leaves (
  tunnel_id   TEXT PRIMARY KEY,
  host        TEXT NOT NULL,
  fingerprint TEXT NOT NULL,                -- of the CA that signed it
  expires_at  BIGINT NOT NULL,
  seen_at     BIGINT NOT NULL
);

-- The plane's own CAs, for edges and dialers. Their keys are among the secrets.
CREATE TABLE edge_authorities (
  id          TEXT PRIMARY KEY,
  certificate TEXT NOT NULL,                -- PEM
  created_at  BIGINT NOT NULL,
  signs_from  BIGINT NOT NULL,
  expires_at  BIGINT NOT NULL,
  archived_at BIGINT
);
