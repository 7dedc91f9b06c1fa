-- The runner's side of the queue: what is due, whose turn it is, and what is deleted.

-- Due rows of a workspace from a place in its order on, none of whose runs another runner has. What is known of a queue's size
-- is most often of a time when it was empty, when any plan looks as good as another: it is compared and sorted by all columns
-- of one index, and runs are locked one by one, so that no other plan than by that index and the runs' key is there.
create function helper._claim_runs_of(workspace uuid, first_priority integer, first_run_at timestamptz, most integer)
returns table (workspace_id uuid, id uuid, run_id uuid, priority integer, run_at timestamptz)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off set enable_incremental_sort = off set enable_bitmapscan = off as $$
#variable_conflict use_column
begin
  return query
    select q.workspace_id, q.id, q.run_id, q.priority, q.run_at
    from helper.workflow_queue q
    -- Only the run is locked: a row of one that another runner has is nobody's to hold. One that was taken in between is
    -- looked at for nothing.
    cross join lateral (
      select
      from helper.workflow_runs r
      where r.workspace_id = q.workspace_id and r.id = q.run_id
      -- Whoever puts something into a run's queue meanwhile does not wait.
      for no key update skip locked
    ) r
    where q.is_due
      and (q.workspace_id, q.priority, q.run_at) >= (workspace, first_priority, first_run_at)
      and q.workspace_id <= workspace
    order by q.workspace_id, q.priority, q.run_at, q.id
    limit most;
end
$$;
comment on function helper._claim_runs_of(uuid, integer, timestamptz, integer) is
  'Due rows of a workspace''s queue, from a priority and a time on, of runs that it locks and no other runner has';

-- In a transaction of its own: nobody is to wait for these rows while a runner is at something.
create function helper._wake_sleepers() returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off set enable_bitmapscan = off as $$
begin
  update helper.workflow_queue q
  set is_due = true
  where q.ctid = any (array(
    select f.ctid
    from helper.workflow_queue f
    where not f.is_due and f.run_at <= (select clock_timestamp())
    order by f.run_at
    limit 1000
    for no key update skip locked));
  return found;
end
$$;
comment on function helper._wake_sleepers() is 'Has rows of the queue be due whose time has come; says whether there were some';

-- Due rows of some workspaces, one after another. While an old snapshot keeps what was done, a look over the queue walks over
-- all of it: it does so once, and goes on from where it found something.
create function helper._claim_runs(after uuid, most integer, without uuid[])
returns table (workspace_id uuid, id uuid, run_id uuid, priority integer, run_at timestamptz)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off set enable_incremental_sort = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  v_from uuid := after;
  v_to uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  v_is_around boolean := false;
  v_first record;
  v_is_passed boolean := false;
begin
  loop
    select q.workspace_id, q.priority, q.run_at into v_first
    from helper.workflow_queue q
    where q.is_due and q.workspace_id > v_from and q.workspace_id <= v_to
    order by q.workspace_id, q.priority, q.run_at, q.id
    limit 1;
    if v_first.workspace_id = any (without) then
      v_from := v_first.workspace_id;
    elsif found then
      return query
        select c.workspace_id, c.id, c.run_id, c.priority, c.run_at
        from helper._claim_runs_of(v_first.workspace_id, v_first.priority, v_first.run_at, most) c;
      if found then
        return;
      end if;
      v_is_passed := true;
      v_from := v_first.workspace_id;
    elsif not v_is_around then
      v_is_around := true;
      v_from := '00000000-0000-0000-0000-000000000000';
      v_to := after;
    else
      exit;
    end if;
  end loop;
  if v_is_passed then
    return next;
  end if;
end
$$;
comment on function helper._claim_runs(uuid, integer, uuid[]) is
  'Due rows of the queue, of the next workspace, but for some, with runs that no other runner has, which it locks. A row of nulls where others have all that is due';

create function helper._admit_run(workspace uuid, workflow uuid, run uuid, key text, most integer, rate integer, per interval, in_workspace integer)
returns timestamptz
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_at timestamptz;
begin
  -- Two runners do not count at once, and none waits.
  perform from helper.workflows w where w.workspace_id = workspace and w.id = workflow for no key update skip locked;
  if not found then
    return clock_timestamp() + interval '50 ms';
  end if;
  if in_workspace is not null then
    perform from helper.workflow_limits l where l.workspace_id = workspace for no key update skip locked;
    if not found then
      return clock_timestamp() + interval '50 ms';
    end if;
  end if;
  update helper.workflow_runs r
  set key = _admit_run.key
  where r.workspace_id = workspace and r.id = run and r.key is distinct from _admit_run.key;
  -- One that waits for its workspace has its place among those of its key already.
  if most is not null and most <= (
    select count(*)
    from helper.workflow_runs r
    where r.workspace_id = workspace and r.workflow_id = workflow and r.holds = _admit_run.key and r.id <> run)
  then
    v_at := 'infinity';
  elsif rate is not null then
    select r.admitted_at + per into v_at
    from helper.workflow_runs r
    where r.workspace_id = workspace and r.workflow_id = workflow and r.admitted_at > (select clock_timestamp() - per)
    order by r.admitted_at desc
    offset rate - 1
    limit 1;
  end if;
  if v_at is not null then
    -- The turn in its workspace that it was given is another's.
    update helper.workflow_runs r
    set in_workspace = null
    where r.workspace_id = workspace and r.id = run and r.in_workspace is not null;
    if found then
      perform helper._next_of_workspace(workspace);
    end if;
    return v_at;
  end if;
  if in_workspace <= (
    select count(*) from helper.workflow_runs r where r.workspace_id = workspace and r.in_workspace = 'counts')
  then
    update helper.workflow_runs r
    set key = null, holds = r.key, in_workspace = 'waits'
    where r.workspace_id = workspace and r.id = run;
    -- A turn may be lost, as nobody who passes one on waits: the first of the line look again soon, those behind seldom.
    return clock_timestamp() + interval '5 s' * (
      select count(*)
      from helper.workflow_runs r
      join (
        select f.priority, f.id
        from helper.workflow_runs f
        where f.workspace_id = workspace and f.in_workspace = 'waits'
        order by f.workspace_id, f.in_workspace, f.priority desc, f.id
        limit 100
      ) f on f.priority > r.priority or f.priority = r.priority and f.id <= r.id
      where r.workspace_id = workspace and r.id = run);
  end if;
  update helper.workflow_runs r
  set started_at = clock_timestamp(), key = null, holds = r.key, admitted_at = case when rate is not null then clock_timestamp() end,
    in_workspace = case when _admit_run.in_workspace is not null then 'counts' end
  where r.workspace_id = workspace and r.id = run;
  return null;
end
$$;
comment on function helper._admit_run(uuid, uuid, uuid, text, integer, integer, interval, integer) is
  'Lets a run begin (null), or says when it is looked at again: infinity when another of its key has ended; one that waits for others of its workspace is looked at sooner as they end';
create index workflow_runs_key_idx on helper.workflow_runs (workflow_id, key, priority desc, id) where key is not null;
create index workflow_runs_holds_idx on helper.workflow_runs (workflow_id, holds) where holds is not null;
create index workflow_runs_in_workspace_idx on helper.workflow_runs (workspace_id, in_workspace, priority desc, id) where in_workspace is not null;
create index workflow_runs_admitted_at_idx on helper.workflow_runs (workflow_id, admitted_at) where admitted_at is not null;

create function helper._next_of_key(workspace uuid, workflow uuid, key text) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
  update helper.workflow_queue q
  set run_at = clock_timestamp(), is_due = true
  where q.ctid = (
    select p.ctid
    from helper.workflow_runs r
    join helper.workflow_queue p on p.workspace_id = r.workspace_id and p.run_id = r.id and p.run_at = 'infinity'
    where r.workflow_id = workflow and r.key = _next_of_key.key
    order by r.workflow_id, r.key, r.priority desc, r.id
    limit 1
    -- Two that end at once wake two.
    for no key update of p skip locked)
$$;
comment on function helper._next_of_key(uuid, uuid, text) is 'Has the run looked at that waited the longest for another of its workflow and key to end';

-- A run over which runners ended again and again: nothing of it is looked at but its rows, as what is in them may be to
-- blame. The steps that it was at have failed, so that somebody may have them tried again.
create function helper._give_up_run(workspace uuid, run uuid, error jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_run helper.workflow_runs;
  v_subject uuid;
begin
  select r.* into v_run
  from helper.workflow_runs r
  where r.workspace_id = workspace and r.id = run and r.finished_at is null
  for no key update;
  if not found then
    return;
  end if;
  for v_subject in
    delete from helper.workflow_waits w where w.workspace_id = workspace and w.run_id = run returning w.subject
  loop
    perform helper._cancel_call(c.workspace_id, c.id) from helper.function_calls c where c.workspace_id = workspace and c.id = v_subject;
    perform helper._cancel_reply(m) from helper.messages m where m.workspace_id = workspace and m.id = v_subject;
    perform helper._cancel_run(r.workspace_id, r.id)
    from helper.workflow_runs r
    where r.workspace_id = workspace and r.id = v_subject and r.finished_at is null;
  end loop;
  -- What it began each time was taken back each time: the first step that has no row and whose turn it was.
  insert into helper.workflow_steps (workspace_id, run_id, step, status, attempt, error, started_at, finished_at)
  select workspace, run, d.step ->> 'name', 'failed', 1, _give_up_run.error, clock_timestamp(), clock_timestamp()
  from (
    select e.step, e.n, coalesce(e.step -> 'needs', jsonb_agg(e.step -> 'name') over (order by e.n rows between 1 preceding and 1 preceding), '[]') as needs
    from jsonb_array_elements(helper._definition(workspace, v_run.workflow_id, v_run.version) -> 'steps') with ordinality e (step, n)
  ) d
  where not exists (
      select from helper.workflow_steps s
      where s.workspace_id = workspace and s.run_id = run and s.item = -1 and s.step = d.step ->> 'name')
    and not exists (
      select from jsonb_array_elements_text(d.needs) n (name)
      where not exists (
        select from helper.workflow_steps s
        where s.workspace_id = workspace and s.run_id = run and s.item = -1 and s.step = n.name and s.finished_at is not null))
  order by d.n
  limit 1;
  update helper.workflow_steps s
  set status = case
      when s.status = 'pending' then 'cancelled'
      when exists (
        select from helper.function_calls c
        where c.workspace_id = workspace and c.id = (s.waits_for ->> 'call')::uuid and c.status in ('running', 'uncertain')) then 'uncertain'
      else 'failed'
    end,
    error = case when s.status = 'pending' then s.error else _give_up_run.error end,
    wake_at = null,
    finished_at = clock_timestamp()
  where s.workspace_id = workspace and s.run_id = run and s.status in ('pending', 'ready', 'running', 'waiting');
  update helper.workflow_runs r
  set status = 'failed', error = _give_up_run.error, finished_at = clock_timestamp(), paused_at = null, key = null, holds = null
  where r.workspace_id = workspace and r.id = run;
  perform helper._next_of_key(workspace, v_run.workflow_id, coalesce(v_run.holds, v_run.key));
  perform pg_notify('helper_runs', run::text || ' failed');
end
$$;
comment on function helper._give_up_run(uuid, uuid, jsonb) is
  'Ends a run that nothing can be done with: its open steps have failed, and what they wait for is called off';

create function helper._next_of_workspace(workspace uuid, most bigint default 1) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
  update helper.workflow_queue q
  set run_at = clock_timestamp(), is_due = true
  where q.ctid = any (array(
    select p.ctid
    from helper.workflow_runs r
    join helper.workflow_queue p on p.workspace_id = r.workspace_id and p.run_id = r.id and not p.is_due
    where r.workspace_id = workspace and r.in_workspace = 'waits'
    order by r.workspace_id, r.in_workspace, r.priority desc, r.id
    limit most
    for no key update of p skip locked))
$$;
comment on function helper._next_of_workspace(uuid, bigint) is 'Has the runs looked at that waited the longest for others of their workspace to end';

-- However a run ends, and whoever ends it. Where there is no limit, it is called for those alone that are gone on with and do
-- not end: one that a runner had when the limit was set is counted then.
create function helper._leave_workspace() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_in text;
begin
  if tg_op = 'UPDATE' then
    v_in := case
      when new.finished_at is null and new.started_at is not null and new.trigger ->> 'kind' <> 'workflow'
        and exists (select from helper.workflow_limits l where l.workspace_id = new.workspace_id) then 'counts'
    end;
    if v_in is distinct from new.in_workspace then
      update helper.workflow_runs r
      set in_workspace = v_in
      where r.workspace_id = new.workspace_id and r.id = new.id;
    end if;
  end if;
  -- One that waits may have been given the turn already.
  if old.in_workspace is not null then
    -- Who is told just now to wait for this is seen to wait, unless somebody else has the limit: a runner waits for nobody.
    perform from helper.workflow_limits l where l.workspace_id = old.workspace_id for no key update skip locked;
    perform helper._next_of_workspace(old.workspace_id);
  end if;
  return null;
end
$$;
comment on function helper._leave_workspace() is
  'Has a run that ended, or is paused before it began, count no more for its workspace''s limit, and another have its turn; one that goes on counts';
create trigger workflow_runs_leave_workspace after update of status on helper.workflow_runs
  for each row
  when (new.in_workspace is not null and (new.finished_at is not null or new.in_workspace = 'waits' and new.status = 'paused')
    or new.in_workspace is null and new.finished_at is null and old.started_at is not null and new.started_at is not null)
  execute function helper._leave_workspace();
create trigger workflow_runs_leave_workspace_deleted after delete on helper.workflow_runs
  for each row when (old.in_workspace is not null)
  execute function helper._leave_workspace();
-- Where it is no runner that makes room, one has to be told.
create trigger workflow_runs_wake_deleted after delete on helper.workflow_runs
  for each row when (old.in_workspace is not null)
  execute function helper._wake_runner();
create trigger workflow_limits_wake after insert or update or delete on helper.workflow_limits
  for each statement execute function helper._wake_runner();

create function helper.set_workflow_limit(runs integer, workspace uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace constant uuid := helper._writable_workspace(workspace, 'admin');
begin
  if runs not between 1 and 100000 then
    raise exception using errcode = '22023', message = 'runs is out of range', hint = 'Use 1 to 100000, or null for no limit.';
  end if;
  if runs is null then
    delete from helper.workflow_limits l where l.workspace_id = v_workspace;
    perform helper._next_of_workspace(v_workspace, null);
    update helper.workflow_runs r
    set in_workspace = null
    where r.ctid = any (array(
      select f.ctid
      from helper.workflow_runs f
      where f.workspace_id = v_workspace and f.in_workspace is not null
      for no key update skip locked));
  else
    insert into helper.workflow_limits as l (workspace_id, runs, set_by)
    values (v_workspace, set_workflow_limit.runs, helper.current_user_id())
    on conflict (workspace_id) do update
    set runs = excluded.runs, set_by = excluded.set_by, set_at = clock_timestamp();
    -- Those that a runner has are counted as it leaves them, or when they are gone on with next.
    update helper.workflow_runs r
    set in_workspace = 'counts'
    where r.ctid = any (array(
      select f.ctid
      from helper.workflow_runs f
      where f.workspace_id = v_workspace and f.started_at is not null and f.finished_at is null and f.trigger ->> 'kind' <> 'workflow'
        and f.in_workspace is distinct from 'counts'
      for no key update skip locked));
    -- So many as there is room for now: of more, another than the first may begin.
    perform helper._next_of_workspace(v_workspace, greatest(runs - (
      select count(*) from helper.workflow_runs r where r.workspace_id = v_workspace and r.in_workspace = 'counts'), 0));
  end if;
end
$$;
comment on function helper.set_workflow_limit(integer, uuid) is
  'Limits how many runs of a workspace''s workflows go on at once, those that wait for something included, but not those that another one waits for; null lifts the limit. Others begin as these end, the most urgent first. For workspace admins. Errors: 22023, 42501, 42704';

-- Runs of a workflow are in the order in which they were made, so that what is too old is at the beginning of an index,
-- however many there are.
create function helper._clean_runs(retention_minutes integer, most integer) returns bigint
-- What is deleted with a run is looked up by plans of foreign keys, which are kept: see helper._enqueue.
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_until timestamptz := clock_timestamp() - make_interval(mins => retention_minutes);
  v_count bigint;
begin
  -- One that was put off just when the run that it waited for ended was woken by nobody.
  update helper.workflow_queue q
  set run_at = clock_timestamp(), is_due = true
  where q.run_at = 'infinity'
    and not q.is_due
    and q.run_id in (
      select distinct on (r.workflow_id, r.key) r.id
      from helper.workflow_queue p
      join helper.workflow_runs r on r.workspace_id = p.workspace_id and r.id = p.run_id
      where p.run_at = 'infinity' and not p.is_due
      order by r.workflow_id, r.key, r.priority desc, r.id);
  delete from helper.workflow_runs r
  where r.ctid = any (array(
    select o.ctid
    from helper.workflows w
    cross join lateral (
      select f.ctid
      from helper.workflow_runs f
      where f.workflow_id = w.id and f.id < helper.uuid_v7_at(v_until) and f.finished_at < v_until
      order by f.workflow_id, f.id
      limit most
    ) o
    limit most))
    -- Not one that somebody has tried again meanwhile.
    and r.finished_at < v_until;
  get diagnostics v_count = row_count;
  delete from helper.workflow_events e
  where e.attempts > 0 and e.deliver_at = 'infinity' and e.created_at < v_until;
  return v_count;
end
$$;
comment on function helper._clean_runs(integer, integer) is 'Deletes runs that ended long ago, with their steps, and events that were given up long ago; says how many runs';
