-- Version 2: who there is. A tenant's number is never given twice (AUTOINCREMENT): a user id of the host hangs on it.
-- The tenant `local` needs no row, so nothing here refers to the table by a foreign key.

CREATE TABLE tenant (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    data BLOB NOT NULL
) STRICT;

CREATE TABLE user (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT;

CREATE TABLE api_key (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    user TEXT,
    data BLOB NOT NULL -- with the hash; the key itself is nowhere
) STRICT;

CREATE INDEX api_key_by_tenant ON api_key (tenant, number);

CREATE TABLE login (
    sha256 BLOB PRIMARY KEY,
    tenant TEXT NOT NULL,
    user TEXT,
    key_id TEXT,
    expires_at REAL NOT NULL,
    data BLOB NOT NULL
) STRICT;

CREATE INDEX login_by_end ON login (expires_at);
CREATE INDEX login_by_key ON login (key_id);
