-- Documents, the chunks they are cut into, and what is kept beside each chunk to find it.

create table helper.knowledge_sources (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  source_type text not null constraint knowledge_sources_source_type_check check (source_type ~ '^[a-z][a-z0-9_]{0,62}$'),
  external_id text,
  title text not null constraint knowledge_sources_title_check check (title ~ '[^[:space:]]'),
  file_name text,
  content text,
  mime_type text,
  metadata jsonb not null default '{}' constraint knowledge_sources_metadata_check check (jsonb_typeof(metadata) = 'object'),
  language text,
  status text not null default 'pending' constraint knowledge_sources_status_check check (status in ('pending', 'ready', 'failed')),
  error jsonb,
  attachment_id uuid,
  input_hash bytea not null,
  chunk_count integer not null default 0,
  token_count integer not null default 0,
  created_by uuid,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  indexed_at timestamptz,
  constraint knowledge_sources_external_id_key unique (workspace_id, source_type, external_id),
  constraint knowledge_sources_id_key unique (id)
);
comment on table helper.knowledge_sources is 'Documents of a workspace';
comment on column helper.knowledge_sources.workspace_id is 'Workspace that the document belongs to';
comment on column helper.knowledge_sources.id is 'Identifier, in order of creation';
comment on column helper.knowledge_sources.source_type is 'What the document is, such as uploaded_doc, kb_article or contact';
comment on column helper.knowledge_sources.external_id is 'The application''s own identifier; one document for each type and identifier';
comment on column helper.knowledge_sources.title is 'Title, embedded with each chunk; of a file the title that stands in it, else its name';
comment on column helper.knowledge_sources.file_name is 'Name of the file as it was given; null for a text';
comment on column helper.knowledge_sources.content is 'All of the text as it is searchable now; offsets count its characters from 0; null until first indexed';
comment on column helper.knowledge_sources.mime_type is 'Media type of what was given';
comment on column helper.knowledge_sources.metadata is 'The application''s own facts, an object; search can filter on it';
comment on column helper.knowledge_sources.language is 'ISO 639-1 code, given or detected; null where it cannot be told';
comment on column helper.knowledge_sources.status is 'pending: waits to be indexed (an earlier version stays searchable); ready; failed: see error';
comment on column helper.knowledge_sources.error is 'Why indexing failed: sqlstate, message, detail, hint';
comment on column helper.knowledge_sources.attachment_id is 'The attached table that it follows, if any';
comment on column helper.knowledge_sources.input_hash is 'SHA-256 of title, media type and content as given, to tell whether they changed';
comment on column helper.knowledge_sources.chunk_count is 'Chunks that are searchable';
comment on column helper.knowledge_sources.token_count is 'Tokens in these chunks, by the embedding model''s count';
comment on column helper.knowledge_sources.created_by is 'Who added it';
comment on column helper.knowledge_sources.created_at is 'When it was added';
comment on column helper.knowledge_sources.updated_at is 'When it was last given anew';
comment on column helper.knowledge_sources.indexed_at is 'When it was last indexed';
create index knowledge_sources_metadata_idx on helper.knowledge_sources using gin (metadata jsonb_path_ops);
-- Where two indexes begin with the workspace, a plan made while the table is small, and kept, may find one row by the
-- other one: a whole workspace is read for it. So the secondary ones begin with what is rarer, and the primary key comes last:
-- of indexes that look equally good, as all do while nothing is known of a table, the youngest is taken.
create index knowledge_sources_status_workspace_id_idx on helper.knowledge_sources (status, workspace_id);
create index knowledge_sources_attachment_id_idx on helper.knowledge_sources (attachment_id, external_id) where attachment_id is not null;
alter table helper.knowledge_sources add primary key (workspace_id, id);

create table helper.knowledge_inputs (
  workspace_id uuid not null,
  source_id uuid not null,
  content bytea not null,
  is_file boolean not null,
  primary key (workspace_id, source_id),
  constraint knowledge_inputs_source_fkey foreign key (workspace_id, source_id) references helper.knowledge_sources (workspace_id, id) on delete cascade
);
alter table helper.knowledge_inputs alter column content set storage external;
comment on table helper.knowledge_inputs is 'What is still to be indexed, and the bytes of files';
comment on column helper.knowledge_inputs.workspace_id is 'Workspace of the document';
comment on column helper.knowledge_inputs.source_id is 'The document';
comment on column helper.knowledge_inputs.content is 'Bytes as given; text is in UTF-8';
comment on column helper.knowledge_inputs.is_file is 'Kept after indexing, so that the file can be read again';

create table helper.knowledge_chunks (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  source_id uuid not null,
  ordinal integer not null,
  heading text not null,
  content text not null,
  token_count integer not null,
  start_offset integer not null,
  end_offset integer not null,
  content_hash bytea not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint knowledge_chunks_source_fkey foreign key (workspace_id, source_id) references helper.knowledge_sources (workspace_id, id) on delete cascade,
  constraint knowledge_chunks_offsets_check check (start_offset >= 0 and start_offset < end_offset)
);
create index knowledge_chunks_source_id_ordinal_idx on helper.knowledge_chunks (source_id, ordinal);
comment on table helper.knowledge_chunks is 'Parts of documents, found and cited one by one';
comment on column helper.knowledge_chunks.workspace_id is 'Workspace of the document';
comment on column helper.knowledge_chunks.id is 'Identifier; kept while the chunk''s text stays the same';
comment on column helper.knowledge_chunks.source_id is 'The document';
comment on column helper.knowledge_chunks.ordinal is 'Place in the document, from 0';
comment on column helper.knowledge_chunks.heading is 'Trail of headings above it';
comment on column helper.knowledge_chunks.content is 'The document''s characters from start_offset to end_offset';
comment on column helper.knowledge_chunks.token_count is 'Tokens, by the embedding model''s count';
comment on column helper.knowledge_chunks.start_offset is 'First character in the document, from 0';
comment on column helper.knowledge_chunks.end_offset is 'One past the last character';
comment on column helper.knowledge_chunks.content_hash is 'SHA-256 of title, heading and content: the same hash is never embedded again';
comment on column helper.knowledge_chunks.created_at is 'When it was first indexed';

create table helper.knowledge_models (
  workspace_id uuid not null,
  model text not null,
  provider_id uuid,
  provider_model text,
  dimensions integer,
  status text not null constraint knowledge_models_status_check check (status in ('current', 'building', 'stopped', 'failed', 'old')),
  before bigint not null default 0,
  done bigint not null default 0,
  error jsonb,
  created_by uuid,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz,
  primary key (workspace_id, model),
  constraint knowledge_models_provider_check check ((provider_id is null) = (provider_model is null))
);
comment on table helper.knowledge_models is 'Models that make the embeddings of each workspace: the one that is searched with, and one that is made ready beside it';
comment on column helper.knowledge_models.workspace_id is 'The workspace';
comment on column helper.knowledge_models.model is 'The local model''s name, or provider/model, with @ and the dimensions where it is asked for fewer than it has';
comment on column helper.knowledge_models.provider_id is 'The provider that runs it; null: the gateway does';
comment on column helper.knowledge_models.provider_model is 'The provider''s name for it';
comment on column helper.knowledge_models.dimensions is 'Numbers in each of its embeddings here, others are refused; null until there is one';
comment on column helper.knowledge_models.status is 'current: searched with; building: made ready by helper.reembed; stopped; failed: see error; old: its embeddings are being deleted';
comment on column helper.knowledge_models.before is 'Chunks that it had embedded before that';
comment on column helper.knowledge_models.done is 'Chunks that helper.reembed has embedded since it was last asked for';
comment on column helper.knowledge_models.error is 'What went wrong last: sqlstate, message, detail, hint';
comment on column helper.knowledge_models.created_by is 'Who asked for it';
comment on column helper.knowledge_models.created_at is 'When it was first used or asked for';
comment on column helper.knowledge_models.started_at is 'When helper.reembed was last asked for it';
comment on column helper.knowledge_models.finished_at is 'Since when it is current';
create unique index knowledge_models_current_idx on helper.knowledge_models (workspace_id) where status = 'current';
create unique index knowledge_models_next_idx on helper.knowledge_models (workspace_id) where status in ('building', 'stopped', 'failed');
create index knowledge_models_old_idx on helper.knowledge_models (workspace_id) where status = 'old';

-- The tables below are for the extension alone: no policy, no grant.

create table helper.knowledge_vectors (
  workspace_id uuid not null,
  chunk_id uuid not null,
  source_id uuid not null,
  model text not null,
  embedding halfvec not null,
  sentences bytea not null,
  primary key (workspace_id, model, chunk_id),
  constraint knowledge_vectors_chunk_fkey foreign key (workspace_id, chunk_id) references helper.knowledge_chunks (workspace_id, id) on delete cascade
);
-- Read for the few candidates alone, so kept out of the rows that a scan goes through.
alter table helper.knowledge_vectors alter column sentences set storage external;
alter table helper.knowledge_vectors alter column embedding set storage plain;
comment on table helper.knowledge_vectors is 'Embeddings of chunks and of their sentences';
comment on column helper.knowledge_vectors.workspace_id is 'Workspace of the document';
comment on column helper.knowledge_vectors.chunk_id is 'The chunk';
comment on column helper.knowledge_vectors.source_id is 'The document';
comment on column helper.knowledge_vectors.model is 'Model that made it; two models are never compared';
comment on column helper.knowledge_vectors.embedding is 'Embedding of title, heading and content, of length 1';
comment on column helper.knowledge_vectors.sentences is 'Embeddings of the chunk''s sentences in eight bits a number, with their offsets';
-- Cascades from chunks look for the chunk alone.
create index knowledge_vectors_workspace_id_chunk_id_idx on helper.knowledge_vectors (workspace_id, chunk_id);

-- A large workspace's embeddings once more, a bit for each dimension, many in a row: a first pass that reads little.
create table helper.knowledge_blocks (
  workspace_id uuid not null,
  model text not null,
  chunk_count integer not null,
  chunk_ids bytea not null,
  codes bytea not null
);
alter table helper.knowledge_blocks alter column chunk_ids set storage plain;
alter table helper.knowledge_blocks alter column codes set storage plain;
comment on table helper.knowledge_blocks is 'Embeddings in one bit a dimension, a page full in each row; made from knowledge_vectors and never needed to find a chunk';
comment on column helper.knowledge_blocks.workspace_id is 'Workspace of the chunks';
comment on column helper.knowledge_blocks.model is 'Model of the embeddings';
comment on column helper.knowledge_blocks.chunk_count is 'Chunks in the row, also those that are gone since';
comment on column helper.knowledge_blocks.chunk_ids is 'Their ids, 16 bytes each';
comment on column helper.knowledge_blocks.codes is 'Their codes in the same order';
create index knowledge_blocks_workspace_id_model_idx on helper.knowledge_blocks (workspace_id, model);

create table helper.knowledge_loose (
  workspace_id uuid not null,
  model text not null,
  chunk_id uuid not null,
  primary key (workspace_id, model, chunk_id),
  constraint knowledge_loose_vector_fkey foreign key (workspace_id, model, chunk_id) references helper.knowledge_vectors (workspace_id, model, chunk_id) on delete cascade
);
comment on table helper.knowledge_loose is 'Embeddings that are in no block';
comment on column helper.knowledge_loose.workspace_id is 'Workspace of the chunk';
comment on column helper.knowledge_loose.model is 'Model of the embedding';
comment on column helper.knowledge_loose.chunk_id is 'The chunk';

create function helper._note_vectors() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into helper.knowledge_loose (workspace_id, model, chunk_id)
  select n.workspace_id, n.model, n.chunk_id from new_vectors n;
  return null;
end
$$;
comment on function helper._note_vectors() is 'Every new embedding is in no block at first';
create trigger knowledge_vectors_note after insert on helper.knowledge_vectors
  referencing new table as new_vectors for each statement execute function helper._note_vectors();

create table helper.knowledge_terms (
  workspace_id uuid not null,
  chunk_id uuid not null,
  source_id uuid not null,
  config text not null,
  length integer not null,
  terms bytea not null,
  primary key (workspace_id, chunk_id),
  constraint knowledge_terms_chunk_fkey foreign key (workspace_id, chunk_id) references helper.knowledge_chunks (workspace_id, id) on delete cascade
);
alter table helper.knowledge_terms alter column terms set storage main;
comment on table helper.knowledge_terms is 'Terms of each chunk, for BM25';
comment on column helper.knowledge_terms.workspace_id is 'Workspace of the document';
comment on column helper.knowledge_terms.chunk_id is 'The chunk';
comment on column helper.knowledge_terms.source_id is 'The document';
comment on column helper.knowledge_terms.config is 'Text search configuration that made the terms';
comment on column helper.knowledge_terms.length is 'Terms in the chunk, repeated ones counted each time';
comment on column helper.knowledge_terms.terms is 'Keys of the distinct terms in order, and how often each occurs';

create function helper._term_keys(terms bytea) returns bigint[]
language c immutable strict parallel safe as 'MODULE_PATHNAME', 'term_keys_wrapper';
comment on function helper._term_keys(bytea) is 'Keys in a chunk''s terms; a key stands for one term in one workspace';
create index knowledge_terms_keys_idx on helper.knowledge_terms using gin (helper._term_keys(terms));

-- How many chunks and terms a workspace has. Every change appends a row and the worker folds them together, so that a
-- caller's open transaction never makes another one wait.
create table helper.knowledge_stats (
  workspace_id uuid not null,
  config text not null,
  chunks bigint not null,
  terms bigint not null
);
comment on table helper.knowledge_stats is 'Chunks and terms of each workspace and configuration, as sums of its rows';
comment on column helper.knowledge_stats.workspace_id is 'The workspace';
comment on column helper.knowledge_stats.config is 'Text search configuration';
comment on column helper.knowledge_stats.chunks is 'Chunks added or taken away';
comment on column helper.knowledge_stats.terms is 'Terms added or taken away, repeated ones counted each time';
create index knowledge_stats_workspace_id_idx on helper.knowledge_stats (workspace_id);

create function helper._count_terms() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op = 'INSERT' then
    insert into helper.knowledge_stats (workspace_id, config, chunks, terms)
    select c.workspace_id, c.config, count(*), sum(c.length)
    from changed_terms c
    group by c.workspace_id, c.config;
  else
    insert into helper.knowledge_stats (workspace_id, config, chunks, terms)
    select c.workspace_id, c.config, -count(*), -sum(c.length)
    from changed_terms c
    group by c.workspace_id, c.config;
  end if;
  return null;
end
$$;
comment on function helper._count_terms() is 'Keeps knowledge_stats in step with knowledge_terms';
create trigger knowledge_terms_count_insert after insert on helper.knowledge_terms
  referencing new table as changed_terms for each statement execute function helper._count_terms();
create trigger knowledge_terms_count_delete after delete on helper.knowledge_terms
  referencing old table as changed_terms for each statement execute function helper._count_terms();

create table helper.attached_tables (
  id uuid not null default helper.uuid_v7() primary key,
  relation regclass not null,
  workspace_id uuid,
  workspace_column name,
  key_columns name[] not null,
  title_column name not null,
  content_column name not null,
  metadata_columns name[] not null default '{}',
  source_type text not null,
  language text,
  created_at timestamptz not null default clock_timestamp(),
  constraint attached_tables_relation_source_type_key unique (relation, source_type),
  constraint attached_tables_workspace_check check ((workspace_id is null) <> (workspace_column is null))
);
comment on table helper.attached_tables is 'Tables whose rows are kept as documents';
comment on column helper.attached_tables.id is 'Identifier';
comment on column helper.attached_tables.relation is 'The table';
comment on column helper.attached_tables.workspace_id is 'Workspace of all its rows';
comment on column helper.attached_tables.workspace_column is 'Or the column that names each row''s workspace';
comment on column helper.attached_tables.key_columns is 'Columns that identify a row';
comment on column helper.attached_tables.title_column is 'Column with the title';
comment on column helper.attached_tables.content_column is 'Column with the text';
comment on column helper.attached_tables.metadata_columns is 'Columns that become metadata';
comment on column helper.attached_tables.source_type is 'source_type of its documents';
comment on column helper.attached_tables.language is 'Language of its documents; null to detect it';
comment on column helper.attached_tables.created_at is 'When it was attached';

alter table helper.knowledge_sources enable row level security;
alter table helper.knowledge_inputs enable row level security;
alter table helper.knowledge_chunks enable row level security;
alter table helper.knowledge_vectors enable row level security;
alter table helper.knowledge_terms enable row level security;
alter table helper.knowledge_stats enable row level security;
alter table helper.knowledge_blocks enable row level security;
alter table helper.knowledge_loose enable row level security;
alter table helper.attached_tables enable row level security;
alter table helper.knowledge_models enable row level security;
create policy knowledge_sources_select_member on helper.knowledge_sources for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy knowledge_sources_select_member on helper.knowledge_sources is 'Members see the documents of their workspaces';
create policy knowledge_chunks_select_member on helper.knowledge_chunks for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy knowledge_chunks_select_member on helper.knowledge_chunks is 'Members see the chunks of their workspaces';
create policy knowledge_models_select_member on helper.knowledge_models for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy knowledge_models_select_member on helper.knowledge_models is 'Members see the models of their workspaces';
create policy attached_tables_select_member on helper.attached_tables for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy attached_tables_select_member on helper.attached_tables is 'Members see the tables attached to their workspaces';

select pg_catalog.pg_extension_config_dump('helper.knowledge_sources', '');
select pg_catalog.pg_extension_config_dump('helper.knowledge_inputs', '');
select pg_catalog.pg_extension_config_dump('helper.knowledge_chunks', '');
select pg_catalog.pg_extension_config_dump('helper.knowledge_models', '');
select pg_catalog.pg_extension_config_dump('helper.knowledge_vectors', '');
select pg_catalog.pg_extension_config_dump('helper.knowledge_terms', '');
select pg_catalog.pg_extension_config_dump('helper.attached_tables', '');
-- knowledge_stats, knowledge_blocks and knowledge_loose are not dumped: loading the tables they are made from makes them.

create function helper._text_config(language text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select coalesce(
    (select c.config
     from (values ('ar', 'arabic'), ('hy', 'armenian'), ('eu', 'basque'), ('ca', 'catalan'), ('da', 'danish'), ('nl', 'dutch'),
       ('en', 'english'), ('fi', 'finnish'), ('fr', 'french'), ('de', 'german'), ('el', 'greek'), ('hi', 'hindi'), ('hu', 'hungarian'),
       ('id', 'indonesian'), ('ga', 'irish'), ('it', 'italian'), ('lt', 'lithuanian'), ('ne', 'nepali'), ('no', 'norwegian'),
       ('nb', 'norwegian'), ('nn', 'norwegian'), ('pt', 'portuguese'), ('ro', 'romanian'), ('ru', 'russian'), ('sr', 'serbian'),
       ('es', 'spanish'), ('sv', 'swedish'), ('ta', 'tamil'), ('tr', 'turkish'), ('yi', 'yiddish')) c (code, config)
     where c.code = lower(language)),
    'simple')
$$;
comment on function helper._text_config(text) is 'Text search configuration for an ISO 639-1 code; simple for any other';

create function helper._halfvec(embedding real[]) returns halfvec
language sql immutable parallel safe
begin atomic
  select embedding::halfvec;
end;
comment on function helper._halfvec(real[]) is 'An embedding in half precision';

create function helper._dimensions(embedding halfvec) returns integer
language sql immutable parallel safe
begin atomic
  select vector_dims(embedding);
end;
comment on function helper._dimensions(halfvec) is 'Numbers in an embedding';

create function helper._vector(numbers bytea) returns vector
language c immutable strict parallel safe as 'MODULE_PATHNAME', 'vector_of_wrapper';
comment on function helper._vector(bytea) is 'An embedding from its numbers, four bytes each as the machine has them';

create function helper._halfvec_of(numbers bytea) returns halfvec
language sql immutable parallel safe
begin atomic
  select helper._vector(numbers)::halfvec;
end;
comment on function helper._halfvec_of(bytea) is 'The same in half precision';
