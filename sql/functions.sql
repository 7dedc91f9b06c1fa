-- Tools: SQL functions and HTTP endpoints that a call, or a model on a caller's behalf, may have run. Administrators
-- register them for the whole database; a workspace switches them on and off and limits them.

create table helper.functions (
  id uuid not null default helper.uuid_v7(),
  function_name text not null constraint functions_function_name_check check (function_name ~ '^[a-zA-Z][a-zA-Z0-9_-]{0,63}$'),
  product_slug text constraint functions_product_slug_check check (product_slug ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
  description text not null constraint functions_description_check check (char_length(description) <= 8000),
  parameters_schema jsonb not null constraint functions_parameters_schema_check check (jsonb_typeof(parameters_schema) = 'object'),
  requires_confirmation boolean not null default true,
  kind text not null constraint functions_kind_check check (kind in ('sql', 'http')),
  target text,
  http jsonb constraint functions_http_check check (jsonb_typeof(http) = 'object'),
  credential text constraint functions_credential_check check (credential ~ '^(env|file|vault):.'),
  minimum_role text not null default 'member' constraint functions_minimum_role_check check (minimum_role in ('owner', 'admin', 'member', 'viewer')),
  approver_role text constraint functions_approver_role_check check (approver_role in ('owner', 'admin', 'member', 'viewer')),
  self_approval boolean not null default true,
  lapse interval not null default '1 hour' constraint functions_lapse_check check (lapse between interval '1 second' and interval '30 days'),
  recheck boolean not null default true,
  timeout_ms integer not null default 30000 constraint functions_timeout_ms_check check (timeout_ms between 1 and 600000),
  idempotent boolean not null default false,
  max_result_bytes integer not null default 65536 constraint functions_max_result_bytes_check check (max_result_bytes between 1 and 16777216),
  tags text[] not null default '{}',
  read_only boolean not null default false,
  pack text,
  enabled boolean not null default true,
  created_by uuid,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  primary key (id),
  constraint functions_function_name_key unique (function_name),
  constraint functions_target_check check ((kind = 'sql') = (target is not null) and (kind = 'http') = (http is not null)),
  constraint functions_self_approval_check check (self_approval or approver_role is not null)
);
comment on table helper.functions is 'Tools that may be called in every workspace that has them switched on';
comment on column helper.functions.id is 'Identifier';
comment on column helper.functions.function_name is 'Name by which calls and models choose it';
comment on column helper.functions.product_slug is 'Product that it belongs to';
comment on column helper.functions.description is 'What it does, for a model';
comment on column helper.functions.parameters_schema is 'JSON Schema (draft 2020-12) of its arguments, an object';
comment on column helper.functions.requires_confirmation is 'Whether a person must approve each call';
comment on column helper.functions.kind is 'sql or http';
comment on column helper.functions.target is 'The SQL function, its schema and argument types written out; text, as a regprocedure would keep the server from being upgraded';
comment on column helper.functions.http is 'The request: method, url, headers, body, signature, allow_private';
comment on column helper.functions.credential is 'Where the key of the endpoint is, bound to its host: env:NAME, file:/path or vault:name';
comment on column helper.functions.minimum_role is 'Role in the workspace that a caller needs';
comment on column helper.functions.approver_role is 'Role in the workspace that may approve; null: the caller approves';
comment on column helper.functions.self_approval is 'Whether a caller with that role may approve their own call';
comment on column helper.functions.lapse is 'How long a call waits for its approval';
comment on column helper.functions.recheck is 'Whether a confirmed call asks again when it would do something else than its preview showed';
comment on column helper.functions.timeout_ms is 'Milliseconds that a run may take';
comment on column helper.functions.idempotent is 'Whether the endpoint does a request with a known Idempotency-Key only once, so that it may be sent again';
comment on column helper.functions.max_result_bytes is 'Bytes of a result at most';
comment on column helper.functions.tags is 'Words by which tools are chosen, as tag:word';
comment on column helper.functions.read_only is 'Whether it changes nothing';
comment on column helper.functions.pack is 'Pack that it came with; builtin: it came with the extension and is on in every workspace; null: registered here';
comment on column helper.functions.enabled is 'Whether it may be called at all';
comment on column helper.functions.created_by is 'Who registered it';
comment on column helper.functions.created_at is 'When it was registered';
comment on column helper.functions.updated_at is 'When its registration last changed; a call that waits does not outlive that';

create table helper.function_settings (
  workspace_id uuid not null,
  function_name text not null,
  enabled boolean,
  user_per_hour integer constraint function_settings_user_per_hour_check check (user_per_hour >= 0),
  user_per_day integer constraint function_settings_user_per_day_check check (user_per_day >= 0),
  workspace_per_hour integer constraint function_settings_workspace_per_hour_check check (workspace_per_hour >= 0),
  workspace_per_day integer constraint function_settings_workspace_per_day_check check (workspace_per_day >= 0),
  updated_by uuid,
  updated_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, function_name),
  constraint function_settings_function_fkey foreign key (function_name) references helper.functions (function_name) on delete cascade
);
create index function_settings_function_name_idx on helper.function_settings (function_name);
comment on table helper.function_settings is 'Tools that a workspace switched on or off, and its limits for them';
comment on column helper.function_settings.workspace_id is 'The workspace';
comment on column helper.function_settings.function_name is 'The tool; by name, as a pack''s tools have other ids after a restore';
comment on column helper.function_settings.enabled is 'On or off; null: off for tools of packs, on for built-in ones and others';
comment on column helper.function_settings.user_per_hour is 'Calls of each person in an hour; null: no limit';
comment on column helper.function_settings.user_per_day is 'Calls of each person in a day; null: no limit';
comment on column helper.function_settings.workspace_per_hour is 'Calls of all in an hour; null: no limit';
comment on column helper.function_settings.workspace_per_day is 'Calls of all in a day; null: no limit';
comment on column helper.function_settings.updated_by is 'Who changed it last';
comment on column helper.function_settings.updated_at is 'When it last changed';

create table helper.function_counts (
  workspace_id uuid not null,
  function_name text not null,
  user_id uuid not null,
  period text not null constraint function_counts_period_check check (period in ('hour', 'day')),
  began timestamptz not null,
  used integer not null,
  primary key (workspace_id, function_name, user_id, period),
  constraint function_counts_function_fkey foreign key (function_name) references helper.functions (function_name) on delete cascade
);
create index function_counts_function_name_idx on helper.function_counts (function_name);
comment on table helper.function_counts is 'Calls in the present hour and day, where there is a limit; counted by the extension alone';
comment on column helper.function_counts.workspace_id is 'The workspace';
comment on column helper.function_counts.function_name is 'The tool';
comment on column helper.function_counts.user_id is 'The person; all zeros: everybody together';
comment on column helper.function_counts.period is 'hour or day';
comment on column helper.function_counts.began is 'When the period began';
comment on column helper.function_counts.used is 'Calls since then';

create table helper.function_turns (
  workspace_id uuid not null,
  user_id uuid not null,
  primary key (workspace_id, user_id)
);
comment on table helper.function_turns is 'Whose calls are being counted: whoever counts holds the row until their transaction ends; for the extension alone';
comment on column helper.function_turns.workspace_id is 'The workspace';
comment on column helper.function_turns.user_id is 'The person; all zeros: everybody together';

alter table helper.functions enable row level security;
alter table helper.function_settings enable row level security;
-- No policy: for the extension alone.
alter table helper.function_counts enable row level security;
alter table helper.function_turns enable row level security;
create policy functions_select_all on helper.functions for select using (true);
comment on policy functions_select_all on helper.functions is 'What there is may be known; where endpoints and their keys are, columns keep from users';
create policy function_settings_select_member on helper.function_settings for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy function_settings_select_member on helper.function_settings is 'Members see what their workspaces have switched on and how often it may be called';

select pg_catalog.pg_extension_config_dump('helper.functions', 'where pack is null');
select pg_catalog.pg_extension_config_dump('helper.function_settings', '');

-- What a function's arguments look like, for its JSON Schema

create function helper._shape(type oid, modifier integer, depth integer default 0) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_type pg_type;
begin
  select t.* into v_type from pg_type t where t.oid = _shape.type;
  if depth > 8 then
    -- A type that holds itself.
    return '{"kind": "any"}';
  elsif v_type.typcategory = 'A' and v_type.typlen = -1 and v_type.typelem <> 0 then
    return jsonb_build_object('kind', 'array', 'items', helper._shape(v_type.typelem, modifier, depth + 1));
  elsif v_type.typtype = 'e' then
    return jsonb_build_object('kind', 'enum',
      'values', (select jsonb_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = _shape.type));
  elsif v_type.typtype = 'd' then
    return jsonb_build_object('kind', 'domain',
      'base', helper._shape(v_type.typbasetype, v_type.typtypmod, depth + 1),
      'checks', coalesce((
        select jsonb_agg(pg_get_expr(c.conbin, 0) order by c.conname)
        from pg_constraint c
        where c.contypid = _shape.type and c.contype = 'c'), '[]'),
      'comment', obj_description(_shape.type, 'pg_type'));
  elsif v_type.typtype = 'c' then
    return jsonb_build_object('kind', 'object',
      'fields', coalesce((
        select jsonb_agg(
          jsonb_build_object('name', a.attname, 'shape', helper._shape(a.atttypid, a.atttypmod, depth + 1),
            'optional', not a.attnotnull, 'comment', col_description(a.attrelid, a.attnum))
          order by a.attnum)
        from pg_attribute a
        where a.attrelid = v_type.typrelid and a.attnum > 0 and not a.attisdropped), '[]'));
  end if;
  return jsonb_build_object('kind', 'scalar',
    'type', case when v_type.typnamespace = 'pg_catalog'::regnamespace then v_type.typname else 'text' end,
    'length', case when v_type.typname in ('varchar', 'bpchar') and modifier > 4 then modifier - 4 end);
end
$$;
comment on function helper._shape(oid, integer, integer) is 'What values of a type look like: kind scalar, enum, array, object, domain or any';

-- An argument "workspace" is the call's workspace, and not for a caller or a model to say.
create function helper._parameters(target regprocedure) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  with described as (
    select m.part[1] as name, btrim(m.part[2]) as comment
    from regexp_matches(obj_description(target, 'pg_proc'), '@param\s+(\S+)\s+([^\n]+)', 'g') m (part)
  )
  select coalesce(
    jsonb_agg(
      jsonb_build_object('name', a.name, 'shape', helper._shape(a.type, -1),
        'optional', a.number > p.pronargs - p.pronargdefaults,
        'default', pg_get_function_arg_default(p.oid, a.number::integer),
        'comment', (select d.comment from described d where d.name = a.name limit 1))
      order by a.number),
    '[]')
  from pg_proc p
  cross join lateral (
    select i.number, i.type, p.proargnames[
      coalesce((select n.place from (
        select o.place, row_number() over (order by o.place) as number
        from unnest(p.proargmodes) with ordinality o (mode, place)
        where o.mode in ('i', 'b', 'v')) n where n.number = i.number), i.number)] as name
    from unnest(p.proargtypes::oid[]) with ordinality i (type, number)
  ) a
  where p.oid = target
    and not (a.name = 'workspace' and a.type = 'uuid'::regtype)
$$;
comment on function helper._parameters(regprocedure) is
  'Arguments of a function as calls give them: name, shape, optional, default, and what a line "@param name ..." of its comment says';

create function helper._parameters_schema(parameters jsonb) returns jsonb
language c immutable strict parallel safe as 'MODULE_PATHNAME', 'parameters_schema_wrapper';
comment on function helper._parameters_schema(jsonb) is 'JSON Schema (draft 2020-12) of arguments as _parameters tells them';

create function helper._check_schema(schema jsonb) returns void
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'check_schema_wrapper';
comment on function helper._check_schema(jsonb) is 'Refuses what is no JSON Schema of an object. Errors: 22023, 55000';

create function helper._check_request(form jsonb, schema jsonb) returns void
language c stable strict parallel safe as 'MODULE_PATHNAME', 'check_request_wrapper';
comment on function helper._check_request(jsonb, jsonb) is
  'Refuses a request (method, url, headers, body) that arguments of this schema do not fit, or that could go to another host. Errors: 22023';

create function helper._qualified(target regprocedure) returns text
language sql stable strict set search_path = pg_catalog, pg_temp as $$
  select format('%I.%I(%s)', n.nspname, p.proname, (
    select string_agg(format('%I.%I', t.nspname, y.typname), ', ' order by a.number)
    from unnest(p.proargtypes::oid[]) with ordinality a (type, number)
    join pg_type y on y.oid = a.type
    join pg_namespace t on t.oid = y.typnamespace))
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
  where p.oid = target
$$;
comment on function helper._qualified(regprocedure) is 'A function written so that every search path finds the same one';

create function helper._check_target(target regprocedure) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_function pg_proc;
  v_problem text;
begin
  select p.* into v_function from pg_proc p where p.oid = target;
  v_problem := case
    when v_function.prokind <> 'f' then 'It is a procedure, an aggregate or a window function.'
    when v_function.prorettype in ('trigger'::regtype, 'event_trigger'::regtype) then 'It is a trigger function.'
    when v_function.provariadic <> 0 then 'It takes any number of arguments.'
    when exists (select from pg_type t where t.oid = any (v_function.proargtypes) and t.typtype = 'p') then 'An argument is of any type.'
    when v_function.prorettype = 'record'::regtype and v_function.proallargtypes is null then 'What it returns is not known before it is called.'
    when v_function.pronargs > 0 and (
      v_function.proargnames is null or exists (
        select from unnest(v_function.proargnames) with ordinality a (name, number)
        where a.name = '' and coalesce(v_function.proargmodes[a.number::integer] in ('i', 'b'), true))) then 'An argument has no name.'
  end;
  if v_problem is not null then
    raise exception using
      errcode = '22023',
      message = format('function %s cannot be a tool', target),
      detail = v_problem;
  end if;
end
$$;
comment on function helper._check_target(regprocedure) is 'Refuses SQL functions that cannot be called with named JSON values. Errors: 22023';

-- Registering

create function helper._function_options(options jsonb) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_flags constant text[] := array['requires_confirmation', 'self_approval', 'recheck', 'idempotent', 'read_only', 'allow_private', 'enabled'];
  v_numbers constant text[] := array['timeout_ms', 'max_result_bytes'];
  v_texts constant text[] := array['product', 'minimum_role', 'approver_role', 'lapse', 'method', 'credential', 'credential_header', 'credential_prefix'];
  v_objects constant text[] := array['parameters_schema', 'headers', 'signature'];
  v_option record;
begin
  perform helper._check_options(options, v_flags || v_numbers || v_texts || v_objects || array['tags', 'body'], 'a function');
  for v_option in select o.key, jsonb_typeof(o.value) as type from jsonb_each(options) o loop
    if v_option.key = any (v_flags) and v_option.type <> 'boolean'
      or v_option.key = any (v_numbers) and v_option.type <> 'number'
      or v_option.key = any (v_texts) and v_option.type not in ('string', 'null')
      or v_option.key = any (v_objects) and v_option.type <> 'object'
      or v_option.key = 'tags' and v_option.type <> 'array'
    then
      raise exception using errcode = '22023', message = format('option "%s" of a function has the wrong type', v_option.key);
    end if;
  end loop;
  return options;
end
$$;
comment on function helper._function_options(jsonb) is 'Refuses options of register_function that nobody reads or of the wrong type. Errors: 22023';

create function helper._register_function(name text, target text, description text, options jsonb, pack text) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_options jsonb := helper._function_options(options);
  v_function regprocedure;
  v_http jsonb;
  v_schema jsonb := options -> 'parameters_schema';
  v_description text := description;
  v_id uuid;
begin
  if _register_function.name is null or _register_function.name !~ '^[a-zA-Z][a-zA-Z0-9_-]{0,63}$' then
    raise exception using
      errcode = '22023',
      message = format('function name "%s" is not valid', _register_function.name),
      hint = 'Use at most 64 letters, digits, "_" and "-", the first a letter.';
  end if;
  if _register_function.target ~* '^(https?://|mcp:)' then
    v_http := helper._function_request(_register_function.target, v_options);
    if v_schema is null or v_description is null then
      raise exception using
        errcode = '22023',
        message = 'description and option "parameters_schema" must be given for an HTTP endpoint';
    end if;
  else
    v_function := helper._find_function(_register_function.target);
    perform helper._check_target(v_function);
    if v_schema is null then
      v_schema := helper._parameters_schema(helper._parameters(v_function));
    end if;
    v_description := coalesce(v_description,
      nullif(btrim(regexp_replace(obj_description(v_function, 'pg_proc'), '\s*@param\s[^\n]*', '', 'g')), ''));
    if v_description is null then
      raise exception using
        errcode = '22023',
        message = format('function %s has no description', v_function),
        hint = 'Pass description => ..., or give the function a comment: a model chooses by it.';
    end if;
  end if;
  -- What no schema speaks of is nothing that a function takes.
  if not v_schema ?| array['additionalProperties', 'unevaluatedProperties'] then
    v_schema := v_schema || case
      when v_schema ?| array['$ref', 'allOf', 'anyOf', 'oneOf', 'if'] then '{"unevaluatedProperties": false}'
      else '{"additionalProperties": false}'
    end::jsonb;
  end if;
  insert into helper.functions as f
    (function_name, product_slug, description, parameters_schema, requires_confirmation, kind, target, http, credential, minimum_role,
      approver_role, self_approval, lapse, recheck, timeout_ms, idempotent, max_result_bytes, tags, read_only, pack, enabled, created_by)
  values
    (_register_function.name, v_options ->> 'product', v_description, v_schema,
      coalesce((v_options -> 'requires_confirmation')::boolean, true), case when v_http is null then 'sql' else 'http' end,
      helper._qualified(v_function), v_http, v_options ->> 'credential', coalesce(v_options ->> 'minimum_role', 'member'),
      v_options ->> 'approver_role', coalesce((v_options -> 'self_approval')::boolean, true),
      coalesce((v_options ->> 'lapse')::interval, '1 hour'), coalesce((v_options -> 'recheck')::boolean, true),
      coalesce((v_options -> 'timeout_ms')::integer, 30000), coalesce((v_options -> 'idempotent')::boolean, false),
      coalesce((v_options -> 'max_result_bytes')::integer, 65536),
      coalesce((select array_agg(t.tag) from jsonb_array_elements_text(v_options -> 'tags') t (tag)), '{}'),
      coalesce((v_options -> 'read_only')::boolean, v_function is not null and (select p.provolatile <> 'v' from pg_proc p where p.oid = v_function)),
      _register_function.pack, coalesce((v_options -> 'enabled')::boolean, true), helper.current_user_id())
  on conflict on constraint functions_function_name_key do update
  set product_slug = excluded.product_slug,
    description = excluded.description,
    parameters_schema = excluded.parameters_schema,
    requires_confirmation = excluded.requires_confirmation,
    kind = excluded.kind,
    target = excluded.target,
    http = excluded.http,
    credential = excluded.credential,
    minimum_role = excluded.minimum_role,
    approver_role = excluded.approver_role,
    self_approval = excluded.self_approval,
    lapse = excluded.lapse,
    recheck = excluded.recheck,
    timeout_ms = excluded.timeout_ms,
    idempotent = excluded.idempotent,
    max_result_bytes = excluded.max_result_bytes,
    tags = excluded.tags,
    read_only = excluded.read_only,
    enabled = excluded.enabled,
    updated_at = clock_timestamp()
  where f.pack is not distinct from excluded.pack
  returning f.id into v_id;
  if v_id is null then
    raise exception using
      errcode = '22023',
      message = format('function name "%s" belongs to a pack', _register_function.name),
      hint = 'Choose another name; a workspace can switch the pack''s function off.';
  end if;
  return v_id;
exception
  when check_violation or invalid_text_representation or invalid_datetime_format or numeric_value_out_of_range then
    raise exception using errcode = '22023', message = 'an option of the function is not valid', detail = sqlerrm;
end
$$;
comment on function helper._register_function(text, text, text, jsonb, text) is 'Adds or changes a tool. Errors: 22023, 42704, 42725';

-- A name without a schema is looked for in public, as statements do, and never on a path that somebody chose.
create function helper._find_function(target text) returns regprocedure
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_found regprocedure;
begin
  if target ~ '\(' then
    v_found := coalesce(to_regprocedure(target), to_regprocedure('public.' || target));
  else
    v_found := coalesce(to_regproc(target), to_regproc('public.' || target));
  end if;
  if v_found is null then
    raise exception using
      errcode = '42704',
      message = format('function %s does not exist', target),
      hint = 'Write its schema, and its argument types where there are several of the name: public.f(uuid, text).';
  end if;
  return v_found;
end
$$;
comment on function helper._find_function(text) is 'A function by its name, alone or with argument types. Errors: 42704';

-- The host is said here alone, so that no argument of a call can change where a key goes.
create function helper._function_request(url text, options jsonb) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_mcp text[] := regexp_match(url, '^mcp:([^/]+)/(.+)$');
  v_form jsonb;
begin
  if url like 'mcp:%' then
    if not exists (select from helper.mcp_servers s where s.name = v_mcp[1]) then
      raise exception using errcode = '42704', message = format('MCP server "%s" does not exist', v_mcp[1]);
    end if;
    return jsonb_build_object('server', v_mcp[1], 'tool', v_mcp[2]);
  end if;
  if options -> 'parameters_schema' is not null then
    perform helper._check_schema(options -> 'parameters_schema');
  end if;
  perform helper._check_credential(options ->> 'credential', null);
  perform helper._check_credential(options -> 'signature' ->> 'secret', null);
  perform helper._check_options(coalesce(options -> 'signature', '{}'), array['algorithm', 'header', 'secret'], 'a signature');
  if coalesce(options -> 'signature' ->> 'algorithm', 'hmac-sha256') <> 'hmac-sha256' or options -> 'signature' ->> 'secret' is null and options ? 'signature' then
    raise exception using
      errcode = '22023',
      message = 'option "signature" of a function is not valid',
      hint = 'It has secret (env:NAME, file:/path or vault:name), and perhaps header and algorithm, which is hmac-sha256.';
  end if;
  select jsonb_object_agg(o.key, o.value) into v_form
  from jsonb_each(options || jsonb_build_object('url', url)) o
  where o.key in ('method', 'url', 'headers', 'body', 'signature', 'allow_private', 'credential_header', 'credential_prefix');
  perform helper._check_request(v_form, options -> 'parameters_schema');
  return v_form;
end
$$;
comment on function helper._function_request(text, jsonb) is 'The request of an HTTP tool, checked. Errors: 22023, 42501, 42704';

create function helper.register_function(name text, target text, description text default null, options jsonb default '{}') returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._require_keeper(null);
  if options -> 'parameters_schema' is not null and jsonb_typeof(options -> 'parameters_schema') = 'object' then
    perform helper._check_schema(options -> 'parameters_schema');
  end if;
  return helper._register_function(name, target, description, options, null);
end
$$;
comment on function helper.register_function(text, text, text, jsonb) is
  'Makes a SQL function, or an HTTP endpoint by its URL, a tool, or changes one, and returns its id. description: the function''s comment where null. options: product, tags, parameters_schema (made from the arguments where absent), requires_confirmation (true), minimum_role (member), approver_role, self_approval (true), lapse (1 hour), recheck (true), timeout_ms (30000), max_result_bytes (65536), read_only, enabled; for endpoints method (POST), headers and body with places such as {{name}} for arguments, as {name} in the URL, credential with credential_header (authorization) and credential_prefix (Bearer), signature (secret, header), idempotent, allow_private. For administrators. Errors: 22023, 42501, 42704';

create function helper.unregister_function(name text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._require_keeper(null);
  if exists (select from helper.functions f where f.function_name = name and f.pack is not null) then
    raise exception using
      errcode = '55000',
      message = format('function "%s" belongs to a pack', name),
      hint = 'Workspaces switch it off with helper.set_function.';
  end if;
  delete from helper.functions f where f.function_name = name;
  if not found then
    raise exception using errcode = '42704', message = format('function "%s" does not exist', name);
  end if;
end
$$;
comment on function helper.unregister_function(text) is
  'Removes a tool; what was called stays recorded, and what waits for approval can no longer run. For administrators. Errors: 42501, 42704, 55000 belongs to a pack';

create function helper.set_function(function text, enabled boolean default null, limits jsonb default null, workspace uuid default null) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_workspace uuid := helper.current_workspace(workspace);
  v_limit record;
begin
  perform helper._require_role(v_workspace, 'admin');
  if not exists (select from helper.functions f where f.function_name = set_function.function) then
    raise exception using errcode = '42704', message = format('function "%s" does not exist', set_function.function);
  end if;
  if limits is not null then
    perform helper._check_options(limits, array['user_per_hour', 'user_per_day', 'workspace_per_hour', 'workspace_per_day'], 'limits');
    for v_limit in select l.key, l.value from jsonb_each(limits) l loop
      if v_limit.value #>> '{}' !~ '^[0-9]{1,9}$' then
        raise exception using errcode = '22023', message = format('limit "%s" is not a whole number', v_limit.key);
      end if;
    end loop;
  end if;
  insert into helper.function_settings as s
    (workspace_id, function_name, enabled, user_per_hour, user_per_day, workspace_per_hour, workspace_per_day, updated_by)
  values
    (v_workspace, set_function.function, set_function.enabled, (limits ->> 'user_per_hour')::integer, (limits ->> 'user_per_day')::integer,
      (limits ->> 'workspace_per_hour')::integer, (limits ->> 'workspace_per_day')::integer, helper.current_user_id())
  on conflict (workspace_id, function_name) do update
  set enabled = coalesce(excluded.enabled, s.enabled),
    user_per_hour = case when set_function.limits is null then s.user_per_hour else excluded.user_per_hour end,
    user_per_day = case when set_function.limits is null then s.user_per_day else excluded.user_per_day end,
    workspace_per_hour = case when set_function.limits is null then s.workspace_per_hour else excluded.workspace_per_hour end,
    workspace_per_day = case when set_function.limits is null then s.workspace_per_day else excluded.workspace_per_day end,
    updated_by = excluded.updated_by,
    updated_at = clock_timestamp();
end
$$;
comment on function helper.set_function(text, boolean, jsonb, uuid) is
  'Switches a tool on or off in a workspace and sets its limits: user_per_hour, user_per_day, workspace_per_hour, workspace_per_day; null leaves either as it is, and limits that are given replace all four. Needs the role admin. Errors: 22023, 42501, 42704';
