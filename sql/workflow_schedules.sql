-- Workflows that start by the clock. A row says when it is to be looked at next; whoever looks plans with what time it is
-- then, starts what is due and moves the row on, in one transaction: a fire time is never done twice, also after a failover.

create table helper.workflow_schedules (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  workflow_id uuid not null,
  cron text not null,
  time_zone text not null,
  misfire text not null default 'once' constraint workflow_schedules_misfire_check check (misfire in ('once', 'skip', 'backfill')),
  backfill interval not null default '1 day' constraint workflow_schedules_backfill_check check (backfill between interval '1 minute' and interval '366 days'),
  overlap text not null default 'skip' constraint workflow_schedules_overlap_check check (overlap in ('skip', 'queue', 'allow', 'cancel')),
  jitter interval not null default '0' constraint workflow_schedules_jitter_check check (jitter between interval '0' and interval '1 day'),
  input jsonb not null default '{}' constraint workflow_schedules_input_check check (jsonb_typeof(input) = 'object'),
  done_through timestamptz not null default clock_timestamp(),
  look_at timestamptz,
  waiting_for timestamptz,
  last_fire_at timestamptz,
  last_run_id uuid,
  missed bigint not null default 0,
  skipped bigint not null default 0,
  problem text,
  created_by uuid,
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint workflow_schedules_workflow_fkey foreign key (workspace_id, workflow_id) references helper.workflows on delete cascade,
  constraint workflow_schedules_cron_key unique (workflow_id, cron, time_zone)
);
comment on table helper.workflow_schedules is 'When workflows start by the clock';
comment on column helper.workflow_schedules.workspace_id is 'Workspace of the workflow';
comment on column helper.workflow_schedules.id is 'Identifier, in order of creation';
comment on column helper.workflow_schedules.workflow_id is 'The workflow';
comment on column helper.workflow_schedules.cron is 'Cron expression of five fields, or six with seconds first';
comment on column helper.workflow_schedules.time_zone is 'IANA time zone whose clock the expression speaks of';
comment on column helper.workflow_schedules.misfire is 'What becomes of fire times that nobody was there for: once makes up for the last, skip for none, backfill for each';
comment on column helper.workflow_schedules.backfill is 'How old a fire time may be that backfill makes up for';
comment on column helper.workflow_schedules.overlap is 'What a fire time does while the run of the one before goes on: skip is left out, queue waits for its end (one at most), allow starts beside it, cancel ends it';
comment on column helper.workflow_schedules.jitter is 'Each fire time is put off by a part of this, always the same for the same one';
comment on column helper.workflow_schedules.input is 'Input of its runs';
comment on column helper.workflow_schedules.done_through is 'All fire times up to this one are done with';
comment on column helper.workflow_schedules.look_at is 'When something is to be done next; null: never again';
comment on column helper.workflow_schedules.waiting_for is 'Fire time that waits for the end of the run before it';
comment on column helper.workflow_schedules.last_fire_at is 'Fire time that was last started';
comment on column helper.workflow_schedules.last_run_id is 'Its run';
comment on column helper.workflow_schedules.missed is 'Fire times that were left out because nobody was there or the workflow was paused; of more than a hundred at once, a hundred are counted';
comment on column helper.workflow_schedules.skipped is 'Fire times that were left out because the run before them went on';
comment on column helper.workflow_schedules.problem is 'Why the last fire time could not be started';
comment on column helper.workflow_schedules.created_by is 'Who set it up';
comment on column helper.workflow_schedules.created_at is 'When it was set up';
create index workflow_schedules_look_at_idx on helper.workflow_schedules (look_at);

alter table helper.workflow_schedules enable row level security;
create policy workflow_schedules_select_member on helper.workflow_schedules for select
  using (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy workflow_schedules_select_member on helper.workflow_schedules is 'Members, and no viewers, see when their workspaces'' workflows start';
select pg_catalog.pg_extension_config_dump('helper.workflow_schedules', '');

create trigger workflow_schedules_wake after insert on helper.workflow_schedules
  for each statement execute function helper._wake_runner();
-- Not where a runner that fires it moves it on.
create trigger workflow_schedules_wake_sooner after update of look_at on helper.workflow_schedules
  for each row when (new.look_at < coalesce(old.look_at, 'infinity')) execute function helper._wake_runner();

create function helper._plan(
  id uuid,
  cron text,
  time_zone text,
  misfire text,
  backfill bigint,
  jitter bigint,
  done_through bigint,
  now bigint
) returns table (fires bigint[], missed bigint, through bigint, look_at bigint)
language c immutable strict parallel safe as 'MODULE_PATHNAME', 'plan_fires_wrapper';
comment on function helper._plan(uuid, text, text, text, bigint, bigint, bigint, bigint) is
  'Fire times to start now, oldest first and a hundred at most, and how it goes on; times and spans in milliseconds. Errors: 22023';

create function helper._millis(span interval) returns bigint
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as 'select floor(extract(epoch from span) * 1000)::bigint';
comment on function helper._millis(interval) is 'An interval in milliseconds; since 1970, a time';

create function helper._time(millis bigint) returns timestamptz
language sql immutable parallel safe
begin atomic
  -- So written it becomes part of the statement that calls it.
  select to_timestamp(millis / 1000.0::double precision);
end;
comment on function helper._time(bigint) is 'A time in milliseconds since 1970';

create function helper._plan_fires(schedule helper.workflow_schedules, now timestamptz)
returns table (fires timestamptz[], missed bigint, done_through timestamptz, look_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select array(select helper._time(f.fire) from unnest(p.fires) with ordinality f (fire, n) order by f.n),
    p.missed, helper._time(p.through), helper._time(p.look_at)
  from helper._plan(schedule.id, schedule.cron, schedule.time_zone, schedule.misfire, helper._millis(schedule.backfill),
    helper._millis(schedule.jitter), helper._millis(schedule.done_through - to_timestamp(0)), helper._millis(now - to_timestamp(0))) p
$$;
comment on function helper._plan_fires(helper.workflow_schedules, timestamptz) is 'The same of a schedule. Errors: 22023';

create function helper.schedule_workflow(
  workflow text,
  cron text,
  time_zone text default 'UTC',
  options jsonb default '{}',
  workspace uuid default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'admin');
  v_misfire text;
  v_overlap text;
  v_input jsonb;
  v_schedule helper.workflow_schedules;
begin
  if cron is null or time_zone is null then
    raise exception using errcode = '22023', message = 'cron and time_zone must be given';
  end if;
  perform helper._check_options(options, array['misfire', 'backfill', 'overlap', 'jitter', 'input'], 'a schedule');
  v_misfire := coalesce(options ->> 'misfire', 'once');
  v_overlap := coalesce(options ->> 'overlap', 'skip');
  v_input := coalesce(options -> 'input', '{}');
  if v_misfire not in ('once', 'skip', 'backfill') then
    raise exception using errcode = '22023', message = format('misfire "%s" is not known', v_misfire), hint = 'Use once, skip or backfill.';
  end if;
  if v_overlap not in ('skip', 'queue', 'allow', 'cancel') then
    raise exception using errcode = '22023', message = format('overlap "%s" is not known', v_overlap), hint = 'Use skip, queue, allow or cancel.';
  end if;
  if jsonb_typeof(v_input) <> 'object' then
    raise exception using errcode = '22023', message = 'input of a schedule is not a JSON object';
  end if;
  perform helper._check_size(v_input, 'input of a schedule', 1048576);
  insert into helper.workflow_schedules as s
    (workspace_id, workflow_id, cron, time_zone, misfire, backfill, overlap, jitter, input, created_by)
  values
    (v_workflow.workspace_id, v_workflow.id, regexp_replace(btrim(cron), '\s+', ' ', 'g'), time_zone, v_misfire,
      helper._span(options ->> 'backfill', '1 day', '1 minute', '366 days', 'backfill'), v_overlap,
      helper._span(options ->> 'jitter', '0', '0', '1 day', 'jitter'), v_input, helper.current_user_id())
  on conflict on constraint workflow_schedules_cron_key do update
  set misfire = excluded.misfire, backfill = excluded.backfill, overlap = excluded.overlap, jitter = excluded.jitter, input = excluded.input, problem = null
  returning s.* into v_schedule;
  update helper.workflow_schedules s
  set look_at = case when s.waiting_for is null then p.look_at else clock_timestamp() end
  from helper._plan_fires(v_schedule, v_schedule.done_through) p
  where s.workspace_id = v_schedule.workspace_id and s.id = v_schedule.id;
  return v_schedule.id;
end
$$;
comment on function helper.schedule_workflow(text, text, text, jsonb, uuid) is
  'Starts a workflow by the clock, or changes how it does at the same times, and returns the schedule''s id. cron has five fields, or six with seconds first; time_zone is a name of the IANA database. options: misfire (once, skip, backfill), backfill (how far back), overlap (skip, queue, allow, cancel), jitter, input. For workspace admins. Errors: 22023, 42501, 42704, 53400 too large an input';

create function helper._span(given text, fallback interval, shortest interval, longest interval, name text) returns interval
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_span interval;
begin
  begin
    v_span := coalesce(given::interval, fallback);
  exception
    when data_exception then
      raise exception using errcode = '22023', message = format('%s is not an interval', name), hint = 'Write it as "5 minutes".';
  end;
  if v_span not between shortest and longest then
    raise exception using errcode = '22023', message = format('%s is out of range', name), detail = format('It is %s, expected %s to %s.', v_span, shortest, longest);
  end if;
  return v_span;
end
$$;
comment on function helper._span(text, interval, interval, interval, text) is 'An interval within bounds. Errors: 22023';

create function helper.unschedule_workflow(workflow text, schedule uuid default null, workspace uuid default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'admin');
  v_count bigint;
begin
  delete from helper.workflow_schedules s
  where s.workspace_id = v_workflow.workspace_id and s.workflow_id = v_workflow.id
    and (unschedule_workflow.schedule is null or s.id = unschedule_workflow.schedule);
  get diagnostics v_count = row_count;
  if v_count = 0 and schedule is not null then
    raise exception using errcode = '42704', message = format('schedule "%s" does not exist', schedule);
  end if;
  return v_count;
end
$$;
comment on function helper.unschedule_workflow(text, uuid, uuid) is
  'Removes a schedule of a workflow, or all of them, and returns how many; runs that it started go on. For workspace admins. Errors: 42501, 42704';

create function helper._is_over(workspace uuid, run uuid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select not exists (
    select
    from helper.workflow_runs r
    where r.workspace_id = workspace and r.id = run and r.status not in ('succeeded', 'failed', 'cancelled', 'timed_out'))
$$;
comment on function helper._is_over(uuid, uuid) is 'Whether a run has ended, or is not there any more';

-- The row is locked by the caller.
create function helper._fire(workspace uuid, schedule uuid, fire timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_schedule helper.workflow_schedules;
  v_run uuid;
begin
  select s.* into v_schedule from helper.workflow_schedules s where s.workspace_id = workspace and s.id = schedule;
  if v_schedule.overlap <> 'allow' and not helper._is_over(workspace, v_schedule.last_run_id) then
    if v_schedule.overlap = 'cancel' then
      perform helper._cancel_run(workspace, v_schedule.last_run_id);
    else
      update helper.workflow_schedules s
      set waiting_for = case when s.overlap = 'queue' then coalesce(s.waiting_for, fire) end,
        skipped = s.skipped + case when s.overlap = 'queue' and s.waiting_for is null then 0 else 1 end
      where s.workspace_id = workspace and s.id = schedule;
      return;
    end if;
  end if;
  v_run := helper._start_run(
    workspace,
    v_schedule.workflow_id,
    jsonb_build_object('kind', 'schedule', 'name', v_schedule.cron, 'schedule', schedule,
      'at', to_char(fire at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
    v_schedule.input,
    format('schedule:%s:%s', schedule, extract(epoch from fire)::bigint),
    1);
  update helper.workflow_schedules s
  set missed = s.missed + case when v_run is null then 1 else 0 end,
    last_fire_at = case when v_run is null then s.last_fire_at else fire end,
    last_run_id = coalesce(v_run, s.last_run_id)
  where s.workspace_id = workspace and s.id = schedule;
end
$$;
comment on function helper._fire(uuid, uuid, timestamptz) is 'Starts the run of a fire time, or does what the overlap policy says';

create function helper._advance_schedule(schedule helper.workflow_schedules, now timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_plan record;
  v_fire timestamptz;
begin
  if schedule.waiting_for is not null and helper._is_over(schedule.workspace_id, schedule.last_run_id) then
    update helper.workflow_schedules s
    set waiting_for = null
    where s.workspace_id = schedule.workspace_id and s.id = schedule.id;
    perform helper._fire(schedule.workspace_id, schedule.id, schedule.waiting_for);
  end if;
  select p.* into v_plan from helper._plan_fires(schedule, now) p;
  foreach v_fire in array v_plan.fires loop
    perform helper._fire(schedule.workspace_id, schedule.id, v_fire);
  end loop;
  update helper.workflow_schedules s
  set missed = s.missed + v_plan.missed, done_through = v_plan.done_through, look_at = v_plan.look_at, problem = null
  where s.workspace_id = schedule.workspace_id and s.id = schedule.id;
end
$$;
comment on function helper._advance_schedule(helper.workflow_schedules, timestamptz) is 'Starts what is due of a schedule that the caller has locked';

create function helper._fire_schedules(now timestamptz default clock_timestamp()) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_schedule helper.workflow_schedules;
  v_message text;
begin
  for v_schedule in
    select s.*
    from helper.workflow_schedules s
    where s.look_at <= now
    order by s.look_at
    limit 100
    for update skip locked
  loop
    begin
      perform helper._advance_schedule(v_schedule, now);
    exception
      -- One that cannot be started keeps no other waiting.
      when others then
        get stacked diagnostics v_message = message_text;
        update helper.workflow_schedules s
        set problem = v_message, look_at = now + interval '1 minute'
        where s.workspace_id = v_schedule.workspace_id and s.id = v_schedule.id;
    end;
  end loop;
  return (select min(s.look_at) from helper.workflow_schedules s);
end
$$;
comment on function helper._fire_schedules(timestamptz) is
  'Starts the runs of schedules that are due and returns when to come again: at once where that is past, null where there is nothing to come for';

create function helper._free_schedule() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update helper.workflow_schedules s
  set look_at = clock_timestamp()
  where s.workspace_id = new.workspace_id and s.id = (new.trigger ->> 'schedule')::uuid and s.waiting_for is not null;
  return null;
end
$$;
comment on function helper._free_schedule() is 'Has a schedule looked at that waits for the end of this run';
create trigger workflow_runs_free_schedule after update of status on helper.workflow_runs
  for each row
  when (new.trigger ->> 'kind' = 'schedule' and new.status in ('succeeded', 'failed', 'cancelled', 'timed_out'))
  execute function helper._free_schedule();
