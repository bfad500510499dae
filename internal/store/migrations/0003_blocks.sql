-- +goose Up
-- What is granted to runs of a day and not settled yet.
ALTER TABLE server_days ADD COLUMN granted_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE server_days ADD COLUMN granted_cost BIGINT NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE server_days DROP COLUMN granted_cost;
ALTER TABLE server_days DROP COLUMN granted_tokens;
