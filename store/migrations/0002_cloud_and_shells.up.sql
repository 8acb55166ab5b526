-- What runs the sessions of an environment: workers of the customer's, or the
-- server's own.
ALTER TABLE environments ADD COLUMN kind TEXT NOT NULL DEFAULT 'self_hosted';
UPDATE environments SET kind = 'cloud' WHERE body LIKE '%"config":{"type":"cloud"%';
CREATE INDEX environments_cloud ON environments (id) WHERE kind = 'cloud';

CREATE INDEX work_open ON work (environment_id) WHERE state <> 'stopped';

-- Whether shells into boxes can be opened with a key. The keys there are could do
-- everything so far.
ALTER TABLE keys ADD COLUMN shell BIGINT NOT NULL DEFAULT 0;
UPDATE keys SET shell = 1 WHERE kind = 'api_key';
