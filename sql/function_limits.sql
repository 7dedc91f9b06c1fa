-- Tools: what may be called, and how often.

-- In PL/pgSQL, whose plans are kept: each call of a tool asks this and the next one.
create function helper._may_execute(target text) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_role name := helper.caller_role();
begin
  return coalesce(
    (select has_function_privilege(v_role, p.oid, 'execute') and has_schema_privilege(v_role, p.pronamespace, 'usage')
     from pg_proc p
     where p.oid = to_regprocedure(target)), false);
end
$$;
comment on function helper._may_execute(text) is 'Whether the caller''s role has the privilege EXECUTE on a function that exists';

create function helper._is_switched_on(function helper.functions, workspace uuid) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return function.enabled and coalesce(
    (select s.enabled from helper.function_settings s where s.workspace_id = workspace and s.function_name = function.function_name),
    function.pack is null or function.pack = 'builtin');
end
$$;
comment on function helper._is_switched_on(helper.functions, uuid) is 'Whether a tool is on in a workspace';

create function helper.available_functions(workspace uuid default null, mode text default null)
returns table (
  function_name text,
  product_slug text,
  description text,
  parameters_schema jsonb,
  requires_confirmation boolean,
  kind text,
  read_only boolean,
  minimum_role text,
  approver_role text,
  tags text[],
  pack text
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_workspace uuid := helper.current_workspace(workspace);
  v_rank integer := helper._role_rank(helper.my_role(v_workspace));
  v_tools text[] := helper._mode_tools(v_workspace, mode);
begin
  return query
    select f.function_name, f.product_slug, f.description, f.parameters_schema, f.requires_confirmation, f.kind, f.read_only,
      f.minimum_role, f.approver_role, f.tags, f.pack
    from helper.functions f
    where helper._is_switched_on(f, v_workspace)
      and helper._role_rank(f.minimum_role) <= v_rank
      and (f.kind = 'http' or helper._may_execute(f.target))
      and (v_tools is null or helper._is_chosen(f, v_tools))
    order by f.function_name;
end
$$;
comment on function helper.available_functions(uuid, text) is
  'Tools that the caller may have called in a workspace, by role, switch and the privilege EXECUTE; with a mode, those that it offers. Errors: 22023, 42501, 42704';

create function helper._is_chosen(function helper.functions, tools text[]) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select function.function_name = any (tools)
    or 'product:' || function.product_slug = any (tools)
    or exists (select from unnest(function.tags) t (tag) where 'tag:' || t.tag = any (tools))
$$;
comment on function helper._is_chosen(helper.functions, text[]) is 'Whether a tool is in a list of names, product:slug and tag:word';

create function helper._mode_tools(workspace uuid, mode text) returns text[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_tools text[];
begin
  if mode is null then
    return null;
  end if;
  select m.tools into v_tools
  from helper.modes m
  where m.name = mode and (m.workspace_id = workspace or m.workspace_id is null)
  order by m.workspace_id nulls last, m.builtin
  limit 1;
  if not found then
    raise exception using errcode = '42704', message = format('mode "%s" does not exist', mode);
  end if;
  return v_tools;
end
$$;
comment on function helper._mode_tools(uuid, text) is 'Tools that a mode offers; null: all. Errors: 42704';

-- A transaction may call several tools, and another the same in another order. Both take the person's turn first, and the
-- workspace's only while they have that, so that neither ever waits for the other with what the other waits for.
create function helper._take_count_turn(workspace uuid, user_id uuid) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
  insert into helper.function_turns as t (workspace_id, user_id)
  values (workspace, _take_count_turn.user_id)
  on conflict on constraint function_turns_pkey do update set user_id = t.user_id where false
$$;
comment on function helper._take_count_turn(uuid, uuid) is 'Waits for who counts calls of a person, or of a workspace, and keeps others waiting until the transaction ends';

-- One statement for each limit: whoever comes when it is used up changes no row.
create function helper._count_call(workspace uuid, function text, user_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_settings helper.function_settings;
  v_limit record;
begin
  select s.* into v_settings
  from helper.function_settings s
  where s.workspace_id = workspace and s.function_name = _count_call.function;
  if num_nonnulls(v_settings.workspace_per_hour, v_settings.workspace_per_day, v_settings.user_per_hour, v_settings.user_per_day) = 0 then
    return;
  end if;
  perform helper._take_count_turn(workspace, user_id);
  if num_nonnulls(v_settings.workspace_per_hour, v_settings.workspace_per_day) > 0 then
    perform helper._take_count_turn(workspace, '00000000-0000-0000-0000-000000000000');
  end if;
  for v_limit in
    select l.who, l.period, l.most, date_trunc(l.period, clock_timestamp(), 'UTC') as began
    from (values
      ('00000000-0000-0000-0000-000000000000'::uuid, 'hour', v_settings.workspace_per_hour, 1),
      ('00000000-0000-0000-0000-000000000000', 'day', v_settings.workspace_per_day, 2),
      (_count_call.user_id, 'hour', v_settings.user_per_hour, 3),
      (_count_call.user_id, 'day', v_settings.user_per_day, 4)) l (who, period, most, place)
    where l.most is not null
    order by l.place
  loop
    insert into helper.function_counts as c (workspace_id, function_name, user_id, period, began, used)
    select workspace, _count_call.function, v_limit.who, v_limit.period, v_limit.began, 1
    where v_limit.most > 0
    on conflict on constraint function_counts_pkey do update
    set used = case when c.began < excluded.began then 1 else c.used + 1 end,
      began = greatest(c.began, excluded.began)
    where c.began < excluded.began or c.used < v_limit.most;
    if not found then
      raise exception using
        errcode = '53400',
        message = format('limit of calls of function "%s" is reached', _count_call.function),
        detail = format('%s may call it %s times in one %s.',
          case v_limit.who when _count_call.user_id then 'Each person' else 'The workspace' end, v_limit.most, v_limit.period),
        hint = format('It renews at %s.', to_char((v_limit.began + ('1 ' || v_limit.period)::interval) at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'));
    end if;
  end loop;
end
$$;
comment on function helper._count_call(uuid, text, uuid) is 'Counts a call against the limits of a workspace and a person. Errors: 53400';
