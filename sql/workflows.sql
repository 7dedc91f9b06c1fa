-- Provisional: replaced by the workflows themselves.

create table helper.workflows (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  name text not null,
  enabled boolean not null default true,
  primary key (workspace_id, id),
  constraint workflows_name_key unique (workspace_id, name)
);
create table helper.workflow_runs (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  workflow_id uuid not null,
  status text not null default 'queued',
  trigger jsonb not null,
  input jsonb not null,
  idempotency_key text,
  depth integer not null default 0,
  not_before timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint workflow_runs_workflow_fkey foreign key (workspace_id, workflow_id) references helper.workflows on delete cascade
);
create unique index workflow_runs_idempotency_key_idx on helper.workflow_runs (workflow_id, idempotency_key);
alter table helper.workflows enable row level security;
alter table helper.workflow_runs enable row level security;

create function helper._start_run(
  workspace uuid,
  workflow uuid,
  trigger jsonb,
  input jsonb,
  idempotency_key text default null,
  depth integer default 0,
  not_before timestamptz default null
) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_run uuid;
begin
  if not exists (select from helper.workflows w where w.workspace_id = _start_run.workspace and w.id = _start_run.workflow and w.enabled) then
    return null;
  end if;
  insert into helper.workflow_runs (workspace_id, workflow_id, trigger, input, idempotency_key, depth, not_before)
  values (_start_run.workspace, _start_run.workflow, _start_run.trigger, _start_run.input, _start_run.idempotency_key, _start_run.depth, _start_run.not_before)
  on conflict do nothing
  returning id into v_run;
  if v_run is null then
    select r.id into v_run from helper.workflow_runs r
    where r.workspace_id = _start_run.workspace and r.workflow_id = _start_run.workflow and r.idempotency_key = _start_run.idempotency_key;
  end if;
  return v_run;
end
$$;

create function helper._cancel_run(workspace uuid, run uuid) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update helper.workflow_runs r set status = 'cancelled' where r.workspace_id = _cancel_run.workspace and r.id = run
$$;
