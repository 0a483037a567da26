-- Version 1. The rows of a run are its truth; heads and batches are indexes that every append is checked by.
CREATE TABLE meta (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    journal_id TEXT NOT NULL,
    commits INTEGER NOT NULL,
    schema_version INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT NOT NULL,
    seq INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    batch INTEGER,
    bytes BLOB NOT NULL,
    hash BLOB NOT NULL,
    UNIQUE (run, seq)
) STRICT;

CREATE TABLE heads (
    run TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    at INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    session INTEGER NOT NULL,
    instance TEXT,
    pod_name TEXT,
    ended INTEGER NOT NULL
) STRICT;

CREATE INDEX open_heads ON heads (ended) WHERE ended = 0 OR pod_name IS NOT NULL;

CREATE TABLE batches (
    run TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    n INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    PRIMARY KEY (run, epoch, n)
) STRICT, WITHOUT ROWID;
