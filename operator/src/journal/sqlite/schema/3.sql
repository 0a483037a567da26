-- Version 3: a batch is where its rows are. The table cost a page of its own in every commit, for what only a batch
-- that comes again asks.
DROP TABLE batches;
