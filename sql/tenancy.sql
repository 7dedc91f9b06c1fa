-- Who is asking, which workspaces are theirs, and in which of them a call takes place.

create function helper.uuid_v7() returns uuid
language c volatile parallel safe as 'MODULE_PATHNAME', 'uuid_v7_wrapper';
comment on function helper.uuid_v7() is
  'Makes an identifier that sorts by time: RFC 9562 version 7 with 12 bits of the millisecond''s fraction in rand_a';

create function helper.uuid_v7_at(at timestamptz) returns uuid
language sql stable parallel safe strict
begin atomic
  select (lpad(to_hex(floor(least(greatest(extract(epoch from at), 0), 281474976710.655) * 1000)::bigint), 12, '0') || '7000' || '8000000000000000')::uuid;
end;
comment on function helper.uuid_v7_at(timestamptz) is
  'The first identifier of a time''s millisecond, from 1970 on: rows whose identifiers sort by time are found by it in an index, as in id >= helper.uuid_v7_at(now() - interval ''1 day''). Source: RFC 9562, version 7';

-- Who is asking

-- The setting "role" and not current_user, which inside a security definer function is the function's owner.
create function helper.caller_role() returns name
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
  return case current_setting('role')
    when 'none' then session_user
    else current_setting('role')::name
  end;
end
$$;
comment on function helper.caller_role() is
  'The database role that asks: that of set role, else the session''s; security definer functions in between do not change it';

-- An exception block cannot run in a parallel query before Postgres 17, so what reads claims is parallel unsafe.
create function helper.caller_claims() returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_text text := nullif(current_setting('request.jwt.claims', true), '');
  v_subject text := nullif(current_setting('request.jwt.claim.sub', true), '');
  v_claims jsonb;
begin
  if v_text is null then
    return case when v_subject is not null then jsonb_build_object('sub', v_subject) end;
  end if;
  begin
    v_claims := v_text::jsonb;
  exception
    when data_exception or program_limit_exceeded then
      return 'null';
  end;
  return case when jsonb_typeof(v_claims) = 'object' then v_claims else 'null' end;
end
$$;
comment on function helper.caller_claims() is
  'Claims of the request, an object; SQL null when there are none, JSON null when they are malformed';

create function helper.current_user_id() returns uuid
language c stable parallel safe as 'MODULE_PATHNAME', 'current_user_id_wrapper';
comment on function helper.current_user_id() is
  'Who asks: the claim sub; without it a uuid derived from the role''s name, or null, which sees nothing, for the roles in helper_ai.api_roles; null too when the claims are malformed or sub is not a uuid';

-- Tables

create table helper.workspaces (
  id uuid not null default helper.uuid_v7(),
  name text not null constraint workspaces_name_check check (name ~ '[^[:space:]]' and char_length(name) <= 200),
  slug text not null constraint workspaces_slug_check check (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' and char_length(slug) <= 63),
  created_by uuid,
  settings jsonb not null default '{}' constraint workspaces_settings_check check (jsonb_typeof(settings) = 'object'),
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  primary key (id),
  constraint workspaces_slug_key unique (slug)
);
comment on table helper.workspaces is 'Tenants; empty where an application keeps its own (see use_membership), so nothing refers to it but workspace_members';
comment on column helper.workspaces.id is 'Identifier, in order of creation';
comment on column helper.workspaces.name is 'Name that people read';
comment on column helper.workspaces.slug is 'Name for addresses: lower-case letters, digits and single hyphens';
comment on column helper.workspaces.created_by is 'Who created it';
comment on column helper.workspaces.settings is 'The application''s own settings, an object; members read it, admins write it';
comment on column helper.workspaces.created_at is 'When it was created';
comment on column helper.workspaces.updated_at is 'When it or its owners last changed';

create table helper.workspace_members (
  workspace_id uuid not null,
  user_id uuid not null,
  role text not null default 'member' constraint workspace_members_role_check check (role in ('owner', 'admin', 'member', 'viewer')),
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, user_id),
  constraint workspace_members_workspace_id_fkey foreign key (workspace_id) references helper.workspaces (id) on delete cascade
);
create index workspace_members_user_id_idx on helper.workspace_members (user_id) include (workspace_id, role);
comment on table helper.workspace_members is 'Who belongs to a workspace, and as what; not read while use_membership names another table';
comment on column helper.workspace_members.workspace_id is 'The workspace';
comment on column helper.workspace_members.user_id is 'The person, as current_user_id() gives it';
comment on column helper.workspace_members.role is 'viewer reads; member adds; admin manages; owner also decides about owners and deletes the workspace';
comment on column helper.workspace_members.created_at is 'When the person was added';

create table helper.profiles (
  id uuid not null default helper.current_user_id(),
  email text,
  full_name text,
  avatar_url text,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  primary key (id)
);
comment on table helper.profiles is 'What people tell those who share a workspace with them about themselves; nothing is decided by it';
comment on column helper.profiles.id is 'The person, as current_user_id() gives it';
comment on column helper.profiles.email is 'Address as the person gave it, not verified';
comment on column helper.profiles.full_name is 'Name as the person gave it';
comment on column helper.profiles.avatar_url is 'Address of a picture';
comment on column helper.profiles.created_at is 'When the profile was made';
comment on column helper.profiles.updated_at is 'When it last changed';

create table helper.membership_source (
  relation regclass not null,
  workspace_column name not null,
  user_column name not null,
  role_column name,
  role_map jsonb not null default '{}' constraint membership_source_role_map_check check (jsonb_typeof(role_map) = 'object')
);
create unique index membership_source_one_row_idx on helper.membership_source ((true));
comment on table helper.membership_source is 'The application''s membership table, if it has one: no row, or the one that use_membership wrote';
comment on column helper.membership_source.relation is 'The table; written as its name in a dump';
comment on column helper.membership_source.workspace_column is 'Its column with the workspace, a uuid';
comment on column helper.membership_source.user_column is 'Its column with the person, a uuid';
comment on column helper.membership_source.role_column is 'Its column with the role; null: everyone is a member';
comment on column helper.membership_source.role_map is 'From its roles to owner, admin, member, viewer or null (no access); these four map to themselves unless named, any other role has no access';

select pg_catalog.pg_extension_config_dump('helper.workspaces', '');
select pg_catalog.pg_extension_config_dump('helper.workspace_members', '');
select pg_catalog.pg_extension_config_dump('helper.profiles', '');
select pg_catalog.pg_extension_config_dump('helper.membership_source', '');

-- Membership, from our table or the application's

create function helper._extension() returns oid
language sql stable parallel safe set search_path = pg_catalog, pg_temp as $$
  select d.refobjid
  from pg_depend d
  where d.classid = 'pg_class'::regclass
    and d.objid = 'helper.workspaces'::regclass
    and d.refclassid = 'pg_extension'::regclass
    and d.deptype = 'e'
$$;
comment on function helper._extension() is 'This extension, found by a table that is a member of it';

create function helper._role_rank(role text) returns integer
language c immutable strict parallel safe as 'MODULE_PATHNAME', 'role_rank_wrapper';
comment on function helper._role_rank(text) is 'Place of a role from viewer, 1, to owner, 4; null for any other text';

create function helper._check_role(role text) returns integer
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
  if helper._role_rank(role) is null then
    raise exception using
      errcode = '22023',
      message = format('role "%s" is not known', role),
      hint = 'Roles are owner, admin, member and viewer.';
  end if;
  return helper._role_rank(role);
end
$$;
comment on function helper._check_role(text) is 'Rank of a role. Errors: 22023';

-- The owner of an adopted table can change it later, to types whose casts would then run with our rights: so it is
-- tables with plain types only, and this is asked again at every read.
create function helper._membership_problem(relation regclass, workspace_column name, user_column name, role_column name) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(
    (select format('Relation %s does not exist.', relation::oid)
     where not exists (select from pg_class c where c.oid = relation)),
    (select format('Relation "%s" is not a table that everyone reads.', relation)
     from pg_class c
     where c.oid = relation and (c.relkind not in ('r', 'p') or c.relpersistence = 't')),
    (select format('Table "%s" has no column "%s".', relation, n.name)
     from (values (workspace_column), (user_column), (role_column)) n (name)
     where n.name is not null
       and not exists (
         select from pg_attribute a
         where a.attrelid = relation and a.attname = n.name and a.attnum > 0 and not a.attisdropped)
     limit 1),
    (select format('Column "%s" of table "%s" has type %s, expected %s.', a.attname, relation, format_type(a.atttypid, a.atttypmod), n.expected)
     from (values (workspace_column, 'uuid'), (user_column, 'uuid'), (role_column, 'text or an enum')) n (name, expected)
     join pg_attribute a on a.attrelid = relation and a.attname = n.name
     join pg_type t on t.oid = a.atttypid
     where case n.expected
       when 'uuid' then a.atttypid <> 'uuid'::regtype
       else a.atttypid not in ('text'::regtype, 'varchar'::regtype, 'name'::regtype) and t.typtype <> 'e'
     end
     limit 1))
$$;
comment on function helper._membership_problem(regclass, name, name, name) is 'Why a table cannot serve as membership, a sentence; null when it can';

create function helper._adopted_membership() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_source helper.membership_source;
  v_problem text;
  v_role text := quote_literal('member');
begin
  select s.* into v_source from helper.membership_source s;
  if not found then
    return null;
  end if;
  v_problem := helper._membership_problem(v_source.relation, v_source.workspace_column, v_source.user_column, v_source.role_column);
  if v_problem is not null then
    raise exception using
      errcode = '55000',
      message = 'membership table cannot be read',
      detail = v_problem,
      hint = 'An administrator has to call helper.use_membership again.';
  end if;
  if v_source.role_column is not null then
    -- format() writes an enum by its output function; a cast to text could be one that somebody made.
    v_role := format(
      'case when %1$L::jsonb ? format(''%%s'', m.%2$I) then %1$L::jsonb ->> format(''%%s'', m.%2$I) else format(''%%s'', m.%2$I) end',
      v_source.role_map, v_source.role_column);
  end if;
  return format('(select m.%I as workspace_id, m.%I as user_id, %s as role from %s m)',
    v_source.workspace_column, v_source.user_column, v_role, v_source.relation);
end
$$;
comment on function helper._adopted_membership() is
  'The application''s membership as a subquery with workspace_id, user_id and role; null while ours is in use. Errors: 55000';

create function helper._memberships(member uuid) returns table (workspace_id uuid, role text)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_adopted text := helper._adopted_membership();
begin
  if v_adopted is null then
    return query
      select m.workspace_id, m.role
      from helper.workspace_members m
      where m.user_id = member;
  else
    return query execute format('select m.workspace_id, m.role from %s m where m.user_id = $1', v_adopted) using member;
  end if;
end
$$;
comment on function helper._memberships(uuid) is 'Workspaces of a person and the role in each, not always one of ours. Errors: 55000';

create function helper.my_workspaces(minimum_role text default 'viewer') returns uuid[]
language c stable security definer set search_path = pg_catalog, pg_temp as 'MODULE_PATHNAME', 'my_workspaces_wrapper';
comment on function helper.my_workspaces(text) is
  'Workspaces in which the caller has at least a role; in a policy write workspace_id = any ((select helper.my_workspaces())::uuid[]), which is computed once per statement. Errors: 22023 unknown role, 55000 adopted table cannot be read';

create function helper.my_role(workspace uuid) returns text
language c stable security definer set search_path = pg_catalog, pg_temp as 'MODULE_PATHNAME', 'my_role_wrapper';
comment on function helper.my_role(uuid) is
  'The caller''s role in a workspace: owner, admin, member or viewer; null when there is none. Errors: 55000 adopted table cannot be read';

create function helper.is_member(workspace uuid, minimum_role text default 'viewer') returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return coalesce(helper._role_rank(helper.my_role(workspace)) >= helper._check_role(minimum_role), false);
end
$$;
comment on function helper.is_member(uuid, text) is
  'Whether the caller has at least a role in a workspace. Errors: 22023 unknown role, 55000 adopted table cannot be read';

create function helper.my_colleagues() returns uuid[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_mine uuid[] := helper.my_workspaces();
  v_adopted text := helper._adopted_membership();
  v_users uuid[];
begin
  if v_adopted is null then
    select array_agg(distinct m.user_id) into v_users
    from helper.workspace_members m
    where m.workspace_id = any (v_mine);
  else
    execute format('select array_agg(distinct m.user_id) from %s m where m.workspace_id = any ($1)', v_adopted)
      into v_users
      using v_mine;
  end if;
  return coalesce(v_users, '{}');
end
$$;
comment on function helper.my_colleagues() is
  'Everyone who shares a workspace with the caller, the caller included. Errors: 55000 adopted table cannot be read';

create function helper._require_user() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_user uuid := helper.current_user_id();
begin
  if v_user is null then
    raise exception using
      errcode = '42501',
      message = 'caller has no identity',
      detail = format('Role "%s" speaks for the person in the claim sub of request.jwt.claims, and there is no valid one.', helper.caller_role()),
      hint = 'Sign in first.';
  end if;
  return v_user;
end
$$;
comment on function helper._require_user() is 'Who asks, never null. Errors: 42501';

create function helper._require_role(workspace uuid, minimum_role text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_role text := helper.my_role(workspace);
begin
  if v_role is null then
    -- The same for a workspace of others and for none, so that nobody can probe.
    raise exception using
      errcode = '42704',
      message = format('workspace "%s" does not exist', workspace);
  end if;
  if helper._role_rank(v_role) < helper._check_role(minimum_role) then
    raise exception using
      errcode = '42501',
      message = 'permission denied for workspace',
      detail = format('The caller''s role in the workspace is %s; this needs %s.', v_role, minimum_role);
  end if;
end
$$;
comment on function helper._require_role(uuid, text) is 'Checks the caller''s role in a workspace. Errors: 42704 not a member, 42501 role too low';

create function helper._writable_workspace(workspace uuid, minimum_role text) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_claims jsonb;
  v_given text := workspace::text;
  v_where text;
  v_mine uuid[];
  v_choices text;
begin
  if v_given is null then
    v_given := nullif(btrim(current_setting('helper_ai.workspace', true)), '');
    v_where := 'setting helper_ai.workspace';
  end if;
  if v_given is null then
    v_claims := helper.caller_claims();
    v_given := nullif(coalesce(v_claims ->> 'workspace_id', v_claims -> 'app_metadata' ->> 'workspace_id'), '');
    v_where := 'claim workspace_id';
  end if;
  if v_given is not null then
    -- Going on to another workspace than the one that was named would be worse than an error.
    if v_given !~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' then
      raise exception using
        errcode = '22023',
        message = format('%s is not a uuid', v_where);
    end if;
    perform helper._require_role(v_given::uuid, minimum_role);
    return v_given::uuid;
  end if;
  perform helper._require_user();
  v_mine := helper.my_workspaces();
  if cardinality(v_mine) = 1 then
    perform helper._require_role(v_mine[1], minimum_role);
    return v_mine[1];
  end if;
  if cardinality(v_mine) = 0 then
    raise exception using
      errcode = '42704',
      message = 'caller has no workspace',
      hint = case
        when helper._adopted_membership() is null then 'Create one with helper.create_workspace(name => ...), or ask to be added to one.'
        else 'Ask to be added to a workspace of the application.'
      end;
  end if;
  select string_agg(c.choice, ', ' order by c.name, c.id) into v_choices
  from (
    select m.id, w.name, coalesce(format('"%s" (%s)', w.name, m.id), m.id::text) as choice
    from unnest(v_mine) m (id)
    left join helper.workspaces w on w.id = m.id
    order by w.name, m.id
    limit 10
  ) c;
  raise exception using
    errcode = '22023',
    message = 'no workspace was named and the caller has several',
    detail = format('Workspaces: %s%s.', v_choices,
      case when cardinality(v_mine) > 10 then format(' and %s more', cardinality(v_mine) - 10) else '' end),
    hint = 'Pass workspace => ..., or set helper_ai.workspace.';
end
$$;
comment on function helper._writable_workspace(uuid, text) is 'The workspace of a call, as current_workspace tells it; 42501 where the caller''s role in it is too low';

create function helper.current_workspace(workspace uuid default null) returns uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return helper._writable_workspace(workspace, 'viewer');
end
$$;
comment on function helper.current_workspace(uuid) is
  'The workspace in which a call takes place: the argument, else the setting helper_ai.workspace, else the claim workspace_id (also under app_metadata), else the caller''s only one. Errors: 22023 several to choose from or not a uuid, 42704 not a member or no workspace, 42501 no identity';
