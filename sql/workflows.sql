-- Workflows: what is to be done, their runs and each run's steps. A run is taken from the queue by a runner, which does its
-- work in SQL, stores what came of it and says what is next in one transaction. Only the runner changes a run: whoever wants
-- something of it puts a row into its queue.

create table helper.workflows (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  name text not null constraint workflows_name_check check (name ~ '^[a-zA-Z][a-zA-Z0-9_-]{0,62}$'),
  description text not null default '',
  version integer not null default 1,
  enabled boolean not null default true,
  problem text,
  user_id uuid not null,
  settings jsonb not null default '{}' constraint workflows_settings_check check (jsonb_typeof(settings) = 'object'),
  start_id uuid,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint workflows_name_key unique (name, workspace_id)
);
comment on table helper.workflows is 'Workflows of a workspace, written by the extension alone';
comment on column helper.workflows.workspace_id is 'The workspace';
comment on column helper.workflows.id is 'Identifier';
comment on column helper.workflows.name is 'Name by which it is run';
comment on column helper.workflows.description is 'What it is for';
comment on column helper.workflows.version is 'Version that new runs have';
comment on column helper.workflows.enabled is 'Whether runs are started; false: paused';
comment on column helper.workflows.problem is 'Why it was paused, where nobody did so';
comment on column helper.workflows.user_id is 'Its owner: who wrote the present version';
comment on column helper.workflows.settings is 'What templates see as vars, in runs of versions that the workflow''s owner wrote';
comment on column helper.workflows.start_id is 'Schedule, event or endpoint that its definition had set up to start it';
comment on column helper.workflows.created_at is 'When it was created';
comment on column helper.workflows.updated_at is 'When it last changed';

create table helper.workflow_versions (
  workspace_id uuid not null,
  workflow_id uuid not null,
  version integer not null,
  definition jsonb not null,
  user_id uuid not null,
  principal_role name not null,
  principal_claims jsonb,
  settings jsonb not null default '{}',
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, workflow_id, version),
  constraint workflow_versions_workflow_fkey foreign key (workspace_id, workflow_id) references helper.workflows on delete cascade
);
comment on table helper.workflow_versions is 'Definitions of workflows; they never change, a run keeps the one that it began with';
comment on column helper.workflow_versions.workspace_id is 'The workspace';
comment on column helper.workflow_versions.workflow_id is 'The workflow';
comment on column helper.workflow_versions.version is 'Counts from 1';
comment on column helper.workflow_versions.definition is 'The definition, as helper.workflow_schema() describes it';
comment on column helper.workflow_versions.user_id is 'Who wrote it, as whom its runs act';
comment on column helper.workflow_versions.principal_role is 'Role that its runs have';
comment on column helper.workflow_versions.principal_claims is 'JWT claims that its runs have; JSON null when they were malformed';
comment on column helper.workflow_versions.settings is 'What templates saw as vars when it was written; its runs see the workflow''s present ones while the workflow is its writer''s';
comment on column helper.workflow_versions.created_at is 'When it was written';

create table helper.workflow_runs (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  workflow_id uuid not null,
  version integer not null,
  status text not null default 'queued' constraint workflow_runs_status_check check (status in (
    'queued', 'running', 'waiting', 'paused', 'succeeded', 'failed', 'cancelled', 'timed_out')),
  trigger jsonb not null,
  input jsonb not null,
  output jsonb,
  error jsonb,
  idempotency_key text constraint workflow_runs_idempotency_key_check check (char_length(idempotency_key) between 1 and 300),
  depth integer not null default 0,
  priority integer not null default 0,
  user_id uuid,
  replay_of uuid,
  key text,
  holds text,
  in_workspace text constraint workflow_runs_in_workspace_check check (in_workspace in ('waits', 'counts')),
  admitted_at timestamptz,
  bytes bigint not null default 0,
  deadline timestamptz,
  paused_at timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz,
  primary key (workspace_id, id),
  constraint workflow_runs_version_fkey foreign key (workspace_id, workflow_id, version) references helper.workflow_versions on delete cascade
);
create unique index workflow_runs_idempotency_key_idx on helper.workflow_runs (workflow_id, idempotency_key) where idempotency_key is not null;
create index workflow_runs_workflow_id_id_idx on helper.workflow_runs (workflow_id, id);
-- What changes as a run goes on is in no index, but where it takes turns: there is room on its page for what it comes to,
-- and for all runs of a page together, as short ones end in one transaction.
alter table helper.workflow_runs set (fillfactor = 45);
comment on table helper.workflow_runs is 'Runs of workflows, written by the extension alone';
comment on column helper.workflow_runs.workspace_id is 'The workspace';
comment on column helper.workflow_runs.id is 'Identifier, in order of creation';
comment on column helper.workflow_runs.workflow_id is 'The workflow';
comment on column helper.workflow_runs.version is 'Version of it that this is a run of';
comment on column helper.workflow_runs.status is 'queued, running, waiting (all of it waits for somebody or a time), paused, succeeded, failed, cancelled or timed_out';
comment on column helper.workflow_runs.trigger is 'What started it: kind (manual, schedule, event, table, webhook, workflow or replay), origin (the run that led to it, where one did), and more by kind';
comment on column helper.workflow_runs.input is 'What it was started with; of an event or webhook, its payload';
comment on column helper.workflow_runs.output is 'What it came to';
comment on column helper.workflow_runs.error is 'Why it failed: sqlstate, message, detail, hint, step';
comment on column helper.workflow_runs.idempotency_key is 'The same key of the same workflow is the same run';
comment on column helper.workflow_runs.depth is 'How many workflows led to it';
comment on column helper.workflow_runs.priority is 'Higher ones first, within the workspace';
comment on column helper.workflow_runs.user_id is 'Who started it by hand';
comment on column helper.workflow_runs.replay_of is 'The run that it repeats';
comment on column helper.workflow_runs.key is 'While it waits for its turn: runs of the workflow with the same key count together for its concurrency';
comment on column helper.workflow_runs.holds is 'The same once it has begun, until it ends';
comment on column helper.workflow_runs.in_workspace is 'Where the workspace has a limit: it waits for others of the workspace to end, or counts among those that go on';
comment on column helper.workflow_runs.admitted_at is 'When it was let in, where only so many may begin in a time';
comment on column helper.workflow_runs.bytes is 'What its input and its steps'' outputs take, as text';
comment on column helper.workflow_runs.deadline is 'When it times out';
comment on column helper.workflow_runs.paused_at is 'Since when it is paused';
comment on column helper.workflow_runs.created_at is 'When it was asked for';
comment on column helper.workflow_runs.started_at is 'When it began';
comment on column helper.workflow_runs.finished_at is 'When it ended';

create table helper.workflow_steps (
  workspace_id uuid not null,
  run_id uuid not null,
  step text not null,
  item integer not null default -1,
  status text not null constraint workflow_steps_status_check check (status in (
    'pending', 'ready', 'running', 'succeeded', 'failed', 'skipped', 'cancelled', 'waiting', 'uncertain')),
  attempt integer not null,
  input jsonb,
  output jsonb,
  error jsonb,
  waits_for jsonb,
  wake_at timestamptz,
  started_at timestamptz,
  finished_at timestamptz,
  primary key (workspace_id, run_id, step, item),
  constraint workflow_steps_run_fkey foreign key (workspace_id, run_id) references helper.workflow_runs on delete cascade
);
comment on table helper.workflow_steps is 'Steps of runs that began, or that will not begin any more, and items of maps';
comment on column helper.workflow_steps.workspace_id is 'The workspace';
comment on column helper.workflow_steps.run_id is 'The run';
comment on column helper.workflow_steps.step is 'The step''s name';
comment on column helper.workflow_steps.item is 'Number of the item of a map, from 0; -1: the step itself';
comment on column helper.workflow_steps.status is 'pending, ready, running, succeeded, failed, skipped, cancelled, waiting or uncertain (whether it had its effect is not known)';
comment on column helper.workflow_steps.attempt is 'Counts from 1; 0: it never began';
comment on column helper.workflow_steps.input is 'What it was given, its templates filled in';
comment on column helper.workflow_steps.output is 'What it came to';
comment on column helper.workflow_steps.error is 'Why it failed: sqlstate, message, detail, hint';
comment on column helper.workflow_steps.waits_for is 'What it waits for: call, message, run or event';
comment on column helper.workflow_steps.wake_at is 'When it goes on at the latest';
comment on column helper.workflow_steps.started_at is 'When this attempt began';
comment on column helper.workflow_steps.finished_at is 'When it ended';

create table helper.workflow_queue (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  run_id uuid not null,
  priority integer not null default 0,
  run_at timestamptz not null default clock_timestamp(),
  is_due boolean not null default true,
  attempts integer not null default 0,
  command jsonb,
  primary key (workspace_id, id),
  constraint workflow_queue_run_fkey foreign key (workspace_id, run_id) references helper.workflow_runs on delete cascade
);
comment on table helper.workflow_queue is 'Runs that a runner is to look at, and what is wanted of them';
comment on column helper.workflow_queue.workspace_id is 'The workspace; workspaces take turns';
comment on column helper.workflow_queue.id is 'Identifier, in order of creation';
comment on column helper.workflow_queue.run_id is 'The run';
comment on column helper.workflow_queue.priority is 'The run''s, with its sign changed: lower ones first';
comment on column helper.workflow_queue.run_at is 'Not before this time; infinity: when another run of the workflow has ended';
comment on column helper.workflow_queue.is_due is 'Its time has come: looks for work never come across those that sleep';
comment on column helper.workflow_queue.attempts is 'Times that a runner ended over it';
comment on column helper.workflow_queue.command is 'What is wanted: do (cancel, pause, resume, retry or redrive) and step; null: that it goes on';
create index workflow_queue_turn_idx on helper.workflow_queue (workspace_id, priority, run_at, id) where is_due;
create index workflow_queue_run_id_idx on helper.workflow_queue (run_id, workspace_id);
create index workflow_queue_run_at_idx on helper.workflow_queue (run_at) where not is_due;

create table helper.workflow_limits (
  workspace_id uuid not null,
  runs integer not null constraint workflow_limits_runs_check check (runs between 1 and 100000),
  set_by uuid,
  set_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id)
);
comment on table helper.workflow_limits is 'How many runs of a workspace go on at once, where that is limited';
comment on column helper.workflow_limits.workspace_id is 'The workspace';
comment on column helper.workflow_limits.runs is 'How many';
comment on column helper.workflow_limits.set_by is 'Who set it';
comment on column helper.workflow_limits.set_at is 'When it was set';

create table helper.workflow_step_messages (
  workspace_id uuid not null,
  run_id uuid not null,
  step text not null,
  item integer not null,
  attempt integer not null,
  message_id uuid not null,
  primary key (workspace_id, run_id, step, item, message_id),
  constraint workflow_step_messages_run_fkey foreign key (workspace_id, run_id) references helper.workflow_runs on delete cascade
);
comment on table helper.workflow_step_messages is 'Replies that steps asked models for: of each attempt, and each time that one was sent back';
comment on column helper.workflow_step_messages.workspace_id is 'The workspace';
comment on column helper.workflow_step_messages.run_id is 'The run';
comment on column helper.workflow_step_messages.step is 'The step''s name';
comment on column helper.workflow_step_messages.item is 'Number of the item of a map, from 0; -1: the step itself';
comment on column helper.workflow_step_messages.attempt is 'The attempt, from 1';
comment on column helper.workflow_step_messages.message_id is 'The reply; no foreign key, as what it cost outlives it';

create table helper.workflow_waits (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  run_id uuid not null,
  subject uuid,
  event text,
  matching jsonb,
  payload jsonb,
  primary key (workspace_id, id),
  constraint workflow_waits_run_fkey foreign key (workspace_id, run_id) references helper.workflow_runs on delete cascade
);
comment on table helper.workflow_waits is 'What steps of runs wait for';
comment on column helper.workflow_waits.workspace_id is 'The workspace';
comment on column helper.workflow_waits.id is 'Identifier';
comment on column helper.workflow_waits.run_id is 'The run that waits';
comment on column helper.workflow_waits.subject is 'The call, message or run that it waits for';
comment on column helper.workflow_waits.event is 'Name of the event that it waits for';
comment on column helper.workflow_waits.matching is 'What the event''s payload must contain';
comment on column helper.workflow_waits.payload is 'The event''s payload, once it came';
create index workflow_waits_subject_idx on helper.workflow_waits (subject) where subject is not null;
create index workflow_waits_event_idx on helper.workflow_waits (event, workspace_id) where payload is null;
create index workflow_waits_run_id_idx on helper.workflow_waits (run_id, workspace_id);

alter table helper.workflows enable row level security;
alter table helper.workflow_versions enable row level security;
alter table helper.workflow_runs enable row level security;
alter table helper.workflow_steps enable row level security;
-- No policies: for the extension alone.
alter table helper.workflow_queue enable row level security;
alter table helper.workflow_waits enable row level security;
alter table helper.workflow_step_messages enable row level security;
alter table helper.workflow_limits enable row level security;
create policy workflow_limits_select_member on helper.workflow_limits for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy workflow_limits_select_member on helper.workflow_limits is 'Members see what limits their workspaces'' runs';
create policy workflows_select_member on helper.workflows for select
  using (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy workflows_select_member on helper.workflows is 'Members, and no viewers, see the workflows of their workspaces and their settings';
create policy workflow_versions_select_member on helper.workflow_versions for select
  using (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy workflow_versions_select_member on helper.workflow_versions is
  'Members, and no viewers, see what workflows of their workspaces do; with whose claims, columns keep from users';
create policy workflow_runs_select_member on helper.workflow_runs for select
  using (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy workflow_runs_select_member on helper.workflow_runs is
  'Members see what workflows of their workspaces were given and came to; viewers see by helper.workflow_activity that they ran';
create policy workflow_steps_select_member on helper.workflow_steps for select
  using (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy workflow_steps_select_member on helper.workflow_steps is
  'Members, and no viewers, see what steps were given and came to: a workflow may read what its owner alone may';

select pg_catalog.pg_extension_config_dump('helper.workflows', '');
select pg_catalog.pg_extension_config_dump('helper.workflow_versions', '');
select pg_catalog.pg_extension_config_dump('helper.workflow_runs', '');
select pg_catalog.pg_extension_config_dump('helper.workflow_steps', '');
select pg_catalog.pg_extension_config_dump('helper.workflow_queue', '');
select pg_catalog.pg_extension_config_dump('helper.workflow_waits', '');
select pg_catalog.pg_extension_config_dump('helper.workflow_step_messages', '');
select pg_catalog.pg_extension_config_dump('helper.workflow_limits', '');

create trigger workflow_queue_wake after insert on helper.workflow_queue
  for each statement execute function helper._wake_runner();

-- Definitions

create function helper._read_workflow(definition jsonb) returns jsonb
language c volatile parallel safe as 'MODULE_PATHNAME', 'read_workflow_wrapper';
comment on function helper._read_workflow(jsonb) is
  'Checks a definition and returns it in our form: definition, description and trigger (where it spoke of one, with its secret), uses_sql. Errors: 22023';

create function helper.workflow_schema() returns jsonb
language c immutable parallel safe as 'MODULE_PATHNAME', 'workflow_schema_wrapper';
comment on function helper.workflow_schema() is 'JSON Schema (draft 2020-12) of a workflow''s definition';

create function helper.validate_workflow(definition jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  return helper._read_workflow(definition) -> 'definition';
end
$$;
comment on function helper.validate_workflow(jsonb) is
  'Checks a definition and returns it as it would be stored: the application''s formats are translated. Errors: 22023, naming the place in the JSON';

create function helper._workflow(workflow text, workspace uuid, minimum_role text) returns helper.workflows
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper._writable_workspace(workspace, minimum_role);
  v_workflow helper.workflows;
begin
  select w.* into v_workflow from helper.workflows w where w.workspace_id = v_workspace and w.name = _workflow.workflow;
  if not found then
    raise exception using errcode = '42704', message = format('workflow "%s" does not exist', workflow);
  end if;
  return v_workflow;
end
$$;
comment on function helper._workflow(text, uuid, text) is 'A workflow by its name, for a caller with a role. Errors: 42501, 42704';

create function helper._create_workflow(name text, definition jsonb, workspace uuid, options jsonb) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_workspace uuid := helper._writable_workspace(workspace, 'admin');
  v_read jsonb := helper._read_workflow(definition);
  v_unknown text;
  v_workflow helper.workflows;
begin
  if coalesce(_create_workflow.name, '') !~ '^[a-zA-Z][a-zA-Z0-9_-]{0,62}$' then
    raise exception using
      errcode = '22023',
      message = format('"%s" is not a workflow''s name', _create_workflow.name),
      hint = 'A name begins with a letter and has up to 63 letters, digits, _ and -.';
  end if;
  select o.key into v_unknown
  from jsonb_each(coalesce(options, '{}')) o
  where o.key not in ('description', 'settings', 'enabled')
    or jsonb_typeof(o.value) <> case o.key when 'description' then 'string' when 'enabled' then 'boolean' else 'object' end
  limit 1;
  if found then
    raise exception using
      errcode = '22023',
      message = format('option "%s" does not exist or has the wrong type', v_unknown),
      hint = 'Options are description (text), settings (an object, seen by templates as vars) and enabled (true or false).';
  end if;
  perform helper._check_size(options -> 'settings', 'option "settings"', 65536);
  if (v_read ->> 'uses_sql')::boolean and not current_setting('helper_ai.sql_steps')::boolean then
    raise exception using errcode = '55000', message = 'sql steps are switched off',
      hint = 'Put the statement into a function and register it with helper.register_function, or have an administrator set helper_ai.sql_steps.';
  end if;
  insert into helper.workflows as w
    (workspace_id, name, description, enabled, user_id, settings)
  values
    (v_workspace, _create_workflow.name, coalesce(options ->> 'description', v_read ->> 'description', ''), coalesce((options ->> 'enabled')::boolean, true),
      helper.current_user_id(), coalesce(options -> 'settings', '{}'))
  on conflict (name, workspace_id) do update
  set version = w.version + 1,
    description = coalesce(options ->> 'description', v_read ->> 'description', w.description),
    enabled = coalesce((options ->> 'enabled')::boolean, w.enabled),
    user_id = excluded.user_id,
    settings = coalesce(options -> 'settings', w.settings),
    problem = null,
    updated_at = clock_timestamp()
  returning w.* into v_workflow;
  -- Who writes what is done answers for it: runs of this version act as they, whoever writes the next.
  insert into helper.workflow_versions (workspace_id, workflow_id, version, definition, user_id, principal_role, principal_claims, settings)
  values (v_workspace, v_workflow.id, v_workflow.version, v_read -> 'definition',
    helper.current_user_id(), helper.caller_role(), helper.caller_claims(), v_workflow.settings);
  if jsonb_typeof(v_read -> 'trigger') = 'object' then
    perform helper._start_as_defined(v_workflow, v_read -> 'trigger');
  end if;
  return v_workflow.id;
end
$$;
comment on function helper._create_workflow(text, jsonb, uuid, jsonb) is 'Stores a workflow of the caller, with what its definition says of its start. Errors: 22023, 42501, 42710';

create function helper.create_workflow(
  name text,
  definition jsonb,
  workspace uuid default null,
  options jsonb default '{}'
) returns uuid
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'create_workflow_wrapper';
comment on function helper.create_workflow(text, jsonb, uuid, jsonb) is
  'Creates a workflow, or a new version of it, and returns its id. It runs as who calls this. Options: description, settings (an object, seen by templates as vars), enabled. A definition in one of the application''s formats is started as its trigger_type says. For workspace admins. Errors: 22023 naming the place in the definition, 42501, 42710';

create function helper.pause_workflow(workflow text, workspace uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'admin');
begin
  update helper.workflows w set enabled = false, updated_at = clock_timestamp()
  where w.workspace_id = v_workflow.workspace_id and w.id = v_workflow.id;
end
$$;
comment on function helper.pause_workflow(text, uuid) is
  'Pauses a workflow: no run of it is started; those under way go on. For workspace admins. Errors: 42501, 42704';

create function helper.resume_workflow(workflow text, workspace uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'admin');
begin
  update helper.workflows w set enabled = true, problem = null, updated_at = clock_timestamp()
  where w.workspace_id = v_workflow.workspace_id and w.id = v_workflow.id;
end
$$;
comment on function helper.resume_workflow(text, uuid) is
  'Has runs of a paused workflow started again. For workspace admins. Errors: 42501, 42704';

create function helper.delete_workflow(workflow text, workspace uuid default null) returns void
-- As for _enqueue: it may have many runs.
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'admin');
begin
  delete from helper.workflows w where w.workspace_id = v_workflow.workspace_id and w.id = v_workflow.id;
end
$$;
comment on function helper.delete_workflow(text, uuid) is
  'Deletes a workflow with its versions, triggers and runs; calls and replies that a run waits for go on. For workspace admins. Errors: 42501, 42704';

-- Starting runs

create function helper._check_size(value jsonb, name text, most integer) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if octet_length(value::text) > most then
    raise exception using errcode = '53400', message = format('%s is too large', name),
      detail = format('It has %s bytes, expected at most %s.', octet_length(value::text), most);
  end if;
end
$$;
comment on function helper._check_size(jsonb, text, integer) is 'Refuses JSON that is larger than so many bytes. Errors: 53400';

-- A run at this depth still runs; what it makes happen starts nothing.
create function helper._deepest() returns integer
language sql immutable parallel safe
begin atomic
  select 8;
end;
comment on function helper._deepest() is 'Workflows that may follow one another by events or calls';

create function helper._next_depth() returns integer
language sql stable
begin atomic
  select helper._depth_here() + 1;
end;
comment on function helper._next_depth() is 'Depth of a run that is started here: one more than that of the run whose step this is; 0 outside of runs';

create function helper._depth() returns integer
language sql stable
begin atomic
  select greatest(helper._next_depth() - 1, 0);
end;
comment on function helper._depth() is 'Depth of the run whose step this is; 0 outside of runs';

create function helper._with_origin(trigger jsonb) returns jsonb
language sql stable
begin atomic
  select jsonb_strip_nulls(jsonb_build_object('origin', helper._run_here())) || trigger;
end;
comment on function helper._with_origin(jsonb) is 'What starts a run, with the run whose step this is';

create function helper._start_run(
  workspace uuid,
  workflow uuid,
  trigger jsonb,
  input jsonb,
  idempotency_key text default null,
  depth integer default 0,
  not_before timestamptz default null
) returns uuid
-- As for _enqueue: no plan that was made while the tables were small reads them through for each of many rows.
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_run uuid;
  v_priority integer;
  v_version integer;
begin
  select w.version, coalesce((v.definition ->> 'priority')::integer, 0)
  into v_version, v_priority
  from helper.workflows w
  join helper.workflow_versions v on v.workspace_id = w.workspace_id and v.workflow_id = w.id and v.version = w.version
  where w.workspace_id = workspace and w.id = workflow and w.enabled;
  if not found then
    -- Paused, which changes nothing about what was started before.
    return (
      select r.id from helper.workflow_runs r
      where r.workspace_id = _start_run.workspace and r.workflow_id = _start_run.workflow and r.idempotency_key = _start_run.idempotency_key);
  end if;
  insert into helper.workflow_runs (workspace_id, workflow_id, version, trigger, input, bytes, idempotency_key, depth, priority, user_id)
  values (workspace, workflow, v_version, helper._with_origin(trigger), coalesce(input, '{}'), octet_length(input::text), idempotency_key, depth, v_priority,
    case when trigger ->> 'kind' in ('manual', 'replay') then helper.current_user_id() end)
  on conflict (workflow_id, idempotency_key) where idempotency_key is not null do nothing
  returning id into v_run;
  if v_run is null then
    return (
      select r.id from helper.workflow_runs r
      where r.workspace_id = _start_run.workspace and r.workflow_id = _start_run.workflow and r.idempotency_key = _start_run.idempotency_key);
  end if;
  insert into helper.workflow_queue (workspace_id, run_id, priority, run_at, is_due)
  values (workspace, v_run, -v_priority, coalesce(not_before, clock_timestamp()), coalesce(not_before <= clock_timestamp(), true));
  return v_run;
end
$$;
comment on function helper._start_run(uuid, uuid, jsonb, jsonb, text, integer, timestamptz) is
  'Starts a run and returns its id; the earlier run where the key is known, else null where the workflow is paused';

create function helper._check_input(schema jsonb, input jsonb) returns void
language c volatile parallel unsafe strict as 'MODULE_PATHNAME', 'check_input_wrapper';
comment on function helper._check_input(jsonb, jsonb) is 'Refuses what does not fit the schema of a workflow''s input. Errors: 22023';

create function helper.run_workflow(
  workflow text,
  input jsonb default '{}',
  idempotency_key text default null,
  workspace uuid default null
) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'member');
  v_run uuid;
begin
  if input is null or jsonb_typeof(input) <> 'object' then
    raise exception using errcode = '22023', message = 'input is not a JSON object';
  end if;
  perform helper._check_size(input, 'input', 1048576);
  if idempotency_key is not null and char_length(idempotency_key) not between 1 and 200 then
    raise exception using errcode = '22023', message = 'idempotency_key has not between 1 and 200 characters';
  end if;
  if idempotency_key is not null then
    select r.id into v_run
    from helper.workflow_runs r
    where r.workspace_id = v_workflow.workspace_id and r.workflow_id = v_workflow.id and r.idempotency_key = 'manual:' || run_workflow.idempotency_key;
    if found then
      return v_run;
    end if;
  end if;
  if helper._next_depth() > helper._deepest() then
    raise exception using errcode = '53400', message = 'workflows start one another too deep',
      detail = format('This run is the end of a chain of %s, each started by the one before.', helper._deepest());
  end if;
  perform helper._check_input(v.definition -> 'input', input)
  from helper.workflow_versions v
  where v.workspace_id = v_workflow.workspace_id and v.workflow_id = v_workflow.id and v.version = v_workflow.version;
  v_run := helper._start_run(v_workflow.workspace_id, v_workflow.id,
    jsonb_build_object('kind', 'manual', 'at', to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')),
    input, 'manual:' || idempotency_key, helper._next_depth());
  if v_run is null then
    raise exception using
      errcode = '55000',
      message = format('workflow "%s" is paused', workflow),
      detail = coalesce(v_workflow.problem, 'An admin of the workspace paused it.'),
      hint = 'An admin of the workspace resumes it with helper.resume_workflow.';
  end if;
  return v_run;
end
$$;
comment on function helper.run_workflow(text, jsonb, text, uuid) is
  'Starts a run of a workflow and returns its id; it is done after the commit, as the workflow''s owner. With an idempotency_key a repeated start is the first run. For members. Errors: 22023 input does not fit its schema, 42501, 42704, 53400 too large or too deep, 55000 paused';
