-- Calls of tools: what was asked for, by whom, whether somebody approved it, and what came of it. A call moves from one
-- state to the next in one conditional update, so that of all who try at once one succeeds.

create table helper.function_calls (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  function_id uuid not null,
  function_name text not null,
  function_version timestamptz not null,
  user_id uuid not null,
  principal_role name not null,
  principal_claims jsonb,
  depth integer not null default helper._depth_here(),
  run_id uuid default helper._run_here(),
  conversation_id uuid,
  message_id uuid,
  tool_call_id text,
  arguments jsonb not null constraint function_calls_arguments_check check (jsonb_typeof(arguments) = 'object'),
  arguments_hash bytea not null constraint function_calls_arguments_hash_check check (octet_length(arguments_hash) = 32),
  status text not null default 'pending' constraint function_calls_status_check check (status in (
    'pending', 'awaiting_confirmation', 'queued', 'running', 'succeeded', 'failed', 'rejected', 'expired', 'cancelled', 'uncertain')),
  in_queue boolean not null default false,
  idempotency_key text constraint function_calls_idempotency_key_check check (char_length(idempotency_key) between 1 and 200),
  preview jsonb,
  effect_hash bytea,
  result jsonb,
  error jsonb,
  approver_role text,
  self_approval boolean not null default true,
  decided_by uuid,
  decided_at timestamptz,
  reason text constraint function_calls_reason_check check (char_length(reason) <= 2000),
  lapses_at timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz,
  primary key (workspace_id, id),
  constraint function_calls_conversation_fkey foreign key (workspace_id, conversation_id)
    references helper.conversations (workspace_id, id) on delete set null (conversation_id),
  constraint function_calls_message_fkey foreign key (workspace_id, message_id)
    references helper.messages (workspace_id, id) on delete set null (message_id)
);
comment on table helper.function_calls is 'Calls of tools, written by the extension alone';
comment on column helper.function_calls.workspace_id is 'Workspace of the call';
comment on column helper.function_calls.id is 'Identifier, in order of creation';
comment on column helper.function_calls.function_id is 'The tool';
comment on column helper.function_calls.function_name is 'Its name';
comment on column helper.function_calls.function_version is 'When its registration had last changed; one that changed since is not run';
comment on column helper.function_calls.user_id is 'Who calls';
comment on column helper.function_calls.principal_role is 'Role that it runs as';
comment on column helper.function_calls.principal_claims is 'JWT claims that it runs with; JSON null when they were malformed';
comment on column helper.function_calls.depth is 'How many workflows led to it; -1: none';
comment on column helper.function_calls.run_id is 'The run that led to it';
comment on column helper.function_calls.conversation_id is 'Conversation in which a model made it';
comment on column helper.function_calls.message_id is 'Reply in which a model made it';
comment on column helper.function_calls.tool_call_id is 'The model''s own id of it';
comment on column helper.function_calls.arguments is 'Arguments, as they are passed';
comment on column helper.function_calls.arguments_hash is 'SHA-256 of the tool''s name and the arguments in canonical form: what an approval is for';
comment on column helper.function_calls.status is 'pending, awaiting_confirmation, queued, running, succeeded, failed, rejected, expired, cancelled or uncertain (sent, and nobody knows what came of it)';
comment on column helper.function_calls.in_queue is 'Whether a runner or the worker runs it, not the session that calls or confirms';
comment on column helper.function_calls.idempotency_key is 'The same key is the same call';
comment on column helper.function_calls.preview is 'Rows before and after, for each table that it would change';
comment on column helper.function_calls.effect_hash is 'SHA-256 of what the preview shows, new identifiers and present times left out';
comment on column helper.function_calls.result is 'What it returned';
comment on column helper.function_calls.error is 'Why it failed: sqlstate, message, detail, hint';
comment on column helper.function_calls.approver_role is 'Role that may approve; null: the caller';
comment on column helper.function_calls.self_approval is 'Whether the caller may, having that role';
comment on column helper.function_calls.decided_by is 'Who approved or rejected it';
comment on column helper.function_calls.decided_at is 'When that was';
comment on column helper.function_calls.reason is 'Why it was rejected';
comment on column helper.function_calls.lapses_at is 'When it can no longer be approved';
comment on column helper.function_calls.created_at is 'When it was made';
comment on column helper.function_calls.started_at is 'When it was run';
comment on column helper.function_calls.finished_at is 'When it ended';
create unique index function_calls_idempotency_key_idx on helper.function_calls (idempotency_key, workspace_id) where idempotency_key is not null;
create index function_calls_message_id_idx on helper.function_calls (message_id, workspace_id) where message_id is not null;
create index function_calls_conversation_id_idx on helper.function_calls (conversation_id, workspace_id) where conversation_id is not null;
create index function_calls_user_id_id_idx on helper.function_calls (user_id, id);
-- Finished calls are deleted in order of age.
create index function_calls_finished_at_idx on helper.function_calls (finished_at) where finished_at is not null;
create index function_calls_running_idx on helper.function_calls (id) where status = 'running';
create index function_calls_lapses_at_idx on helper.function_calls (lapses_at) where status = 'awaiting_confirmation';

-- A reply goes on that waited for it.
create trigger function_calls_wake after update on helper.function_calls
  for each row when (
    old.finished_at is null and new.finished_at is not null and new.in_queue and new.message_id is not null and new.lapses_at is null)
  execute function helper._wake_worker();

alter table helper.function_calls enable row level security;
create policy function_calls_select_concerned on helper.function_calls for select
  using (
    user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces())::uuid[])
    or workspace_id = any ((select helper.my_workspaces('admin'))::uuid[])
    or status = 'awaiting_confirmation' and approver_role is not null and helper.is_member(workspace_id, approver_role)
  );
comment on policy function_calls_select_concerned on helper.function_calls is
  'Callers see their calls, admins those of the workspace, and whoever may approve those that wait for it';
select pg_catalog.pg_extension_config_dump('helper.function_calls', '');

-- From one state to the next

-- Who tries too late waits for who was first, then finds another state and changes nothing.
create function helper._move_call(workspace uuid, call uuid, states text[], state text, facts jsonb default '{}') returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  update helper.function_calls c
  set status = state,
    result = coalesce(facts -> 'result', c.result),
    error = coalesce(facts -> 'error', c.error),
    -- What somebody else is to approve is what was shown to them, not what the caller tries meanwhile.
    preview = case
      when c.status = state and c.approver_role is not null then coalesce(c.preview, facts -> 'preview')
      else coalesce(facts -> 'preview', c.preview)
    end,
    effect_hash = case
      when c.status = state and c.approver_role is not null then coalesce(c.effect_hash, decode(facts ->> 'effect_hash', 'hex'))
      else coalesce(decode(facts ->> 'effect_hash', 'hex'), c.effect_hash)
    end,
    -- What would do something else than was approved is not approved any more, and may be thought over as long as before.
    decided_by = case when state <> 'awaiting_confirmation' then coalesce((facts ->> 'decided_by')::uuid, c.decided_by) end,
    decided_at = case
      when state = 'awaiting_confirmation' then null
      when facts ->> 'decided_by' is null then c.decided_at
      else v_now
    end,
    lapses_at = case
      when c.status = 'running' and state = 'awaiting_confirmation' then v_now + (c.lapses_at - c.created_at)
      else c.lapses_at
    end,
    reason = coalesce(facts ->> 'reason', c.reason),
    started_at = case state when 'running' then v_now when 'awaiting_confirmation' then null else c.started_at end,
    finished_at = case when state in ('pending', 'awaiting_confirmation', 'queued', 'running') then null else v_now end
  where c.workspace_id = workspace
    and c.id = call
    and c.status = any (states)
    and case
      when state = 'expired' then c.lapses_at <= v_now
      when c.status = 'awaiting_confirmation' then c.lapses_at > v_now or state = 'cancelled'
      else true
    end
    -- An approval is for what was seen.
    and (facts ->> 'effect' is null or decode(facts ->> 'effect', 'hex') is not distinct from c.effect_hash);
  if not found then
    return false;
  end if;
  perform helper._resume(workspace, call);
  return true;
end
$$;
comment on function helper._move_call(uuid, uuid, text[], text, jsonb) is
  'Moves a call from one of some states to another, with what is known by then; false where it is in none of them';

-- A reply that stopped for an approval goes on when the call has ended.
create function helper._resume(workspace uuid, call uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_message uuid;
begin
  select c.message_id into v_message
  from helper.function_calls c
  where c.workspace_id = workspace
    and c.id = call
    and c.message_id is not null
    and c.lapses_at is not null
    and c.finished_at is not null;
  if found and to_regprocedure('helper._resume_reply(uuid, uuid)') is not null then
    execute 'select helper._resume_reply($1, $2)' using workspace, v_message;
  end if;
end
$$;
comment on function helper._resume(uuid, uuid) is 'Has the reply go on that a call had stopped, where it has ended';

create function helper._expire_calls() returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
declare
  v_count bigint := 0;
  v_call record;
begin
  for v_call in
    select c.workspace_id, c.id
    from helper.function_calls c
    where c.status = 'awaiting_confirmation' and c.lapses_at <= (select clock_timestamp())
    order by c.lapses_at
    limit 1000
    for update skip locked
  loop
    -- A reply that somebody's open transaction holds keeps nobody else's calls from lapsing.
    begin
      v_count := v_count + helper._move_call(v_call.workspace_id, v_call.id, array['awaiting_confirmation'], 'expired')::integer;
    exception
      when lock_not_available then null;
    end;
  end loop;
  return v_count;
end
$$;
comment on function helper._expire_calls() is 'Ends calls that nobody approved in time, and says how many';

-- What is seen to run when a worker begins was sent by one before it: whether the request or its answer was lost, nobody knows.
create function helper._settle_calls(workspaces uuid[], calls uuid[]) returns table (workspace_id uuid, call uuid)
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
#variable_conflict use_column
declare
  v_call record;
  v_state text;
  v_held uuid[] := '{}';
begin
  for v_call in
    select c.workspace_id, c.id, c.in_queue, coalesce(f.idempotent, false) as idempotent
    from unnest(workspaces, calls) l (workspace_id, id)
    join helper.function_calls c on c.workspace_id = l.workspace_id and c.id = l.id
    left join helper.functions f on f.id = c.function_id
    where c.status = 'running'
    for update of c skip locked
  loop
    continue when v_call.workspace_id = any (v_held);
    v_state := case when not v_call.idempotent then 'uncertain' when v_call.in_queue then 'queued' else 'failed' end;
    -- A reply that somebody's open transaction holds keeps nobody else's calls from being settled.
    begin
      perform helper._move_call(v_call.workspace_id, v_call.id, array['running'], v_state,
        case when v_state = 'queued' then '{}' else jsonb_build_object('error', jsonb_build_object(
          'sqlstate', '55000',
          'message', 'the server ended during the call',
          'hint', case v_state
            when 'failed' then 'Call the function again.'
            else 'Whether the tool has done it is not known: look there before it is called again.'
          end)) end);
    exception
      when lock_not_available then v_held := v_held || v_call.workspace_id;
    end;
  end loop;
  return query
    select c.workspace_id, c.id
    from unnest(workspaces, calls) l (workspace_id, id)
    join helper.function_calls c on c.workspace_id = l.workspace_id and c.id = l.id
    where c.status = 'running';
end
$$;
comment on function helper._settle_calls(uuid[], uuid[]) is
  'Ends calls that a worker which is gone had sent, or has them sent again where a repetition does no harm; what is left for the next time, as somebody holds it';

-- In small parts, each a statement of its own, until nothing is left. What a reply still goes on from stays.
create function helper._clean_calls(retention_minutes integer, most integer default 1000) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_count bigint;
begin
  delete from helper.function_calls c
  where c.ctid = any (array(
    select o.ctid
    from helper.function_calls o
    where o.finished_at < (select clock_timestamp() - make_interval(mins => retention_minutes))
      and not exists (
        select from helper.messages m
        where m.workspace_id = o.workspace_id and m.id = o.message_id and m.status in ('pending', 'streaming', 'awaiting_confirmation'))
    order by o.finished_at
    limit most
    for update of o skip locked));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function helper._clean_calls(integer, integer) is 'Deletes a part of the calls that ended long ago, the oldest first, and says how many; what a reply still goes on from stays';

-- Which call, and who may do what with it

create function helper._concerned(call uuid) returns helper.function_calls
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_call helper.function_calls;
begin
  select c.* into v_call
  from helper.function_calls c
  where c.workspace_id = any (helper.my_workspaces())
    and c.id = call
    and (c.user_id = helper.current_user_id()
      or helper.is_member(c.workspace_id, 'admin')
      or c.approver_role is not null and helper.is_member(c.workspace_id, c.approver_role)
        and (c.status = 'awaiting_confirmation' or c.decided_by = helper.current_user_id()));
  if not found then
    raise exception using errcode = '42704', message = format('call "%s" does not exist', call);
  end if;
  return v_call;
end
$$;
comment on function helper._concerned(uuid) is 'A call that the caller may see. Errors: 42704';

create function helper._may_approve(call helper.function_calls) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case
    when call.approver_role is null then call.user_id = helper.current_user_id()
    else helper.is_member(call.workspace_id, call.approver_role)
      and (call.self_approval or call.user_id <> helper.current_user_id())
  end
$$;
comment on function helper._may_approve(helper.function_calls) is 'Whether the caller may approve a call';

create function helper._check_approver(call helper.function_calls) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if not helper._may_approve(call) then
    raise exception using
      errcode = '42501',
      message = format('permission denied to approve the call of function "%s"', call.function_name),
      detail = case
        when call.approver_role is null then 'Only who made the call may approve it.'
        when call.user_id = helper.current_user_id() and helper.is_member(call.workspace_id, call.approver_role)
          then 'It must be approved by somebody else than who made it.'
        else format('That needs the role %s in the workspace.', call.approver_role)
      end;
  end if;
end
$$;
comment on function helper._check_approver(helper.function_calls) is 'Refuses who may not approve a call. Errors: 42501';

create function helper._refuse_decision(call helper.function_calls, what text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_status text := helper._status_of(call);
begin
  if v_status = 'expired' then
    raise exception using
      errcode = '55000',
      message = format('the call cannot be %s, it has expired', what),
      detail = format('It waited for approval until %s.', call.lapses_at),
      hint = 'Call the function again.';
  end if;
  raise exception using errcode = '55000', message = format('the call cannot be %s, it is %s', what, v_status);
end
$$;
comment on function helper._refuse_decision(helper.function_calls, text) is 'Says why a decision comes too late. Errors: 55000';

create function helper._check_approved(call helper.function_calls, effect text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if helper._status_of(call) = 'awaiting_confirmation' and effect is not null and effect is distinct from encode(call.effect_hash, 'hex') then
    raise exception using
      errcode = '55000',
      message = 'the call''s effect is not the one that was seen',
      detail = case when call.effect_hash is null then 'It has not been previewed.' else 'It was previewed again meanwhile.' end,
      hint = 'Preview it again, and confirm with the effect of that.';
  end if;
  if call.status in ('pending', 'awaiting_confirmation', 'rejected', 'expired', 'cancelled') then
    perform helper._refuse_decision(call, 'confirmed');
  end if;
end
$$;
comment on function helper._check_approved(helper.function_calls, text) is
  'Refuses a confirmation of what was decided otherwise, or of another effect; one that was confirmed before is well. Errors: 55000';

create function helper._status_of(call helper.function_calls) returns text
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select case
    when call.status = 'awaiting_confirmation' and call.lapses_at <= clock_timestamp() then 'expired'
    else call.status
  end
$$;
comment on function helper._status_of(helper.function_calls) is 'Status of a call; one that has lapsed is expired before the worker has written so';

create function helper._call_facts(call helper.function_calls) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'id', call.id,
    'workspace_id', call.workspace_id,
    'function', call.function_name,
    'status', helper._status_of(call),
    'arguments', call.arguments,
    'result', call.result,
    'error', call.error,
    'preview', call.preview,
    'effect', encode(call.effect_hash, 'hex'),
    'user_id', call.user_id,
    'conversation_id', call.conversation_id,
    'message_id', call.message_id,
    'approver_role', call.approver_role,
    'may_approve', helper._status_of(call) = 'awaiting_confirmation' and helper._may_approve(call),
    'decided_by', call.decided_by,
    'decided_at', call.decided_at,
    'reason', call.reason,
    'lapses_at', call.lapses_at,
    'created_at', call.created_at,
    'started_at', call.started_at,
    'finished_at', call.finished_at)
$$;
comment on function helper._call_facts(helper.function_calls) is 'A call as call_status tells it';

-- What callers and approvers do

create function helper.call(
  function text,
  arguments jsonb default '{}',
  workspace uuid default null,
  idempotency_key text default null,
  options jsonb default '{}'
) returns uuid
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'call_function_wrapper';
comment on function helper.call(text, jsonb, uuid, text, jsonb) is
  'Calls a tool as the caller and returns the call''s id. One that needs confirmation waits for it; others run at once in this transaction, or after it in the background: HTTP endpoints, and with option queue (true). A tool that fails leaves the transaction as it was: call_status tells its error. With an idempotency_key a repeated call is the first one. Errors: 22023 arguments do not fit, 42501, 42704, 53400 limit reached, 55000';

create function helper.call_status(call uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  return helper._call_facts(helper._concerned(call));
end
$$;
comment on function helper.call_status(uuid) is
  'A call: id, workspace_id, function, status, arguments, result, error (sqlstate, message, detail, hint), preview, effect (what an approval of that preview is for), user_id, approver_role, may_approve, decided_by, decided_at, reason, lapses_at, created_at, started_at, finished_at. For who made it, admins, and who may approve it. Errors: 42704';

create function helper.confirm(call uuid, effect text default null) returns jsonb
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'confirm_call_wrapper';
comment on function helper.confirm(uuid, text) is
  'Approves a call and returns it as call_status does. effect: as preview or call_status told it, so that nothing else is approved than was seen; null: whatever was previewed last. Who made it has it run at once in this transaction; one of somebody else, of an HTTP endpoint or with option queue is run in the background as who made it. One that was approved before is returned as it is and never runs again; one that would do something else than its preview showed waits again with the new preview. Errors: 22023, 42501, 42704, 55000 rejected, cancelled, expired, or another effect';

create function helper.preview(call uuid) returns jsonb
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'preview_call_wrapper';
comment on function helper.preview(uuid) is
  'Runs a call that waits for approval and takes all of it back: returns, and keeps for who approves, result or error and for each table its rows before and after as the caller sees them, and effect, which stands for all rows that would change, also those that are too many to be shown. For who made it. What happens outside of the database or in sequences is not taken back. Errors: 22023 not a SQL function, 42501, 42704, 55000 does not wait for approval';

create function helper.reject(call uuid, reason text default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_call helper.function_calls := helper._concerned(call);
begin
  if v_call.user_id <> helper.current_user_id() and not helper.is_member(v_call.workspace_id, 'admin') then
    perform helper._check_approver(v_call);
  end if;
  if char_length(reason) > 2000 then
    raise exception using errcode = '22023', message = 'reason has more than 2000 characters';
  end if;
  if not helper._move_call(v_call.workspace_id, v_call.id, array['awaiting_confirmation'], 'rejected',
    jsonb_build_object('decided_by', helper.current_user_id(), 'reason', reason))
  then
    v_call := helper._concerned(call);
    if v_call.status <> 'rejected' then
      perform helper._refuse_decision(v_call, 'rejected');
    end if;
  end if;
  return helper._call_facts(helper._concerned(call));
end
$$;
comment on function helper.reject(uuid, text) is
  'Rejects a call that waits for approval and returns it as call_status does; a model is told so, with the reason. For who made it, who may approve it, and admins. Errors: 22023, 42501, 42704, 55000 decided or ended before';

create function helper._cancel_call(workspace uuid, call uuid) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  -- Whoever runs it has its row until that has ended.
  perform helper._call_off(call, false);
  if helper._move_call(workspace, call, array['pending', 'awaiting_confirmation', 'queued'], 'cancelled') then
    return true;
  end if;
  -- In a statement of its own, which sees what a runner that was broken off has noted meanwhile.
  return exists (select from helper.function_calls c where c.workspace_id = workspace and c.id = call and c.status = 'cancelled');
end
$$;
comment on function helper._cancel_call(uuid, uuid) is
  'Cancels a call that has not ended, breaking off a runner that is at it; false where it has ended otherwise, or is being sent';

create function helper.cancel_call(call uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_call helper.function_calls := helper._concerned(call);
begin
  if v_call.user_id <> helper.current_user_id() and not helper.is_member(v_call.workspace_id, 'admin') then
    raise exception using
      errcode = '42501',
      message = 'permission denied to cancel the call',
      detail = 'Only who made it and admins of the workspace may.';
  end if;
  return v_call.finished_at is null and helper._cancel_call(v_call.workspace_id, v_call.id);
end
$$;
comment on function helper.cancel_call(uuid) is
  'Cancels a call that waits, or that is run in the background: what it did so far is taken back. False where it has ended, or its request has been sent. One that is run is broken off at once, unless it catches query_canceled, and may stay cancelled even if the caller''s transaction is rolled back. For who made it and admins. Errors: 42501, 42704';
