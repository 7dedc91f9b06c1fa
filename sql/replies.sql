-- Replies on their way: turns, what has come so far, their end, and cancelling.

-- Writing messages, for the extension

create function helper._append_message(
  workspace uuid,
  conversation uuid,
  user_id uuid,
  role text,
  content text,
  status text default 'done',
  provider text default null,
  model text default null,
  grounded boolean default null,
  usage jsonb default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_now timestamptz := clock_timestamp();
  v_id uuid;
begin
  -- First, as its lock puts messages of one conversation in one order.
  update helper.conversations c
  set message_count = c.message_count + 1,
    last_message_at = v_now
  where c.workspace_id = workspace
    and c.id = conversation
    and c.user_id = _append_message.user_id;
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', conversation);
  end if;
  insert into helper.messages as m
    (workspace_id, conversation_id, role, content, status, provider, model, grounded, usage, completed_at)
  values
    (workspace, conversation, role, coalesce(content, ''), status, provider, model, grounded, usage,
      case when status in ('done', 'error', 'cancelled') then v_now end)
  returning m.id into v_id;
  return v_id;
end
$$;
comment on function helper._append_message(uuid, uuid, uuid, text, text, text, text, text, boolean, jsonb) is
  'Adds a message to the conversation of a person and returns its id. Errors: 42704 not a conversation of that person in that workspace, 23514 unknown role or status';

create function helper._append_citation(
  workspace uuid,
  message uuid,
  user_id uuid,
  ordinal integer,
  source uuid,
  chunk uuid,
  start_offset integer,
  end_offset integer,
  quote text,
  title text,
  score real default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_id uuid;
begin
  if not exists (
    select
    from helper.messages m
    join helper.conversations c on c.workspace_id = m.workspace_id and c.id = m.conversation_id
    where m.workspace_id = workspace
      and m.id = message
      and m.role = 'assistant'
      and c.user_id = _append_citation.user_id
  ) then
    raise exception using errcode = '42704', message = format('message "%s" does not exist', message);
  end if;
  insert into helper.message_citations as s
    (workspace_id, message_id, ordinal, source_id, chunk_id, start_offset, end_offset, quote, title, score)
  values
    (workspace, message, ordinal, source, chunk, start_offset, end_offset, quote, title, score)
  returning s.id into v_id;
  return v_id;
end
$$;
comment on function helper._append_citation(uuid, uuid, uuid, integer, uuid, uuid, integer, integer, text, text, real) is
  'Adds a citation to a reply in the conversation of a person and returns its id. Errors: 42704 not a reply to that person in that workspace';

-- What is seen of a transaction that has not ended was written by this one or a part of it. A row has the lower half of the
-- transaction's number alone, and no part of this one has a number below its own.
create function helper._is_written_here(version xid) returns boolean
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select coalesce((
    select case when t.since < 2147483648 then pg_xact_status((t.own + t.since)::text::xid8) = 'in progress' end
    from (
      select o.own, (version::text::bigint - o.own) & 4294967295 as since
      from (select pg_current_xact_id_if_assigned()::text::bigint as own) o
    ) t
  ), false)
$$;
comment on function helper._is_written_here(xid) is 'Whether a row that is seen, given its xmin, was written in this very transaction';

-- One reply at a time. What another session has not committed is seen by its lock on the conversation alone, so that who has
-- got the lock looks again.
create function helper._take_turn(workspace uuid, conversation uuid, busy text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_is_own boolean;
begin
  loop
    begin
      if busy = 'refuse' then
        perform from helper.conversations c where c.workspace_id = workspace and c.id = conversation for update nowait;
      else
        perform from helper.conversations c where c.workspace_id = workspace and c.id = conversation for update;
      end if;
      if busy = 'queue' then
        return;
      end if;
      -- Null: there is none.
      select bool_or(helper._is_written_here(m.xmin)) into v_is_own
      from helper.messages m
      where m.workspace_id = workspace and m.conversation_id = conversation and m.role = 'assistant' and m.status in ('pending', 'streaming');
      if v_is_own is null then
        return;
      end if;
      -- No lock is held meanwhile, or the reply could not be written: it goes with what was done since begin.
      raise object_in_use;
    exception
      when object_in_use then null;
      when lock_not_available then
        raise exception using
          errcode = '55000',
          message = 'another reply is under way in the conversation',
          hint = 'Wait for it, or leave out the option busy.';
    end;
    if busy = 'refuse' then
      raise exception using
        errcode = '55000',
        message = 'another reply is under way in the conversation',
        hint = 'Wait for it, cancel it with helper.cancel, or leave out the option busy.';
    end if;
    if v_is_own then
      raise exception using
        errcode = '55000',
        message = 'another reply is under way in the conversation',
        detail = 'It is this transaction''s own, and does not end before the transaction does.',
        hint = 'Commit, then ask; helper.ask_async queues behind it.';
    end if;
    -- One snapshot never sees it end.
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
      raise exception using
        errcode = '55000',
        message = 'another reply is under way in the conversation',
        detail = format('A transaction of isolation level %s cannot wait for it.', upper(current_setting('transaction_isolation'))),
        hint = 'Ask in a transaction of isolation level READ COMMITTED, or again in a new one.';
    end if;
    while exists (
      select from helper.messages m
      where m.workspace_id = workspace and m.conversation_id = conversation and m.role = 'assistant' and m.status in ('pending', 'streaming')
    ) loop
      perform pg_sleep(0.02);
    end loop;
  end loop;
end
$$;
comment on function helper._take_turn(uuid, uuid, text) is
  'Takes the turn in a conversation: wait for a reply that is under way, refuse, or queue behind it. Errors: 55000';

create function helper._end_reply(
  workspace uuid,
  message uuid,
  content text,
  status text,
  provider text,
  model text,
  grounded boolean,
  usage jsonb,
  error jsonb,
  tool_calls jsonb
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_conversation uuid;
  v_before text;
begin
  select m.content into v_before from helper.messages m where m.workspace_id = workspace and m.id = message;
  update helper.messages m
  set content = coalesce(_end_reply.content, m.content),
    status = _end_reply.status,
    provider = coalesce(_end_reply.provider, m.provider),
    model = coalesce(_end_reply.model, m.model),
    grounded = _end_reply.grounded,
    usage = _end_reply.usage,
    error = _end_reply.error,
    tool_calls = coalesce(_end_reply.tool_calls, m.tool_calls),
    completed_at = case when _end_reply.status <> 'awaiting_confirmation' then clock_timestamp() end
  where m.workspace_id = workspace
    and m.id = message
    and m.role = 'assistant'
    and m.status in ('pending', 'streaming', 'awaiting_confirmation', 'cancelled')
  returning m.conversation_id into v_conversation;
  if found then
    -- Of a reply that had stopped for an approval; its end has all of them.
    delete from helper.message_citations c where c.workspace_id = workspace and c.message_id = message;
    -- One that called no tools has none.
    if _end_reply.status <> 'awaiting_confirmation' and _end_reply.tool_calls is distinct from '[]' then
      delete from helper.reply_states s where s.workspace_id = workspace and s.message_id = message;
    end if;
    -- With the words since it was last written.
    perform helper._tell(v_conversation, message, _end_reply.status,
      case when starts_with(_end_reply.content, v_before) then nullif(substr(_end_reply.content, char_length(v_before) + 1), '') end);
  end if;
end
$$;
comment on function helper._end_reply(uuid, uuid, text, text, text, text, boolean, jsonb, jsonb, jsonb) is
  'Stores a reply, whole or not; one that has ended before is left alone';

create function helper._stream_reply(workspace uuid, conversation uuid, message uuid, content text, delta text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  -- Whoever holds the row keeps nobody else's reply from being written.
  perform
  from helper.messages m
  where m.workspace_id = workspace and m.id = message and m.status in ('pending', 'streaming')
  for no key update skip locked;
  if not found then
    return not exists (
      select
      from helper.messages m
      where m.workspace_id = workspace and m.id = message and m.status in ('pending', 'streaming'));
  end if;
  update helper.messages m
  set content = _stream_reply.content, status = 'streaming'
  where m.workspace_id = workspace and m.id = message;
  perform helper._tell(conversation, message, 'streaming', delta);
  return true;
end
$$;
comment on function helper._stream_reply(uuid, uuid, uuid, text, text) is
  'Stores what has come of a reply so far, and tells those who listen; false where somebody holds its row';

create function helper._is_free(workspace uuid, message uuid) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform from helper.messages m where m.workspace_id = workspace and m.id = message for no key update skip locked;
  return found or not exists (select from helper.messages m where m.workspace_id = workspace and m.id = message);
end
$$;
comment on function helper._is_free(uuid, uuid) is 'Locks a reply for its end; false where somebody else has it locked';

-- Supabase's realtime is told where it is there and its own, and never keeps a reply from being stored.
create function helper._tell(conversation uuid, message uuid, status text, delta text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_notify('helper_messages', message::text);
  if exists (
    select
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    join pg_roles r on r.oid = p.proowner
    where p.oid = to_regprocedure('realtime.send(jsonb, text, text, boolean)')
      and helper._is_trusted(n.nspowner)
      and (helper._is_trusted(p.proowner) or r.rolname = 'supabase_realtime_admin')
  ) then
    begin
      execute 'select realtime.send($1, $2, $3, true)'
      using jsonb_build_object('message_id', message, 'status', status, 'delta', delta), 'message', 'helper:' || conversation;
    exception
      when others then
        raise log 'helper_ai: realtime.send: %', sqlerrm;
    end;
  end if;
end
$$;
comment on function helper._tell(uuid, uuid, text, text) is 'Notifies channel helper_messages with the message''s id, and broadcasts to realtime where it exists';

-- What is to be cancelled is told to the worker by a row, so that it is heard of at commit and not before. It has no foreign
-- key: what is asked for a reply that was deleted is not to be asked on.
create table helper.reply_cancellations (
  workspace_id uuid not null,
  message_id uuid not null,
  primary key (workspace_id, message_id)
);
comment on table helper.reply_cancellations is 'Replies that somebody does not want any more, or has deleted, and the worker still works on';
comment on column helper.reply_cancellations.workspace_id is 'Workspace of the message';
comment on column helper.reply_cancellations.message_id is 'The reply, which may be gone';
alter table helper.reply_cancellations enable row level security;
create trigger reply_cancellations_wake after insert on helper.reply_cancellations
  for each statement execute function helper._wake_worker();

create function helper._cancel_deleted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into helper.reply_cancellations (workspace_id, message_id)
  values (old.workspace_id, old.id)
  on conflict do nothing;
  return null;
end
$$;
comment on function helper._cancel_deleted() is 'Has the worker leave a reply that was deleted on its way';
create trigger messages_cancel after delete on helper.messages
  for each row when (old.status in ('pending', 'streaming')) execute function helper._cancel_deleted();

-- A reply that was cancelled on its way may have stopped for an approval before that was committed.
create function helper._cancel_waiting(workspace uuid, message uuid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
declare
  v_job record;
  v_message helper.messages;
begin
  for v_job in
    select j.id
    from helper.jobs j
    join helper.job_queue q on q.workspace_id = j.workspace_id and q.job_id = j.id
    where j.workspace_id = workspace and j.kind = 'reply' and j.payload ->> 'message_id' = message::text
  loop
    delete from helper.job_queue q where q.workspace_id = workspace and q.job_id = v_job.id;
    update helper.jobs j set status = 'cancelled', finished_at = clock_timestamp() where j.workspace_id = workspace and j.id = v_job.id;
    perform helper._end_reply(workspace, message, null, 'cancelled', null, null, null, null, null, null);
  end loop;
  select m.* into v_message
  from helper.messages m
  where m.workspace_id = workspace and m.id = message and m.status = 'awaiting_confirmation';
  return not found or helper._cancel_awaiting(v_message);
exception
  -- What one reply waits for keeps no other from being cancelled.
  when lock_not_available then
    return false;
end
$$;
comment on function helper._cancel_waiting(uuid, uuid) is
  'Ends a reply that nobody works on now, as it waits in the queue or for a confirmation; false where somebody is deciding just now, and it is to be tried again';

create function helper._cancel_reply(message helper.messages) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if message.status = 'awaiting_confirmation' then
    return helper._cancel_awaiting(message);
  end if;
  if message.status not in ('pending', 'streaming') then
    return false;
  end if;
  insert into helper.reply_cancellations (workspace_id, message_id)
  values (message.workspace_id, message.id)
  on conflict do nothing;
  return true;
end
$$;
comment on function helper._cancel_reply(helper.messages) is 'Cancels a reply that is under way; false where it has ended';

create function helper.cancel(message uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_message helper.messages;
begin
  select m.* into v_message
  from helper.messages m
  join helper.conversations c on c.workspace_id = m.workspace_id and c.id = m.conversation_id
  where m.id = message
    and m.role = 'assistant'
    and c.user_id = helper.current_user_id()
    and m.workspace_id = any (helper.my_workspaces());
  if not found then
    raise exception using errcode = '42704', message = format('message "%s" does not exist', message);
  end if;
  return helper._cancel_reply(v_message);
end
$$;
comment on function helper.cancel(uuid) is
  'Cancels a reply that helper.ask_async is working on, or one that waits for a confirmation, whose calls are cancelled too, and broken off at once where they are run: its message keeps what was said and gets the status cancelled, also where it has stopped for a confirmation before the transaction commits. False where it has ended. Errors: 42704';
