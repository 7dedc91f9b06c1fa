-- Documents: added, replaced, indexed again and removed by those who may.

create function helper._limit_bytes(name text, fallback text) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return pg_size_bytes(coalesce(nullif(current_setting(name, true), ''), fallback));
end
$$;
comment on function helper._limit_bytes(text, text) is 'A size setting in bytes';

create function helper._visible(document uuid) returns boolean
language c volatile strict parallel unsafe set search_path = pg_catalog, pg_temp as 'MODULE_PATHNAME', 'is_visible_wrapper';
comment on function helper._visible(uuid) is 'Whether the role that asks sees a document, under every policy, also when asked in a security definer function';

-- Writes a document and asks for it to be indexed. Whoever calls this has checked the caller. Unchanged, nothing happens.
create function helper._put_source(
  workspace uuid,
  title text,
  content bytea,
  is_file boolean,
  source_type text,
  external_id text,
  mime_type text,
  metadata jsonb,
  language text,
  attachment uuid
) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  -- All that is embedded or tells how the content is read: a job that began with another version is dropped.
  v_hash bytea := sha256(convert_to(concat_ws(e'\n', title, mime_type), 'UTF8') || content);
  v_id uuid;
  v_changed boolean;
begin
  insert into helper.knowledge_sources as s
    (workspace_id, source_type, external_id, title, file_name, mime_type, metadata, language, attachment_id, input_hash, created_by)
  values
    (workspace, source_type, external_id, title, case when is_file then title end, mime_type, metadata, language, attachment, v_hash, helper.current_user_id())
  on conflict on constraint knowledge_sources_external_id_key do update
  set title = excluded.title,
    mime_type = excluded.mime_type,
    metadata = excluded.metadata,
    language = coalesce(excluded.language, s.language),
    attachment_id = excluded.attachment_id,
    input_hash = excluded.input_hash,
    status = case
      when s.status <> 'failed' and s.input_hash = excluded.input_hash and s.title = excluded.title
        and s.mime_type is not distinct from excluded.mime_type then s.status
      else 'pending' end,
    error = null,
    updated_at = clock_timestamp()
  returning s.id, s.status = 'pending' into v_id, v_changed;
  if v_changed then
    insert into helper.knowledge_inputs as i (workspace_id, source_id, content, is_file)
    values (workspace, v_id, _put_source.content, _put_source.is_file)
    on conflict (workspace_id, source_id) do update
    set content = excluded.content,
      is_file = excluded.is_file;
    perform helper._enqueue(workspace, 'index', '{}', v_id);
  end if;
  return v_id;
end
$$;
comment on function helper._put_source(uuid, text, bytea, boolean, text, text, text, jsonb, text, uuid) is 'Writes a document and asks for it to be indexed';

create function helper._check_document(title text, metadata jsonb, source_type text, language text, bytes bigint) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_most bigint := helper._limit_bytes('helper_ai.max_document_size', '50MB');
begin
  if title is null or title !~ '[^[:space:]]' then
    raise exception using errcode = '22023', message = case when title is null then 'title is null' else 'title is empty' end;
  end if;
  if length(title) > 1000 then
    raise exception using errcode = '22023', message = format('title has %s characters, at most 1000 are allowed', length(title));
  end if;
  if metadata is null or jsonb_typeof(metadata) <> 'object' then
    raise exception using errcode = '22023', message = 'metadata is not a JSON object';
  end if;
  if source_type is null or source_type !~ '^[a-z][a-z0-9_]{0,62}$' then
    raise exception using errcode = '22023', message = format('source type "%s" is not valid', source_type),
      hint = 'Use lower-case letters, digits and underscores, beginning with a letter.';
  end if;
  if language is not null and language !~ '^[a-z]{2}$' then
    raise exception using errcode = '22023', message = format('language "%s" is not a two-letter code', language),
      hint = 'Use an ISO 639-1 code such as en or id, or null to detect it.';
  end if;
  if bytes is null or bytes = 0 then
    raise exception using errcode = '22023', message = case when bytes is null then 'content is null' else 'content is empty' end;
  end if;
  if bytes > v_most then
    raise exception using errcode = '53400', message = format('document has %s, at most %s are allowed', pg_size_pretty(bytes), pg_size_pretty(v_most)),
      hint = 'An administrator can raise helper_ai.max_document_size.';
  end if;
end
$$;
comment on function helper._check_document(text, jsonb, text, text, bigint) is 'Refuses a document that cannot be accepted: 22023, or 53400 where it is too large';

create function helper._may_change(source helper.knowledge_sources) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return helper._visible(source.id)
    and (helper.is_member(source.workspace_id, 'admin')
      or helper.is_member(source.workspace_id, 'member') and source.created_by is not distinct from helper.current_user_id());
end
$$;
comment on function helper._may_change(helper.knowledge_sources) is 'Whether the caller may change a document: its adder or an admin, who sees it';

create function helper.add_document(
  title text,
  content text,
  source_type text default 'uploaded_doc',
  source_id text default null,
  metadata jsonb default '{}',
  language text default null,
  workspace uuid default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper._writable_workspace(workspace, 'member');
  v_source helper.knowledge_sources;
begin
  -- Mostly the beginning tells; trimming all of a very large text would need more memory than there may be.
  perform helper._check_document(title, metadata, source_type, language,
    case when left(content, 1000) ~ '[^[:space:]]' or content ~ '[^[:space:]]' then octet_length(content) else 0 * octet_length(content) end);
  if source_id is not null then
    select s.* into v_source
    from helper.knowledge_sources s
    where s.workspace_id = v_workspace and s.source_type = add_document.source_type and s.external_id = source_id;
    if found then
      if not helper._may_change(v_source) then
        raise exception using errcode = '42501', message = format('permission denied for document "%s" of type "%s"', source_id, source_type),
          detail = 'Only who added a document and the admins of its workspace may change it.';
      elsif v_source.attachment_id is not null then
        raise exception using errcode = '55000', message = format('document "%s" of type "%s" follows a table', source_id, source_type),
          hint = 'Change the row instead.';
      end if;
    end if;
  end if;
  return helper._put_source(v_workspace, title, convert_to(content, 'UTF8'), false, source_type, source_id, 'text/markdown', metadata, language, null);
end
$$;
comment on function helper.add_document(text, text, text, text, jsonb, text, uuid) is
  'Adds a text, plain or Markdown, as a document and returns its id; it is searchable once indexed. With a source_id the document of that source_type and source_id is replaced, by who added it or an admin. Needs the role member. Errors: 22023, 42501, 42704, 53400, 55000 it follows a table';

create function helper.add_file(
  name text,
  content bytea,
  mime_type text default null,
  metadata jsonb default '{}',
  workspace uuid default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper._writable_workspace(workspace, 'member');
begin
  perform helper._check_document(name, metadata, 'uploaded_doc', null, octet_length(content));
  return helper._put_source(v_workspace, name, content, true, 'uploaded_doc', null, mime_type, metadata, null, null);
end
$$;
comment on function helper.add_file(text, bytea, text, jsonb, uuid) is
  'Adds a file (plain text, Markdown, HTML, CSV) as a document and returns its id; the format follows from mime_type or the name, and the title from the file where it has one. A file that cannot be read fails in knowledge_sources with its cause. Needs the role member. Errors: 22023, 42501, 42704, 53400';

-- The document, if the caller may change it: its adder or an admin.
create function helper._changeable_source(id uuid) returns helper.knowledge_sources
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_source helper.knowledge_sources;
begin
  select s.* into v_source
  from helper.knowledge_sources s
  where s.id = _changeable_source.id and helper.is_member(s.workspace_id);
  -- What a policy of the application hides does not exist.
  if not found or not helper._visible(id) then
    raise exception using errcode = '42704', message = format('document "%s" does not exist', id);
  end if;
  if not helper._may_change(v_source) then
    raise exception using errcode = '42501', message = format('permission denied for document "%s"', id),
      detail = 'Only who added a document and the admins of its workspace may change it.';
  end if;
  return v_source;
end
$$;
comment on function helper._changeable_source(uuid) is 'A document that the caller may change; 42704 or 42501 otherwise';

create function helper.remove_document(id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_source helper.knowledge_sources := helper._changeable_source(id);
begin
  delete from helper.job_queue q where q.workspace_id = v_source.workspace_id and q.key = v_source.id;
  delete from helper.knowledge_sources s where s.workspace_id = v_source.workspace_id and s.id = v_source.id;
end
$$;
comment on function helper.remove_document(uuid) is 'Removes a document with its chunks; for who added it and admins. Errors: 42501, 42704';

create function helper._reindex_source(source helper.knowledge_sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_content text;
begin
  -- First, as an indexing that ends now takes away what it was made from.
  update helper.knowledge_sources s
  set status = 'pending', error = null, updated_at = clock_timestamp()
  where s.workspace_id = source.workspace_id and s.id = source.id
  returning s.content into v_content;
  if not found then
    return;
  end if;
  insert into helper.knowledge_inputs (workspace_id, source_id, content, is_file)
  select source.workspace_id, source.id, convert_to(v_content, 'UTF8'), false
  where v_content is not null
  on conflict (workspace_id, source_id) do nothing;
  perform helper._enqueue(source.workspace_id, 'index', '{}', source.id);
end
$$;
comment on function helper._reindex_source(helper.knowledge_sources) is 'Asks for a document to be indexed again';

create function helper.reindex(document uuid default null, workspace uuid default null, only_failed boolean default false) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid;
  v_source helper.knowledge_sources;
  v_count bigint := 0;
begin
  if document is not null then
    perform helper._reindex_source(helper._changeable_source(document));
    return 1;
  end if;
  v_workspace := helper._writable_workspace(workspace, 'admin');
  for v_source in
    select s.* from helper.knowledge_sources s
    where s.workspace_id = v_workspace and (s.status = 'failed' or not only_failed)
    order by s.id
  loop
    perform helper._reindex_source(v_source);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function helper.reindex(uuid, uuid, boolean) is
  'Asks for one document (its adder or an admin), or all or all failed ones of a workspace (an admin), to be indexed again; returns how many. What did not change is not embedded again. Errors: 42501, 42704';

create function helper.workspace_progress(
  workspace uuid,
  out ready bigint,
  out failed bigint,
  out pending bigint,
  out chunks bigint,
  out own boolean,
  out error text
)
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select
    count(*) filter (where s.status = 'ready'),
    count(*) filter (where s.status = 'failed'),
    count(*) filter (where s.status = 'pending'),
    coalesce(sum(s.chunk_count), 0)::bigint,
    -- What this transaction or a part of it wrote, a savepoint say, has no number below the transaction's and is under way;
    -- what others have under way is not seen.
    coalesce(bool_or(
      case
        when s.status = 'pending' and pg_current_xact_id_if_assigned() is not null
          then v.xid >= pg_current_xact_id_if_assigned() and pg_xact_status(v.xid) = 'in progress'
      end), false),
    max(s.error ->> 'message') filter (where s.status = 'pending')
  from helper.knowledge_sources s
  cross join (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xmax) n
  -- The row's number with the epoch that puts it next to the snapshot's.
  cross join lateral (
    select (n.xmax + (s.xmin::text::bigint - n.xmax % 4294967296 + 6442450944) % 4294967296 - 2147483648)::text::xid8 as xid
  ) v
  where s.workspace_id = any ((select helper.my_workspaces())::uuid[])
    and (workspace_progress.workspace is null or s.workspace_id = workspace_progress.workspace)
$$;
comment on function helper.workspace_progress(uuid) is
  'How many documents of a workspace (of all of the caller''s, if null) are ready, failed and pending, with the chunks they have; own tells that some were changed by this very transaction. What helper.wait_indexed looks at';

create view helper.index_progress with (security_invoker = true) as
  select
    p.workspace_id,
    p.documents,
    p.chunks,
    p.ready as done,
    p.failed,
    p.pending,
    round((p.recent_chunks / p.seconds)::numeric, 1) as chunks_per_second,
    case when p.recent_documents > 0 then make_interval(secs => round(p.pending * p.seconds / p.recent_documents)) end as time_left
  from (
    select
      s.workspace_id,
      count(*) as documents,
      coalesce(sum(s.chunk_count), 0) as chunks,
      count(*) filter (where s.status = 'ready') as ready,
      count(*) filter (where s.status = 'failed') as failed,
      count(*) filter (where s.status = 'pending') as pending,
      count(*) filter (where s.indexed_at > now() - interval '1 minute') as recent_documents,
      coalesce(sum(s.chunk_count) filter (where s.indexed_at > now() - interval '1 minute'), 0) as recent_chunks,
      -- What was given less than a minute ago did not have a whole minute.
      least(60, greatest(1, extract(epoch from now() - min(s.updated_at)
        filter (where s.status = 'pending' or s.indexed_at > now() - interval '1 minute'))))::double precision as seconds
    from helper.knowledge_sources s
    group by s.workspace_id
  ) p;
comment on view helper.index_progress is 'How far indexing is in each of the caller''s workspaces; the rate is that of the last minute';
comment on column helper.index_progress.workspace_id is 'The workspace';
comment on column helper.index_progress.documents is 'Documents in all';
comment on column helper.index_progress.chunks is 'Chunks that are searchable';
comment on column helper.index_progress.done is 'Documents that are indexed';
comment on column helper.index_progress.failed is 'Documents that could not be indexed; knowledge_sources.error says why';
comment on column helper.index_progress.pending is 'Documents that wait';
comment on column helper.index_progress.chunks_per_second is 'Chunks indexed a second, over the last minute';
comment on column helper.index_progress.time_left is 'At the last minute''s rate; null where nothing was indexed in it';
