-- Conversations, private to the person who holds them; messages and citations are written by the extension alone.

create table helper.conversations (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  user_id uuid not null default helper.current_user_id(),
  title text constraint conversations_title_check check (title ~ '[^[:space:]]' and char_length(title) <= 500),
  metadata jsonb not null default '{}' constraint conversations_metadata_check check (jsonb_typeof(metadata) = 'object'),
  message_count integer not null default 0,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  last_message_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint conversations_id_key unique (id)
);
create index conversations_workspace_id_user_id_last_message_at_idx on helper.conversations (workspace_id, user_id, last_message_at);
comment on table helper.conversations is 'Conversations with the assistant, each of one person in one workspace';
comment on column helper.conversations.workspace_id is 'Workspace whose documents it is about';
comment on column helper.conversations.id is 'Identifier, in order of creation; never chosen by a caller';
comment on column helper.conversations.user_id is 'Who holds it and alone sees it';
comment on column helper.conversations.title is 'What people call it; made of the first question where it has none by then';
comment on column helper.conversations.metadata is 'The application''s own facts, an object';
comment on column helper.conversations.message_count is 'Messages in it';
comment on column helper.conversations.created_at is 'When it was begun';
comment on column helper.conversations.updated_at is 'When it or its messages last changed';
comment on column helper.conversations.last_message_at is 'When the last message came, at first when it was begun; lists are in this order';

-- Row-level security keeps operators that are not leakproof, such as @@, from using an index, so search_vector has none:
-- it saves parsing when a person's own messages are searched.
create table helper.messages (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  conversation_id uuid not null,
  role text not null constraint messages_role_check check (role in ('system', 'user', 'assistant', 'tool')),
  content text not null default '',
  status text not null default 'done' constraint messages_status_check check (status in ('pending', 'streaming', 'awaiting_confirmation', 'done', 'error', 'cancelled')),
  grounded boolean,
  provider text,
  model text,
  usage jsonb,
  error jsonb,
  tool_calls jsonb not null default '[]' constraint messages_tool_calls_check check (jsonb_typeof(tool_calls) = 'array'),
  mode text,
  token_count integer,
  created_at timestamptz not null default clock_timestamp(),
  completed_at timestamptz,
  search_vector tsvector generated always as (to_tsvector('pg_catalog.simple'::regconfig, left(content, 100000))) stored,
  primary key (workspace_id, id),
  constraint messages_conversation_fkey foreign key (workspace_id, conversation_id) references helper.conversations (workspace_id, id) on delete cascade
);
create index messages_workspace_id_conversation_id_id_idx on helper.messages (workspace_id, conversation_id, id);
create index messages_id_idx on helper.messages (id);
comment on table helper.messages is 'Messages of conversations, written by the extension alone, so that none can be forged';
comment on column helper.messages.workspace_id is 'Workspace of the conversation';
comment on column helper.messages.id is 'Identifier; within a conversation in the order of the messages';
comment on column helper.messages.conversation_id is 'The conversation';
comment on column helper.messages.role is 'Who speaks: system, user, assistant or tool';
comment on column helper.messages.content is 'The text; while it streams, what has come so far';
comment on column helper.messages.status is 'pending: not begun; streaming; awaiting_confirmation: it goes on when its calls of tools are decided; done; error: see error; cancelled: the text may be cut short';
comment on column helper.messages.grounded is 'Whether the documents answer, for replies that were asked from them';
comment on column helper.messages.provider is 'Provider that replied';
comment on column helper.messages.model is 'Model that replied';
comment on column helper.messages.usage is 'What the reply took, as the provider counted it, and stop: why it ended (end, length: it was cut short, tool_calls)';
comment on column helper.messages.error is 'Why it failed: sqlstate, message, detail, hint';
comment on column helper.messages.tool_calls is 'Tools that the model called, in order: id, function, arguments, status, call (its id in function_calls, where it is there), error';
comment on column helper.messages.mode is 'Mode that the reply was asked in';
comment on column helper.messages.token_count is 'Tokens of the text, as they were counted or estimated for a prompt';
comment on column helper.messages.created_at is 'When it was begun';
comment on column helper.messages.completed_at is 'When it was done, failed or was cancelled';
comment on column helper.messages.search_vector is 'Words of the first 100,000 characters, for search_conversations';

create table helper.message_citations (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  message_id uuid not null,
  ordinal integer not null constraint message_citations_ordinal_check check (ordinal > 0),
  source_id uuid not null,
  chunk_id uuid,
  start_offset integer,
  end_offset integer,
  quote text,
  title text,
  score real,
  primary key (workspace_id, id),
  constraint message_citations_ordinal_key unique (workspace_id, message_id, ordinal),
  constraint message_citations_offsets_check check (start_offset >= 0 and start_offset <= end_offset),
  constraint message_citations_message_fkey foreign key (workspace_id, message_id) references helper.messages (workspace_id, id) on delete cascade
);
comment on table helper.message_citations is 'Passages that a reply rests on; kept when a document is indexed anew, shown to those who still see the document';
comment on column helper.message_citations.workspace_id is 'Workspace of the message and the document';
comment on column helper.message_citations.id is 'Identifier';
comment on column helper.message_citations.message_id is 'The reply';
comment on column helper.message_citations.ordinal is 'Number of the citation in the reply, from 1';
comment on column helper.message_citations.source_id is 'The document, in knowledge_sources; no foreign key, so that a reply outlives it';
comment on column helper.message_citations.chunk_id is 'The chunk it was found in, which may have been replaced since';
comment on column helper.message_citations.start_offset is 'Where the passage begins in the document as it was, in characters from 0';
comment on column helper.message_citations.end_offset is 'Where it ends, exclusive';
comment on column helper.message_citations.quote is 'The passage as it was';
comment on column helper.message_citations.title is 'Title of the document as it was';
comment on column helper.message_citations.score is 'How well the passage fitted the question';

-- What goes with a question goes with the questions after it too, as long as its turn is sent.
create table helper.message_attachments (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  message_id uuid not null,
  ordinal integer not null constraint message_attachments_ordinal_check check (ordinal > 0),
  name text,
  mime_type text not null,
  content bytea not null constraint message_attachments_content_check check (octet_length(content) between 1 and 33554432),
  primary key (workspace_id, id),
  constraint message_attachments_ordinal_key unique (workspace_id, message_id, ordinal),
  constraint message_attachments_message_fkey foreign key (workspace_id, message_id) references helper.messages (workspace_id, id) on delete cascade
);
-- Pictures and documents are compressed already.
alter table helper.message_attachments alter content set storage external;
comment on table helper.message_attachments is 'Pictures and documents that went with questions, written by the extension alone; they are searched by nobody, as documents of add_file are';
comment on column helper.message_attachments.workspace_id is 'Workspace of the message';
comment on column helper.message_attachments.id is 'Identifier';
comment on column helper.message_attachments.message_id is 'The question';
comment on column helper.message_attachments.ordinal is 'Its place among the question''s attachments, from 1';
comment on column helper.message_attachments.name is 'Its name, where it was given one';
comment on column helper.message_attachments.mime_type is 'Its type, such as image/png, as the caller gave it';
comment on column helper.message_attachments.content is 'Its bytes, at most 32 MB';

select pg_catalog.pg_extension_config_dump('helper.conversations', '');
select pg_catalog.pg_extension_config_dump('helper.messages', '');
select pg_catalog.pg_extension_config_dump('helper.message_citations', '');
select pg_catalog.pg_extension_config_dump('helper.message_attachments', '');

create trigger conversations_touch before update on helper.conversations
  for each row execute function helper._touch();

-- Citations look at messages and knowledge_sources, attachments at messages, messages at conversations, and these at membership: never back.

alter table helper.conversations enable row level security;
alter table helper.messages enable row level security;
alter table helper.message_citations enable row level security;
alter table helper.message_attachments enable row level security;

create policy conversations_select_holder on helper.conversations for select
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy conversations_select_holder on helper.conversations is 'A conversation is seen by its holder alone, while in the workspace';
create policy conversations_insert_holder on helper.conversations for insert
  with check (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy conversations_insert_holder on helper.conversations is 'Anyone in a workspace may begin a conversation of their own in it';
create policy conversations_update_holder on helper.conversations for update
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy conversations_update_holder on helper.conversations is 'The holder names and describes a conversation';
create policy conversations_delete_holder on helper.conversations for delete
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy conversations_delete_holder on helper.conversations is 'The holder deletes a conversation';

create policy messages_select_holder on helper.messages for select
  using (
    exists (
      select from helper.conversations c
      where c.workspace_id = messages.workspace_id and c.id = messages.conversation_id
    )
  );
comment on policy messages_select_holder on helper.messages is 'Messages are seen by whoever sees the conversation';

create policy message_citations_select_holder on helper.message_citations for select
  using (
    exists (
      select from helper.messages m
      where m.workspace_id = message_citations.workspace_id and m.id = message_citations.message_id
    )
    and exists (
      select from helper.knowledge_sources s
      where s.workspace_id = message_citations.workspace_id and s.id = message_citations.source_id
    )
  );
comment on policy message_citations_select_holder on helper.message_citations is 'Citations are seen by whoever sees the reply and, now, the document';

create policy message_attachments_select_holder on helper.message_attachments for select
  using (
    exists (
      select from helper.messages m
      where m.workspace_id = message_attachments.workspace_id and m.id = message_attachments.message_id
    )
  );
comment on policy message_attachments_select_holder on helper.message_attachments is 'Attachments are seen by whoever sees the question';

-- The functions that follow act for the caller alone, also where row-level security is bypassed.

create function helper.create_conversation(title text default null, workspace uuid default null) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.current_workspace(workspace);
  v_id uuid;
begin
  if char_length(title) > 500 then
    raise exception using
      errcode = '22023',
      message = format('title has %s characters, at most 500 are allowed', char_length(title));
  end if;
  insert into helper.conversations as c (workspace_id, user_id, title)
  values (v_workspace, helper.current_user_id(), nullif(btrim(create_conversation.title, E' \t\r\n'), ''))
  returning c.id into v_id;
  return v_id;
end
$$;
comment on function helper.create_conversation(text, uuid) is
  'Begins a private conversation of the caller and returns its id; a blank title leaves it unnamed until its first question. Errors: 22023, 42501, 42704 as current_workspace';

create function helper.rename_conversation(id uuid, title text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if title is null or title !~ '[^[:space:]]' then
    raise exception using errcode = '22023', message = 'title is empty';
  end if;
  if char_length(title) > 500 then
    raise exception using
      errcode = '22023',
      message = format('title has %s characters, at most 500 are allowed', char_length(title));
  end if;
  update helper.conversations c
  set title = btrim(rename_conversation.title, E' \t\r\n')
  where c.id = rename_conversation.id
    and c.user_id = helper.current_user_id();
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', id);
  end if;
end
$$;
comment on function helper.rename_conversation(uuid, text) is
  'Names a conversation of the caller. Errors: 22023 blank or long title, 42704 not a conversation of the caller';

create function helper.delete_conversation(id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  delete from helper.conversations c
  where c.id = delete_conversation.id
    and c.user_id = helper.current_user_id();
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', id);
  end if;
end
$$;
comment on function helper.delete_conversation(uuid) is
  'Deletes a conversation of the caller with its messages; a reply of helper.ask_async that is under way in it is broken off when the transaction commits. Errors: 42704 not a conversation of the caller';

create function helper.list_conversations(workspace uuid default null, "limit" integer default 50, before timestamptz default null)
returns table (id uuid, title text, message_count integer, created_at timestamptz, updated_at timestamptz, last_message_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.current_workspace(workspace);
begin
  if "limit" is null or "limit" not between 1 and 1000 then
    raise exception using errcode = '22023', message = 'limit must be between 1 and 1000';
  end if;
  return query
    select c.id, c.title, c.message_count, c.created_at, c.updated_at, c.last_message_at
    from helper.conversations c
    where c.workspace_id = v_workspace
      and c.user_id = (select helper.current_user_id())
      and c.last_message_at < coalesce(before, 'infinity')
    order by c.last_message_at desc
    limit "limit";
end
$$;
comment on function helper.list_conversations(uuid, integer, timestamptz) is
  'The caller''s conversations, the last used first; for the next page pass the last row''s last_message_at as before. Errors: 22023 limit, and as current_workspace';

create function helper.search_conversations(query text, workspace uuid default null, "limit" integer default 20)
returns table (id uuid, title text, snippet text, rank real, last_message_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.current_workspace(workspace);
  v_query tsquery;
begin
  if query is null or query !~ '[^[:space:]]' then
    raise exception using errcode = '22023', message = 'query is empty';
  end if;
  if "limit" is null or "limit" not between 1 and 1000 then
    raise exception using errcode = '22023', message = 'limit must be between 1 and 1000';
  end if;
  v_query := websearch_to_tsquery('simple', query);
  return query
    with mine as materialized (
      select c.id, c.title, c.last_message_at
      from helper.conversations c
      where c.workspace_id = v_workspace
        and c.user_id = (select helper.current_user_id())
    ), hit as (
      -- A hit in the title counts double.
      select c.id, c.title as content, 2 * ts_rank(to_tsvector('simple', c.title), v_query) as rank
      from mine c
      where to_tsvector('simple', c.title) @@ v_query
      union all
      select c.id, m.content, ts_rank(m.search_vector, v_query)
      from mine c
      join helper.messages m on m.workspace_id = v_workspace and m.conversation_id = c.id
      where m.role in ('user', 'assistant')
        and m.search_vector @@ v_query
    ), best as (
      select distinct on (h.id) h.id, h.content, h.rank
      from hit h
      order by h.id, h.rank desc
    ), top as (
      select c.id, c.title, b.content, b.rank, c.last_message_at
      from best b
      join mine c on c.id = b.id
      order by b.rank desc, c.last_message_at desc
      limit "limit"
    )
    select t.id,
      t.title,
      ts_headline('simple', left(t.content, 100000), v_query, 'StartSel=**, StopSel=**, MaxWords=30, MinWords=10, MaxFragments=1'),
      t.rank::real,
      t.last_message_at
    from top t
    order by t.rank desc, t.last_message_at desc;
end
$$;
comment on function helper.search_conversations(text, uuid, integer) is
  'The caller''s conversations whose title or a message has the words of a web search ("a phrase", or, -not), whatever their case; the best first, with a snippet that marks the words **so**. Errors: 22023 blank query or limit, and as current_workspace';

create function helper.export_conversation(id uuid, format text default 'markdown') returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_conversation helper.conversations;
  v_text text;
begin
  if format is null or format not in ('markdown', 'json') then
    raise exception using
      errcode = '22023',
      message = pg_catalog.format('format "%s" is not known', format),
      hint = 'Formats are markdown and json.';
  end if;
  select c.* into v_conversation
  from helper.conversations c
  where c.id = export_conversation.id
    and c.user_id = helper.current_user_id();
  if not found then
    raise exception using errcode = '42704', message = pg_catalog.format('conversation "%s" does not exist', id);
  end if;
  if format = 'json' then
    select jsonb_pretty(jsonb_build_object(
      'id', v_conversation.id,
      'title', v_conversation.title,
      'metadata', v_conversation.metadata,
      'created_at', v_conversation.created_at,
      'messages', coalesce(jsonb_agg(
        jsonb_build_object(
          'id', m.id,
          'role', m.role,
          'content', m.content,
          'status', m.status,
          'grounded', m.grounded,
          'provider', m.provider,
          'model', m.model,
          'created_at', m.created_at,
          'attachments', coalesce(
            (select jsonb_agg(jsonb_build_object('name', a.name, 'mime_type', a.mime_type) order by a.ordinal)
             from helper.message_attachments a
             where a.workspace_id = m.workspace_id and a.message_id = m.id),
            '[]'),
          'citations', coalesce(
            (select jsonb_agg(
               jsonb_build_object(
                 'ordinal', s.ordinal,
                 'source_id', s.source_id,
                 'title', s.title,
                 'quote', s.quote,
                 'start_offset', s.start_offset,
                 'end_offset', s.end_offset
               ) order by s.ordinal)
             from helper.message_citations s
             where s.workspace_id = m.workspace_id and s.message_id = m.id),
            '[]'))
        order by m.id), '[]')))
    into v_text
    from helper.messages m
    where m.workspace_id = v_conversation.workspace_id
      and m.conversation_id = v_conversation.id;
    return v_text;
  end if;
  select string_agg(
    pg_catalog.format(E'## %s, %s UTC\n\n%s\n', initcap(m.role), to_char(m.created_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI'), m.content)
      || coalesce(
        (select E'\n' || string_agg(pg_catalog.format(E'Attached: %s\n', coalesce(a.name || ' (' || a.mime_type || ')', a.mime_type)), '' order by a.ordinal)
         from helper.message_attachments a
         where a.workspace_id = m.workspace_id and a.message_id = m.id),
        '')
      || coalesce(
        (select E'\n' || string_agg(
           pg_catalog.format(E'[%s] %s', s.ordinal, s.title)
             || coalesce(E'\n\n> ' || replace(s.quote, E'\n', E'\n> '), '')
             || E'\n', E'\n' order by s.ordinal)
         from helper.message_citations s
         where s.workspace_id = m.workspace_id and s.message_id = m.id),
        ''),
    E'\n' order by m.id)
  into v_text
  from helper.messages m
  where m.workspace_id = v_conversation.workspace_id
    and m.conversation_id = v_conversation.id
    and m.role in ('user', 'assistant')
    and m.content <> '';
  return pg_catalog.format(E'# %s\n', coalesce(v_conversation.title, 'Conversation')) || coalesce(E'\n' || v_text, '');
end
$$;
comment on function helper.export_conversation(uuid, text) is
  'A conversation of the caller as markdown (what user and assistant said) or json (everything but the bytes of attachments), with the citations whose documents the caller sees. Errors: 22023 unknown format, 42704 not a conversation of the caller';
