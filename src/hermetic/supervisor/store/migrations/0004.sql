-- Version 4: a tenant's journal in one order, for readers who follow all its turns at once.
-- `position` is that of a row's last event; positions count a tenant's events. A tenant sees no other's pace in them.

ALTER TABLE journal ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE journal ADD COLUMN position INTEGER NOT NULL DEFAULT 0;

UPDATE journal SET tenant = placed.tenant, position = placed.position
FROM (
    SELECT
        journal.rowid AS row,
        session.tenant AS tenant,
        sum(last_seq - first_seq + 1) OVER (PARTITION BY session.tenant ORDER BY journal.rowid) AS position
    FROM journal
    JOIN turn ON turn.number = journal.turn
    JOIN session ON session.number = turn.session
) AS placed
WHERE journal.rowid = placed.row;

CREATE UNIQUE INDEX journal_in_order ON journal (tenant, position);

-- What a tenant's positions have come to, where the rows that had the last of them are deleted: none is given twice.
CREATE TABLE journal_end (
    tenant TEXT PRIMARY KEY,
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which database this is: a cursor from another one means nothing here.
CREATE TABLE journal_name (name TEXT NOT NULL) STRICT;

INSERT INTO journal_name VALUES (lower(hex(randomblob(8))));
