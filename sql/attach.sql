-- Tables whose rows are kept as documents. The triggers only write the document and enqueue it; embedding comes later.

-- The owner of a table decides what types its columns have, and to_jsonb runs a cast to json that belongs to a type. So
-- only Postgres's own types go through it; any other is written by its output function, which only a superuser can make.
-- Written so that it becomes part of the queries that call it, once for each column.
create function helper._json_of(field text, namespace oid, kind "char") returns text
language sql stable
begin atomic
  select case
    when namespace = 'pg_catalog'::regnamespace and kind in ('b', 'r') then format('to_jsonb(%s)', field)
    else format('case when %1$s is not null then to_jsonb(format(''%%s'', %1$s)) end', field)
  end;
end;
comment on function helper._json_of(text, oid, "char") is 'Expression for the JSON of a field of a type that anybody may have made: one of a schema and kind';

create function helper._attached_fields(attachment helper.attached_tables) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select format('(select coalesce(jsonb_object_agg(f.name, f.value), ''{}'') from (values %s) f (name, value))',
    coalesce(
      string_agg(format('(%L, %s)', a.attname, helper._json_of(format('r.%I', a.attname), t.typnamespace, t.typtype)), ', '),
      '(null::text, null::jsonb)'))
  from pg_attribute a
  join pg_type t on t.oid = a.atttypid
  where a.attrelid = attachment.relation
    and a.attnum > 0
    and not a.attisdropped
    and a.attname = any (attachment.key_columns || attachment.metadata_columns
      || array[attachment.title_column, attachment.content_column, attachment.workspace_column])
$$;
comment on function helper._attached_fields(helper.attached_tables) is 'Expression for what is read of a row r of an attached table, a JSON object';

-- In plpgsql, as what is called once a row: a function in SQL with a search path of its own is parsed at each call.
create function helper._attached_key(attachment helper.attached_tables, fields jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if cardinality(attachment.key_columns) = 1 then
    return coalesce(fields ->> attachment.key_columns[1]::text, '');
  end if;
  return (
    select string_agg(replace(replace(coalesce(fields ->> k.name::text, ''), '%', '%25'), '/', '%2F'), '/' order by k.n)
    from unnest(attachment.key_columns) with ordinality k (name, n));
end
$$;
comment on function helper._attached_key(helper.attached_tables, jsonb) is 'external_id of a row: its key, or its keys joined by / with % and / in them escaped';

-- Without bitmaps: of two indexes that have the key, a plan from a time when the table was small would take the one that is
-- asked for less, and read all of it.
create function helper._attached_put(attachment helper.attached_tables, fields jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_workspace uuid := coalesce(attachment.workspace_id, (fields ->> attachment.workspace_column::text)::uuid);
  v_content text := fields ->> attachment.content_column::text;
  v_title text := coalesce(nullif(btrim(left(fields ->> attachment.title_column::text, 1000)), ''), attachment.relation::text);
  v_key text := helper._attached_key(attachment, fields);
begin
  if v_workspace is null or v_content is null or left(v_content, 1000) !~ '[^[:space:]]' and v_content !~ '[^[:space:]]' then
    perform helper._attached_drop(attachment, v_key);
    return;
  end if;
  if octet_length(v_content) > helper._limit_bytes('helper_ai.max_document_size', '50MB') then
    perform helper._attached_drop(attachment, v_key);
    raise warning using message = format('row of table %s is too large to be a document and was left out', attachment.relation);
    return;
  end if;
  -- A row that moved to another workspace takes its document along.
  delete from helper.knowledge_sources s
  where s.attachment_id = attachment.id and s.external_id = v_key and s.workspace_id <> v_workspace;
  perform helper._put_source(
    v_workspace,
    v_title,
    convert_to(v_content, 'UTF8'),
    false,
    attachment.source_type,
    v_key,
    'text/markdown',
    coalesce((select jsonb_object_agg(m.name, fields -> m.name::text) from unnest(attachment.metadata_columns) m (name)), '{}'),
    attachment.language,
    attachment.id
  );
end
$$;
comment on function helper._attached_put(helper.attached_tables, jsonb) is 'Writes the document of a row';

create function helper._attached_drop(attachment helper.attached_tables, key text) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  delete from helper.knowledge_sources s
  where s.attachment_id = attachment.id and s.external_id = key;
end
$$;
comment on function helper._attached_drop(helper.attached_tables, text) is 'Removes the document of a row';

create function helper._attached_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_attachment helper.attached_tables;
  v_fields text;
  v_row jsonb;
  v_key text;
begin
  select a.* into v_attachment from helper.attached_tables a where a.id = tg_argv[0]::uuid;
  if not found then
    return null;
  end if;
  v_fields := helper._attached_fields(v_attachment);
  if tg_op = 'TRUNCATE' then
    delete from helper.knowledge_sources s where s.attachment_id = v_attachment.id;
  elsif tg_op = 'DELETE' then
    for v_row in execute format('select %s from old_rows r', v_fields) loop
      perform helper._attached_drop(v_attachment, helper._attached_key(v_attachment, v_row));
    end loop;
  else
    if tg_op = 'UPDATE' then
      for v_key in execute format(
        'select helper._attached_key($1, %1$s) from old_rows r except select helper._attached_key($1, %1$s) from new_rows r', v_fields)
        using v_attachment
      loop
        perform helper._attached_drop(v_attachment, v_key);
      end loop;
    end if;
    for v_row in execute format('select %s from new_rows r', v_fields) loop
      perform helper._attached_put(v_attachment, v_row);
    end loop;
  end if;
  return null;
end
$$;
comment on function helper._attached_changed() is 'Trigger of attached tables: keeps documents in step with rows';

-- Whoever has a table followed by triggers of ours has what they see told.
create function helper._require_table(relation regclass) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if not has_table_privilege(helper.caller_role(), relation, 'TRIGGER') or not has_table_privilege(helper.caller_role(), relation, 'SELECT') then
    raise exception using errcode = '42501', message = format('permission denied for table %s', relation),
      detail = 'Attaching a table needs the privileges SELECT and TRIGGER on it.';
  end if;
  -- Who sees only some of the rows must not make all of them documents.
  if exists (
    select from pg_class c
    where c.oid = relation and c.relrowsecurity and not pg_has_role(helper.caller_role(), c.relowner, 'USAGE')
  ) then
    raise exception using errcode = '42501', message = format('permission denied for table %s', relation),
      detail = 'A table with row-level security is attached by its owner.';
  end if;
  if not exists (select from pg_class c where c.oid = relation and c.relkind in ('r', 'p') and c.relpersistence = 'p' and c.relnamespace <> 'helper'::regnamespace) then
    raise exception using errcode = '22023', message = format('%s is not an ordinary table', relation);
  end if;
end
$$;
comment on function helper._require_table(regclass) is 'Refuses a table that is none of the ordinary ones, or not the caller''s to have followed. Errors: 22023, 42501';

create function helper.attach_table(
  relation regclass,
  title text,
  content text,
  source_type text default 'table_row',
  key text[] default null,
  metadata text[] default '{}',
  workspace uuid default null,
  workspace_column text default null,
  language text default null
) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_attachment helper.attached_tables;
  v_key name[] := key::name[];
  v_column text;
  v_row jsonb;
  v_count bigint;
begin
  if relation is null or title is null or content is null then
    raise exception using errcode = '22023', message = 'relation, title and content must be given';
  end if;
  perform helper._require_table(relation);
  perform helper._check_document('-', '{}', source_type, language, 1);
  if v_key is null then
    select array_agg(a.attname order by k.n) into v_key
    from pg_index i
    cross join lateral unnest(i.indkey::smallint[]) with ordinality k (attnum, n)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    where i.indrelid = relation and i.indisprimary;
    if v_key is null then
      raise exception using errcode = '22023', message = format('table %s has no primary key', relation),
        hint = 'Name the columns that identify a row with key => array[...].';
    end if;
  end if;
  foreach v_column in array array[title, content] || v_key::text[] || metadata || coalesce(array[workspace_column], '{}') loop
    if v_column is not null and not exists (select from pg_attribute a where a.attrelid = relation and a.attname = v_column and a.attnum > 0 and not a.attisdropped) then
      raise exception using errcode = '42704', message = format('column "%s" of table %s does not exist', v_column, relation);
    end if;
  end loop;
  if workspace_column is not null then
    if workspace is not null then
      raise exception using errcode = '22023', message = 'workspace and workspace_column exclude each other';
    end if;
    if not exists (select from pg_attribute a where a.attrelid = relation and a.attname = workspace_column and a.atttypid = 'uuid'::regtype) then
      raise exception using errcode = '22023', message = format('column "%s" of table %s is not of type uuid', workspace_column, relation);
    end if;
  end if;
  insert into helper.attached_tables
    (relation, workspace_id, workspace_column, key_columns, title_column, content_column, metadata_columns, source_type, language)
  values
    (relation, case when workspace_column is null then helper._writable_workspace(workspace, 'admin') end, workspace_column, v_key, title, content, metadata, source_type, language)
  on conflict on constraint attached_tables_relation_source_type_key do nothing
  returning * into v_attachment;
  if v_attachment.id is null then
    raise exception using errcode = '42710', message = format('table %s is already attached as "%s"', relation, source_type),
      hint = 'Call helper.detach_table first.';
  end if;
  execute format('create trigger %I after insert on %s referencing new table as new_rows for each statement execute function helper._attached_changed(%L)',
    'helper_insert_' || source_type, relation, v_attachment.id);
  execute format('create trigger %I after update on %s referencing old table as old_rows new table as new_rows for each statement execute function helper._attached_changed(%L)',
    'helper_update_' || source_type, relation, v_attachment.id);
  execute format('create trigger %I after delete on %s referencing old table as old_rows for each statement execute function helper._attached_changed(%L)',
    'helper_delete_' || source_type, relation, v_attachment.id);
  execute format('create trigger %I after truncate on %s for each statement execute function helper._attached_changed(%L)',
    'helper_truncate_' || source_type, relation, v_attachment.id);
  v_count := 0;
  for v_row in execute format('select %s from %s r', helper._attached_fields(v_attachment), relation) loop
    perform helper._attached_put(v_attachment, v_row);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function helper.attach_table(regclass, text, text, text, text[], text[], uuid, text, text) is
  'Keeps each row of a table as a document, now and on every later change; title, content, key and metadata are names of columns. The rows go to one workspace, or to the one that workspace_column names. Returns how many rows there were. For administrators, with SELECT and TRIGGER on the table. Errors: 22023, 42501, 42704, 42710';

create function helper.detach_table(relation regclass, source_type text default null, keep_documents boolean default false) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_attachment helper.attached_tables;
  v_verb text;
  v_rows bigint;
  v_count bigint := 0;
begin
  if relation is null then
    raise exception using errcode = '22023', message = 'relation is null';
  end if;
  if not has_table_privilege(helper.caller_role(), relation, 'TRIGGER') then
    raise exception using errcode = '42501', message = format('permission denied for table %s', relation);
  end if;
  for v_attachment in
    delete from helper.attached_tables a
    where a.relation = detach_table.relation and (detach_table.source_type is null or a.source_type = detach_table.source_type)
    returning *
  loop
    foreach v_verb in array array['insert', 'update', 'delete', 'truncate'] loop
      execute format('drop trigger if exists %I on %s', 'helper_' || v_verb || '_' || v_attachment.source_type, relation);
    end loop;
    if keep_documents then
      update helper.knowledge_sources s set attachment_id = null where s.attachment_id = v_attachment.id;
    else
      delete from helper.knowledge_sources s where s.attachment_id = v_attachment.id;
    end if;
    get diagnostics v_rows = row_count;
    v_count := v_count + v_rows;
  end loop;
  return v_count;
end
$$;
comment on function helper.detach_table(regclass, text, boolean) is
  'Stops following a table and removes (or keeps) its documents; returns how many. For administrators, with TRIGGER on the table. Errors: 22023, 42501';
