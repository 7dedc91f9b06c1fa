-- Another model for the embeddings of a workspace: made ready beside the one in use, then put in its place.

create function helper._choose_embedder(workspace uuid, model text)
returns table (name text, provider_id uuid, provider_model text)
language c volatile parallel unsafe rows 1 as 'MODULE_PATHNAME', 'choose_embedder_wrapper';
comment on function helper._choose_embedder(uuid, text) is 'The embedding model of that name, or the one that is set for a workspace, as knowledge_models names it. Errors: 42704, 55000';

create function helper.reembed(model text default null, workspace uuid default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper._writable_workspace(workspace, 'admin');
  v_choice record;
  v_other helper.knowledge_models;
  v_all bigint;
  v_count bigint;
begin
  -- A workspace that this transaction sees empty may have documents by now.
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception using
      errcode = '0A000',
      message = format('helper.reembed cannot run in a transaction of isolation level %s', upper(current_setting('transaction_isolation'))),
      hint = 'Call it in a transaction of isolation level READ COMMITTED.';
  end if;
  select c.* into v_choice from helper._choose_embedder(v_workspace, model) c;
  -- One at a time asks, and the worker does not switch meanwhile.
  perform from helper.knowledge_models m where m.workspace_id = v_workspace order by m.model for update;
  if exists (
    select from helper.knowledge_models m
    where m.workspace_id = v_workspace and m.model = v_choice.name and m.status = 'current'
  ) then
    -- The same model at a provider that was set up anew.
    update helper.knowledge_models m
    set provider_id = v_choice.provider_id,
      provider_model = v_choice.provider_model,
      dimensions = case
        when exists (select from helper.knowledge_vectors v where v.workspace_id = v_workspace and v.model = v_choice.name)
          then m.dimensions
      end
    where m.workspace_id = v_workspace and m.model = v_choice.name;
    return 0;
  end if;
  select m.* into v_other
  from helper.knowledge_models m
  where m.workspace_id = v_workspace and m.model <> v_choice.name and m.status in ('building', 'stopped', 'failed');
  if found then
    raise exception using
      errcode = '55000',
      message = format('the workspace is being embedded by model "%s"', v_other.model),
      hint = 'Go on with that one, or give it up with helper.stop_reembed(discard => true).';
  end if;
  select count(*), count(*) filter (where v.chunk_id is null) into v_all, v_count
  from helper.knowledge_chunks c
  left join helper.knowledge_vectors v on v.workspace_id = v_workspace and v.model = v_choice.name and v.chunk_id = c.id
  where c.workspace_id = v_workspace;
  if v_all = 0 then
    delete from helper.knowledge_models m where m.workspace_id = v_workspace and m.status in ('current', 'old');
    insert into helper.knowledge_models (workspace_id, model, provider_id, provider_model, status, created_by, finished_at)
    values (v_workspace, v_choice.name, v_choice.provider_id, v_choice.provider_model, 'current', helper.current_user_id(), clock_timestamp())
    on conflict on constraint knowledge_models_pkey do update
    set status = 'current', dimensions = null, finished_at = excluded.finished_at;
    return 0;
  end if;
  insert into helper.knowledge_models as m (workspace_id, model, provider_id, provider_model, status, before, created_by, started_at)
  values (v_workspace, v_choice.name, v_choice.provider_id, v_choice.provider_model, 'building', v_all - v_count, helper.current_user_id(),
    clock_timestamp())
  on conflict on constraint knowledge_models_pkey do update
  set status = 'building',
    provider_id = excluded.provider_id,
    provider_model = excluded.provider_model,
    before = excluded.before,
    done = 0,
    error = null,
    started_at = excluded.started_at;
  -- One that waits already may be claimed before this is seen; a second one finds nothing left to do.
  perform helper._enqueue(v_workspace, 'reembed', '{}', v_workspace);
  return v_count;
end
$$;
comment on function helper.reembed(text, uuid) is
  'Has all chunks of a workspace embedded by another model (model or provider/model; local; null: the one that is set for embedding) and returns how many wait. The index in use stays until all are done, then the new embeddings take its place and the old ones are deleted; see reembed_progress. Asked again after it stopped or failed it goes on where it was. Needs the role admin. Errors: 0A000 in a transaction that is not read committed, 42501, 42704, 55000';

create function helper.stop_reembed(workspace uuid default null, discard boolean default false) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper._writable_workspace(workspace, 'admin');
begin
  update helper.knowledge_models m
  set status = case when coalesce(discard, false) then 'old' when m.status = 'failed' then 'failed' else 'stopped' end
  where m.workspace_id = v_workspace and m.status in ('building', 'stopped', 'failed');
  return found;
end
$$;
comment on function helper.stop_reembed(uuid, boolean) is
  'Stops helper.reembed; what it has embedded is kept to go on from, or deleted with discard. False where there is none. Needs the role admin. Errors: 42501, 42704';

-- Puts a model in the place of the current one; false while a chunk lacks its embedding.
create function helper._switch_model(workspace uuid, model text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform from helper.knowledge_models m where m.workspace_id = workspace order by m.model for update;
  -- Stopped or given up while this waited.
  if not exists (
    select from helper.knowledge_models m
    where m.workspace_id = workspace and m.model = _switch_model.model and m.status = 'building'
  ) then
    return true;
  end if;
  if exists (
    select from helper.knowledge_chunks c
    where c.workspace_id = workspace
      and not exists (
        select from helper.knowledge_vectors v
        where v.workspace_id = workspace and v.model = _switch_model.model and v.chunk_id = c.id)
  ) then
    return false;
  end if;
  update helper.knowledge_models m set status = 'old' where m.workspace_id = workspace and m.status = 'current';
  update helper.knowledge_models m
  set status = 'current', error = null, finished_at = clock_timestamp()
  where m.workspace_id = workspace and m.model = _switch_model.model;
  return true;
end
$$;
comment on function helper._switch_model(uuid, text) is 'Makes a model the current one of a workspace, once every chunk has an embedding of it';

create function helper._sweep_vectors(workspace uuid, model text, most integer) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_count bigint;
begin
  perform from helper.knowledge_models m
  where m.workspace_id = workspace and m.model = _sweep_vectors.model and m.status = 'old'
  for update skip locked;
  if not found then
    return 0;
  end if;
  delete from helper.knowledge_vectors v
  where v.ctid = any (array(
    select f.ctid from helper.knowledge_vectors f
    where f.workspace_id = workspace and f.model = _sweep_vectors.model
    limit most));
  get diagnostics v_count = row_count;
  if v_count < most then
    -- Not before: whoever takes the model back meanwhile finds by them what is still there.
    delete from helper.knowledge_blocks b where b.workspace_id = workspace and b.model = _sweep_vectors.model;
    delete from helper.knowledge_models m where m.workspace_id = workspace and m.model = _sweep_vectors.model;
  end if;
  return v_count;
end
$$;
comment on function helper._sweep_vectors(uuid, text, integer) is 'Deletes embeddings of a model that the workspace is not searched with any more; returns how many';

create view helper.reembed_progress with (security_invoker = true) as
  select
    p.workspace_id,
    p.model,
    p.status,
    p.chunks,
    least(p.before + p.done, p.chunks) as done,
    round((p.done / p.seconds)::numeric, 1) as chunks_per_second,
    case when p.status = 'building' and p.done > 0 then make_interval(secs => round(greatest(p.chunks - p.before - p.done, 0) * p.seconds / p.done)) end as time_left,
    p.started_at,
    p.error
  from (
    select
      m.workspace_id,
      m.model,
      m.status,
      m.done,
      m.before,
      m.started_at,
      m.error,
      greatest(0.001, extract(epoch from clock_timestamp() - m.started_at))::double precision as seconds,
      (select coalesce(sum(s.chunk_count), 0) from helper.knowledge_sources s where s.workspace_id = m.workspace_id) as chunks
    from helper.knowledge_models m
    where m.status in ('building', 'stopped', 'failed')
  ) p;
comment on view helper.reembed_progress is 'How far helper.reembed is in each of the caller''s workspaces; a workspace is not here once the new model is in use';
comment on column helper.reembed_progress.workspace_id is 'The workspace';
comment on column helper.reembed_progress.model is 'The model that embeds it anew';
comment on column helper.reembed_progress.status is 'building, stopped or failed';
comment on column helper.reembed_progress.chunks is 'Chunks of the workspace';
comment on column helper.reembed_progress.done is 'Of these, embedded by the model';
comment on column helper.reembed_progress.chunks_per_second is 'The rate since then';
comment on column helper.reembed_progress.time_left is 'At that rate; null where nothing was embedded yet';
comment on column helper.reembed_progress.started_at is 'When helper.reembed was last asked for';
comment on column helper.reembed_progress.error is 'What went wrong last';
