-- Version 2: the fence that a leader raises before it serves, and when a run's AgentRun was deleted.

-- One row for each Lease that ever led, never removed: the row with the highest number is the fence.
CREATE TABLE fences (
    number INTEGER NOT NULL UNIQUE,
    lease TEXT PRIMARY KEY,
    token INTEGER NOT NULL
) STRICT;

ALTER TABLE heads ADD COLUMN deleted_at INTEGER;

CREATE INDEX deleted_heads ON heads (deleted_at) WHERE deleted_at IS NOT NULL;
