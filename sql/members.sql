-- Workspaces and their members: made, changed and guarded.

-- Changing workspaces and members

create function helper._check_membership_is_ours() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_relation regclass;
begin
  select s.relation into v_relation from helper.membership_source s;
  if found then
    raise exception using
      errcode = '55000',
      message = 'membership belongs to the application',
      detail = format('Members are read from table "%s".', v_relation),
      hint = 'Change that table instead.';
  end if;
end
$$;
comment on function helper._check_membership_is_ours() is 'Refuses to write members that nobody would read. Errors: 55000';

create function helper.create_workspace(name text, slug text default null) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_user uuid := helper._require_user();
  v_name text := btrim(name, E' \t\r\n');
  v_slug text := slug;
  v_base text;
  v_id uuid;
begin
  perform helper._check_membership_is_ours();
  if v_name is null or v_name = '' then
    raise exception using errcode = '22023', message = 'name is empty';
  end if;
  if char_length(v_name) > 200 then
    raise exception using
      errcode = '22023',
      message = format('name has %s characters, at most 200 are allowed', char_length(v_name));
  end if;
  if slug is not null and (slug !~ '^[a-z0-9]+(-[a-z0-9]+)*$' or char_length(slug) > 63) then
    raise exception using
      errcode = '22023',
      message = format('slug "%s" is not valid', slug),
      hint = 'Use at most 63 lower-case letters, digits and single hyphens.';
  end if;
  v_base := left(btrim(regexp_replace(lower(v_name), '[^a-z0-9]+', '-', 'g'), '-'), 40);
  v_base := coalesce(nullif(btrim(v_base, '-'), ''), 'workspace');
  for v_try in 1..10 loop
    if slug is null then
      -- After a few numbers at random, so that the thousandth "test" does not count through a thousand.
      v_slug := v_base || case
        when v_try = 1 then ''
        when v_try < 5 then '-' || v_try
        else '-' || substring(gen_random_uuid()::text from 1 for 8)
      end;
    end if;
    insert into helper.workspaces as w (name, slug, created_by)
    values (v_name, v_slug, v_user)
    on conflict on constraint workspaces_slug_key do nothing
    returning w.id into v_id;
    exit when v_id is not null or slug is not null;
  end loop;
  if v_id is null then
    raise exception using errcode = '23505', message = format('slug "%s" is taken', v_slug);
  end if;
  insert into helper.workspace_members (workspace_id, user_id, role)
  values (v_id, v_user, 'owner');
  return v_id;
end
$$;
comment on function helper.create_workspace(text, text) is
  'Creates a workspace with the caller as owner and returns its id; the slug is made from the name unless given. Errors: 22023 blank name or bad slug, 23505 slug taken, 42501 no identity, 55000 membership is the application''s';

create function helper.add_member(workspace uuid, user_id uuid, role text default 'member') returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_is_owner boolean;
begin
  perform helper._check_membership_is_ours();
  perform helper._require_role(workspace, 'admin');
  perform helper._check_role(role);
  if user_id is null then
    raise exception using errcode = '22023', message = 'user_id is null';
  end if;
  v_is_owner := helper.my_role(workspace) = 'owner';
  if role <> 'owner' or v_is_owner then
    -- The condition is on the row as it is when it is written, so a promotion in between is seen.
    insert into helper.workspace_members as m (workspace_id, user_id, role)
    values (workspace, add_member.user_id, add_member.role)
    on conflict on constraint workspace_members_pkey do update
    set role = excluded.role
    where v_is_owner or m.role <> 'owner';
    if found then
      return;
    end if;
  end if;
  raise exception using
    errcode = '42501',
    message = 'permission denied for owners of the workspace',
    detail = 'Only an owner may add or change owners.';
end
$$;
comment on function helper.add_member(uuid, uuid, text) is
  'Adds a person to a workspace, or changes the role. Needs the role admin, and owner where an owner is concerned. Errors: 22023 unknown role, 42501, 42704, 55000 last owner or membership is the application''s';

create function helper.remove_member(workspace uuid, user_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_is_owner boolean;
  v_is_self boolean := remove_member.user_id = helper.current_user_id();
begin
  perform helper._check_membership_is_ours();
  perform helper._require_role(workspace, case when v_is_self then 'viewer' else 'admin' end);
  v_is_owner := helper.my_role(workspace) = 'owner';
  delete from helper.workspace_members m
  where m.workspace_id = workspace
    and m.user_id = remove_member.user_id
    and (v_is_self or v_is_owner or m.role <> 'owner');
  if found then
    return;
  end if;
  if exists (select from helper.workspace_members m where m.workspace_id = workspace and m.user_id = remove_member.user_id) then
    raise exception using
      errcode = '42501',
      message = 'permission denied for owners of the workspace',
      detail = 'Only an owner may remove owners.';
  end if;
  raise exception using
    errcode = '42704',
    message = format('user "%s" is not a member of the workspace', user_id);
end
$$;
comment on function helper.remove_member(uuid, uuid) is
  'Removes a person, or oneself, from a workspace; their private rows stay, hidden, until they are added again or the workspace is deleted. Needs the role admin, and owner to remove an owner. Errors: 42501, 42704, 55000 last owner or membership is the application''s';

create function helper._delete_workspace_data(workspace uuid) returns void
-- What refers to a deleted row is looked up by plans that are kept: see helper._enqueue.
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_table regclass;
begin
  -- Newest first, so that what refers goes before what is referred to; twice, for rows that triggers wrote meanwhile.
  for v_table in
    select c.oid
    from generate_series(1, 2) p (pass)
    cross join pg_depend d
    join pg_class c on c.oid = d.objid
    join pg_attribute a on a.attrelid = c.oid
    where d.classid = 'pg_class'::regclass
      and d.refclassid = 'pg_extension'::regclass
      and d.refobjid = helper._extension()
      and d.deptype = 'e'
      and c.relkind in ('r', 'p')
      and c.oid <> 'helper.workspace_members'::regclass
      and a.attname = 'workspace_id'
      and not a.attisdropped
    order by p.pass, c.oid desc
  loop
    execute format('delete from %s where workspace_id = $1', v_table) using workspace;
  end loop;
end
$$;
comment on function helper._delete_workspace_data(uuid) is
  'Deletes the rows of a workspace from every table of this extension that has a column workspace_id, members excepted';

create function helper.delete_workspace(workspace uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._require_role(workspace, 'owner');
  delete from helper.workspaces w where w.id = workspace;
  if not found then
    perform helper._delete_workspace_data(workspace);
  end if;
end
$$;
comment on function helper.delete_workspace(uuid) is
  'Deletes everything that this extension keeps of a workspace; with an adopted membership the application''s own rows stay. Needs the role owner. Errors: 42501, 42704';

create function helper.use_membership(
  relation regclass,
  workspace_column name default 'workspace_id',
  user_column name default 'user_id',
  role_column name default null,
  role_map jsonb default '{}'
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_problem text;
  v_target record;
begin
  lock table helper.membership_source in share row exclusive mode;
  delete from helper.membership_source;
  if relation is null then
    return;
  end if;
  if workspace_column is null or user_column is null then
    raise exception using errcode = '22023', message = 'workspace_column and user_column must be given';
  end if;
  v_problem := helper._membership_problem(relation, workspace_column, user_column, role_column);
  if v_problem is not null then
    raise exception using errcode = '22023', message = 'relation cannot serve as membership', detail = v_problem;
  end if;
  if not has_table_privilege(helper.caller_role(), relation, 'select') then
    raise exception using errcode = '42501', message = format('permission denied for table %s', relation);
  end if;
  if role_map is null or jsonb_typeof(role_map) <> 'object' then
    raise exception using errcode = '22023', message = 'role_map is not a JSON object';
  end if;
  if role_column is null and role_map <> '{}' then
    raise exception using
      errcode = '22023',
      message = 'role_map is given without role_column',
      hint = 'Without a role column everyone is a member.';
  end if;
  for v_target in select r.key, r.value from jsonb_each(role_map) r loop
    if jsonb_typeof(v_target.value) <> 'null' and helper._role_rank(v_target.value #>> '{}') is null then
      raise exception using
        errcode = '22023',
        message = format('role_map gives "%s" the role %s, which is not known', v_target.key, v_target.value),
        hint = 'Roles are owner, admin, member, viewer, and null for no access.';
    end if;
  end loop;
  insert into helper.membership_source (relation, workspace_column, user_column, role_column, role_map)
  values (relation, workspace_column, user_column, role_column, role_map);
end
$$;
comment on function helper.use_membership(regclass, name, name, name, jsonb) is
  'Reads members from a table of the application, so that every policy follows it; null returns to ours. The columns are uuids, the role is text or an enum; role_map is {"its role": "owner" | "admin" | "member" | "viewer" | null}. For the database''s owner. Errors: 22023, 42501';

-- Triggers

create function helper._touch() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$;
comment on function helper._touch() is 'Sets updated_at';
create trigger workspaces_touch before update on helper.workspaces
  for each row execute function helper._touch();
create trigger profiles_touch before update on helper.profiles
  for each row execute function helper._touch();

create function helper._delete_data_of_workspace() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._delete_workspace_data(old.id);
  return null;
end
$$;
comment on function helper._delete_data_of_workspace() is 'Deletes what tables without a foreign key to workspaces keep of a deleted one';
create trigger workspaces_delete_data after delete on helper.workspaces
  for each row execute function helper._delete_data_of_workspace();

create function helper._freeze_member() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if (new.workspace_id, new.user_id) is distinct from (old.workspace_id, old.user_id) then
    raise exception using
      errcode = '22023',
      message = 'a membership cannot be moved',
      hint = 'Remove the member and add another.';
  end if;
  return new;
end
$$;
comment on function helper._freeze_member() is 'Keeps a membership with its workspace and person. Errors: 22023';
create trigger workspace_members_freeze before update on helper.workspace_members
  for each row execute function helper._freeze_member();

create function helper._keep_owner() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  -- Written, not only locked: two owners who remove each other collide here in every isolation level.
  update helper.workspaces w set updated_at = clock_timestamp() where w.id = old.workspace_id;
  if found and not exists (
    select from helper.workspace_members m
    where m.workspace_id = old.workspace_id and m.role = 'owner'
  ) then
    raise exception using
      errcode = '55000',
      message = 'workspace would have no owner',
      hint = 'Make somebody else an owner first, or delete the workspace.';
  end if;
  return null;
end
$$;
comment on function helper._keep_owner() is 'Keeps at least one owner in a workspace that is not being deleted. Errors: 55000';
create trigger workspace_members_keep_owner_update after update on helper.workspace_members
  for each row when (old.role = 'owner' and new.role <> 'owner') execute function helper._keep_owner();
create trigger workspace_members_keep_owner_delete after delete on helper.workspace_members
  for each row when (old.role = 'owner') execute function helper._keep_owner();

-- Policies

alter table helper.workspaces enable row level security;
alter table helper.workspace_members enable row level security;
alter table helper.profiles enable row level security;
-- No policy: for the extension alone.
alter table helper.membership_source enable row level security;

-- No insert: a workspace is created with its owner, by create_workspace.
create policy workspaces_select_member on helper.workspaces for select
  using (id = any ((select helper.my_workspaces())::uuid[]));
comment on policy workspaces_select_member on helper.workspaces is 'Members see their workspaces';
create policy workspaces_update_admin on helper.workspaces for update
  using (id = any ((select helper.my_workspaces('admin'))::uuid[]));
comment on policy workspaces_update_admin on helper.workspaces is 'Admins name and set up their workspaces';
create policy workspaces_delete_owner on helper.workspaces for delete
  using (id = any ((select helper.my_workspaces('owner'))::uuid[]));
comment on policy workspaces_delete_owner on helper.workspaces is 'Owners delete their workspaces';

create policy workspace_members_select_member on helper.workspace_members for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy workspace_members_select_member on helper.workspace_members is 'Members see who else is in their workspaces';
create policy workspace_members_insert_admin on helper.workspace_members for insert
  with check (
    workspace_id = any ((select helper.my_workspaces('owner'))::uuid[])
    or role <> 'owner' and workspace_id = any ((select helper.my_workspaces('admin'))::uuid[])
  );
comment on policy workspace_members_insert_admin on helper.workspace_members is 'Admins add members, owners also owners';
create policy workspace_members_update_admin on helper.workspace_members for update
  using (
    workspace_id = any ((select helper.my_workspaces('owner'))::uuid[])
    or role <> 'owner' and workspace_id = any ((select helper.my_workspaces('admin'))::uuid[])
  );
comment on policy workspace_members_update_admin on helper.workspace_members is 'Admins change roles below owner, owners every role';
create policy workspace_members_delete_admin_or_self on helper.workspace_members for delete
  using (
    user_id = (select helper.current_user_id())
    or workspace_id = any ((select helper.my_workspaces('owner'))::uuid[])
    or role <> 'owner' and workspace_id = any ((select helper.my_workspaces('admin'))::uuid[])
  );
comment on policy workspace_members_delete_admin_or_self on helper.workspace_members is 'Admins remove members, owners also owners, and anyone may leave';

create policy profiles_select_colleague on helper.profiles for select
  using (id = (select helper.current_user_id()) or id = any ((select helper.my_colleagues())::uuid[]));
comment on policy profiles_select_colleague on helper.profiles is 'People see their own profile and those of people in a shared workspace';
create policy profiles_insert_self on helper.profiles for insert
  with check (id = (select helper.current_user_id()));
comment on policy profiles_insert_self on helper.profiles is 'People make their own profile';
create policy profiles_update_self on helper.profiles for update
  using (id = (select helper.current_user_id()));
comment on policy profiles_update_self on helper.profiles is 'People change their own profile';
