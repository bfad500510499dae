-- +goose Up
CREATE TABLE towns (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  owner TEXT NOT NULL,
  version BIGINT NOT NULL,
  commit_id TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  ledger_seq BIGINT NOT NULL,
  hash BIGINT NOT NULL,
  due_at BIGINT,
  desired_rev BIGINT NOT NULL,
  sandbox TEXT NOT NULL,
  generation BIGINT NOT NULL,
  wanted BIGINT NOT NULL,
  open BIGINT NOT NULL,
  failing TEXT NOT NULL,
  status TEXT NOT NULL,
  idle_ms BIGINT NOT NULL,
  waits BIGINT NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX towns_name ON towns (name);
CREATE INDEX towns_due ON towns (due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX towns_awake ON towns (id) WHERE sandbox <> 'asleep';
-- Columns.Contradicts, in SQL: something is left to do but no deadline brings anyone.
-- waits says that the last commit set a deadline: one that was wiped is missed.
CREATE INDEX towns_contradict ON towns (hash) WHERE due_at IS NULL
  AND (sandbox <> 'asleep' OR wanted <> 0 OR failing <> '' OR status = 'deleting' OR waits <> 0);
-- Towns with an idle interval of their own.
CREATE INDEX towns_own ON towns (idle_ms) WHERE idle_ms > 0;

-- body NULL is a tombstone.
CREATE TABLE town_rows (
  town TEXT NOT NULL,
  kind TEXT NOT NULL,
  id TEXT NOT NULL,
  version BIGINT NOT NULL,
  body BLOB,
  PRIMARY KEY (town, kind, id)
) WITHOUT ROWID;
CREATE INDEX town_rows_version ON town_rows (town, version);
CREATE INDEX town_rows_deleted ON town_rows (town) WHERE body IS NULL;

CREATE TABLE ledger (
  town TEXT NOT NULL,
  seq BIGINT NOT NULL,
  at BIGINT NOT NULL,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  actor TEXT NOT NULL,
  body BLOB,
  PRIMARY KEY (town, seq)
) WITHOUT ROWID;
CREATE INDEX ledger_subject ON ledger (town, subject, seq);

CREATE TABLE rigs (
  town TEXT NOT NULL,
  rig TEXT NOT NULL,
  prefix TEXT NOT NULL,
  PRIMARY KEY (town, rig)
) WITHOUT ROWID;
CREATE UNIQUE INDEX rigs_prefix ON rigs (prefix);
CREATE INDEX rigs_rig ON rigs (rig, town);

-- town '' is the scope of the server itself.
CREATE TABLE idem (
  town TEXT NOT NULL,
  key TEXT NOT NULL,
  hash TEXT NOT NULL,
  status BIGINT NOT NULL,
  body BLOB,
  at BIGINT NOT NULL,
  PRIMARY KEY (town, key)
) WITHOUT ROWID;
CREATE INDEX idem_at ON idem (at);

CREATE TABLE slots (
  town TEXT NOT NULL PRIMARY KEY,
  state TEXT NOT NULL,
  since BIGINT NOT NULL,
  seen BIGINT NOT NULL,
  at BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX slots_state ON slots (state, since, town);

CREATE TABLE transcripts (
  town TEXT NOT NULL,
  run TEXT NOT NULL,
  epoch BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  at BIGINT NOT NULL,
  kind TEXT NOT NULL,
  body BLOB,
  PRIMARY KEY (town, run, epoch, seq)
) WITHOUT ROWID;
CREATE INDEX transcripts_at ON transcripts (at);

CREATE TABLE meta (
  key TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

-- +goose Down
DROP TABLE meta;
DROP TABLE transcripts;
DROP TABLE slots;
DROP TABLE idem;
DROP TABLE rigs;
DROP TABLE ledger;
DROP TABLE town_rows;
DROP TABLE towns;
