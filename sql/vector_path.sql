-- pgvector's types and operators may be in any schema: while the tables and functions that use them are made, it is on
-- the path.
do $$
begin
  execute format(
    'set local search_path = pg_catalog, %I, pg_temp',
    (select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector')
  );
end
$$;
