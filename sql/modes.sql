-- Ways of answering: rows, so that an administrator or a workspace can add its own.

create table helper.modes (
  workspace_id uuid,
  name text not null constraint modes_name_check check (name ~ '^[a-z][a-z0-9_-]{0,62}$'),
  description text not null default '',
  instructions text not null constraint modes_instructions_check check (char_length(instructions) <= 20000),
  model text,
  temperature real constraint modes_temperature_check check (temperature between 0 and 2),
  max_tokens integer constraint modes_max_tokens_check check (max_tokens > 0),
  knowledge boolean not null default true,
  k integer not null default 6 constraint modes_k_check check (k between 1 and 50),
  output_schema jsonb constraint modes_output_schema_check check (jsonb_typeof(output_schema) = 'object'),
  tools text[],
  builtin boolean not null default false,
  created_by uuid,
  updated_at timestamptz not null default clock_timestamp(),
  constraint modes_key unique nulls not distinct (workspace_id, name, builtin)
);
comment on table helper.modes is 'Ways of answering that helper.ask can be told to use';
comment on column helper.modes.workspace_id is 'Workspace whose own it is; null: for all';
comment on column helper.modes.name is 'Name by which calls choose it; a workspace''s own comes before one for all';
comment on column helper.modes.description is 'What it is for, for people';
comment on column helper.modes.instructions is 'What the model is told';
comment on column helper.modes.model is 'Model that answers, as provider/model or model; null: the default';
comment on column helper.modes.temperature is '0 to 2; null: the provider''s default';
comment on column helper.modes.max_tokens is 'Tokens of a reply at most; null: the model''s limit';
comment on column helper.modes.knowledge is 'Whether documents are looked up';
comment on column helper.modes.k is 'Passages that are looked up';
comment on column helper.modes.output_schema is 'JSON Schema that the reply must fit; null: words';
comment on column helper.modes.tools is 'Tools that a model is offered: names, product:slug and tag:word; null: all that the caller may call';
comment on column helper.modes.builtin is 'Whether it came with the extension';
comment on column helper.modes.created_by is 'Who set it up';
comment on column helper.modes.updated_at is 'When it last changed';

insert into helper.modes (name, description, instructions, knowledge, k, temperature, builtin)
values
  ('chat', 'Answers questions', 'Answer the question clearly and briefly.', true, 6, null, true),
  ('copy', 'Writes texts to be used as they are',
    'Write the text that is asked for, ready to be used as it is: no preface, no remarks, no alternatives unless asked for. Take facts from the documents alone.',
    true, 6, 0.7, true),
  ('summary', 'Summarises documents',
    'Summarise what the documents say about the request: the main points first, in a short list, each with its citation. Add nothing that they do not say.',
    true, 16, 0.2, true);

alter table helper.modes enable row level security;
create policy modes_select_member on helper.modes for select
  using (workspace_id is null or workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy modes_select_member on helper.modes is 'Members see their workspaces'' modes and those for all';
select pg_catalog.pg_extension_config_dump('helper.modes', 'where not builtin');

create function helper.set_mode(name text, instructions text, options jsonb default '{}', workspace uuid default null) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  perform helper._require_keeper(set_mode.workspace);
  if set_mode.name is null or set_mode.name !~ '^[a-z][a-z0-9_-]{0,62}$' then
    raise exception using errcode = '22023', message = format('mode name "%s" is not valid', set_mode.name),
      hint = 'Use at most 63 lower-case letters, digits, "_" and "-".';
  end if;
  if set_mode.instructions is null then
    delete from helper.modes m
    where m.workspace_id is not distinct from set_mode.workspace and m.name = set_mode.name and not m.builtin;
    if not found then
      raise exception using errcode = '42704', message = format('mode "%s" does not exist', set_mode.name);
    end if;
    return;
  end if;
  perform helper._check_options(set_mode.options,
    array['description', 'model', 'temperature', 'max_tokens', 'knowledge', 'k', 'output_schema', 'tools'], 'a mode');
  begin
    insert into helper.modes
      (workspace_id, name, description, instructions, model, temperature, max_tokens, knowledge, k, output_schema, tools, created_by)
    values
      (set_mode.workspace, set_mode.name, coalesce(set_mode.options ->> 'description', ''), set_mode.instructions, set_mode.options ->> 'model',
        (set_mode.options ->> 'temperature')::real, (set_mode.options ->> 'max_tokens')::integer,
        coalesce((set_mode.options ->> 'knowledge')::boolean, true), coalesce((set_mode.options ->> 'k')::integer, 6),
        set_mode.options -> 'output_schema',
        (select array_agg(t.tool) from jsonb_array_elements_text(set_mode.options -> 'tools') t (tool)), helper.current_user_id())
    on conflict on constraint modes_key do update
    set description = excluded.description,
      instructions = excluded.instructions,
      model = excluded.model,
      temperature = excluded.temperature,
      max_tokens = excluded.max_tokens,
      knowledge = excluded.knowledge,
      k = excluded.k,
      output_schema = excluded.output_schema,
      tools = excluded.tools,
      updated_at = clock_timestamp();
  exception
    when data_exception or check_violation then
      raise exception using errcode = '22023', message = 'an option or the instructions of the mode are not valid', detail = sqlerrm;
  end;
end
$$;
comment on function helper.set_mode(text, text, jsonb, uuid) is
  'Adds or changes a way of answering, for all workspaces (administrators) or one (its admins); instructions null removes it. options: description, model, temperature, max_tokens, knowledge, k, output_schema, tools. Errors: 22023, 42501, 42704';

-- What a long conversation said before the turns that still fit into a prompt.

create table helper.conversation_summaries (
  workspace_id uuid not null,
  conversation_id uuid not null,
  content text not null,
  covers_to uuid not null,
  message_count integer not null,
  made_by text not null,
  seal text not null,
  updated_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, conversation_id),
  constraint conversation_summaries_conversation_fkey foreign key (workspace_id, conversation_id)
    references helper.conversations (workspace_id, id) on delete cascade
);
comment on table helper.conversation_summaries is 'Summaries of the turns that no longer fit into the prompt, written by the extension alone';
comment on column helper.conversation_summaries.workspace_id is 'Workspace of the conversation';
comment on column helper.conversation_summaries.conversation_id is 'The conversation';
comment on column helper.conversation_summaries.content is 'The summary';
comment on column helper.conversation_summaries.covers_to is 'The last message that it covers';
comment on column helper.conversation_summaries.message_count is 'Messages that it covers';
comment on column helper.conversation_summaries.made_by is 'Provider and model, or local';
comment on column helper.conversation_summaries.seal is 'What its frame in a prompt bears and nobody else knows: kept, so that prompts begin with the same bytes and are found in the cache of the provider';
comment on column helper.conversation_summaries.updated_at is 'When it was made';
alter table helper.conversation_summaries enable row level security;
create policy conversation_summaries_select_holder on helper.conversation_summaries for select
  using (exists (select from helper.conversations c
    where c.workspace_id = conversation_summaries.workspace_id and c.id = conversation_summaries.conversation_id));
comment on policy conversation_summaries_select_holder on helper.conversation_summaries is 'Who sees a conversation sees its summary';
select pg_catalog.pg_extension_config_dump('helper.conversation_summaries', '');

create function helper._set_summary(workspace uuid, conversation uuid, content text, covers_to uuid, made_by text, seal text default null) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
  insert into helper.conversation_summaries (workspace_id, conversation_id, content, covers_to, message_count, made_by, seal)
  select workspace, conversation, _set_summary.content, _set_summary.covers_to, count(*), _set_summary.made_by,
    coalesce(_set_summary.seal, substr(replace(gen_random_uuid()::text, '-', ''), 17))
  from helper.messages m
  where m.workspace_id = workspace and m.conversation_id = conversation and m.id <= _set_summary.covers_to
  on conflict (workspace_id, conversation_id) do update
  set content = excluded.content,
    covers_to = excluded.covers_to,
    message_count = excluded.message_count,
    made_by = excluded.made_by,
    seal = excluded.seal,
    updated_at = clock_timestamp()
$$;
comment on function helper._set_summary(uuid, uuid, text, uuid, text, text) is 'Keeps the summary of a conversation up to a message';

-- A word says the more of a conversation the fewer of the caller's others have it; those that nearly all have say hardly
-- anything, whatever the language.
create function helper.related_conversations(conversation uuid, k integer default 5)
returns table (id uuid, title text, score real, last_message_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid;
  v_me uuid := helper.current_user_id();
  v_lexemes text[];
  v_query tsquery;
begin
  if k is null or k not between 1 and 100 then
    raise exception using errcode = '22023', message = format('k is %s, expected 1 to 100', coalesce(k::text, 'null'));
  end if;
  select c.workspace_id into v_workspace
  from helper.conversations c
  where c.id = conversation and c.user_id = v_me;
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', conversation);
  end if;
  -- No more than bound the work: of a long conversation the words that come most often.
  select array_agg(w.lexeme), string_agg(quote_literal(w.lexeme), ' | ')::tsquery into v_lexemes, v_query
  from (
    select t.lexeme
    from helper.messages m
    cross join unnest(m.search_vector) t
    where m.workspace_id = v_workspace and m.conversation_id = conversation and m.role = 'user' and char_length(t.lexeme) > 1
    group by t.lexeme
    order by count(*) desc, char_length(t.lexeme) desc, t.lexeme
    limit 256
  ) w;
  return query
    with mine as materialized (
      select c.id, c.title, c.last_message_at
      from helper.conversations c
      where c.workspace_id = v_workspace
        and c.user_id = v_me
        and c.message_count > 0
    ), used as materialized (
      select c.id, t.lexeme, count(*) as messages
      from mine c
      join helper.messages m on m.workspace_id = v_workspace and m.conversation_id = c.id
      cross join unnest(m.search_vector) t
      where m.role in ('user', 'assistant')
        and m.search_vector @@ v_query
        and t.lexeme = any (v_lexemes)
      group by c.id, t.lexeme
    ), rarity as (
      select u.lexeme, ln(1 + ((select count(*) from mine) - count(*) + 0.5) / (count(*) + 0.5)) as weight
      from used u
      group by u.lexeme
    )
    select c.id, c.title, sum(r.weight * u.messages * 2.2 / (u.messages + 1.2))::real, c.last_message_at
    from used u
    join rarity r on r.lexeme = u.lexeme
    join mine c on c.id = u.id
    where c.id <> conversation
    group by c.id, c.title, c.last_message_at
    order by 3 desc, 4 desc
    limit related_conversations.k;
end
$$;
comment on function helper.related_conversations(uuid, integer) is
  'The caller''s other conversations in the same workspace that speak of the same things, the closest first: by the words that they share, the rarer among all of the caller''s conversations the weightier. Errors: 22023, 42704';
