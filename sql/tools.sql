-- The built-in tools: what an assistant may do in every workspace. All run as the caller, under row-level security; a
-- table that a caller may write is written by column grants, so that who made a row, and when, is never theirs to say.

-- What tools and packs share

create function helper.workspace_for(minimum_role text, workspace uuid default null) returns uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.current_workspace(workspace);
begin
  perform helper._require_role(v_workspace, minimum_role);
  return v_workspace;
end
$$;
comment on function helper.workspace_for(text, uuid) is
  'The workspace in which a call takes place, as current_workspace gives it, once the caller''s role in it is at least the one that is named. Errors: 22023, 42501 role too low, 42704';

create function helper.is_colleague(user_id uuid, workspace uuid default null) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.current_workspace(workspace);
begin
  return exists (
    select from helper._memberships(is_colleague.user_id) m
    where m.workspace_id = v_workspace and helper._role_rank(m.role) is not null);
end
$$;
comment on function helper.is_colleague(uuid, uuid) is 'Whether a person belongs to a workspace of the caller. Errors: 42501, 42704';

create function helper.with_tags(tags text[], added text[], removed text[] default '{}') returns text[]
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(distinct t.tag order by t.tag), '{}')
  from (select btrim(x.tag, E' \t\r\n') as tag from unnest(tags || added) x (tag)) t
  where t.tag <> ''
    and t.tag <> all (array(select btrim(r.tag, E' \t\r\n') from unnest(removed) r (tag) where r.tag is not null))
$$;
comment on function helper.with_tags(text[], text[], text[]) is 'Tags with some added and some removed, each once, in order, without blanks around them';

-- The same policies for every table that a workspace's people share; private ones and those that the extension alone
-- writes have their own.
create function helper._share_table(relation regclass, writer text, remover text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_table name;
  v_policy record;
begin
  select c.relname into v_table from pg_class c where c.oid = relation;
  execute format('alter table %s enable row level security', relation);
  for v_policy in
    select p.command, p.role, p.clause, p.verb
    from (values
      ('select', 'viewer', 'using', 'see'),
      ('insert', writer, 'with check', 'add'),
      ('update', writer, 'using', 'change'),
      ('delete', remover, 'using', 'delete')) p (command, role, clause, verb)
    where p.role is not null
  loop
    execute format('create policy %I on %s for %s %s (workspace_id = any ((select helper.my_workspaces(%L))::uuid[]))',
      format('%s_%s_%s', v_table, v_policy.command, v_policy.role), relation, v_policy.command, v_policy.clause, v_policy.role);
    execute format('comment on policy %I on %s is %L',
      format('%s_%s_%s', v_table, v_policy.command, v_policy.role), relation,
      format('Everyone in the workspace from %s up may %s rows', v_policy.role, v_policy.verb));
  end loop;
  perform pg_extension_config_dump(relation, '');
end
$$;
comment on function helper._share_table(regclass, text, text) is
  'Row-level security of a table that a workspace shares: viewers read, writer adds and changes, remover deletes; null: nobody';

-- Notes

create table helper.notes (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  user_id uuid not null default helper.current_user_id(),
  shared boolean not null default false,
  pinned boolean not null default false,
  title text constraint notes_title_check check (title ~ '[^[:space:]]' and char_length(title) <= 500),
  content text not null constraint notes_content_check check (content ~ '[^[:space:]]' and char_length(content) <= 100000),
  tags text[] not null default '{}' constraint notes_tags_check check (cardinality(tags) <= 50 and array_position(tags, null) is null and octet_length(tags::text) <= 4000),
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id)
);
create index notes_user_id_idx on helper.notes (user_id, workspace_id);
comment on table helper.notes is 'Notes of people, to themselves or for the workspace';
comment on column helper.notes.workspace_id is 'The workspace';
comment on column helper.notes.id is 'Identifier, in order of creation';
comment on column helper.notes.user_id is 'Who wrote it';
comment on column helper.notes.shared is 'Whether everyone in the workspace sees it';
comment on column helper.notes.pinned is 'Whether lists begin with it';
comment on column helper.notes.title is 'Title, if it has one';
comment on column helper.notes.content is 'The note';
comment on column helper.notes.tags is 'Tags';
comment on column helper.notes.created_at is 'When it was written';
comment on column helper.notes.updated_at is 'When it last changed';
alter table helper.notes enable row level security;
create policy notes_select_holder_or_member on helper.notes for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]) and (shared or user_id = (select helper.current_user_id())));
comment on policy notes_select_holder_or_member on helper.notes is 'People see their own notes, and those that are shared';
create policy notes_insert_holder on helper.notes for insert
  with check (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy notes_insert_holder on helper.notes is 'Members write notes of their own';
create policy notes_update_holder on helper.notes for update
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy notes_update_holder on helper.notes is 'Whoever wrote a note changes it';
create policy notes_delete_holder on helper.notes for delete
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy notes_delete_holder on helper.notes is 'Whoever wrote a note deletes it';
select pg_catalog.pg_extension_config_dump('helper.notes', '');
create trigger notes_touch before update on helper.notes
  for each row execute function helper._touch();

create function helper.create_note(content text, title text default null, tags text[] default '{}', workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_note jsonb;
begin
  insert into helper.notes as n (workspace_id, title, content, tags)
  values (v_workspace, create_note.title, create_note.content, helper.with_tags(create_note.tags, '{}'))
  returning to_jsonb(n) - 'workspace_id' into v_note;
  return v_note;
end
$$;
comment on function helper.create_note(text, text, text[], uuid) is
  'Keeps a private note of the caller.
@param content text of the note
@param title title, if it needs one
@param tags words to find it by
Errors: 23514, 42501, 42704';

-- Reminders

create table helper.reminders (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  user_id uuid not null default helper.current_user_id(),
  title text not null constraint reminders_title_check check (title ~ '[^[:space:]]' and char_length(title) <= 500),
  description text constraint reminders_description_check check (char_length(description) <= 10000),
  due_at timestamptz not null,
  related_to text constraint reminders_related_to_check check (char_length(related_to) <= 500),
  done_at timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id)
);
create index reminders_user_id_due_at_idx on helper.reminders (user_id, due_at) where done_at is null;
comment on table helper.reminders is 'What people want to be reminded of';
comment on column helper.reminders.workspace_id is 'The workspace';
comment on column helper.reminders.id is 'Identifier, in order of creation';
comment on column helper.reminders.user_id is 'Who is reminded, and alone sees it';
comment on column helper.reminders.title is 'Of what';
comment on column helper.reminders.description is 'More about it';
comment on column helper.reminders.due_at is 'When';
comment on column helper.reminders.related_to is 'What it is about, such as the id of a contact';
comment on column helper.reminders.done_at is 'When it was ticked off';
comment on column helper.reminders.created_at is 'When it was made';
alter table helper.reminders enable row level security;
create policy reminders_select_holder on helper.reminders for select
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy reminders_select_holder on helper.reminders is 'People see their own reminders';
create policy reminders_insert_holder on helper.reminders for insert
  with check (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy reminders_insert_holder on helper.reminders is 'Members make reminders for themselves';
create policy reminders_update_holder on helper.reminders for update
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy reminders_update_holder on helper.reminders is 'People change their own reminders';
create policy reminders_delete_holder on helper.reminders for delete
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
comment on policy reminders_delete_holder on helper.reminders is 'People delete their own reminders';
select pg_catalog.pg_extension_config_dump('helper.reminders', '');

create function helper.create_reminder(
  title text,
  due_at timestamptz,
  description text default null,
  related_to text default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_reminder jsonb;
begin
  if create_reminder.due_at <= clock_timestamp() then
    raise exception using errcode = '22023', message = format('due_at is %s, which is past', create_reminder.due_at);
  end if;
  insert into helper.reminders as r (workspace_id, title, due_at, description, related_to)
  values (v_workspace, create_reminder.title, create_reminder.due_at, create_reminder.description, create_reminder.related_to)
  returning to_jsonb(r) - 'workspace_id' into v_reminder;
  return v_reminder;
end
$$;
comment on function helper.create_reminder(text, timestamptz, text, text, uuid) is
  'Reminds the caller of something at a time.
@param title what to be reminded of
@param due_at when, in ISO 8601 with a time zone
@param description more about it
@param related_to what it is about, such as the id of a contact
Errors: 22023 past, 23502, 23514, 42501, 42704';

create function helper.list_reminders(include_done boolean default false, "limit" integer default 20, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
begin
  return (
    select jsonb_build_object('reminders', coalesce(jsonb_agg(to_jsonb(f) - 'workspace_id' - 'user_id' order by f.due_at, f.id), '[]'))
    from (
      select r.*, r.done_at is null and r.due_at <= clock_timestamp() as due
      from helper.reminders r
      where r.workspace_id = v_workspace
        and r.user_id = (select helper.current_user_id())
        and (include_done or r.done_at is null)
      order by r.due_at, r.id
      limit least(greatest(coalesce("limit", 20), 1), 100)
    ) f);
end
$$;
comment on function helper.list_reminders(boolean, integer, uuid) is
  'The caller''s reminders, the next one first; those whose time has come are marked due.
@param include_done also those that are ticked off
@param limit how many at most, up to 100
Errors: 42501, 42704';

create function helper.complete_reminder(reminder_id uuid, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_reminder jsonb;
begin
  update helper.reminders r
  set done_at = coalesce(r.done_at, clock_timestamp())
  where r.workspace_id = v_workspace and r.id = reminder_id and r.user_id = helper.current_user_id()
  returning to_jsonb(r) - 'workspace_id' into v_reminder;
  if not found then
    raise exception using errcode = '42704', message = format('reminder "%s" does not exist', reminder_id);
  end if;
  return v_reminder;
end
$$;
comment on function helper.complete_reminder(uuid, uuid) is
  'Ticks off a reminder of the caller.
@param reminder_id the reminder
Errors: 42501, 42704';

-- Notifications

create table helper.notifications (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  user_id uuid not null,
  title text not null constraint notifications_title_check check (title ~ '[^[:space:]]' and char_length(title) <= 500),
  body text constraint notifications_body_check check (char_length(body) <= 10000),
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  read_at timestamptz,
  primary key (workspace_id, id)
);
create index notifications_user_id_idx on helper.notifications (user_id, workspace_id) where read_at is null;
comment on table helper.notifications is 'What people in a workspace tell each other, or have their assistant tell';
comment on column helper.notifications.workspace_id is 'The workspace';
comment on column helper.notifications.id is 'Identifier, in order of creation';
comment on column helper.notifications.user_id is 'Who is told';
comment on column helper.notifications.title is 'What';
comment on column helper.notifications.body is 'More about it';
comment on column helper.notifications.created_by is 'Who tells';
comment on column helper.notifications.created_at is 'When it was sent';
comment on column helper.notifications.read_at is 'When it was read';
alter table helper.notifications enable row level security;
create policy notifications_select_party on helper.notifications for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[])
    and (user_id = (select helper.current_user_id()) or created_by = (select helper.current_user_id())));
comment on policy notifications_select_party on helper.notifications is 'Whoever is told or tells sees a notification';
create policy notifications_insert_member on helper.notifications for insert
  with check (created_by = (select helper.current_user_id())
    and workspace_id = any ((select helper.my_workspaces('member'))::uuid[])
    and helper.is_colleague(user_id, workspace_id));
comment on policy notifications_insert_member on helper.notifications is 'Members tell others in the workspace';
create policy notifications_update_receiver on helper.notifications for update
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy notifications_update_receiver on helper.notifications is 'Whoever is told ticks it off';
select pg_catalog.pg_extension_config_dump('helper.notifications', '');

create function helper.send_notification(user_id uuid, title text, body text default null, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_notification jsonb;
begin
  if helper.is_colleague(send_notification.user_id, v_workspace) is not true then
    raise exception using errcode = '42704', message = format('user "%s" is not a member of the workspace', send_notification.user_id);
  end if;
  insert into helper.notifications as n (workspace_id, user_id, title, body)
  values (v_workspace, send_notification.user_id, send_notification.title, send_notification.body)
  returning to_jsonb(n) - 'workspace_id' into v_notification;
  return v_notification;
end
$$;
comment on function helper.send_notification(uuid, text, text, uuid) is
  'Tells somebody in the workspace something.
@param user_id who is told
@param title what
@param body more about it
Errors: 23514, 42501, 42704 not a member of the workspace';

create function helper.list_notifications(include_read boolean default false, "limit" integer default 20, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
begin
  return (
    select jsonb_build_object('notifications', coalesce(jsonb_agg(to_jsonb(f) - 'workspace_id' - 'user_id' order by f.id desc), '[]'))
    from (
      select n.*
      from helper.notifications n
      where n.workspace_id = v_workspace
        and n.user_id = (select helper.current_user_id())
        and (include_read or n.read_at is null)
      order by n.id desc
      limit least(greatest(coalesce("limit", 20), 1), 100)
    ) f);
end
$$;
comment on function helper.list_notifications(boolean, integer, uuid) is
  'What the caller was told in the workspace, the latest first.
@param include_read also what was read before
@param limit how many at most, up to 100
Errors: 42501, 42704';

-- Documents

create function helper.search_knowledge(query text, max_results integer default 6, workspace uuid default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
begin
  return (
    select jsonb_build_object('passages', coalesce(jsonb_agg(
      jsonb_build_object('document_id', s.source_id, 'title', s.title, 'heading', s.heading, 'content', s.content, 'start', s.start_offset,
        'end', s.end_offset, 'score', round(s.score::numeric, 4))
      order by s.score desc, s.chunk_id), '[]'))
    from helper.search(search_knowledge.query, v_workspace, least(greatest(coalesce(max_results, 6), 1), 20)) s);
end
$$;
comment on function helper.search_knowledge(text, integer, uuid) is
  'Finds the passages of the workspace''s documents that fit a query best.
@param query what to look for, in words or as a question
@param max_results how many passages at most, up to 20
Errors: 22023, 42501, 42704, 55000';

create function helper.get_document(document_id uuid, start integer default 0, length integer default 8000, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_start integer := greatest(coalesce(get_document.start, 0), 0);
  v_length integer := least(greatest(coalesce(get_document.length, 8000), 1), 32000);
  v_document jsonb;
begin
  select jsonb_build_object(
    'id', s.id, 'title', s.title, 'source_type', s.source_type, 'status', s.status, 'metadata', s.metadata,
    'content', substring(s.content from v_start + 1 for v_length),
    'start', v_start,
    'total', char_length(s.content))
  into v_document
  from helper.knowledge_sources s
  where s.workspace_id = v_workspace and s.id = document_id;
  if not found then
    raise exception using errcode = '42704', message = format('document "%s" does not exist', document_id);
  end if;
  return v_document;
end
$$;
comment on function helper.get_document(uuid, integer, integer, uuid) is
  'Reads a part of a document.
@param document_id the document, as search_knowledge gives it
@param start first character, from 0
@param length how many characters, up to 32000
Errors: 42501, 42704';

-- Data

create function helper.describe_data(table_name text default null) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object('tables', coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
    'table', t.name,
    'description', t.description,
    'columns', t.columns,
    'refers_to', t.refers_to)) order by t.name), '[]'))
  from (
    select format('%I.%I', n.nspname, c.relname) as name,
      obj_description(c.oid, 'pg_class') as description,
      (select jsonb_agg(
         case when describe_data.table_name is null then to_jsonb(a.attname)
         else jsonb_strip_nulls(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
           'description', col_description(c.oid, a.attnum))) end order by a.attnum)
       from pg_attribute a
       where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and has_column_privilege(c.oid, a.attnum, 'select')) as columns,
      case when describe_data.table_name is not null then (
        select jsonb_agg(pg_get_constraintdef(k.oid) order by k.conname)
        from pg_constraint k
        where k.conrelid = c.oid and k.contype = 'f') end as refers_to
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f')
      and not c.relispartition
      and n.nspname <> 'information_schema'
      and n.nspname !~ '^pg_'
      and has_schema_privilege(n.oid, 'usage')
      and has_any_column_privilege(c.oid, 'select')
      and (describe_data.table_name is null
        or describe_data.table_name in (c.relname, n.nspname || '.' || c.relname, format('%I.%I', n.nspname, c.relname)))
    order by n.nspname = 'helper', n.nspname, c.relname
    limit 200
  ) t
$$;
comment on function helper.describe_data(text) is
  'Tables and columns that the caller may read, with what is said about them; name one table for its columns'' types and what it refers to.
@param table_name one table, with its schema';

create function helper.query_data(query text, max_rows integer default 100) returns json
language c volatile parallel unsafe set search_path = pg_catalog, pg_temp as 'MODULE_PATHNAME', 'query_data_wrapper';
comment on function helper.query_data(text, integer) is
  'Runs one select as the caller, who sees what row-level security lets them see. Nothing can be changed: functions that are volatile are refused. Name every table with its schema, as describe_data does. At most 1000 rows, 64 kB and 10 seconds.
@param query one select, in PostgreSQL''s SQL
@param max_rows how many rows at most, up to 1000
Errors: 22023 not one select or too costly, 42501, 42601, 42P01, 57014 takes too long';

-- An approval that a workflow waits for: a call that does nothing, for somebody to confirm.
create function helper.workflow_approval(title text, details jsonb default null) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object('approved', true)
$$;
comment on function helper.workflow_approval(text, jsonb) is
  'What a workflow asks somebody to approve; called by its steps alone, and changes nothing. Arguments: title, what is to be decided; details, what it is about';
