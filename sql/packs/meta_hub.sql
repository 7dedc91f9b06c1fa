-- The pack meta_hub: contacts, and their conversations with the workspace over WhatsApp. How messages go out and come in
-- is in whatsapp.sql.

create function helper.normalize_phone(phone text, region text default null) returns text
language c immutable parallel safe as 'MODULE_PATHNAME', 'normalize_phone_wrapper';
comment on function helper.normalize_phone(text, text) is
  'A phone number in E.164, such as +6281234567890; null where it is none. region is the ISO 3166 code of the country that a national number belongs to. Errors: 22023 unknown region';

-- Tables

create table helper.wa_numbers (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  phone_number_id text not null constraint wa_numbers_phone_number_id_check check (phone_number_id ~ '^[0-9]{1,32}$'),
  business_account_id text constraint wa_numbers_business_account_id_check check (business_account_id ~ '^[0-9]{1,32}$'),
  phone text not null constraint wa_numbers_phone_check check (phone ~ '^\+[1-9][0-9]{6,14}$'),
  region text constraint wa_numbers_region_check check (region ~ '^[A-Z]{2}$'),
  credential text constraint wa_numbers_credential_check check (credential ~ '^(env|file|vault):.'),
  credential_host text,
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint wa_numbers_phone_number_id_key unique (phone_number_id),
  constraint wa_numbers_host_check check ((credential is null) = (credential_host is null))
);
create index wa_numbers_business_account_id_idx on helper.wa_numbers (business_account_id);
comment on table helper.wa_numbers is 'WhatsApp numbers of workspaces, bound by the application''s service: whoever binds one receives what people write to it';
comment on column helper.wa_numbers.workspace_id is 'The workspace';
comment on column helper.wa_numbers.id is 'Identifier; a workspace sends from its first';
comment on column helper.wa_numbers.phone_number_id is 'The Cloud API''s id of the number';
comment on column helper.wa_numbers.business_account_id is 'The Cloud API''s id of the business account, which templates belong to';
comment on column helper.wa_numbers.phone is 'The number itself, in E.164';
comment on column helper.wa_numbers.region is 'Country, in ISO 3166, that contacts'' national numbers are read by; null: they must be international';
comment on column helper.wa_numbers.credential is 'Where its access token is, which is used for this number alone: env:NAME, file:/path or vault:name; null: the sender''s is used';
comment on column helper.wa_numbers.credential_host is 'Scheme, host and port that the token may be sent to';
comment on column helper.wa_numbers.created_at is 'When it was bound';
select helper._share_table('helper.wa_numbers', null, null);

create table helper.contacts (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  phone text not null constraint contacts_phone_check check (phone ~ '^\+[1-9][0-9]{6,14}$'),
  name text constraint contacts_name_check check (name ~ '[^[:space:]]' and char_length(name) <= 300),
  email text constraint contacts_email_check check (email ~ '^[^@[:space:]]+@[^@[:space:]]+$' and char_length(email) <= 320),
  tags text[] not null default '{}' constraint contacts_tags_check check (cardinality(tags) <= 50 and array_position(tags, null) is null and octet_length(tags::text) <= 4000),
  accepts_broadcasts boolean not null default true,
  created_by uuid default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint contacts_phone_key unique (phone, workspace_id)
);
comment on table helper.contacts is 'People who a workspace is in touch with';
comment on column helper.contacts.workspace_id is 'The workspace';
comment on column helper.contacts.id is 'Identifier, in order of creation';
comment on column helper.contacts.phone is 'Phone number in E.164; a workspace has one contact for each';
comment on column helper.contacts.name is 'Name';
comment on column helper.contacts.email is 'Address';
comment on column helper.contacts.tags is 'Tags, by which broadcasts choose';
comment on column helper.contacts.accepts_broadcasts is 'Whether broadcasts may be sent to them';
comment on column helper.contacts.created_by is 'Who added them; null: they wrote first';
comment on column helper.contacts.created_at is 'When they were added';
comment on column helper.contacts.updated_at is 'When they last changed';
select helper._share_table('helper.contacts', 'member', 'admin');
create trigger contacts_touch before update on helper.contacts
  for each row execute function helper._touch();

create table helper.wa_threads (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  contact_id uuid not null,
  number_id uuid not null,
  status text not null default 'open' constraint wa_threads_status_check check (status in ('open', 'closed')),
  assigned_to uuid,
  tags text[] not null default '{}' constraint wa_threads_tags_check check (cardinality(tags) <= 50 and array_position(tags, null) is null and octet_length(tags::text) <= 4000),
  created_at timestamptz not null default clock_timestamp(),
  last_received_at timestamptz,
  closed_at timestamptz,
  primary key (workspace_id, id),
  constraint wa_threads_contact_fkey foreign key (workspace_id, contact_id) references helper.contacts (workspace_id, id) on delete cascade,
  constraint wa_threads_number_fkey foreign key (workspace_id, number_id) references helper.wa_numbers (workspace_id, id) on delete cascade
);
create index wa_threads_contact_id_idx on helper.wa_threads (contact_id, workspace_id);
create index wa_threads_number_id_idx on helper.wa_threads (number_id, workspace_id);
comment on table helper.wa_threads is 'Conversations with contacts over WhatsApp; one that is closed is followed by another';
comment on column helper.wa_threads.workspace_id is 'The workspace';
comment on column helper.wa_threads.id is 'Identifier, in order of creation';
comment on column helper.wa_threads.contact_id is 'The contact';
comment on column helper.wa_threads.number_id is 'The workspace''s number that it goes through';
comment on column helper.wa_threads.status is 'open or closed';
comment on column helper.wa_threads.assigned_to is 'Who in the workspace answers';
comment on column helper.wa_threads.tags is 'Tags';
comment on column helper.wa_threads.created_at is 'When it began';
comment on column helper.wa_threads.last_received_at is 'When the contact last wrote; for 24 hours from then WhatsApp delivers texts that are no templates';
comment on column helper.wa_threads.closed_at is 'When it was closed';
select helper._share_table('helper.wa_threads', 'member', null);

create table helper.wa_messages (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  thread_id uuid not null,
  wa_message_id text not null,
  kind text not null,
  body text,
  payload jsonb not null,
  sent_at timestamptz not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint wa_messages_wa_message_id_key unique (wa_message_id, workspace_id),
  constraint wa_messages_thread_fkey foreign key (workspace_id, thread_id) references helper.wa_threads (workspace_id, id) on delete cascade
);
create index wa_messages_thread_id_sent_at_idx on helper.wa_messages (thread_id, sent_at);
comment on table helper.wa_messages is 'What contacts wrote, as the webhook told it; written by the extension alone. What was sent to them is in wa_outbox';
comment on column helper.wa_messages.workspace_id is 'The workspace';
comment on column helper.wa_messages.id is 'Identifier';
comment on column helper.wa_messages.thread_id is 'The conversation';
comment on column helper.wa_messages.wa_message_id is 'WhatsApp''s id, by which a message that the webhook tells twice is kept once';
comment on column helper.wa_messages.kind is 'WhatsApp''s type: text, image, ...';
comment on column helper.wa_messages.body is 'The text, caption or choice; null: it has none';
comment on column helper.wa_messages.payload is 'The message as the webhook told it';
comment on column helper.wa_messages.sent_at is 'When it was written';
comment on column helper.wa_messages.created_at is 'When it was taken in';
select helper._share_table('helper.wa_messages', null, null);

create table helper.wa_templates (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  name text not null constraint wa_templates_name_check check (name ~ '^[a-z0-9_]+$' and char_length(name) <= 512),
  category text not null constraint wa_templates_category_check check (category in ('MARKETING', 'UTILITY', 'AUTHENTICATION')),
  language text not null constraint wa_templates_language_check check (language ~ '^[a-z]{2,3}(_[A-Z]{2})?$'),
  header text constraint wa_templates_header_check check (char_length(header) <= 60 and header !~ '\{\{'),
  body text not null constraint wa_templates_body_check check (body ~ '[^[:space:]]' and char_length(body) <= 1024),
  footer text constraint wa_templates_footer_check check (char_length(footer) <= 60 and footer !~ '\{\{'),
  status text not null default 'pending' constraint wa_templates_status_check check (status in ('pending', 'approved', 'rejected', 'paused', 'disabled')),
  reason text,
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint wa_templates_name_key unique (name, language, workspace_id)
);
comment on table helper.wa_templates is 'Message templates, which WhatsApp has to approve';
comment on column helper.wa_templates.workspace_id is 'The workspace';
comment on column helper.wa_templates.id is 'Identifier';
comment on column helper.wa_templates.name is 'Name: lower-case letters, digits and underscores';
comment on column helper.wa_templates.category is 'MARKETING, UTILITY or AUTHENTICATION';
comment on column helper.wa_templates.language is 'Language, such as id or en_US';
comment on column helper.wa_templates.header is 'Line above the text, without placeholders';
comment on column helper.wa_templates.body is 'The text, with placeholders {{1}} or {{name}}';
comment on column helper.wa_templates.footer is 'Line below the text';
comment on column helper.wa_templates.status is 'pending until WhatsApp says approved, rejected, paused or disabled';
comment on column helper.wa_templates.reason is 'Why it was rejected';
comment on column helper.wa_templates.created_by is 'Who made it';
comment on column helper.wa_templates.created_at is 'When it was made';
select helper._share_table('helper.wa_templates', 'admin', null);

create table helper.wa_broadcasts (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  message text,
  template_id uuid,
  recipient_tags text[],
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint wa_broadcasts_template_fkey foreign key (workspace_id, template_id) references helper.wa_templates (workspace_id, id) on delete cascade
);
create index wa_broadcasts_template_id_idx on helper.wa_broadcasts (template_id, workspace_id);
comment on table helper.wa_broadcasts is 'Messages to many contacts';
comment on column helper.wa_broadcasts.workspace_id is 'The workspace';
comment on column helper.wa_broadcasts.id is 'Identifier';
comment on column helper.wa_broadcasts.message is 'The text, or the template''s only parameter';
comment on column helper.wa_broadcasts.template_id is 'The template, if one is used';
comment on column helper.wa_broadcasts.recipient_tags is 'Contacts with any of these tags; null: all';
comment on column helper.wa_broadcasts.created_by is 'Who sent it';
comment on column helper.wa_broadcasts.created_at is 'When';
select helper._share_table('helper.wa_broadcasts', 'admin', null);

create table helper.wa_outbox (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  kind text not null constraint wa_outbox_kind_check check (kind in ('text', 'template', 'submission')),
  contact_id uuid,
  thread_id uuid,
  template_id uuid,
  broadcast_id uuid,
  body text constraint wa_outbox_body_check check (body ~ '[^[:space:]]' and char_length(body) <= 4096),
  parameters jsonb,
  request jsonb not null,
  status text not null default 'queued'
    constraint wa_outbox_status_check check (status in ('queued', 'sending', 'sent', 'delivered', 'read', 'failed', 'uncertain', 'cancelled')),
  attempts integer not null default 0,
  by_worker boolean not null default false,
  wa_message_id text,
  error jsonb,
  send_at timestamptz not null default clock_timestamp(),
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  claimed_at timestamptz,
  sent_at timestamptz,
  delivered_at timestamptz,
  read_at timestamptz,
  primary key (workspace_id, id),
  constraint wa_outbox_parts_check check (case kind
    when 'text' then body is not null and contact_id is not null and template_id is null
    when 'template' then template_id is not null and contact_id is not null
    else template_id is not null and contact_id is null end),
  constraint wa_outbox_contact_fkey foreign key (workspace_id, contact_id) references helper.contacts (workspace_id, id) on delete cascade,
  constraint wa_outbox_thread_fkey foreign key (workspace_id, thread_id) references helper.wa_threads (workspace_id, id) on delete cascade,
  constraint wa_outbox_template_fkey foreign key (workspace_id, template_id) references helper.wa_templates (workspace_id, id) on delete cascade,
  constraint wa_outbox_broadcast_fkey foreign key (workspace_id, broadcast_id) references helper.wa_broadcasts (workspace_id, id) on delete cascade
);
create index wa_outbox_status_workspace_id_send_at_idx on helper.wa_outbox (status, workspace_id, send_at) where status = 'queued';
create index wa_outbox_send_at_idx on helper.wa_outbox (send_at) where status = 'queued';
create index wa_outbox_claimed_at_idx on helper.wa_outbox (claimed_at) where status = 'sending';
create index wa_outbox_contact_id_created_at_idx on helper.wa_outbox (contact_id, created_at);
create index wa_outbox_thread_id_created_at_idx on helper.wa_outbox (thread_id, created_at);
create index wa_outbox_template_id_idx on helper.wa_outbox (template_id, workspace_id);
create index wa_outbox_broadcast_id_idx on helper.wa_outbox (broadcast_id, workspace_id);
create unique index wa_outbox_wa_message_id_idx on helper.wa_outbox (wa_message_id);
comment on table helper.wa_outbox is 'What is to be sent to WhatsApp, and what became of it: each row is sent at most once';
comment on column helper.wa_outbox.workspace_id is 'The workspace';
comment on column helper.wa_outbox.id is 'Identifier; WhatsApp gives it back in the webhook';
comment on column helper.wa_outbox.kind is 'text or template: a message; submission: a template that is to be approved';
comment on column helper.wa_outbox.contact_id is 'Who it is for';
comment on column helper.wa_outbox.thread_id is 'The conversation, found or begun when the row is added';
comment on column helper.wa_outbox.template_id is 'The template';
comment on column helper.wa_outbox.broadcast_id is 'The broadcast that it is a part of';
comment on column helper.wa_outbox.body is 'The text';
comment on column helper.wa_outbox.parameters is 'What fills the template''s placeholders: an array, or an object by name';
comment on column helper.wa_outbox.request is 'The request to the Cloud API, made when the row is added: method, path, body; claim_whatsapp adds the identifier';
comment on column helper.wa_outbox.status is 'queued; sending: claimed by a sender; sent, delivered, read: as WhatsApp says; failed: see error; uncertain: the sender was lost, it is not sent again; cancelled';
comment on column helper.wa_outbox.attempts is 'Times that it was claimed';
comment on column helper.wa_outbox.by_worker is 'Whether it was the database''s worker that last claimed it';
comment on column helper.wa_outbox.wa_message_id is 'WhatsApp''s id of it';
comment on column helper.wa_outbox.error is 'What WhatsApp said of its failure';
comment on column helper.wa_outbox.send_at is 'Not before this time';
comment on column helper.wa_outbox.created_by is 'Who sent it';
comment on column helper.wa_outbox.created_at is 'When it was added';
comment on column helper.wa_outbox.claimed_at is 'When a sender last claimed it';
comment on column helper.wa_outbox.sent_at is 'When WhatsApp took it';
comment on column helper.wa_outbox.delivered_at is 'When it arrived';
comment on column helper.wa_outbox.read_at is 'When it was read';
alter table helper.wa_outbox enable row level security;
create policy wa_outbox_select_viewer on helper.wa_outbox for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy wa_outbox_select_viewer on helper.wa_outbox is 'Everyone in the workspace sees what is sent';
create policy wa_outbox_insert_member on helper.wa_outbox for insert
  with check (
    workspace_id = any ((select helper.my_workspaces('member'))::uuid[])
    and (broadcast_id is null and kind <> 'submission' or workspace_id = any ((select helper.my_workspaces('admin'))::uuid[]))
  );
comment on policy wa_outbox_insert_member on helper.wa_outbox is 'Members write to contacts; admins also broadcast and submit templates';
select pg_catalog.pg_extension_config_dump('helper.wa_outbox', '');

-- Contacts

create function helper.contact_phone(phone_number text, workspace uuid default null) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.current_workspace(workspace);
  v_region text;
  v_phone text;
begin
  select n.region into v_region
  from helper.wa_numbers n
  where n.workspace_id = v_workspace
  order by n.id
  limit 1;
  v_phone := helper.normalize_phone(phone_number, v_region);
  if v_phone is null then
    raise exception using
      errcode = '22023',
      message = format('"%s" is not a phone number', phone_number),
      hint = 'Write it with its country''s code, such as +62 812 3456 7890.';
  end if;
  return v_phone;
end
$$;
comment on function helper.contact_phone(text, uuid) is
  'A phone number in E.164, a national one read as of the country of the workspace''s WhatsApp number. Errors: 22023, 42501, 42704';

create function helper.contact_for(phone_number text, workspace uuid default null) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_phone text := helper.contact_phone(phone_number, v_workspace);
  v_contact uuid;
begin
  insert into helper.contacts as c (workspace_id, phone)
  values (v_workspace, v_phone)
  on conflict on constraint contacts_phone_key do nothing
  returning c.id into v_contact;
  if not found then
    select c.id into v_contact from helper.contacts c where c.workspace_id = v_workspace and c.phone = v_phone;
  end if;
  return v_contact;
end
$$;
comment on function helper.contact_for(text, uuid) is 'The contact with a phone number, added where there is none. Errors: 22023, 42501, 42704';

create function helper.create_contact(
  phone_number text,
  name text default null,
  email text default null,
  tags text[] default '{}',
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_contact jsonb;
begin
  insert into helper.contacts as c (workspace_id, phone, name, email, tags)
  values (v_workspace, helper.contact_phone(phone_number, v_workspace), create_contact.name, create_contact.email,
    helper.with_tags(create_contact.tags, '{}'))
  returning to_jsonb(c) - 'workspace_id' into v_contact;
  return v_contact;
end
$$;
comment on function helper.create_contact(text, text, text, text[], uuid) is
  'Adds a contact.
@param phone_number phone number, with the country''s code
@param name name
@param email address
@param tags tags
Errors: 22023, 23505 there is one with this number, 23514, 42501, 42704';

create function helper.update_contact(
  contact_id uuid,
  name text default null,
  email text default null,
  tags text[] default null,
  accepts_broadcasts boolean default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_contact jsonb;
begin
  update helper.contacts c
  set name = coalesce(update_contact.name, c.name),
    email = coalesce(update_contact.email, c.email),
    tags = case when update_contact.tags is null then c.tags else helper.with_tags(update_contact.tags, '{}') end,
    accepts_broadcasts = coalesce(update_contact.accepts_broadcasts, c.accepts_broadcasts)
  where c.workspace_id = v_workspace and c.id = contact_id
  returning to_jsonb(c) - 'workspace_id' into v_contact;
  if not found then
    raise exception using errcode = '42704', message = format('contact "%s" does not exist', contact_id);
  end if;
  return v_contact;
end
$$;
comment on function helper.update_contact(uuid, text, text, text[], boolean, uuid) is
  'Changes a contact; what is not given stays.
@param contact_id the contact
@param name name
@param email address
@param tags tags, instead of those it has
@param accepts_broadcasts whether broadcasts may be sent to it
Errors: 23514, 42501, 42704';

create function helper.tag_contact(contact_id uuid, add_tags text[] default '{}', remove_tags text[] default '{}', workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_contact jsonb;
begin
  update helper.contacts c
  set tags = helper.with_tags(c.tags, add_tags, coalesce(remove_tags, '{}'))
  where c.workspace_id = v_workspace and c.id = contact_id
  returning to_jsonb(c) - 'workspace_id' into v_contact;
  if not found then
    raise exception using errcode = '42704', message = format('contact "%s" does not exist', contact_id);
  end if;
  return v_contact;
end
$$;
comment on function helper.tag_contact(uuid, text[], text[], uuid) is
  'Adds tags to a contact, and removes some.
@param contact_id the contact
@param add_tags tags to add
@param remove_tags tags to remove
Errors: 23514, 42501, 42704';

create function helper.search_contacts(query text, tags text[] default null, "limit" integer default 20, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_like text := '%' || regexp_replace(coalesce(query, ''), '([\\%_])', '\\\1', 'g') || '%';
  -- A number is found however it is written.
  v_digits text := regexp_replace(coalesce(query, ''), '[^0-9]', '', 'g');
begin
  return (
    select jsonb_build_object('contacts', coalesce(jsonb_agg(to_jsonb(f) - 'workspace_id' order by f.name, f.id), '[]'))
    from (
      select c.*
      from helper.contacts c
      where c.workspace_id = v_workspace
        and (c.name ilike v_like or c.email ilike v_like
          or v_digits <> '' and query ~ '^[-+0-9 ().]+$' and c.phone like '%' || ltrim(v_digits, '0') || '%'
          or coalesce(query, '') = '')
        and (search_contacts.tags is null or c.tags && search_contacts.tags)
      order by c.name, c.id
      limit least(greatest(coalesce("limit", 20), 1), 100)
    ) f);
end
$$;
comment on function helper.search_contacts(text, text[], integer, uuid) is
  'Finds contacts by a part of the name, address or phone number.
@param query a part of it; empty finds all
@param tags only contacts with any of these tags
@param limit how many at most, up to 100
Errors: 42501, 42704';

create function helper.merge_contacts(primary_contact_id uuid, duplicate_contact_ids uuid[], workspace uuid default null) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
  v_duplicates uuid[] := array(select distinct d from unnest(duplicate_contact_ids) d where d is not null order by 1);
  v_missing uuid;
  v_table regclass;
  v_contact jsonb;
begin
  if cardinality(v_duplicates) = 0 or primary_contact_id = any (v_duplicates) then
    raise exception using errcode = '22023', message = 'duplicate_contact_ids is empty or names the primary contact';
  end if;
  -- Held in one order, so that two that merge do not wait for each other.
  perform from helper.contacts c
  where c.workspace_id = v_workspace and c.id = any (v_duplicates || primary_contact_id)
  order by c.id
  for update;
  select d into v_missing
  from unnest(v_duplicates || primary_contact_id) d
  where not exists (select from helper.contacts c where c.workspace_id = v_workspace and c.id = d)
  limit 1;
  if found then
    raise exception using errcode = '42704', message = format('contact "%s" does not exist', v_missing);
  end if;
  foreach v_table in array array['helper.wa_threads', 'helper.wa_outbox', 'helper.leads', 'helper.recommendations']::regclass[] loop
    execute format('update %s set contact_id = $1 where workspace_id = $2 and contact_id = any ($3)', v_table)
      using primary_contact_id, v_workspace, v_duplicates;
  end loop;
  update helper.contacts c
  set name = coalesce(c.name, d.name),
    email = coalesce(c.email, d.email),
    tags = helper.with_tags(c.tags, d.tags),
    accepts_broadcasts = c.accepts_broadcasts and d.accepts_broadcasts
  from (
    select (array_agg(o.name order by o.id) filter (where o.name is not null))[1] as name,
      (array_agg(o.email order by o.id) filter (where o.email is not null))[1] as email,
      array(select distinct t from helper.contacts x cross join unnest(x.tags) t
        where x.workspace_id = v_workspace and x.id = any (v_duplicates)) as tags,
      bool_and(o.accepts_broadcasts) as accepts_broadcasts
    from helper.contacts o
    where o.workspace_id = v_workspace and o.id = any (v_duplicates)
  ) d
  where c.workspace_id = v_workspace and c.id = primary_contact_id
  returning to_jsonb(c) - 'workspace_id' into v_contact;
  delete from helper.contacts c where c.workspace_id = v_workspace and c.id = any (v_duplicates);
  return v_contact || jsonb_build_object('merged', cardinality(v_duplicates));
end
$$;
comment on function helper.merge_contacts(uuid, uuid[], uuid) is
  'Makes one contact of several: conversations and leads move to the primary one, what it lacks is filled in, and the others are deleted. For admins.
@param primary_contact_id the contact that stays
@param duplicate_contact_ids the contacts that become part of it
Errors: 22023, 42501, 42704';

-- Fields and what ends them, matched in one pass; what the pattern left out is a quote in the wrong place.
create function helper.parse_csv(csv text) returns setof text[]
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
  v_text text := replace(replace(ltrim(csv, U&'\FEFF'), E'\r\n', E'\n'), E'\r', E'\n');
  v_row text[] := '{}';
  v_field text;
  v_match text[];
  v_length bigint := 0;
begin
  if right(v_text, 1) <> E'\n' then
    v_text := v_text || E'\n';
  end if;
  for v_match in select m from regexp_matches(v_text, E'("(?:[^"]|"")*"|[^",\n]*)([,\n])', 'g') m loop
    v_length := v_length + char_length(v_match[1]) + 1;
    v_field := v_match[1];
    if left(v_field, 1) = '"' then
      v_field := replace(substring(v_field from 2 for char_length(v_field) - 2), '""', '"');
    end if;
    v_row := v_row || v_field;
    if v_match[2] = E'\n' then
      if v_row <> array[''] then
        return next v_row;
      end if;
      v_row := '{}';
    end if;
  end loop;
  if v_length <> char_length(v_text) then
    raise exception using errcode = '22023', message = 'csv has a quote in the wrong place';
  end if;
end
$$;
comment on function helper.parse_csv(text) is 'Rows of comma-separated values as RFC 4180 has them, empty lines left out. Errors: 22023';

create function helper.file_text(document_id uuid, workspace uuid default null) returns text
language c stable parallel unsafe as 'MODULE_PATHNAME', 'file_text_wrapper';
comment on function helper.file_text(uuid, uuid) is
  'The text of a document as it was given: of a file its bytes, which are UTF-8. For who may see the document. Errors: 22023 not a text, 42501, 42704';

create function helper.import_contacts(
  file_url text default null,
  mapping jsonb default '{}',
  skip_duplicates boolean default true,
  csv text default null,
  document_id uuid default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
  v_csv text := csv;
  v_region text;
  v_header text[];
  v_columns jsonb;
  v_outcome jsonb;
begin
  if v_csv is null and document_id is not null then
    v_csv := helper.file_text(document_id, v_workspace);
  elsif v_csv is null then
    if file_url is null or file_url !~* '^data:text/csv(;charset=utf-8)?;base64,' then
      raise exception using
        errcode = '22023',
        message = 'file_url is not a data: URL of a CSV file in base64',
        hint = 'The database fetches nothing: pass the file''s content as csv or as data:text/csv;base64,..., or add it with helper.add_file and pass its id as document_id.';
    end if;
    v_csv := convert_from(decode(substring(file_url from position(',' in file_url) + 1), 'base64'), 'UTF8');
  end if;
  if octet_length(v_csv) > 5 * 1024 * 1024 then
    raise exception using errcode = '22023', message = format('csv has %s bytes, at most 5242880 are allowed', octet_length(v_csv));
  end if;
  select r.fields into v_header from helper.parse_csv(v_csv) r (fields) limit 1;
  -- A column has the title that mapping gives it, else one of its usual ones.
  select coalesce(jsonb_object_agg(k.key, h.place), '{}') into v_columns
  from (values
    ('phone', array['phone', 'phone_number', 'phone number', 'telepon', 'nomor telepon']),
    ('name', array['name', 'nama']),
    ('email', array['email', 'e-mail']),
    ('tags', array['tags', 'tag'])) k (key, titles)
  join unnest(v_header) with ordinality h (title, place)
    on lower(btrim(h.title)) = any (case when mapping ? k.key then array[lower(btrim(mapping ->> k.key))] else k.titles end);
  if not v_columns ? 'phone' then
    raise exception using
      errcode = '22023',
      message = 'csv has no column with phone numbers',
      detail = format('Columns are %s.', coalesce(nullif(array_to_string(v_header, ', '), ''), 'none')),
      hint = 'Name it in mapping, as {"phone": "its title"}.';
  end if;
  select n.region into v_region from helper.wa_numbers n where n.workspace_id = v_workspace order by n.id limit 1;
  with parsed as materialized (
    select f.place,
      helper.normalize_phone(f.fields[(v_columns ->> 'phone')::integer], v_region) as phone,
      left(nullif(btrim(f.fields[(v_columns ->> 'name')::integer]), ''), 300) as name,
      substring(btrim(f.fields[(v_columns ->> 'email')::integer]) from '^[^@[:space:]]+@[^@[:space:]]+$') as email,
      helper.with_tags(regexp_split_to_array(f.fields[(v_columns ->> 'tags')::integer], '[;,|]'), '{}') as tags
    from helper.parse_csv(v_csv) with ordinality f (fields, place)
    where f.place > 1
  ), valid as materialized (
    select distinct on (p.phone) p.*
    from parsed p
    where p.phone is not null
    order by p.phone, p.place
  ), known as materialized (
    select v.phone from valid v join helper.contacts c on c.workspace_id = v_workspace and c.phone = v.phone
  ), written as (
    insert into helper.contacts as c (workspace_id, phone, name, email, tags)
    select v_workspace, v.phone, v.name, v.email, v.tags
    from valid v
    order by v.phone
    on conflict on constraint contacts_phone_key do update
    set name = coalesce(excluded.name, c.name),
      email = coalesce(excluded.email, c.email),
      tags = helper.with_tags(c.tags, excluded.tags)
    where not import_contacts.skip_duplicates
    returning c.phone
  )
  select jsonb_build_object(
    'rows', (select count(*) from parsed),
    'added', (select count(*) from written w where w.phone not in (select k.phone from known k)),
    'changed', (select count(*) from written w where w.phone in (select k.phone from known k)),
    'without_phone_number', (select count(*) from parsed p where p.phone is null),
    'first_wrong_rows', (select coalesce(jsonb_agg(w.place order by w.place), '[]') from (
      select p.place from parsed p where p.phone is null order by p.place limit 20) w))
  into v_outcome;
  return v_outcome;
end
$$;
comment on function helper.import_contacts(text, jsonb, boolean, text, uuid, uuid) is
  'Adds contacts from comma-separated values. For admins.
@param file_url the file as a data:text/csv;base64, URL
@param mapping titles of the columns, such as {"phone": "Mobile", "name": "Full name"}; else phone, name, email and tags
@param skip_duplicates leaves contacts that are there as they are; false fills them in
@param csv the file''s content, instead of file_url
@param document_id a CSV file among the documents, instead of file_url
Errors: 22021, 22023, 42501, 42704';

-- What a spreadsheet would take for a formula gets an apostrophe before it: names come from strangers.
create function helper.csv_field(value text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select '"' || replace(regexp_replace(coalesce(value, ''), '^([=+@\t\r-])', '''\1'), '"', '""') || '"'
$$;
comment on function helper.csv_field(text) is 'A text as a field of comma-separated values that no spreadsheet takes for a formula';

create function helper.export_contacts(filters jsonb default '{}', format text default 'csv', workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_filters jsonb := coalesce(filters, '{}');
  v_unknown text;
  v_tags text[];
  v_rows text;
  v_count bigint;
begin
  if format is distinct from 'csv' then
    raise exception using errcode = '22023', message = pg_catalog.format('format "%s" is not known', format), hint = 'The format is csv, which spreadsheets open.';
  end if;
  select k into v_unknown from jsonb_object_keys(v_filters) k where k not in ('tags', 'created_after', 'accepts_broadcasts') limit 1;
  if found then
    raise exception using
      errcode = '22023',
      message = pg_catalog.format('filter "%s" does not exist', v_unknown),
      hint = 'Filters are tags, created_after and accepts_broadcasts.';
  end if;
  if v_filters ? 'tags' then
    v_tags := array(select jsonb_array_elements_text(v_filters -> 'tags'));
  end if;
  -- A phone number is of digits only and keeps its plus.
  select string_agg(pg_catalog.format('"%s",%s,%s,%s,"%s"', c.phone, helper.csv_field(c.name), helper.csv_field(c.email),
      helper.csv_field(array_to_string(c.tags, ';')), to_char(c.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), E'\r\n' order by c.id),
    count(*)
  into v_rows, v_count
  from helper.contacts c
  where c.workspace_id = v_workspace
    and (v_tags is null or c.tags && v_tags)
    and (not v_filters ? 'created_after' or c.created_at >= (v_filters ->> 'created_after')::timestamptz)
    and (not v_filters ? 'accepts_broadcasts' or c.accepts_broadcasts = (v_filters ->> 'accepts_broadcasts')::boolean);
  return jsonb_build_object('count', v_count, 'format', 'csv', 'content',
    '"phone","name","email","tags","created_at"' || coalesce(E'\r\n' || v_rows, '') || E'\r\n');
end
$$;
comment on function helper.export_contacts(jsonb, text, uuid) is
  'Contacts as comma-separated values.
@param filters tags (an array, any of them), created_after (a time), accepts_broadcasts (true or false)
@param format csv
Errors: 22007, 22023, 42501, 42704';

-- Conversations

create function helper.tag_conversation(thread_id uuid, tags text[], workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_thread jsonb;
begin
  update helper.wa_threads t
  set tags = helper.with_tags(t.tags, tag_conversation.tags)
  where t.workspace_id = v_workspace and t.id = thread_id
  returning to_jsonb(t) - 'workspace_id' into v_thread;
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', thread_id);
  end if;
  return v_thread;
end
$$;
comment on function helper.tag_conversation(uuid, text[], uuid) is
  'Adds tags to a conversation with a contact.
@param thread_id the conversation
@param tags tags to add
Errors: 23514, 42501, 42704';

create function helper.bulk_tag_conversations(conversation_ids uuid[], tags text[], action text, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_missing uuid;
  v_count bigint;
begin
  if action is null or action not in ('add', 'remove', 'replace') then
    raise exception using errcode = '22023', message = format('action "%s" is not known', action), hint = 'Actions are add, remove and replace.';
  end if;
  select i into v_missing
  from unnest(conversation_ids) i
  where not exists (select from helper.wa_threads t where t.workspace_id = v_workspace and t.id = i)
  limit 1;
  if found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', v_missing);
  end if;
  update helper.wa_threads t
  set tags = case action
    when 'add' then helper.with_tags(t.tags, bulk_tag_conversations.tags)
    when 'remove' then helper.with_tags(t.tags, '{}', bulk_tag_conversations.tags)
    else helper.with_tags(bulk_tag_conversations.tags, '{}') end
  where t.workspace_id = v_workspace and t.id = any (conversation_ids);
  get diagnostics v_count = row_count;
  return jsonb_build_object('changed', v_count);
end
$$;
comment on function helper.bulk_tag_conversations(uuid[], text[], text, uuid) is
  'Adds, removes or replaces tags of several conversations with contacts.
@param conversation_ids the conversations
@param tags the tags
@param action add, remove or replace
Errors: 22023, 23514, 42501, 42704';

create function helper.assign_conversation(thread_id uuid, assign_to_user_id uuid, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_thread jsonb;
begin
  if helper.is_colleague(assign_to_user_id, v_workspace) is not true then
    raise exception using errcode = '42704', message = format('user "%s" is not a member of the workspace', assign_to_user_id);
  end if;
  update helper.wa_threads t
  set assigned_to = assign_to_user_id
  where t.workspace_id = v_workspace and t.id = thread_id
  returning to_jsonb(t) - 'workspace_id' into v_thread;
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', thread_id);
  end if;
  return v_thread;
end
$$;
comment on function helper.assign_conversation(uuid, uuid, uuid) is
  'Says who in the workspace answers a conversation with a contact.
@param thread_id the conversation
@param assign_to_user_id who answers
Errors: 42501, 42704';

create function helper.close_conversation(thread_id uuid, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_thread jsonb;
begin
  update helper.wa_threads t
  set status = 'closed', closed_at = coalesce(t.closed_at, clock_timestamp())
  where t.workspace_id = v_workspace and t.id = thread_id
  returning to_jsonb(t) - 'workspace_id' into v_thread;
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', thread_id);
  end if;
  return v_thread;
end
$$;
comment on function helper.close_conversation(uuid, uuid) is
  'Closes a conversation with a contact; the next message begins another.
@param thread_id the conversation
Errors: 42501, 42704';

create function helper.get_conversation_history(
  phone_number text default null,
  "limit" integer default 50,
  conversation_id uuid default null,
  workspace uuid default null
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_limit integer := least(greatest(coalesce("limit", 50), 1), 200);
  v_contact helper.contacts;
begin
  if (phone_number is null) = (conversation_id is null) then
    raise exception using errcode = '22023', message = 'either phone_number or conversation_id has to be given';
  end if;
  if conversation_id is not null then
    perform from helper.conversations c
    where c.workspace_id = v_workspace and c.id = conversation_id and c.user_id = helper.current_user_id();
    if not found then
      raise exception using errcode = '42704', message = format('conversation "%s" does not exist', conversation_id);
    end if;
    return (
      select jsonb_build_object('messages', coalesce(jsonb_agg(
        jsonb_build_object('from', m.role, 'content', m.content, 'at', m.created_at) order by m.id), '[]'))
      from (
        select x.*
        from helper.messages x
        where x.workspace_id = v_workspace and x.conversation_id = get_conversation_history.conversation_id and x.content <> ''
        order by x.id desc
        limit v_limit
      ) m);
  end if;
  select c.* into v_contact
  from helper.contacts c
  where c.workspace_id = v_workspace and c.phone = helper.contact_phone(phone_number, v_workspace);
  if not found then
    raise exception using errcode = '42704', message = format('no contact has the phone number "%s"', phone_number);
  end if;
  return (
    select jsonb_build_object(
      'contact', to_jsonb(v_contact) - 'workspace_id',
      'messages', coalesce(jsonb_agg(jsonb_strip_nulls(to_jsonb(h)) order by h.at, h.id), '[]'))
    from (
      select x.*
      from (
        (select 'contact' as "from", m.id, m.thread_id, m.kind, m.body as content, m.sent_at as at, null as status
        from helper.wa_threads t
        join helper.wa_messages m on m.workspace_id = t.workspace_id and m.thread_id = t.id
        where t.workspace_id = v_workspace and t.contact_id = v_contact.id
        order by m.sent_at desc
        limit v_limit)
        union all
        (select 'workspace', o.id, o.thread_id, o.kind,
          coalesce(o.body, format('template %s %s', e.name, o.parameters)), coalesce(o.sent_at, o.send_at), o.status
        from helper.wa_outbox o
        left join helper.wa_templates e on e.workspace_id = o.workspace_id and e.id = o.template_id
        where o.workspace_id = v_workspace and o.contact_id = v_contact.id
        order by o.created_at desc
        limit v_limit)
      ) x
      order by x.at desc, x.id desc
      limit v_limit
    ) h);
end
$$;
comment on function helper.get_conversation_history(text, integer, uuid, uuid) is
  'What was said in a conversation: with a contact over WhatsApp, or of the caller with the assistant.
@param phone_number the contact''s phone number
@param limit how many of the latest messages, up to 200
@param conversation_id or a conversation of the caller with the assistant
Errors: 22023, 42501, 42704';

create function helper.get_conversation_analytics(
  start_date date default null,
  end_date date default null,
  group_by text default 'day',
  workspace uuid default null
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_end date := coalesce(end_date, (clock_timestamp() at time zone 'UTC')::date);
  v_start date := coalesce(start_date, v_end - 30);
begin
  if group_by is null or group_by not in ('day', 'week', 'month') then
    raise exception using errcode = '22023', message = format('group_by "%s" is not known', group_by), hint = 'Groups are day, week and month.';
  end if;
  if v_start > v_end or v_end - v_start > 1100 then
    raise exception using errcode = '22023', message = 'start_date is after end_date, or more than three years before it';
  end if;
  return (
    with event as (
      select t.created_at as at, 'opened' as what from helper.wa_threads t where t.workspace_id = v_workspace
      union all
      select t.closed_at, 'closed' from helper.wa_threads t where t.workspace_id = v_workspace and t.closed_at is not null
      union all
      select m.sent_at, 'received' from helper.wa_messages m where m.workspace_id = v_workspace
      union all
      select o.sent_at, 'sent' from helper.wa_outbox o where o.workspace_id = v_workspace and o.kind <> 'submission' and o.sent_at is not null
    ), counted as (
      select date_trunc(group_by, e.at at time zone 'UTC')::date as period,
        count(*) filter (where e.what = 'opened') as opened,
        count(*) filter (where e.what = 'closed') as closed,
        count(*) filter (where e.what = 'received') as received,
        count(*) filter (where e.what = 'sent') as sent
      from event e
      where (e.at at time zone 'UTC')::date between v_start and v_end
      group by 1
    )
    select jsonb_build_object(
      'start_date', v_start, 'end_date', v_end, 'group_by', group_by,
      'opened', coalesce(sum(c.opened), 0), 'closed', coalesce(sum(c.closed), 0),
      'received', coalesce(sum(c.received), 0), 'sent', coalesce(sum(c.sent), 0),
      'open_now', (select count(*) from helper.wa_threads t where t.workspace_id = v_workspace and t.status = 'open'),
      'periods', coalesce(jsonb_agg(to_jsonb(c) order by c.period), '[]'))
    from counted c);
end
$$;
comment on function helper.get_conversation_analytics(date, date, text, uuid) is
  'How many conversations with contacts were opened and closed, and messages received and sent, by UTC.
@param start_date first day; a month ago unless given
@param end_date last day; today unless given
@param group_by day, week or month
Errors: 22023, 42501, 42704';
