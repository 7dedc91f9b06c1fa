-- Embedding, chunking and search: what the library does, declared.

create function helper.version() returns text
language c immutable strict parallel safe as 'MODULE_PATHNAME', 'library_version_wrapper';
comment on function helper.version() is 'Version of the library that is loaded';

create function helper.status() returns jsonb
language c volatile strict parallel unsafe as 'MODULE_PATHNAME', 'status_wrapper';
comment on function helper.status() is
  'How the processes are: launcher, this database''s worker and the gateway with its model, load and counts; says what is missing rather than failing. For administrators';

create function helper.embed(input text, model text default null) returns vector
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'embed_one_wrapper';
comment on function helper.embed(text, text) is
  'Embedding of a text, of length 1, as something to search by; what exceeds the local model''s limit is left out. model is the local one, or a provider''s (model or provider/model), which is charged to the current workspace. Errors: 22023, 38000, 42704, 53000, 53400, 55000, 57014';

create function helper.embed_many(inputs text[], model text default null) returns setof vector
language c volatile parallel unsafe rows 100 as 'MODULE_PATHNAME', 'embed_list_wrapper';
comment on function helper.embed_many(text[], text) is
  'Embeddings of texts, in their order; call it in the select list to get each as soon as it is made. model as for embed. Errors: as embed';

create function helper.count_tokens(input text, model text default null) returns integer
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'count_tokens_wrapper';
comment on function helper.count_tokens(text, text) is
  'Tokens of a text by the embedding model''s count, without the special ones at its ends. Errors: 22023, 42704, 55000';

create function helper.chunk(content text, max_tokens integer default 256, overlap_tokens integer default 32)
returns table (ordinal integer, heading text, content text, token_count integer, start_offset integer, end_offset integer)
language c volatile parallel unsafe rows 20 as 'MODULE_PATHNAME', 'chunk_text_wrapper';
comment on function helper.chunk(text, integer, integer) is
  'Cuts a plain or Markdown text as indexing does: at headings, paragraphs and sentences. Offsets count characters from 0; content is the text between them. Errors: 22023, 55000';

create function helper.search(
  query text,
  workspace uuid default null,
  k integer default 8,
  source_types text[] default null,
  filter jsonb default null,
  method text default 'hybrid'
) returns table (
  chunk_id uuid,
  source_id uuid,
  source_type text,
  title text,
  heading text,
  content text,
  score double precision,
  vector_rank integer,
  text_rank integer,
  start_offset integer,
  end_offset integer,
  metadata jsonb
)
language c volatile parallel unsafe rows 8 as 'MODULE_PATHNAME', 'search_chunks_wrapper';
comment on function helper.search(text, uuid, integer, text[], jsonb, text) is
  'The k best passages for a query among what the caller may see, best first. method is hybrid (embeddings and BM25; score 0 to 1), vector (score is cosine similarity) or text (score is BM25). filter keeps documents whose metadata contains it. Errors: 22023, 42704, 55000, 57014';

create function helper.wait_indexed(workspace uuid default null, timeout interval default '10 min') returns bigint
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'wait_indexed_wrapper';
comment on function helper.wait_indexed(uuid, interval) is
  'Waits until no document of the workspace (of any of the caller''s, if null) is pending, tells progress by notices, and returns how many are searchable. Errors: 55000 for documents of the same transaction, 57014 when the time is over';

-- Comparing fewer exactly is as quick.
create function helper._packable() returns table (workspace_id uuid, model text)
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select l.workspace_id, l.model
  from helper.knowledge_loose l
  group by l.workspace_id, l.model
  having count(*) >= 1024
  order by count(*) desc
$$;
comment on function helper._packable() is 'Workspaces and models with many embeddings that are in no block, those with the most first';

create function helper._pack(workspace uuid, model text) returns bigint
language c volatile strict parallel unsafe as 'MODULE_PATHNAME', 'pack_some_wrapper';
comment on function helper._pack(uuid, text) is 'Puts embeddings of a workspace into blocks, some thousand at a time; returns how many';

-- What is wrong with one workspace's embeddings does not keep the others from being packed.
create function helper.pack_vectors() returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_next record;
  v_some bigint;
  v_count bigint := 0;
begin
  for v_next in select p.workspace_id, p.model from helper._packable() p loop
    begin
      loop
        v_some := helper._pack(v_next.workspace_id, v_next.model);
        exit when v_some = 0;
        v_count := v_count + v_some;
      end loop;
    exception
      when others then
        raise warning using
          errcode = sqlstate,
          message = format('embeddings of workspace "%s" are not packed: %s', v_next.workspace_id, sqlerrm);
    end;
  end loop;
  return v_count;
end
$$;
comment on function helper.pack_vectors() is
  'Packs the embeddings of large workspaces for the search''s first pass now rather than when the worker comes to it; returns how many. For administrators, after loading much at once';

create function helper._start_worker() returns void
language c volatile strict parallel unsafe as 'MODULE_PATHNAME', 'start_worker_wrapper';
comment on function helper._start_worker() is 'Asks for this database''s worker at commit';
