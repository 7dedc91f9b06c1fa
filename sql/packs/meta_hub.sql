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
