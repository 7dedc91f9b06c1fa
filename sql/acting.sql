-- Replies whose model calls tools: where they stand between two steps, and going on.

create table helper.reply_states (
  workspace_id uuid not null,
  message_id uuid not null,
  payload jsonb not null,
  principal_role name not null,
  principal_claims jsonb,
  depth integer not null default helper._depth_here(),
  run_id uuid default helper._run_here(),
  state jsonb not null,
  primary key (workspace_id, message_id),
  constraint reply_states_message_fkey foreign key (workspace_id, message_id) references helper.messages (workspace_id, id) on delete cascade
);
comment on table helper.reply_states is 'Replies that have called tools and not ended: what they go on from; deleted when they end';
comment on column helper.reply_states.workspace_id is 'Workspace of the message';
comment on column helper.reply_states.message_id is 'The reply';
comment on column helper.reply_states.payload is 'How it was asked: question_id, message_id, mode, knowledge, model, options';
comment on column helper.reply_states.principal_role is 'Role of the caller who asked';
comment on column helper.reply_states.principal_claims is 'JWT claims of the caller who asked; JSON null when they were malformed';
comment on column helper.reply_states.depth is 'How many workflows led to it; -1: none';
comment on column helper.reply_states.run_id is 'The run that led to it';
comment on column helper.reply_states.state is 'Rounds of calls with their results, and the passages that were found for it';
alter table helper.reply_states enable row level security;
select pg_catalog.pg_extension_config_dump('helper.reply_states', '');

-- Who asked is said by the first to store it, who is the asker; what runs later for the reply runs as them.
create function helper._keep_state(workspace uuid, message uuid, payload jsonb, state jsonb) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
  insert into helper.reply_states as s (workspace_id, message_id, payload, principal_role, principal_claims, state)
  values (workspace, message, payload, helper.caller_role(), helper.caller_claims(), state)
  on conflict (workspace_id, message_id) do update
  set state = excluded.state
$$;
comment on function helper._keep_state(uuid, uuid, jsonb, jsonb) is 'Stores where a reply stands, as its asker';

-- Called when a call of the reply has ended; the last of them lets it go on.
create function helper._resume_reply(workspace uuid, message uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_state helper.reply_states;
  v_conversation uuid;
  v_status text;
  v_job uuid;
begin
  -- Calls that end at once are told apart by this lock, and looked at after it.
  select m.conversation_id, m.status into v_conversation, v_status
  from helper.messages m
  where m.workspace_id = workspace and m.id = message
  for no key update;
  -- One that has not stopped yet looks for itself when it does.
  if v_status is distinct from 'awaiting_confirmation' then
    return;
  end if;
  if exists (
    select from helper.function_calls c
    where c.message_id = message and c.workspace_id = workspace and c.finished_at is null
  ) then
    return;
  end if;
  select s.* into v_state
  from helper.reply_states s
  where s.workspace_id = workspace and s.message_id = message;
  if not found then
    return;
  end if;
  update helper.messages m set status = 'pending' where m.workspace_id = workspace and m.id = message;
  insert into helper.jobs (workspace_id, kind, key, payload, principal_role, principal_claims, depth, run_id)
  values (workspace, 'reply', v_conversation, v_state.payload, v_state.principal_role, v_state.principal_claims, v_state.depth, v_state.run_id)
  returning id into v_job;
  insert into helper.job_queue (workspace_id, kind, job_id, key)
  values (workspace, 'reply', v_job, v_conversation);
end
$$;
comment on function helper._resume_reply(uuid, uuid) is 'Has the worker go on with a reply none of whose calls is open any more';

create function helper._cancel_awaiting(message helper.messages) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_call uuid;
begin
  perform helper._call_off(c.id, false)
  from helper.function_calls c
  where c.message_id = message.id and c.workspace_id = message.workspace_id and c.finished_at is null;
  -- Calls before their message, as whoever decides one takes them.
  perform from helper.function_calls c
  where c.message_id = message.id and c.workspace_id = message.workspace_id
  order by c.id
  for update;
  perform from helper.messages m
  where m.workspace_id = message.workspace_id and m.id = message.id and m.status = 'awaiting_confirmation'
  for no key update;
  if not found then
    return false;
  end if;
  -- First, so that no call that ends now lets it go on.
  delete from helper.reply_states s where s.workspace_id = message.workspace_id and s.message_id = message.id;
  perform helper._end_reply(message.workspace_id, message.id, message.content, 'cancelled', null, null, message.grounded, message.usage, null, null);
  for v_call in
    select c.id from helper.function_calls c
    where c.message_id = message.id and c.workspace_id = message.workspace_id and c.finished_at is null
  loop
    perform helper._cancel_call(message.workspace_id, v_call);
  end loop;
  return true;
end
$$;
comment on function helper._cancel_awaiting(helper.messages) is 'Cancels a reply that waits for an approval, and its calls';
