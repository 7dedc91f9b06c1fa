-- Workflows that start by what happens: events that somebody names, and rows that change. Both are written into an outbox
-- by the transaction in which they happen, and are gone with it when it is rolled back; a background process starts the runs.

create table helper.workflow_event_triggers (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  workflow_id uuid not null,
  event text,
  relation regclass,
  operations text[] constraint workflow_event_triggers_operations_check check (operations <@ '{insert,update,delete}'),
  workspace_column name,
  condition text,
  problem text,
  problem_at timestamptz,
  created_by uuid,
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint workflow_event_triggers_workflow_fkey foreign key (workspace_id, workflow_id) references helper.workflows on delete cascade,
  constraint workflow_event_triggers_event_check check ((event is null) <> (relation is null)),
  constraint workflow_event_triggers_event_key unique (workflow_id, event),
  constraint workflow_event_triggers_relation_key unique (workflow_id, relation)
);
comment on table helper.workflow_event_triggers is 'Events and tables that start workflows';
comment on column helper.workflow_event_triggers.workspace_id is 'Workspace of the workflow';
comment on column helper.workflow_event_triggers.id is 'Identifier, in order of creation';
comment on column helper.workflow_event_triggers.workflow_id is 'The workflow';
comment on column helper.workflow_event_triggers.event is 'Name of the event; null for a table';
comment on column helper.workflow_event_triggers.relation is 'The table; null for an event; written as its name in a dump';
comment on column helper.workflow_event_triggers.operations is 'Which changes of the table: insert, update, delete';
comment on column helper.workflow_event_triggers.workspace_column is 'Column with the workspace that a row belongs to; null: all rows are this workspace''s';
comment on column helper.workflow_event_triggers.condition is 'Expression that must hold: over event and payload, or operation, new and old';
comment on column helper.workflow_event_triggers.problem is 'Why it last started nothing, though it should have';
comment on column helper.workflow_event_triggers.problem_at is 'When that was';
comment on column helper.workflow_event_triggers.created_by is 'Who set it up';
comment on column helper.workflow_event_triggers.created_at is 'When it was set up';
create index workflow_event_triggers_event_idx on helper.workflow_event_triggers (event, workspace_id);

create table helper.workflow_events (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  name text,
  trigger_id uuid,
  payload jsonb not null,
  depth integer not null,
  run_id uuid default helper._run_here(),
  created_at timestamptz not null default clock_timestamp(),
  attempts integer not null default 0,
  deliver_at timestamptz not null default '-infinity',
  problem text,
  primary key (workspace_id, id)
);
create index workflow_events_deliver_at_idx on helper.workflow_events (deliver_at) where attempts > 0;
comment on table helper.workflow_events is 'What happened and was not looked at yet, or could not be delivered';
comment on column helper.workflow_events.workspace_id is 'Workspace that it happened in';
comment on column helper.workflow_events.id is 'Identifier, in order of creation';
comment on column helper.workflow_events.name is 'Name of the event; null for a row that changed';
comment on column helper.workflow_events.trigger_id is 'Trigger whose table''s row changed';
comment on column helper.workflow_events.payload is 'What is known of it: the input of the runs that it starts';
comment on column helper.workflow_events.depth is 'How many workflows led to it, each by an event';
comment on column helper.workflow_events.run_id is 'The run that made it happen';
comment on column helper.workflow_events.created_at is 'When it happened';
comment on column helper.workflow_events.attempts is 'Times that it could not be delivered';
comment on column helper.workflow_events.deliver_at is 'Not before this time; infinity: it was given up';
comment on column helper.workflow_events.problem is 'Why it could not be delivered the last time';

alter table helper.workflow_event_triggers enable row level security;
alter table helper.workflow_events enable row level security;
create policy workflow_event_triggers_select_member on helper.workflow_event_triggers for select
  using (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy workflow_event_triggers_select_member on helper.workflow_event_triggers is 'Members, and no viewers, see what starts their workspaces'' workflows';
-- A payload may hold rows that not every member may read.
create policy workflow_events_select_admin on helper.workflow_events for select
  using (workspace_id = any ((select helper.my_workspaces('admin'))::uuid[]));
comment on policy workflow_events_select_admin on helper.workflow_events is 'Admins see what waits in their workspaces, and what was given up';
select pg_catalog.pg_extension_config_dump('helper.workflow_event_triggers', '');
select pg_catalog.pg_extension_config_dump('helper.workflow_events', '');

create trigger workflow_events_wake after insert on helper.workflow_events
  for each statement execute function helper._wake_runner();

create function helper._condition_holds(condition text, happened jsonb) returns boolean
language c immutable parallel safe as 'MODULE_PATHNAME', 'condition_holds_wrapper';
comment on function helper._condition_holds(text, jsonb) is
  'Whether an expression (RFC 9535) holds over the members of an object; null as the object only reads the expression. Errors: 22023';

create function helper._own_events() returns text[]
language sql immutable parallel safe
begin atomic
  select array['contact_created', 'lead_created', 'tag_added', 'wa_message_received'];
end;
comment on function helper._own_events() is 'Events that the extension''s own tables tell, and nobody else';

create function helper.emit_event(name text, payload jsonb default '{}', workspace uuid default null) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper._writable_workspace(workspace, 'member');
  v_event uuid;
begin
  if name is null or name !~ '^[a-zA-Z][a-zA-Z0-9_.:-]{0,99}$' then
    raise exception using errcode = '22023', message = format('event name "%s" is not valid', name),
      hint = 'Use at most 100 letters, digits, "_", ".", ":" and "-".';
  end if;
  -- What waits for these takes their word for it.
  if name = any (helper._own_events()) then
    raise exception using errcode = '42501', message = format('permission denied to emit event "%s"', name),
      detail = 'The extension alone tells what happened to its tables.', hint = 'Use a name of your own.';
  end if;
  if payload is null or jsonb_typeof(payload) <> 'object' then
    raise exception using errcode = '22023', message = 'payload is not a JSON object';
  end if;
  if octet_length(payload::text) > 262144 then
    raise exception using errcode = '53400', message = 'payload of an event is too large',
      detail = format('It has %s bytes, expected at most 262144.', octet_length(payload::text));
  end if;
  if helper._depth() >= helper._deepest() then
    raise exception using errcode = '53400', message = 'workflows start one another too deep',
      detail = format('This run is the end of a chain of %s, each started by an event of the one before.', helper._deepest()),
      hint = 'Make the condition of one of them narrower.';
  end if;
  insert into helper.workflow_events (workspace_id, name, payload, depth)
  values (v_workspace, emit_event.name, emit_event.payload, helper._depth())
  returning id into v_event;
  return v_event;
end
$$;
comment on function helper.emit_event(text, jsonb, uuid) is
  'Says that something happened, which starts the workflows that wait for it when this transaction commits; returns the event''s id. Not by the names of the extension''s own events. For members. Errors: 22023, 42501, 42704, 53400 too large or too deep';

create function helper.on_event(workflow text, event text, condition text default null, workspace uuid default null) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'admin');
  v_trigger uuid;
begin
  if event is null or event !~ '^[a-zA-Z][a-zA-Z0-9_.:-]{0,99}$' then
    raise exception using errcode = '22023', message = format('event name "%s" is not valid', event),
      hint = 'Use at most 100 letters, digits, "_", ".", ":" and "-".';
  end if;
  perform helper._condition_holds(condition, null);
  insert into helper.workflow_event_triggers as t (workspace_id, workflow_id, event, condition, created_by)
  values (v_workflow.workspace_id, v_workflow.id, on_event.event, on_event.condition, helper.current_user_id())
  on conflict on constraint workflow_event_triggers_event_key do update
  set condition = excluded.condition, problem = null, problem_at = null
  returning t.id into v_trigger;
  return v_trigger;
end
$$;
comment on function helper.on_event(text, text, text, uuid) is
  'Starts a workflow whenever an event of this name is emitted in its workspace and a condition over event and payload holds (an expression such as @.payload.score > 50); again with the same event changes the condition. Returns the trigger''s id. For workspace admins. Errors: 22023, 42501, 42704';

-- Rows that change

-- These are asked at every statement on a table that is followed. In this language what they ask is planned once a session.
create function helper._row_json(relation regclass, alias text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  -- A function takes a hundred arguments.
  return (
    select coalesce(string_agg(format('jsonb_build_object(%s)', g.fields), ' || ' order by g.part), '''{}''::jsonb')
    from (
      select (a.attnum - 1) / 50 as part,
        string_agg(format('%L, %s', a.attname, helper._json_of(format('%s.%I', alias, a.attname), t.typnamespace, t.typtype)), ', ' order by a.attnum) as fields
      from pg_attribute a
      join pg_type t on t.oid = a.atttypid
      where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
      group by 1
    ) g);
end
$$;
comment on function helper._row_json(regclass, text) is 'Expression for a row of a table as a JSON object';

create function helper._same_row(relation regclass, out condition text, out key name)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  select string_agg(format('o.%1$I operator(pg_catalog.=) n.%1$I', a.attname), ' and '), min(a.attname)
  into condition, key
  from pg_index i
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey::smallint[])
  join pg_type t on t.oid = a.atttypid
  where i.indrelid = relation and i.indisprimary
  having bool_and(t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b');
end
$$;
comment on function helper._same_row(regclass) is
  'Condition that rows n and o of a table have the same primary key, and a column of it; null where there is none, or one of types that somebody made';

-- One statement for all rows, with nothing in it that a row of another workspace would get through: an updated row's former
-- values are told only where they were this workspace's too.
create function helper._row_events(trigger helper.workflow_event_triggers, operation text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_ours constant text := case when trigger.workspace_column is null then 'true' else format('%%s.%I operator(pg_catalog.=) $1', trigger.workspace_column) end;
  v_same record;
  v_rows text;
begin
  if operation = 'insert' then
    v_rows := format('select jsonb_build_object(''operation'', ''insert'', ''new'', %s) from new_rows n where %s',
      helper._row_json(trigger.relation, 'n'), format(v_ours, 'n'));
  elsif operation = 'delete' then
    v_rows := format('select jsonb_build_object(''operation'', ''delete'', ''old'', %s) from old_rows o where %s',
      helper._row_json(trigger.relation, 'o'), format(v_ours, 'o'));
  else
    select s.* into v_same from helper._same_row(trigger.relation) s;
    if v_same.key is null then
      v_rows := format('select jsonb_build_object(''operation'', ''update'', ''new'', %s, ''old'', null) from new_rows n where %s',
        helper._row_json(trigger.relation, 'n'), format(v_ours, 'n'));
    else
      v_rows := format(
        'select jsonb_build_object(''operation'', ''update'', ''new'', %s, ''old'', case when o.%I is not null then %s end)
         from new_rows n left join old_rows o on %s and %s where %s',
        helper._row_json(trigger.relation, 'n'), v_same.key, helper._row_json(trigger.relation, 'o'), v_same.condition,
        format(v_ours, 'o'), format(v_ours, 'n'));
    end if;
  end if;
  return format(
    'insert into helper.workflow_events (workspace_id, trigger_id, payload, depth)
     select $1, $2, case when pg_column_size(r.payload) > 262144 then jsonb_build_object(''operation'', %L, ''too_large'', true) else r.payload end, $3
     from (%s) r (payload)',
    operation, v_rows);
end
$$;
comment on function helper._row_events(helper.workflow_event_triggers, text) is 'Statement that writes the events of a statement''s rows';

create function helper._rows_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
declare
  v_trigger helper.workflow_event_triggers;
begin
  select t.* into v_trigger
  from helper.workflow_event_triggers t
  where t.workspace_id = tg_argv[0]::uuid and t.id = tg_argv[1]::uuid and t.relation = tg_relid;
  if not found then
    return null;
  end if;
  if helper._depth() >= helper._deepest() then
    perform helper._trouble(v_trigger.workspace_id, v_trigger.id,
      format('workflows start one another too deep: a change of %s by the last of %s was not told', tg_relid::regclass, helper._deepest()));
    return null;
  end if;
  -- The table's owner may have changed it since.
  if v_trigger.workspace_column is not null and not exists (
    select from pg_attribute a where a.attrelid = tg_relid and a.attname = v_trigger.workspace_column and a.atttypid = 'uuid'::regtype and not a.attisdropped)
  then
    perform helper._trouble(v_trigger.workspace_id, v_trigger.id,
      format('table %s has no column "%s" of type uuid any more', tg_relid::regclass, v_trigger.workspace_column));
    return null;
  end if;
  execute helper._row_events(v_trigger, lower(tg_op)) using v_trigger.workspace_id, v_trigger.id, helper._depth();
  return null;
end
$$;
comment on function helper._rows_changed() is 'Trigger of tables that start workflows: writes their rows'' events';

create function helper._trouble(workspace uuid, trigger uuid, problem text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update helper.workflow_event_triggers t
  set problem = left(_trouble.problem, 1000), problem_at = clock_timestamp()
  where t.workspace_id = _trouble.workspace and t.id = _trouble.trigger
$$;
comment on function helper._trouble(uuid, uuid, text) is 'Notes why a trigger started nothing';

create function helper._check_followed(relation regclass, operations text[], workspace_column name) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if relation is null or operations is null or operations = '{}' then
    raise exception using errcode = '22023', message = 'relation and operations must be given';
  end if;
  if not operations <@ '{insert,update,delete}' then
    raise exception using errcode = '22023', message = 'operations are not known', hint = 'Use insert, update and delete.';
  end if;
  perform helper._require_table(relation);
  if workspace_column is null then
    -- Whose rows they are is said by whoever owns them.
    if not exists (select from pg_class c where c.oid = relation and pg_has_role(helper.caller_role(), c.relowner, 'USAGE')) then
      raise exception using errcode = '42501', message = format('permission denied for table %s', relation),
        detail = 'Only its owner may give all of a table''s rows to one workspace.', hint = 'Name the column that holds the workspace with workspace_column => ....';
    end if;
  elsif not exists (
    select from pg_attribute a where a.attrelid = relation and a.attname = workspace_column and a.atttypid = 'uuid'::regtype and a.attnum > 0 and not a.attisdropped)
  then
    raise exception using errcode = '42704', message = format('table %s has no column "%s" of type uuid', relation, workspace_column);
  end if;
end
$$;
comment on function helper._check_followed(regclass, text[], name) is 'Refuses a table whose changes the caller may not have followed. Errors: 22023, 42501, 42704';

create function helper.on_table(
  workflow text,
  relation regclass,
  operations text[] default '{insert,update,delete}',
  condition text default null,
  workspace_column name default null,
  workspace uuid default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'admin');
  v_trigger helper.workflow_event_triggers;
  v_operation text;
begin
  perform helper._check_followed(relation, operations, workspace_column);
  perform helper._condition_holds(condition, null);
  delete from helper.workflow_event_triggers t where t.workflow_id = v_workflow.id and t.relation = on_table.relation;
  insert into helper.workflow_event_triggers (workspace_id, workflow_id, relation, operations, workspace_column, condition, created_by)
  values (v_workflow.workspace_id, v_workflow.id, on_table.relation,
    (select array_agg(distinct o.name order by o.name) from unnest(on_table.operations) o (name)),
    on_table.workspace_column, on_table.condition, helper.current_user_id())
  returning * into v_trigger;
  foreach v_operation in array v_trigger.operations loop
    execute format('create trigger %I after %s on %s referencing %s for each statement execute function helper._rows_changed(%L, %L)',
      helper._row_trigger(v_trigger.id, v_operation), v_operation, relation,
      case v_operation when 'insert' then 'new table as new_rows' when 'delete' then 'old table as old_rows' else 'old table as old_rows new table as new_rows' end,
      v_trigger.workspace_id, v_trigger.id);
  end loop;
  return v_trigger.id;
end
$$;
comment on function helper.on_table(text, regclass, text[], text, name, uuid) is
  'Starts a workflow for each row of a table that is inserted, updated or deleted and for which a condition over operation, new and old holds: rows whose workspace_column is the workflow''s workspace, or all, which the table''s owner alone may say. Returns the trigger''s id. For workspace admins with SELECT and TRIGGER on the table, and its owner where it has row-level security. Errors: 22023, 42501, 42704';

create function helper._row_trigger(trigger uuid, operation text) returns name
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select format('helper_workflow_%s_%s', operation, replace(trigger::text, '-', ''))::name
$$;
comment on function helper._row_trigger(uuid, text) is 'Name of the trigger that follows a table''s changes';

create function helper.remove_trigger(trigger uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid;
begin
  select t.workspace_id into v_workspace
  from helper.workflow_event_triggers t
  where t.id = remove_trigger.trigger and t.workspace_id = any (helper.my_workspaces());
  if not found then
    raise exception using errcode = '42704', message = format('trigger "%s" does not exist', trigger);
  end if;
  perform helper._require_role(v_workspace, 'admin');
  delete from helper.workflow_event_triggers t where t.workspace_id = v_workspace and t.id = remove_trigger.trigger;
end
$$;
comment on function helper.remove_trigger(uuid) is
  'Stops an event or a table from starting a workflow; what happened before and waits still does. For workspace admins. Errors: 42501, 42704';

create function helper._stop_following() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_operation text;
begin
  if exists (select from pg_class c where c.oid = old.relation) then
    foreach v_operation in array old.operations loop
      execute format('drop trigger if exists %I on %s', helper._row_trigger(old.id, v_operation), old.relation);
    end loop;
  end if;
  return null;
end
$$;
comment on function helper._stop_following() is 'Takes the triggers of a table away with what they were for';
create trigger workflow_event_triggers_stop after delete on helper.workflow_event_triggers
  for each row when (old.relation is not null) execute function helper._stop_following();

-- Delivery

create function helper._deliver_event(event helper.workflow_events) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_trigger helper.workflow_event_triggers;
  v_about jsonb := case when event.name is null then event.payload else jsonb_build_object('event', event.name, 'payload', event.payload) end;
  v_message text;
begin
  if event.name is not null then
    perform helper._wake_for_event(event.workspace_id, event.name, event.payload);
  end if;
  for v_trigger in
    select t.*
    from helper.workflow_event_triggers t
    where t.workspace_id = event.workspace_id and t.id = event.trigger_id
    union all
    select t.*
    from helper.workflow_event_triggers t
    where t.workspace_id = event.workspace_id and t.event = _deliver_event.event.name
  loop
    begin
      continue when v_trigger.condition is not null and not helper._condition_holds(v_trigger.condition, v_about);
      perform helper._start_run(
        event.workspace_id,
        v_trigger.workflow_id,
        jsonb_strip_nulls(jsonb_build_object('origin', event.run_id)) || jsonb_build_object('kind', case when event.name is null then 'table' else 'event' end,
          'name', coalesce(event.name, v_trigger.relation::text), 'event', event.id, 'trigger', v_trigger.id,
          'at', to_char(event.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')),
        event.payload,
        format('event:%s:%s', event.id, v_trigger.id),
        event.depth + 1);
    exception
      -- That passes: the whole event later.
      when lock_not_available or transaction_rollback or insufficient_resources then
        raise;
      when others then
        get stacked diagnostics v_message = message_text;
        perform helper._trouble(v_trigger.workspace_id, v_trigger.id, v_message);
    end;
  end loop;
end
$$;
comment on function helper._deliver_event(helper.workflow_events) is 'Starts the workflows that wait for what happened; raises what may pass';

-- With these pauses an event is given up after some ten minutes.
create function helper._put_off_event(event helper.workflow_events, problem text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into helper.workflow_events (workspace_id, id, name, trigger_id, payload, depth, run_id, created_at, attempts, deliver_at, problem)
  values (event.workspace_id, event.id, event.name, event.trigger_id, event.payload, event.depth, event.run_id, event.created_at, event.attempts + 1,
    case when event.attempts + 1 >= 20 then 'infinity' else clock_timestamp() + least(interval '100 ms' * 2 ^ event.attempts, interval '1 min') end,
    left(_put_off_event.problem, 1000))
$$;
comment on function helper._put_off_event(helper.workflow_events, text) is 'Has an event delivered later that could not be now, or gives it up';

-- Workspaces take turns, from a different one on each time: the backlog of one delays no other.
create function helper._deliver_events(most integer default 1000) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
declare
  v_first constant uuid := gen_random_uuid();
  v_now constant timestamptz := clock_timestamp();
  v_event helper.workflow_events;
  v_message text;
  v_delivered boolean := false;
  -- What somebody holds that an event would start, and what was said of it.
  v_held jsonb := '{}';
  v_kind text;
begin
  for v_event in
    with recursive turn (workspace_id, n) as (
      (select e.workspace_id, 1 from helper.workflow_events e where e.workspace_id >= v_first order by e.workspace_id limit 1)
      union all
      select f.workspace_id, t.n + 1
      from turn t
      cross join lateral (
        select e.workspace_id from helper.workflow_events e where e.workspace_id > t.workspace_id order by e.workspace_id limit 1
      ) f
      where t.n < most
    ), start (workspace_id, n) as (
      (select e.workspace_id, 1 from helper.workflow_events e where e.workspace_id < v_first order by e.workspace_id limit 1)
      union all
      select f.workspace_id, t.n + 1
      from start t
      cross join lateral (
        select e.workspace_id from helper.workflow_events e where e.workspace_id > t.workspace_id and e.workspace_id < v_first order by e.workspace_id limit 1
      ) f
      where t.n < most
    ), workspaces as materialized (
      select t.workspace_id
      from (select t.workspace_id from turn t union all select s.workspace_id from start s) t
      -- Two who deliver at once would not keep the order.
      cross join lateral (select from helper.workspaces w where w.id = t.workspace_id for no key update skip locked) w
    ), picked as materialized (
      select p.workspace_id, p.id
      from workspaces w
      cross join lateral (
        select e.workspace_id, e.id
        from helper.workflow_events e
        where e.workspace_id = w.workspace_id and e.deliver_at <= v_now
        order by e.id
        limit greatest(most / (select count(*) from workspaces), 1)
        for update skip locked
      ) p
      limit most
    ), taken as (
      delete from helper.workflow_events e using picked p
      where e.workspace_id = p.workspace_id and e.id = p.id
      returning e.*
    )
    select t.* from taken t order by t.id
  loop
    -- So many locks are not waited for in one transaction.
    v_kind := concat_ws(' ', v_event.workspace_id, v_event.trigger_id, v_event.name);
    if v_held ? v_kind then
      perform helper._put_off_event(v_event, v_held ->> v_kind);
      continue;
    end if;
    begin
      perform helper._deliver_event(v_event);
      v_delivered := true;
    exception
      -- Somebody's open transaction holds what it starts, say: later, and nobody else's waits for it.
      when others then
        get stacked diagnostics v_message = message_text;
        perform helper._put_off_event(v_event, v_message);
        if sqlstate = '55P03' then
          v_held := v_held || jsonb_build_object(v_kind, v_message);
        end if;
    end;
  end loop;
  if v_delivered then
    return v_now;
  end if;
  -- What is due and was left is somebody else's, or of a workspace that somebody holds.
  return (
    select greatest(e.deliver_at, v_now + interval '50 ms')
    from helper.workflow_events e
    where e.deliver_at < 'infinity'
    order by e.deliver_at
    limit 1);
end
$$;
comment on function helper._deliver_events(integer) is
  'Starts what waits in the outbox, of each workspace in the order in which it happened, and returns when to come again: at once where something was delivered, null where there is nothing to come for';

-- What the packs' own tables tell, where somebody listens

create function helper._tell_event(workspace uuid, event text, payload jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if event <> all (helper._own_events()) then
    raise exception using errcode = 'XX000', message = format('event "%s" can be emitted by anybody', event);
  end if;
  if not exists (select from helper.workflow_event_triggers t where t.event = _tell_event.event and t.workspace_id = _tell_event.workspace)
    and not exists (select from helper.workflow_waits w where w.event = _tell_event.event and w.workspace_id = _tell_event.workspace)
  then
    return;
  end if;
  if helper._depth() >= helper._deepest() then
    raise warning using message = format('workflows start one another too deep: event "%s" of the last of %s was not told', event, helper._deepest());
    return;
  end if;
  insert into helper.workflow_events (workspace_id, name, payload, depth)
  values (workspace, event, payload, helper._depth());
end
$$;
comment on function helper._tell_event(uuid, text, jsonb) is 'Writes an event of the extension''s own into the outbox, where somebody listens';

create function helper._tell_row() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._tell_event(new.workspace_id, tg_argv[0], to_jsonb(new) - 'workspace_id');
  return null;
end
$$;
comment on function helper._tell_row() is 'Tells of a new row of a table of ours';
create trigger contacts_tell after insert on helper.contacts
  for each row execute function helper._tell_row('contact_created');
create trigger leads_tell after insert on helper.leads
  for each row execute function helper._tell_row('lead_created');

create function helper._tell_tags() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._tell_event(new.workspace_id, 'tag_added', jsonb_build_object('contact_id', new.id, 'tag', t.tag,
    'phone', new.phone, 'phone_number', new.phone, 'name', new.name))
  from (select unnest(new.tags) except select unnest(old.tags)) t (tag);
  return null;
end
$$;
comment on function helper._tell_tags() is 'Tells of each tag that a contact got';
create trigger contacts_tell_tags after update of tags on helper.contacts
  for each row when (new.tags <> old.tags) execute function helper._tell_tags();

create function helper._tell_message() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._tell_event(new.workspace_id, 'wa_message_received', jsonb_build_object(
    'message_id', new.id, 'thread_id', new.thread_id, 'kind', new.kind, 'text', new.body, 'sent_at', new.sent_at,
    'contact_id', c.id, 'phone', c.phone, 'name', c.name, 'tags', c.tags,
    -- As the application's workflows name them.
    'message', new.body, 'phone_number', c.phone))
  from helper.wa_threads t
  join helper.contacts c on c.workspace_id = t.workspace_id and c.id = t.contact_id
  where t.workspace_id = new.workspace_id and t.id = new.thread_id;
  return null;
end
$$;
comment on function helper._tell_message() is 'Tells of a message that a contact wrote';
create trigger wa_messages_tell after insert on helper.wa_messages
  for each row execute function helper._tell_message();
