-- Version 3: what a host keeps about its tenants.

-- The audit log (supervisor/audit.py). Nothing of ours changes or removes a row, and the triggers say so to others.
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    line BLOB NOT NULL, -- canonical JSON; it holds the hash of the line before
    hash TEXT NOT NULL -- of this line
) STRICT;

CREATE INDEX audit_by_tenant ON audit (tenant, seq);

CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit BEGIN
    SELECT raise(ABORT, 'the audit log is append-only');
END;

CREATE TRIGGER audit_kept BEFORE DELETE ON audit BEGIN
    SELECT raise(ABORT, 'the audit log is append-only');
END;

-- Secrets, encrypted (supervisor/secret_box.py).
CREATE TABLE secret (
    tenant TEXT NOT NULL,
    profile TEXT NOT NULL,
    name TEXT NOT NULL,
    updated_at REAL NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (tenant, profile, name)
) STRICT;

-- What each tenant has used on a day (UTC, counted from the epoch), by the end of its turns.
CREATE TABLE usage (
    tenant TEXT NOT NULL,
    day INTEGER NOT NULL,
    turns INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost REAL NOT NULL,
    PRIMARY KEY (tenant, day)
) STRICT, WITHOUT ROWID;

-- How many turns each tenant may still start at once, at a time; it grows from there (supervisor/admission.py).
CREATE TABLE pace (
    tenant TEXT PRIMARY KEY,
    level REAL NOT NULL,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;
