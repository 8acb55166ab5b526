DROP TABLE work;
DROP TABLE events;
DROP TABLE sessions;
DROP TABLE keys;
DROP TABLE environments;
DROP TABLE agent_versions;
DROP TABLE agents;
