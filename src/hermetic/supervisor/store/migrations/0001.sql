-- Version 1. Times are seconds since the epoch, data is JSON.
-- Journal rows change often and specs can be a MiB, so nothing about a turn's progress stands in the turn's own row:
-- its newest sequence number is the journal's last key.

CREATE TABLE session (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    updated_at REAL NOT NULL,
    archived INTEGER NOT NULL,
    rev INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;

CREATE INDEX session_by_time ON session (tenant, updated_at, number);

CREATE TABLE turn (
    number INTEGER PRIMARY KEY, -- the order of admission
    id TEXT NOT NULL UNIQUE,
    session INTEGER NOT NULL REFERENCES session (number) ON DELETE CASCADE,
    idempotency_key TEXT,
    state TEXT NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    started_at REAL,
    ended_at REAL,
    stderr TEXT,
    spec BLOB NOT NULL -- last, so that reading the others never walks its pages
) STRICT;

CREATE INDEX turn_by_session ON turn (session, number);
CREATE UNIQUE INDEX turn_by_key ON turn (session, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX turn_unended ON turn (state, number) WHERE ended_at IS NULL;
CREATE INDEX turn_unended_by_session ON turn (session, number) WHERE ended_at IS NULL;

-- One row for each call of append. With a rowid, so that the rows of one commit lie side by side, whichever turns they
-- are of: that halves what a commit of many turns costs against one B-tree ordered by turn. Replays are rarer.
CREATE TABLE journal (
    turn INTEGER NOT NULL REFERENCES turn (number) ON DELETE CASCADE,
    last_seq INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    lines BLOB NOT NULL, -- for each event: its name, a space, its JSON, LF
    PRIMARY KEY (turn, last_seq)
) STRICT;

CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES session (number) ON DELETE CASCADE,
    turn INTEGER NOT NULL REFERENCES turn (number) ON DELETE CASCADE,
    place INTEGER NOT NULL, -- within the turn; 0 is the user's own
    data BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX message_in_order ON message (session, turn, place);
CREATE INDEX message_by_turn ON message (turn);

-- What search looks through. rowid: the message's id, or minus the session's number for its title.
CREATE VIRTUAL TABLE passage USING fts5 (
    text,
    session UNINDEXED,
    tokenize = "unicode61 remove_diacritics 2"
);

CREATE TRIGGER message_gone AFTER DELETE ON message BEGIN
    DELETE FROM passage WHERE rowid = old.id;
END;

CREATE TRIGGER session_gone AFTER DELETE ON session BEGIN
    DELETE FROM passage WHERE rowid = -old.number;
END;
