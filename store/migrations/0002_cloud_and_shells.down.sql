ALTER TABLE keys DROP COLUMN shell;
DROP INDEX work_open;
DROP INDEX environments_cloud;
ALTER TABLE environments DROP COLUMN kind;
