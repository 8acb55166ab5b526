-- Times are microseconds since 1970 UTC. JSON is kept as text. The same text runs
-- on SQLite and PostgreSQL.

CREATE TABLE agents (
  id          TEXT PRIMARY KEY,
  body        TEXT NOT NULL,
  created_at  BIGINT NOT NULL,
  archived_at BIGINT
);
CREATE INDEX agents_by_creation ON agents (created_at, id);

CREATE TABLE agent_versions (
  agent_id TEXT NOT NULL REFERENCES agents (id),
  version  BIGINT NOT NULL,
  body     TEXT NOT NULL,
  PRIMARY KEY (agent_id, version)
);

CREATE TABLE environments (
  id          TEXT PRIMARY KEY,
  body        TEXT NOT NULL,
  created_at  BIGINT NOT NULL,
  archived_at BIGINT
);
CREATE INDEX environments_by_creation ON environments (created_at, id);

-- Credentials. Only the SHA-256 of a secret is kept.
CREATE TABLE keys (
  id             TEXT PRIMARY KEY,
  kind           TEXT NOT NULL,
  hash           TEXT NOT NULL UNIQUE,
  name           TEXT NOT NULL,
  hint           TEXT NOT NULL,
  environment_id TEXT NOT NULL,
  session_id     TEXT NOT NULL,
  work_id        TEXT NOT NULL,
  parent         TEXT NOT NULL,             -- of a session token: the key it was polled with
  created_at     BIGINT NOT NULL,
  expires_at     BIGINT,
  last_used_at   BIGINT,
  revoked_at     BIGINT
);
CREATE INDEX keys_by_owner ON keys (kind, environment_id, created_at, id);
CREATE INDEX keys_by_work ON keys (work_id);
CREATE INDEX keys_by_session ON keys (session_id);

CREATE TABLE sessions (
  id             TEXT PRIMARY KEY,
  thread_id      TEXT NOT NULL,
  agent_id       TEXT NOT NULL,
  agent_version  BIGINT NOT NULL,
  environment_id TEXT NOT NULL REFERENCES environments (id),
  status         TEXT NOT NULL,
  body           TEXT NOT NULL,
  created_at     BIGINT NOT NULL,
  updated_at     BIGINT NOT NULL,
  archived_at    BIGINT,

  last_seq       BIGINT NOT NULL,           -- of the newest event
  stop           TEXT,                      -- the stop reason of the newest idle event

  tokens         TEXT NOT NULL,             -- used so far
  cost_nanos     BIGINT NOT NULL,
  unpriced       BIGINT NOT NULL,           -- 1 once a model without a known price was used
  active_micros  BIGINT NOT NULL,
  running_since  BIGINT,

  turn_epoch     BIGINT NOT NULL,           -- the fence: raised by every claim
  turn_owner     TEXT NOT NULL,
  turn_until     BIGINT NOT NULL,           -- 0: nobody holds the turn
  wake_at        BIGINT                     -- the loop looks at the session then; null: never
);
CREATE INDEX sessions_by_creation ON sessions (created_at, id);
CREATE INDEX sessions_by_environment ON sessions (environment_id);
CREATE INDEX sessions_due ON sessions (wake_at) WHERE wake_at IS NOT NULL;

CREATE TABLE events (
  session_id   TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  seq          BIGINT NOT NULL,
  id           TEXT NOT NULL,
  type         TEXT NOT NULL,
  ref          TEXT,                        -- the tool call that a result or confirmation answers
  queue        BIGINT NOT NULL,             -- 0 final, 1 waits for a turn, 2 was taken by one
  processed_at BIGINT,
  body         TEXT NOT NULL,
  private      TEXT,
  PRIMARY KEY (session_id, seq)
);
CREATE INDEX events_by_id ON events (session_id, id);
CREATE INDEX events_waiting ON events (session_id, seq) WHERE queue = 1;
CREATE INDEX events_by_ref ON events (session_id, ref) WHERE ref IS NOT NULL;

CREATE TABLE work (
  id                TEXT PRIMARY KEY,
  environment_id    TEXT NOT NULL,
  session_id        TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  state             TEXT NOT NULL,
  metadata          TEXT NOT NULL,
  deliveries        BIGINT NOT NULL,        -- how often it was acknowledged
  warned            BIGINT NOT NULL,        -- 1 once the session was told that nobody claims it
  created_at        BIGINT NOT NULL,
  offered_at        BIGINT NOT NULL,        -- claimable from then on
  polled_at         BIGINT,
  acknowledged_at   BIGINT,
  started_at        BIGINT,
  heartbeat         TEXT,
  heartbeat_at      BIGINT,
  ttl_micros        BIGINT NOT NULL,
  deadline          BIGINT,                 -- of the first or the next heartbeat
  stop_requested_at BIGINT,
  stopped_at        BIGINT
);
CREATE UNIQUE INDEX work_live ON work (session_id) WHERE state <> 'stopped';
CREATE INDEX work_by_creation ON work (environment_id, created_at, id);
CREATE INDEX work_by_session ON work (session_id);
CREATE INDEX work_queue ON work (environment_id, offered_at) WHERE state = 'queued';
CREATE INDEX work_unclaimed ON work (offered_at) WHERE state = 'queued' AND warned = 0;
CREATE INDEX work_stopped ON work (stopped_at) WHERE state = 'stopped';
CREATE INDEX work_deadlines ON work (deadline) WHERE deadline IS NOT NULL;
