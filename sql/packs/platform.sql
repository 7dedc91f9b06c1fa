-- The pack platform: the workspace itself, its people, and what goes on in it.

create table helper.invitations (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  email text not null constraint invitations_email_check check (email ~ '^[^@[:space:]]+@[^@[:space:]]+$' and char_length(email) <= 320 and email = lower(email)),
  role text not null constraint invitations_role_check check (role in ('admin', 'member', 'viewer')),
  message text constraint invitations_message_check check (char_length(message) <= 2000),
  status text not null default 'pending' constraint invitations_status_check check (status in ('pending', 'accepted', 'revoked')),
  invited_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  -- The end of a day, so that a preview shows the same as what follows.
  expires_at timestamptz not null default date_trunc('day', clock_timestamp(), 'UTC') + interval '8 days',
  accepted_by uuid,
  primary key (workspace_id, id),
  constraint invitations_id_key unique (id)
);
create unique index invitations_email_idx on helper.invitations (email, workspace_id) where status = 'pending';
comment on table helper.invitations is 'People who were asked to join a workspace; the application tells them';
comment on column helper.invitations.workspace_id is 'The workspace';
comment on column helper.invitations.id is 'Identifier, which accept_invitation takes';
comment on column helper.invitations.email is 'Address, in lower case';
comment on column helper.invitations.role is 'Role that they get';
comment on column helper.invitations.message is 'What they are told';
comment on column helper.invitations.status is 'pending, accepted or revoked';
comment on column helper.invitations.invited_by is 'Who invited them';
comment on column helper.invitations.created_at is 'When';
comment on column helper.invitations.expires_at is 'Until when it can be accepted';
comment on column helper.invitations.accepted_by is 'Who accepted it';
alter table helper.invitations enable row level security;
create policy invitations_select_admin on helper.invitations for select
  using (workspace_id = any ((select helper.my_workspaces('admin'))::uuid[]));
comment on policy invitations_select_admin on helper.invitations is 'Admins see who was invited';
create policy invitations_insert_admin on helper.invitations for insert
  with check (workspace_id = any ((select helper.my_workspaces('admin'))::uuid[]));
comment on policy invitations_insert_admin on helper.invitations is 'Admins invite';
create policy invitations_delete_admin on helper.invitations for delete
  using (workspace_id = any ((select helper.my_workspaces('admin'))::uuid[]));
comment on policy invitations_delete_admin on helper.invitations is 'Admins take an invitation back by deleting it';
select pg_catalog.pg_extension_config_dump('helper.invitations', '');

create function helper.invite_team_member(email text, role text default 'member', message text default null, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
  v_invitation jsonb;
begin
  -- One that ran out makes room.
  delete from helper.invitations i
  where i.workspace_id = v_workspace
    and i.email = lower(btrim(invite_team_member.email))
    and i.status = 'pending'
    and i.expires_at < clock_timestamp();
  insert into helper.invitations as i (workspace_id, email, role, message)
  values (v_workspace, lower(btrim(invite_team_member.email)), invite_team_member.role, invite_team_member.message)
  returning to_jsonb(i) - 'workspace_id' into v_invitation;
  return v_invitation;
end
$$;
comment on function helper.invite_team_member(text, text, text, uuid) is
  'Invites somebody to the workspace. For admins.
@param email address
@param role admin, member or viewer
@param message what they are told
Errors: 23502, 23505 invited already, 23514, 42501, 42704';

-- The address comes from the claim of the token, which the application's authentication vouches for.
create function helper.accept_invitation(invitation uuid) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_user uuid := helper._require_user();
  v_email text := lower(helper.caller_claims() ->> 'email');
  v_invitation helper.invitations;
begin
  perform helper._check_membership_is_ours();
  update helper.invitations i
  set status = 'accepted', accepted_by = v_user
  where i.id = invitation and i.status = 'pending' and i.expires_at > clock_timestamp() and i.email = v_email
  returning i.* into v_invitation;
  if not found then
    -- The same for an invitation of somebody else and for none.
    raise exception using
      errcode = '42704',
      message = format('invitation "%s" does not exist', invitation),
      detail = 'It may be another address''s, accepted, or over.';
  end if;
  insert into helper.workspace_members (workspace_id, user_id, role)
  values (v_invitation.workspace_id, v_user, v_invitation.role)
  on conflict on constraint workspace_members_pkey do nothing;
  return v_invitation.workspace_id;
end
$$;
comment on function helper.accept_invitation(uuid) is
  'Joins the workspace that the caller was invited to, by the address in the claim email, and returns it; a role that they have already stays. Errors: 42501, 42704, 55000 membership is the application''s';

create function helper.list_members(workspace uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_adopted text := coalesce(helper._adopted_membership(), 'helper.workspace_members');
  v_members jsonb;
begin
  execute format(
    'select coalesce(jsonb_agg(jsonb_build_object(''user_id'', m.user_id, ''role'', m.role, ''name'', p.full_name, ''email'', p.email)
       order by helper._role_rank(m.role) desc, p.full_name, m.user_id), ''[]'')
     from %s m left join helper.profiles p on p.id = m.user_id
     where m.workspace_id = $1 and helper._role_rank(m.role) is not null', v_adopted)
    into v_members
    using v_workspace;
  return jsonb_build_object('members', v_members);
end
$$;
comment on function helper.list_members(uuid) is
  'People in the workspace, with role, name and address.
Errors: 42501, 42704, 55000';

create function helper.change_member_role(user_id uuid, role text, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
begin
  if helper.is_colleague(change_member_role.user_id, v_workspace) is not true then
    raise exception using errcode = '42704', message = format('user "%s" is not a member of the workspace', change_member_role.user_id);
  end if;
  perform helper.add_member(v_workspace, change_member_role.user_id, change_member_role.role);
  return jsonb_build_object('user_id', change_member_role.user_id, 'role', change_member_role.role);
end
$$;
comment on function helper.change_member_role(uuid, text, uuid) is
  'Changes the role of somebody in the workspace. For admins; owners are changed by owners.
@param user_id the person
@param role viewer, member, admin or owner
Errors: 22023, 42501, 42704, 55000';

create function helper.get_workspace_usage(metric text default 'all', workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_since timestamptz := date_trunc('month', clock_timestamp() at time zone 'UTC') at time zone 'UTC';
  v_usage jsonb := '{}';
begin
  if metric is null or metric not in ('tokens', 'messages', 'storage', 'all') then
    raise exception using
      errcode = '22023',
      message = format('metric "%s" is not known', metric),
      hint = 'Metrics are tokens, messages, storage and all.';
  end if;
  if metric in ('tokens', 'all') then
    select v_usage || jsonb_build_object('tokens', jsonb_build_object(
      'requests', u.usage -> 'requests', 'input', u.usage -> 'input_tokens', 'output', u.usage -> 'output_tokens', 'cost', u.usage -> 'cost'))
    into v_usage
    from (select helper.usage(v_workspace, v_since) as usage) u;
  end if;
  if metric in ('messages', 'all') then
    v_usage := v_usage || jsonb_build_object('messages', jsonb_build_object(
      'received', (select count(*) from helper.wa_messages m where m.workspace_id = v_workspace and m.sent_at >= v_since),
      'sent', (select count(*) from helper.wa_outbox o where o.workspace_id = v_workspace and o.kind <> 'submission' and o.sent_at >= v_since),
      'with_assistant', (select count(*) from helper.messages m where m.workspace_id = v_workspace and m.created_at >= v_since)));
  end if;
  if metric in ('storage', 'all') then
    select v_usage || jsonb_build_object('storage', jsonb_build_object(
      'documents', count(*), 'characters', coalesce(sum(char_length(s.content)), 0), 'passages', coalesce(sum(s.chunk_count), 0)))
    into v_usage
    from helper.knowledge_sources s
    where s.workspace_id = v_workspace;
  end if;
  return v_usage || jsonb_build_object('since', v_since);
end
$$;
comment on function helper.get_workspace_usage(text, uuid) is
  'What the workspace used since the month began, by UTC, and what is stored; tokens and the assistant''s messages as far as the caller sees them.
@param metric tokens, messages, storage or all
Errors: 22023, 42501, 42704';

create function helper.create_workspace_note(
  title text,
  content text,
  tags text[] default '{}',
  pinned boolean default false,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_note jsonb;
begin
  insert into helper.notes as n (workspace_id, shared, pinned, title, content, tags)
  values (v_workspace, true, coalesce(create_workspace_note.pinned, false), create_workspace_note.title, create_workspace_note.content,
    helper.with_tags(create_workspace_note.tags, '{}'))
  returning to_jsonb(n) - 'workspace_id' into v_note;
  return v_note;
end
$$;
comment on function helper.create_workspace_note(text, text, text[], boolean, uuid) is
  'Writes a note that everyone in the workspace sees.
@param title title
@param content text of the note
@param tags words to find it by
@param pinned whether lists begin with it
Errors: 23502, 23514, 42501, 42704';

create function helper.search_workspace(query text, "limit" integer default 20, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_limit integer := least(greatest(coalesce("limit", 20), 1), 100);
  v_words text[] := array(
    select '%' || regexp_replace(w, '([\\%_])', '\\\1', 'g') || '%'
    from regexp_split_to_table(coalesce(query, ''), '\s+') w
    where w <> '');
begin
  if cardinality(v_words) = 0 then
    raise exception using errcode = '22023', message = 'query is empty';
  end if;
  return (
    select jsonb_build_object('found', coalesce(jsonb_agg(to_jsonb(f) order by f.id desc), '[]'))
    from (
      select h.*
      from (
        (select 'contact' as kind, c.id, coalesce(c.name, c.phone) as title, concat_ws(', ', c.phone, c.email) as text
        from helper.contacts c
        where c.workspace_id = v_workspace and concat_ws(' ', c.name, c.phone, c.email) ilike all (v_words)
        order by c.id desc
        limit v_limit)
        union all
        (select 'lead', l.id, l.name, concat_ws(', ', l.company, l.email, l.stage)
        from helper.leads l
        where l.workspace_id = v_workspace and concat_ws(' ', l.name, l.company, l.email, l.phone) ilike all (v_words)
        order by l.id desc
        limit v_limit)
        union all
        (select 'product', p.id, p.name, left(p.description, 200)
        from helper.products p
        where p.workspace_id = v_workspace and concat_ws(' ', p.name, p.description, p.category) ilike all (v_words)
        order by p.id desc
        limit v_limit)
        union all
        (select 'note', n.id, coalesce(n.title, left(n.content, 80)), left(n.content, 200)
        from helper.notes n
        where n.workspace_id = v_workspace
          and (n.shared or n.user_id = (select helper.current_user_id()))
          and concat_ws(' ', n.title, n.content, array_to_string(n.tags, ' ')) ilike all (v_words)
        order by n.id desc
        limit v_limit)
        union all
        (select 'document', s.id, s.title, s.source_type
        from helper.knowledge_sources s
        where s.workspace_id = v_workspace and concat_ws(' ', s.title, s.file_name) ilike all (v_words)
        order by s.id desc
        limit v_limit)
      ) h
      order by h.id desc
      limit v_limit
    ) f);
end
$$;
comment on function helper.search_workspace(text, integer, uuid) is
  'Finds contacts, leads, products, notes and documents'' titles that have all the words, the latest first; search_knowledge looks into documents.
@param query words
@param limit how many at most, up to 100
Errors: 22023, 42501, 42704';

create function helper.get_activity(since timestamptz default null, "limit" integer default 50, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_limit integer := least(greatest(coalesce("limit", 50), 1), 200);
  v_since timestamptz := coalesce(since, clock_timestamp() - interval '7 days');
begin
  -- Identifiers sort by time, so that each branch reads the end of a primary key.
  return (
    select jsonb_build_object('activity', coalesce(jsonb_agg(jsonb_strip_nulls(to_jsonb(f)) order by f.at desc, f.id desc), '[]'))
    from (
      select h.*
      from (
        (select 'contact added' as what, c.id, coalesce(c.name, c.phone) as title, c.created_by as who, c.created_at as at
        from helper.contacts c where c.workspace_id = v_workspace and c.created_at >= v_since order by c.id desc limit v_limit)
        union all
        (select 'message received', m.id, left(m.body, 100), null, m.created_at
        from helper.wa_messages m where m.workspace_id = v_workspace and m.created_at >= v_since order by m.id desc limit v_limit)
        union all
        (select case o.kind when 'submission' then 'template submitted' else 'message ' || o.status end, o.id, left(o.body, 100), o.created_by, o.created_at
        from helper.wa_outbox o where o.workspace_id = v_workspace and o.created_at >= v_since order by o.id desc limit v_limit)
        union all
        (select 'lead added', l.id, l.name, l.created_by, l.created_at
        from helper.leads l where l.workspace_id = v_workspace and l.created_at >= v_since order by l.id desc limit v_limit)
        union all
        (select 'lead ' || a.kind, a.id, left(a.content, 100), a.created_by, a.created_at
        from helper.lead_activities a where a.workspace_id = v_workspace and a.created_at >= v_since order by a.id desc limit v_limit)
        union all
        (select 'product added', p.id, p.name, p.created_by, p.created_at
        from helper.products p where p.workspace_id = v_workspace and p.created_at >= v_since order by p.id desc limit v_limit)
        union all
        (select 'note written', n.id, coalesce(n.title, left(n.content, 80)), n.user_id, n.created_at
        from helper.notes n
        where n.workspace_id = v_workspace and (n.shared or n.user_id = (select helper.current_user_id())) and n.created_at >= v_since
        order by n.id desc limit v_limit)
        union all
        (select 'document added', s.id, s.title, s.created_by, s.created_at
        from helper.knowledge_sources s where s.workspace_id = v_workspace and s.created_at >= v_since order by s.id desc limit v_limit)
        union all
        (select 'report made', e.id, r.title, e.created_by, e.created_at
        from helper.report_editions e
        join helper.reports r on r.workspace_id = e.workspace_id and r.id = e.report_id
        where e.workspace_id = v_workspace and e.created_at >= v_since order by e.id desc limit v_limit)
      ) h
      order by h.at desc, h.id desc
      limit v_limit
    ) f);
end
$$;
comment on function helper.get_activity(timestamptz, integer, uuid) is
  'What happened in the workspace, the latest first, as far as the caller sees it.
@param since from this time on; a week ago unless given
@param limit how many at most, up to 200
Errors: 42501, 42704';
