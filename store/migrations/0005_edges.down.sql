DROP TABLE edge_authorities;
DROP TABLE tunnel_leaves;
DROP TABLE tunnel_faults;
DROP TABLE tunnel_usage;
DROP TABLE attachments;
DROP TABLE edges;
