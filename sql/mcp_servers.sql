-- Servers of the Model Context Protocol: their tools become functions, which the gateway calls.

create table helper.mcp_servers (
  id uuid not null default helper.uuid_v7(),
  name text not null constraint mcp_servers_name_check check (name ~ '^[a-zA-Z][a-zA-Z0-9_-]{0,31}$'),
  url text not null,
  credential text constraint mcp_servers_credential_check check (credential ~ '^(env|file|vault):.'),
  tools text[],
  options jsonb not null default '{}' constraint mcp_servers_options_check check (jsonb_typeof(options) = 'object'),
  protocol text,
  server_name text,
  server_version text,
  created_by uuid,
  created_at timestamptz not null default clock_timestamp(),
  refreshed_at timestamptz not null default clock_timestamp(),
  primary key (id),
  constraint mcp_servers_name_key unique (name)
);
comment on table helper.mcp_servers is 'Servers whose tools are functions here; for the extension alone';
comment on column helper.mcp_servers.id is 'Identifier';
comment on column helper.mcp_servers.name is 'Name that its functions'' names begin with';
comment on column helper.mcp_servers.url is 'Where it is asked';
comment on column helper.mcp_servers.credential is 'Where its key is, which is sent to its host alone: env:NAME, file:/path or vault:name';
comment on column helper.mcp_servers.tools is 'Its tools that become functions, by its own names; null: all';
comment on column helper.mcp_servers.options is 'How it is spoken to, and how its tools are registered; see add_mcp_server';
comment on column helper.mcp_servers.protocol is 'Revision of the protocol that was agreed on';
comment on column helper.mcp_servers.server_name is 'What it calls itself';
comment on column helper.mcp_servers.server_version is 'Its version, by its own word';
comment on column helper.mcp_servers.created_by is 'Who added it';
comment on column helper.mcp_servers.created_at is 'When it was added';
comment on column helper.mcp_servers.refreshed_at is 'When it was last asked for its tools';
alter table helper.mcp_servers enable row level security;
select pg_catalog.pg_extension_config_dump('helper.mcp_servers', '');

create function helper._mcp_offer(name text, form jsonb, credential text) returns jsonb
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'mcp_offer_wrapper';
comment on function helper._mcp_offer(text, jsonb, text) is
  'What a server says of itself (protocol, name, version) and its tools (name, description, input_schema, read_only, idempotent). Errors: 22023, 38000, 42501, 55000, 57014';

create function helper._mcp_function_name(server text, tool text) returns text
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp as $$
  select left(server || '_' || regexp_replace(tool, '[^a-zA-Z0-9_-]', '_', 'g'), 64)
$$;
comment on function helper._mcp_function_name(text, text) is 'Name of the function that a server''s tool becomes';

-- The server's word decides nothing: its tools need confirmation, and count as writing, unless an administrator says
-- otherwise. What did not change keeps its registration, so that calls which wait for approval outlive a refresh.
create function helper._import_mcp_tool(server helper.mcp_servers, tool jsonb) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_name text := helper._mcp_function_name(server.name, tool ->> 'name');
  v_description text := left(coalesce(nullif(tool ->> 'description', ''), tool ->> 'name'), 8000);
  v_trusted boolean := coalesce((server.options -> 'trust_annotations')::boolean, false);
  v_read_only boolean := v_trusted and coalesce((tool -> 'read_only')::boolean, false);
  v_idempotent boolean := v_trusted and coalesce((tool -> 'idempotent')::boolean, false);
  v_old helper.functions;
begin
  select f.* into v_old from helper.functions f where f.function_name = v_name;
  if found and (v_old.http ->> 'server' is distinct from server.name or v_old.http ->> 'tool' <> tool ->> 'name') then
    raise exception using
      errcode = '22023',
      message = format('function name "%s" is taken', v_name),
      detail = format('It would be the name of tool "%s".', tool ->> 'name'),
      hint = 'Add the server by another name, or leave the tool out with tools => ....';
  end if;
  -- Registering adds that no other arguments are accepted, where the schema says nothing of them.
  if found and not v_old.http ? 'gone' and v_old.description = v_description and v_old.read_only = v_read_only
    and v_old.idempotent = v_idempotent
    and v_old.parameters_schema in (tool -> 'input_schema', tool -> 'input_schema' || '{"additionalProperties": false}',
      tool -> 'input_schema' || '{"unevaluatedProperties": false}')
  then
    return v_name;
  end if;
  begin
    perform helper._check_schema(tool -> 'input_schema');
  exception
    when invalid_parameter_value then
      raise exception using
        errcode = '22023',
        message = format('schema of tool "%s" is not valid', tool ->> 'name'),
        hint = 'Leave the tool out with tools => ....';
  end;
  perform helper._register_function(v_name, 'mcp:' || server.name || '/' || (tool ->> 'name'), v_description,
    jsonb_build_object(
      'parameters_schema', tool -> 'input_schema',
      'read_only', v_read_only,
      'idempotent', v_idempotent)
      || (server.options - array['allow_private', 'credential_header', 'credential_prefix', 'headers', 'trust_annotations']), null);
  return v_name;
end
$$;
comment on function helper._import_mcp_tool(helper.mcp_servers, jsonb) is 'Makes a server''s tool a function, and returns its name. Errors: 22023';

create function helper._import_mcp_tools(server helper.mcp_servers, offer jsonb) returns text[]
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_missing text;
  v_names text[];
begin
  select t.name into v_missing
  from unnest(server.tools) t (name)
  where t.name not in (select o.tool ->> 'name' from jsonb_array_elements(offer -> 'tools') o (tool))
  limit 1;
  if v_missing is not null then
    raise exception using
      errcode = '42704',
      message = format('MCP server "%s" has no tool "%s"', server.name, v_missing);
  end if;
  select coalesce(array_agg(helper._import_mcp_tool(server, o.tool)), '{}') into v_names
  from jsonb_array_elements(offer -> 'tools') o (tool)
  where server.tools is null or o.tool ->> 'name' = any (server.tools);
  -- What workspaces have said of a tool holds when it comes back.
  update helper.functions f
  set enabled = false,
    http = f.http || '{"gone": true}',
    updated_at = clock_timestamp()
  where f.http ->> 'server' = server.name and f.function_name <> all (v_names) and not f.http ? 'gone';
  update helper.mcp_servers s
  set protocol = offer ->> 'protocol',
    server_name = offer ->> 'name',
    server_version = offer ->> 'version',
    refreshed_at = clock_timestamp()
  where s.id = server.id;
  return v_names;
end
$$;
comment on function helper._import_mcp_tools(helper.mcp_servers, jsonb) is
  'Makes functions of a server''s tools, switches off those that are gone, and returns the names. Errors: 22023, 42704';

create function helper.add_mcp_server(
  name text,
  url text,
  credential text default null,
  tools text[] default null,
  options jsonb default '{}'
) returns text[]
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_server helper.mcp_servers;
  v_form jsonb;
  v_offer jsonb;
begin
  perform helper._require_keeper(null);
  if add_mcp_server.name is null or add_mcp_server.name !~ '^[a-zA-Z][a-zA-Z0-9_-]{0,31}$' then
    raise exception using
      errcode = '22023',
      message = format('MCP server name "%s" is not valid', add_mcp_server.name),
      hint = 'Use at most 32 letters, digits, "_" and "-", the first a letter.';
  end if;
  if exists (select from helper.mcp_servers s where s.name = add_mcp_server.name) then
    raise exception using
      errcode = '22023',
      message = format('MCP server "%s" exists already', add_mcp_server.name),
      hint = 'Ask it for its tools again with helper.refresh_mcp_server, or remove it first.';
  end if;
  perform helper._check_options(options, array['allow_private', 'approver_role', 'credential_header', 'credential_prefix', 'headers', 'max_result_bytes',
    'minimum_role', 'product', 'requires_confirmation', 'self_approval', 'tags', 'timeout_ms', 'trust_annotations'], 'an MCP server');
  if coalesce(jsonb_typeof(options -> 'trust_annotations'), 'boolean') <> 'boolean' then
    raise exception using errcode = '22023', message = 'option "trust_annotations" of an MCP server has the wrong type';
  end if;
  perform helper._check_credential(add_mcp_server.credential, null);
  v_form := options || jsonb_build_object('url', url);
  perform helper._check_request(v_form, '{}');
  -- Asked before anything is written: no lock is held while the server takes its time.
  v_offer := helper._mcp_offer(add_mcp_server.name, v_form, add_mcp_server.credential);
  insert into helper.mcp_servers as s (name, url, credential, tools, options, created_by)
  values (add_mcp_server.name, add_mcp_server.url, add_mcp_server.credential, add_mcp_server.tools, add_mcp_server.options, helper.current_user_id())
  returning s.* into v_server;
  return helper._import_mcp_tools(v_server, v_offer);
end
$$;
comment on function helper.add_mcp_server(text, text, text, text[], jsonb) is
  'Makes the tools of a server of the Model Context Protocol (Streamable HTTP, revisions 2025-03-26 to 2025-11-25) functions named SERVER_TOOL, and returns their names. credential: env:NAME, file:/path or vault:name. tools: those that are taken, by the server''s names; null: all. options: headers, credential_header, credential_prefix, allow_private; trust_annotations (the server''s word on what only reads and what may be repeated); for its functions as in register_function product, tags, requires_confirmation (true), minimum_role, approver_role, self_approval, timeout_ms, max_result_bytes. For administrators. Errors: 22023, 38000, 42501, 42704, 55000';

create function helper.refresh_mcp_server(name text) returns text[]
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_server helper.mcp_servers := helper._mcp_server(name);
  v_offer jsonb;
begin
  v_offer := helper._mcp_offer(v_server.name, v_server.options || jsonb_build_object('url', v_server.url), v_server.credential);
  select s.* into v_server from helper.mcp_servers s where s.id = v_server.id for update;
  if not found then
    raise exception using errcode = '42704', message = format('MCP server "%s" does not exist', name);
  end if;
  return helper._import_mcp_tools(v_server, v_offer);
end
$$;
comment on function helper.refresh_mcp_server(text) is
  'Asks a server for its tools again, changes its functions accordingly, switches off those that are gone until they are there again, and returns the names of the others. For administrators. Errors: 22023, 38000, 42501, 42704, 55000';

create function helper.remove_mcp_server(name text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_server helper.mcp_servers := helper._mcp_server(name);
begin
  delete from helper.functions f where f.http ->> 'server' = v_server.name;
  delete from helper.mcp_servers s where s.id = v_server.id;
end
$$;
comment on function helper.remove_mcp_server(text) is
  'Removes a server and its functions; what was called stays recorded. For administrators. Errors: 42501, 42704';

create function helper._mcp_server(name text) returns helper.mcp_servers
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_server helper.mcp_servers;
begin
  perform helper._require_keeper(null);
  select s.* into v_server from helper.mcp_servers s where s.name = _mcp_server.name;
  if not found then
    raise exception using errcode = '42704', message = format('MCP server "%s" does not exist', _mcp_server.name);
  end if;
  return v_server;
end
$$;
comment on function helper._mcp_server(text) is 'A server, for administrators. Errors: 42501, 42704';
