-- First of all: nothing that somebody left in a public schema is taken for ours or Postgres's while the extension is made.
set local search_path = pg_catalog, pg_temp;
