-- Runs: what is wanted of them, and what they came to.

create function helper._wake_run(workspace uuid, run uuid, command jsonb default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  insert into helper.workflow_queue (workspace_id, run_id, priority, command)
  select r.workspace_id, r.id, case when _wake_run.command is null then -r.priority else -1000000 end, _wake_run.command
  from helper.workflow_runs r
  where r.workspace_id = workspace and r.id = run;
end
$$;
comment on function helper._wake_run(uuid, uuid, jsonb) is 'Has a runner look at a run, and do with it what is wanted';

-- What is gone has ended too.
create function helper._wake_waiting() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._wake_run(w.workspace_id, w.run_id)
  from helper.workflow_waits w
  where w.subject = coalesce(new.id, old.id) and w.workspace_id = coalesce(new.workspace_id, old.workspace_id);
  return null;
end
$$;
comment on function helper._wake_waiting() is 'Has runs go on that wait for what has ended now, or is not there any more';
create trigger function_calls_wake_waiting after update of status on helper.function_calls
  for each row when (new.status in ('succeeded', 'failed', 'rejected', 'expired', 'cancelled', 'uncertain'))
  execute function helper._wake_waiting();
create trigger function_calls_wake_abandoned after delete on helper.function_calls
  for each row when (old.status not in ('succeeded', 'failed', 'rejected', 'expired', 'cancelled', 'uncertain'))
  execute function helper._wake_waiting();
create trigger messages_wake_waiting after update of status on helper.messages
  for each row when (new.status in ('done', 'error', 'cancelled'))
  execute function helper._wake_waiting();
create trigger messages_wake_abandoned after delete on helper.messages
  for each row when (old.status not in ('done', 'error', 'cancelled'))
  execute function helper._wake_waiting();
-- Many runs end in one statement, and few are waited for. What is known of the waits may be of a time when there were none.
create function helper._wake_waiting_for_runs() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
  perform helper._wake_run(w.workspace_id, w.run_id)
  from ended e
  join helper.workflow_waits w on w.subject = e.id and w.workspace_id = e.workspace_id
  where e.status in ('succeeded', 'failed', 'cancelled', 'timed_out');
  return null;
end
$$;
comment on function helper._wake_waiting_for_runs() is 'Has runs go on that wait for runs that have ended now';
create trigger workflow_runs_wake_waiting after update on helper.workflow_runs
  referencing new table as ended
  for each statement execute function helper._wake_waiting_for_runs();
create trigger workflow_runs_wake_abandoned after delete on helper.workflow_runs
  for each row when (old.finished_at is null)
  execute function helper._wake_waiting();

-- An event that runs wait for.
create function helper._wake_for_event(workspace uuid, event text, payload jsonb) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
  with came as (
    update helper.workflow_waits w
    set payload = _wake_for_event.payload
    where w.workspace_id = workspace
      and w.event = _wake_for_event.event
      and w.payload is null
      and _wake_for_event.payload @> coalesce(w.matching, '{}')
    returning w.workspace_id, w.run_id
  )
  select helper._wake_run(c.workspace_id, c.run_id) from came c
$$;
comment on function helper._wake_for_event(uuid, text, jsonb) is 'Gives an event to the runs that wait for it';

create function helper._run(run uuid, minimum_role text) returns helper.workflow_runs
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_run helper.workflow_runs;
begin
  select r.* into v_run
  from helper.workflow_runs r
  where r.id = run and r.workspace_id = any (helper.my_workspaces());
  if not found then
    raise exception using errcode = '42704', message = format('run "%s" does not exist', run);
  end if;
  if not helper.is_member(v_run.workspace_id, minimum_role) then
    raise exception using
      errcode = '42501',
      message = 'permission denied for the run',
      detail = format('That needs the role %s in the workspace.', minimum_role);
  end if;
  return v_run;
end
$$;
comment on function helper._run(uuid, text) is 'A run, for a caller with a role in its workspace. Errors: 42501, 42704';

create function helper._cancel_run(workspace uuid, run uuid) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select helper._wake_run(workspace, run, '{"do": "cancel"}');
  -- Once that is to be seen; and what it waits for, as every runner may be at that.
  with recursive below (id) as (
    select run
    union
    select w.subject
    from below b
    join helper.workflow_waits w on w.workspace_id = workspace and w.run_id = b.id
    where w.subject is not null
  )
  select helper._call_off(b.id, true) from below b
$$;
comment on function helper._cancel_run(uuid, uuid) is 'Has a run cancelled, breaking off the statement it is at';

create function helper.cancel_run(run uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_run helper.workflow_runs := helper._run(run, 'member');
begin
  if v_run.user_id is distinct from helper.current_user_id() and not helper.is_member(v_run.workspace_id, 'admin') then
    raise exception using
      errcode = '42501',
      message = 'permission denied to cancel the run',
      detail = 'Who started it and admins of the workspace may.';
  end if;
  if v_run.finished_at is not null then
    return false;
  end if;
  perform helper._cancel_run(v_run.workspace_id, v_run.id);
  return true;
end
$$;
comment on function helper.cancel_run(uuid) is
  'Has a run cancelled, with what it waits for and the statement it is at; false where it has ended. Steps that were done stay done. For who started it and admins. Errors: 42501, 42704';

create function helper._command_run(run uuid, command text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_run helper.workflow_runs := helper._run(run, 'admin');
begin
  if v_run.finished_at is not null then
    return false;
  end if;
  perform helper._wake_run(v_run.workspace_id, v_run.id, jsonb_build_object('do', command));
  return true;
end
$$;
comment on function helper._command_run(uuid, text) is
  'Has something done with a run that has not ended, for admins of its workspace; false where it has. Errors: 42501, 42704';

create function helper.pause_run(run uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  return helper._command_run(run, 'pause');
end
$$;
comment on function helper.pause_run(uuid) is
  'Has no further step of a run begun until resume_run; false where it has ended. For workspace admins. Errors: 42501, 42704';

create function helper.resume_run(run uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  return helper._command_run(run, 'resume');
end
$$;
comment on function helper.resume_run(uuid) is 'Has a paused run go on; false where it has ended. For workspace admins. Errors: 42501, 42704';

create function helper.retry_step(run uuid, step text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_run helper.workflow_runs := helper._run(run, 'admin');
begin
  perform
  from helper.workflow_steps s
  where s.workspace_id = v_run.workspace_id
    and s.run_id = v_run.id
    and s.step = retry_step.step
    and s.item = -1
    and s.status in ('failed', 'uncertain', 'cancelled');
  if not found then
    raise exception using
      errcode = '55000',
      message = format('step "%s" cannot be tried again', step),
      detail = 'Only one that failed, is uncertain or was cancelled can.';
  end if;
  perform helper._wake_run(v_run.workspace_id, v_run.id, jsonb_build_object('do', 'retry', 'step', step));
end
$$;
comment on function helper.retry_step(uuid, text) is
  'Has a step that failed or is uncertain tried again, and the run go on from there. For workspace admins. Errors: 42501, 42704, 55000';

create function helper._replayed(definition jsonb, steps jsonb, from_step text) returns jsonb
language c volatile parallel safe as 'MODULE_PATHNAME', 'replayed_steps_wrapper';
comment on function helper._replayed(jsonb, jsonb, text) is 'Steps of a run, as _run_steps tells them, that one which repeats it from a step begins with. Errors: 22023';

create function helper._definition(workspace uuid, workflow uuid, version integer) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return (
    select v.definition
    from helper.workflow_versions v
    where v.workspace_id = workspace and v.workflow_id = workflow and v.version = _definition.version);
end
$$;
comment on function helper._definition(uuid, uuid, integer) is 'A version of a workflow';

create function helper._run_steps(workspace uuid, run uuid) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(jsonb_agg(jsonb_build_object('step', s.step, 'item', s.item, 'status', s.status, 'attempt', s.attempt)), '[]')
  from helper.workflow_steps s
  where s.workspace_id = workspace and s.run_id = run
$$;
comment on function helper._run_steps(uuid, uuid) is 'Steps of a run and their states';

create function helper.replay_run(run uuid, from_step text default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_run helper.workflow_runs := helper._run(run, 'admin');
  v_new uuid := helper.uuid_v7();
begin
  if helper._next_depth() > helper._deepest() then
    raise exception using errcode = '53400', message = 'workflows start one another too deep',
      detail = format('This run is the end of a chain of %s, each started by the one before.', helper._deepest());
  end if;
  if v_run.finished_at is null then
    raise exception using errcode = '55000', message = 'the run has not ended', hint = 'Cancel it first with helper.cancel_run.';
  end if;
  insert into helper.workflow_runs (workspace_id, id, workflow_id, version, trigger, input, depth, priority, user_id, replay_of)
  values (v_run.workspace_id, v_new, v_run.workflow_id, v_run.version,
    helper._with_origin(jsonb_build_object('kind', 'replay', 'run', v_run.id, 'from_step', from_step, 'trigger', v_run.trigger)),
    v_run.input, greatest(v_run.depth, helper._next_depth()), v_run.priority, helper.current_user_id(), v_run.id);
  if from_step is not null then
    insert into helper.workflow_steps
      (workspace_id, run_id, step, item, status, attempt, input, output, error, started_at, finished_at)
    select v_run.workspace_id, v_new, s.step, s.item, s.status, s.attempt, s.input, s.output, s.error, s.started_at, s.finished_at
    from jsonb_to_recordset(helper._replayed(
      helper._definition(v_run.workspace_id, v_run.workflow_id, v_run.version),
      helper._run_steps(v_run.workspace_id, v_run.id), from_step)) p (step text, item integer)
    join helper.workflow_steps s
      on s.workspace_id = v_run.workspace_id and s.run_id = v_run.id and s.step = p.step and s.item = p.item;
  end if;
  perform helper._wake_run(v_run.workspace_id, v_new);
  return v_new;
end
$$;
comment on function helper.replay_run(uuid, text) is
  'Starts a new run of the same version with the same input and returns its id; from a step on, what came before is copied. For workspace admins. Errors: 22023 no such step, 42501, 42704, 53400 too deep, 55000 it has not ended';

create function helper.redrive_runs(workflow text, since timestamptz default '-infinity', workspace uuid default null) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'admin');
  v_count bigint;
begin
  with lost as (
    select r.workspace_id, r.id
    from helper.workflow_runs r
    left join helper.workflow_steps s
      on s.workspace_id = r.workspace_id and s.run_id = r.id and s.item = -1 and s.step = r.error ->> 'step'
    where r.workflow_id = v_workflow.id
      and r.workspace_id = v_workflow.workspace_id
      and r.status in ('failed', 'timed_out')
      -- Rather a little more of the index than what a clock that was set back would leave out.
      and r.id >= helper.uuid_v7_at(since - interval '1 hour')
      and r.created_at >= since
      -- A stop was meant, and of what may have been done already somebody decides: retry_step.
      and s.status is distinct from 'succeeded'
      and not exists (
        select
        from helper.workflow_steps u
        where u.workspace_id = r.workspace_id and u.run_id = r.id and u.status = 'uncertain')
      and not exists (
        select
        from helper.workflow_steps c
        join helper.function_calls f on f.workspace_id = c.workspace_id and f.id = (c.waits_for ->> 'call')::uuid
        where c.workspace_id = r.workspace_id
          and c.run_id = r.id
          and c.status = 'cancelled'
          and f.status not in ('rejected', 'expired', 'cancelled'))
  ), woken as (
    select l.id, helper._wake_run(l.workspace_id, l.id, '{"do": "redrive"}') from lost l
  )
  select count(*) into v_count from woken;
  return v_count;
end
$$;
comment on function helper.redrive_runs(text, timestamptz, uuid) is
  'Has a workflow''s runs that failed or timed out go on from where they did, and returns how many that are; not those that a stop ended, nor those of which something may have been done already. For workspace admins. Errors: 42501, 42704';

create function helper.run_status(run uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_run helper.workflow_runs := helper._run(run, 'viewer');
  v_sees boolean := helper.is_member(v_run.workspace_id, 'member');
begin
  return jsonb_build_object(
    'id', v_run.id,
    'workspace_id', v_run.workspace_id,
    'workflow', (select w.name from helper.workflows w where w.workspace_id = v_run.workspace_id and w.id = v_run.workflow_id),
    'version', v_run.version,
    'status', v_run.status,
    'trigger', v_run.trigger ->> 'kind',
    'input', case when v_sees then v_run.input end,
    'output', case when v_sees then v_run.output end,
    'error', case when v_sees then v_run.error else v_run.error - 'message' - 'detail' - 'hint' end,
    'created_at', v_run.created_at,
    'started_at', v_run.started_at,
    'finished_at', v_run.finished_at,
    'steps', coalesce((
      select jsonb_agg(jsonb_build_object('step', s.step, 'item', nullif(s.item, -1), 'status', s.status, 'attempt', s.attempt,
        'error', case when v_sees then s.error else s.error - 'message' - 'detail' - 'hint' end, 'waits_for', case when v_sees then s.waits_for end, 'started_at', s.started_at, 'finished_at', s.finished_at)
        order by s.started_at nulls last, s.step, s.item)
      from helper.workflow_steps s
      where s.workspace_id = v_run.workspace_id and s.run_id = v_run.id), '[]'));
end
$$;
comment on function helper.run_status(uuid) is
  'A run: id, workspace_id, workflow, version, status, trigger, input and output (null for viewers), error, created_at, started_at, finished_at, steps. Errors: 42704';

create function helper.wait_run(run uuid, timeout interval default '1 min') returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_until timestamptz := clock_timestamp() + timeout;
  v_status text;
begin
  loop
    v_status := (helper._run(run, 'viewer')).status;
    if v_status in ('succeeded', 'failed', 'cancelled', 'timed_out', 'paused') or clock_timestamp() >= v_until then
      return v_status;
    end if;
    perform pg_sleep(0.01);
  end loop;
end
$$;
comment on function helper.wait_run(uuid, interval) is
  'Waits until a run has ended or is paused, or the time is over, and returns its status. Under READ COMMITTED alone, and not in the transaction that started it. Errors: 42704';

create function helper._mermaid(definition jsonb, steps jsonb) returns text
language c volatile parallel safe as 'MODULE_PATHNAME', 'workflow_diagram_wrapper';
comment on function helper._mermaid(jsonb, jsonb) is 'A definition as a Mermaid flowchart, with the states of a run''s steps if there is one';

create function helper.workflow_mermaid(workflow text, workspace uuid default null) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'viewer');
begin
  return helper._mermaid(helper._definition(v_workflow.workspace_id, v_workflow.id, v_workflow.version), null);
end
$$;
comment on function helper.workflow_mermaid(text, uuid) is 'A workflow as a Mermaid flowchart. Errors: 42704';

create function helper.run_mermaid(run uuid) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_run helper.workflow_runs := helper._run(run, 'viewer');
begin
  return helper._mermaid(helper._definition(v_run.workspace_id, v_run.workflow_id, v_run.version),
    helper._run_steps(v_run.workspace_id, v_run.id));
end
$$;
comment on function helper.run_mermaid(uuid) is 'A run as a Mermaid flowchart, its steps coloured by their states. Errors: 42704';
