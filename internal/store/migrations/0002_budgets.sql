-- +goose Up
-- What all towns together spent, by day in UTC. cost is in millionths of a dollar.
CREATE TABLE server_days (
  day TEXT NOT NULL PRIMARY KEY,
  runs BIGINT NOT NULL,
  awake_ms BIGINT NOT NULL,
  tokens BIGINT NOT NULL,
  cost BIGINT NOT NULL
) WITHOUT ROWID;
-- Work waits for a budget: a boot with other limits looks at these towns.
ALTER TABLE towns ADD COLUMN waits_budget BIGINT NOT NULL DEFAULT 0;
CREATE INDEX towns_budget ON towns (id) WHERE waits_budget <> 0;

-- +goose Down
DROP INDEX towns_budget;
ALTER TABLE towns DROP COLUMN waits_budget;
DROP TABLE server_days;
