-- Work that waits. `jobs` is the durable record; `job_queue` holds a thin row for each job that may be claimed, deleted
-- on claim; `job_leases` one row for each job that runs, fenced by a token. Only worker, runners and the functions of this
-- extension touch them.

-- Whatever a run of a workflow has done later is the run's as well: what that starts is one deeper.
create function helper._depth_here() returns integer
language sql stable
begin atomic
  select coalesce(nullif(current_setting('helper_ai.workflow_depth', true), '')::integer, -1);
end;
comment on function helper._depth_here() is 'Depth of the run of a workflow that led to what is done here; -1 outside of runs';

create function helper._run_here() returns uuid
language sql stable
begin atomic
  select nullif(current_setting('helper_ai.workflow_run', true), '')::uuid;
end;
comment on function helper._run_here() is 'The run of a workflow that led to what is done here; null outside of runs';

create table helper.jobs (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  kind text not null constraint jobs_kind_check check (kind in ('call', 'index', 'reembed', 'reply', 'send')),
  key uuid,
  payload jsonb not null default '{}',
  principal_role name not null,
  principal_claims jsonb,
  depth integer not null default helper._depth_here(),
  run_id uuid default helper._run_here(),
  status text not null default 'queued' constraint jobs_status_check check (status in ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
  attempts integer not null default 0,
  asked_at timestamptz,
  result jsonb,
  error jsonb,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz,
  primary key (workspace_id, id)
);
comment on table helper.jobs is 'Work that was asked for and runs later: the durable record';
comment on column helper.jobs.workspace_id is 'Workspace that the work belongs to';
comment on column helper.jobs.id is 'Identifier, in order of creation';
comment on column helper.jobs.kind is 'What is done: call runs a SQL function; send calls an HTTP endpoint; index reads a document, cuts it and embeds it; reembed embeds a workspace''s chunks by another model; reply answers a question';
comment on column helper.jobs.key is 'Jobs with the same key never run at once; for index, the document; for reembed, the workspace; for reply, the conversation; for call and send, the call';
comment on column helper.jobs.payload is 'What the kind needs to know';
comment on column helper.jobs.principal_role is 'Role of the caller who asked';
comment on column helper.jobs.principal_claims is 'JWT claims of the caller who asked; JSON null when they were malformed';
comment on column helper.jobs.depth is 'How many workflows led to it; -1: none';
comment on column helper.jobs.run_id is 'The run that led to it';
comment on column helper.jobs.status is 'queued, running, succeeded, failed or cancelled';
comment on column helper.jobs.attempts is 'Times that it was claimed and did not end';
comment on column helper.jobs.asked_at is 'Of a reply that a workflow waits for: when a model was asked whose answer is not stored; it is not asked again';
comment on column helper.jobs.result is 'What came of it';
comment on column helper.jobs.error is 'Why it failed: sqlstate, message, detail, hint';
comment on column helper.jobs.created_at is 'When it was asked for';
comment on column helper.jobs.started_at is 'When it was last claimed';
comment on column helper.jobs.finished_at is 'When it ended';
-- Room in the page for what a claim and an end write: a job is updated twice, and no index is.
alter table helper.jobs set (fillfactor = 50);
-- Finished jobs are deleted in order of age.
create index jobs_created_at_idx on helper.jobs using brin (created_at) with (autosummarize = on);

create table helper.job_queue (
  workspace_id uuid not null,
  kind text not null,
  run_at timestamptz not null default clock_timestamp(),
  job_id uuid not null,
  key uuid,
  constraint job_queue_job_fkey foreign key (workspace_id, job_id) references helper.jobs on delete cascade
);
comment on table helper.job_queue is 'Jobs that may be claimed, deleted on claim';
comment on column helper.job_queue.workspace_id is 'Workspace that the work belongs to; workspaces take turns';
comment on column helper.job_queue.kind is 'The job''s kind; each kind has its own number of jobs at once';
comment on column helper.job_queue.run_at is 'Not before this time';
comment on column helper.job_queue.job_id is 'The job';
comment on column helper.job_queue.key is 'The job''s key';
create index job_queue_kind_workspace_id_run_at_job_id_idx on helper.job_queue (kind, workspace_id, run_at, job_id);
-- In this order: of indexes that look equally good, as all do while nothing is known of a table, the youngest is taken.
alter table helper.job_queue add primary key (workspace_id, job_id);
-- One waiting job for a document is enough, however often it changes; replies wait one behind the other.
create unique index job_queue_key_idx on helper.job_queue (workspace_id, key) where kind = 'index';

create table helper.job_leases (
  workspace_id uuid not null,
  job_id uuid not null,
  key uuid,
  token uuid not null default helper.uuid_v7(),
  runner uuid,
  claimed_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, job_id),
  constraint job_leases_job_fkey foreign key (workspace_id, job_id) references helper.jobs on delete cascade
);
comment on table helper.job_leases is 'Jobs that run now, one row each';
comment on column helper.job_leases.workspace_id is 'Workspace that the work belongs to';
comment on column helper.job_leases.job_id is 'The job';
comment on column helper.job_leases.key is 'The job''s key';
comment on column helper.job_leases.token is 'Whoever ends the job must hold this token; a lost lease has another';
comment on column helper.job_leases.runner is 'Runner that claimed it; null: the worker';
comment on column helper.job_leases.claimed_at is 'When it was claimed';
create unique index job_leases_key_idx on helper.job_leases (workspace_id, key);

alter table helper.jobs enable row level security;
alter table helper.job_queue enable row level security;
alter table helper.job_leases enable row level security;
create policy jobs_select_member on helper.jobs for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy jobs_select_member on helper.jobs is 'Members see the work of their workspaces';

select pg_catalog.pg_extension_config_dump('helper.jobs', '');
select pg_catalog.pg_extension_config_dump('helper.job_queue', '');
select pg_catalog.pg_extension_config_dump('helper.job_leases', '');

create function helper._wake_worker() returns trigger
language c as 'MODULE_PATHNAME', 'wake_worker_wrapper';
comment on function helper._wake_worker() is 'Wakes this database''s worker when the transaction commits';
create trigger job_queue_wake after insert on helper.job_queue
  for each statement execute function helper._wake_worker();

create function helper._call_off(what uuid, at_commit boolean) returns void
language c volatile as 'MODULE_PATHNAME', 'call_off_wrapper';
comment on function helper._call_off(uuid, boolean) is
  'Breaks off what a runner of this database does for a run or a call, if one does: now, or when the transaction commits';

create function helper._wake_runner() returns trigger
language c as 'MODULE_PATHNAME', 'wake_runner_wrapper';
comment on function helper._wake_runner() is 'Wakes a runner of this database when the transaction commits, or has one started';
create trigger job_queue_wake_runner after insert on helper.job_queue
  for each row when (new.kind = 'call') execute function helper._wake_runner();

create function helper._runners() returns uuid[]
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'runner_ids_wrapper';
comment on function helper._runners() is 'Runners of this database that are alive, by the ids that their leases have';

-- Plans are kept for the session, those of foreign keys too: one made while a table is small would read all of it for each of
-- the thousands of rows that the same transaction adds. So here and where documents are written no table is read through.
create function helper._enqueue(workspace uuid, kind text, payload jsonb, key uuid) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_job uuid;
begin
  if _enqueue.kind = 'index' then
    -- Held until this transaction ends, so that the job is not claimed before it can see what was asked for.
    perform from helper.job_queue q
    where q.kind = 'index' and q.workspace_id = _enqueue.workspace and q.key = _enqueue.key
    for key share;
    if found then
      return null;
    end if;
  end if;
  insert into helper.jobs (workspace_id, kind, key, payload, principal_role, principal_claims)
  values (workspace, kind, key, payload, helper.caller_role(), helper.caller_claims())
  returning id into v_job;
  insert into helper.job_queue (workspace_id, kind, job_id, key)
  values (workspace, kind, v_job, key)
  on conflict (workspace_id, key) where kind = 'index' do nothing;
  if not found then
    delete from helper.jobs j where j.workspace_id = _enqueue.workspace and j.id = v_job;
    return null;
  end if;
  return v_job;
end
$$;
comment on function helper._enqueue(uuid, text, jsonb, uuid) is 'Adds a job as the caller and returns its id; an index job whose key waits already is not added, and null returned';

-- Claims jobs of at most `workspaces` workspaces that have one to do, those after `after` first, each at most `share`, and
-- none of those in `without`; a runner claims one job, as it does one thing at a time. The time is a subquery's, which an index
-- can be asked for; a volatile function's is compared with row by row. What is written is written by its place, which was looked
-- up by its key: a join may be planned to read all that a workspace has. A place stays: rows of the queue are never updated,
-- and a job is updated by whoever leases it alone. The recursion steps from one workspace to the next, so that its cost depends on their number and not on the backlog.
create function helper._claim(kind text, after uuid, workspaces integer, share integer, without uuid[], runner uuid default null)
returns table (workspace_id uuid, job_id uuid, job_kind text, key uuid, payload jsonb, attempts integer, token uuid)
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_sort = off set enable_incremental_sort = off set enable_bitmapscan = off as $$
begin
  return query
  with recursive turn (workspace_id, is_due, n) as (
    (select q.workspace_id, d.is_due, d.is_due::integer
    from helper.job_queue q
    cross join lateral (select q.run_at <= (select clock_timestamp()) and q.workspace_id <> all (without) as is_due) d
    where q.kind = _claim.kind and q.workspace_id > after
    order by q.workspace_id, q.run_at
    limit 1)
    union all
    select f.workspace_id, f.is_due, t.n + f.is_due::integer
    from turn t
    cross join lateral (
      select q.workspace_id, q.run_at <= (select clock_timestamp()) and q.workspace_id <> all (without) as is_due
      from helper.job_queue q
      where q.kind = _claim.kind and q.workspace_id > t.workspace_id
      order by q.workspace_id, q.run_at
      limit 1
    ) f
    where t.n < workspaces
  ), picked as materialized (
    select w.workspace_id, w.job_id, w.key, w.place
    from turn t
    cross join lateral (
      select q.workspace_id, q.job_id, q.key, q.ctid as place
      from helper.job_queue q
      where q.kind = _claim.kind
        and q.workspace_id = t.workspace_id
        and q.run_at <= (select clock_timestamp())
        and not exists (select from helper.job_leases l where l.workspace_id = q.workspace_id and l.key = q.key)
      order by q.run_at, q.job_id
      limit share
      for update skip locked
    ) w
    where t.is_due
    limit case when runner is not null then 1 end
  ), leased as (
    -- Of two who claim jobs with the same key at once, the second finds the first one's lease here.
    insert into helper.job_leases (workspace_id, job_id, key, runner)
    select p.workspace_id, p.job_id, p.key, runner from picked p
    on conflict do nothing
    returning job_leases.workspace_id, job_leases.job_id, job_leases.token
  ), taken as (
    delete from helper.job_queue q
    where q.ctid = any (array(
      select p.place from picked p join leased l on l.workspace_id = p.workspace_id and l.job_id = p.job_id))
  )
  update helper.jobs j
  set status = 'running', started_at = clock_timestamp(), attempts = j.attempts + 1
  from leased l
  cross join lateral (
    select f.ctid as place from helper.jobs f where f.workspace_id = l.workspace_id and f.id = l.job_id limit 1
  ) f
  where j.ctid = f.place
  returning j.workspace_id, j.id, j.kind, j.key, j.payload, j.attempts, l.token;
end
$$;
comment on function helper._claim(text, uuid, integer, integer, uuid[], uuid) is 'Leases waiting jobs of a kind to the worker or a runner, workspaces in turn';

create function helper._finish(workspace uuid, job uuid, token uuid, status text, error jsonb) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  delete from helper.job_leases l
  where l.workspace_id = workspace and l.job_id = job and l.token = _finish.token;
  if not found then
    return false;
  end if;
  update helper.jobs j
  set status = _finish.status, error = _finish.error, finished_at = clock_timestamp()
  where j.workspace_id = workspace and j.id = job;
  return true;
end
$$;
comment on function helper._finish(uuid, uuid, uuid, text, jsonb) is 'Ends a leased job; false where the lease was lost';

create function helper._finish_all(workspace uuid, jobs uuid[], tokens uuid[], status text) returns void
language plpgsql set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off as $$
begin
  with ended as (
    delete from helper.job_leases l
    using unnest(jobs, tokens) e (job, token)
    where l.workspace_id = workspace and l.job_id = e.job and l.token = e.token
    returning l.job_id
  )
  update helper.jobs j
  set status = _finish_all.status, error = null, finished_at = clock_timestamp()
  where j.ctid = any (array(
    select f.ctid
    from ended e
    cross join lateral (select f.ctid from helper.jobs f where f.workspace_id = workspace and f.id = e.job_id limit 1) f));
end
$$;
comment on function helper._finish_all(uuid, uuid[], uuid[], text) is 'Ends the jobs of a workspace whose leases are not lost';

-- Gives a leased job back to the queue, to be claimed after `delay`. A job that was asked for again meanwhile is dropped.
-- A reply that may be begun again at once comes before all that were asked for after it, as those of its conversation have to
-- wait for it; the claim itself looks at no other job of the same key.
create function helper._requeue(workspace uuid, job uuid, token uuid, delay interval, count_attempt boolean) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_key uuid;
begin
  delete from helper.job_leases l
  where l.workspace_id = workspace and l.job_id = job and l.token = _requeue.token
  returning l.key into v_key;
  if not found then
    return false;
  end if;
  insert into helper.job_queue (workspace_id, kind, job_id, key, run_at)
  select workspace, j.kind, job, v_key,
    case when j.kind = 'reply' and delay <= interval '0' then j.created_at else clock_timestamp() + delay end
  from helper.jobs j
  where j.workspace_id = workspace and j.id = job
  on conflict (workspace_id, key) where kind = 'index' do nothing;
  update helper.jobs j
  set status = case when exists (select from helper.job_queue q where q.workspace_id = workspace and q.job_id = job) then 'queued' else 'cancelled' end,
    attempts = j.attempts - case when count_attempt then 0 else 1 end
  where j.workspace_id = workspace and j.id = job;
  return true;
end
$$;
comment on function helper._requeue(uuid, uuid, uuid, interval, boolean) is 'Gives a leased job back; false where the lease was lost';

create function helper._release_leases(alive uuid[] default '{}') returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
declare
  v_runners uuid[];
  v_lease record;
  v_held uuid[] := '{}';
  v_left bigint;
begin
  for v_lease in
    select l.workspace_id, l.job_id, l.token
    from helper.job_leases l
    -- Each runner is known before its first lease can be seen here.
    where case when l.runner is null then l.token <> all (alive) else l.runner <> all (helper._runners()) end
    for update skip locked
  loop
    continue when v_lease.workspace_id = any (v_held);
    -- What somebody's open transaction holds keeps nobody else's job from being given back.
    begin
      perform helper._requeue(v_lease.workspace_id, v_lease.job_id, v_lease.token, interval '0', true);
    exception
      when lock_not_available then v_held := v_held || v_lease.workspace_id;
    end;
  end loop;
  v_runners := helper._runners();
  select count(*) into v_left
  from helper.job_leases l
  where case when l.runner is null then l.token <> all (alive) else l.runner <> all (v_runners) end;
  return v_left;
end
$$;
comment on function helper._release_leases(uuid[]) is 'Gives back what processes that are gone had claimed, and says how many are left for the next time, as somebody holds them: runners that are not there any more, and the worker but for the tokens it holds, as a database has one; null leaves the worker''s alone';

create function helper._clean(retention_minutes integer, alive uuid[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  -- A lease that neither the worker nor a runner holds is nobody's: it was loaded from a dump, say.
  perform helper._release_leases(alive);
  delete from helper.jobs j
  where j.ctid = any (array(
    select f.ctid from helper.jobs f
    where f.created_at < (select clock_timestamp() - make_interval(mins => retention_minutes))
      and f.finished_at < (select clock_timestamp() - make_interval(mins => retention_minutes))
    limit 10000));
  -- Rows that a caller's open transaction still changes are left for the next time.
  with folded as (
    delete from helper.knowledge_stats s
    where s.ctid = any (array(select f.ctid from helper.knowledge_stats f limit 100000 for update skip locked))
    returning s.workspace_id, s.config, s.chunks, s.terms
  )
  insert into helper.knowledge_stats (workspace_id, config, chunks, terms)
  select f.workspace_id, f.config, sum(f.chunks), sum(f.terms)
  from folded f
  group by f.workspace_id, f.config;
end
$$;
comment on function helper._clean(integer, uuid[]) is 'Gives back leases that nobody holds, deletes the record of jobs that ended long ago and folds the counts together';
