DROP TABLE credentials;
DROP TABLE vaults;
DROP TABLE secrets;
