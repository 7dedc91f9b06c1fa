-- WhatsApp, for the pack meta_hub: what is sent waits in an outbox as the request that the Cloud API documents; a sender
-- claims each once, and the webhook says what became of it. The sender is the worker (see whatsapp_sender.sql) or the
-- application's own.

-- What a row of the outbox becomes

-- The contact is held, so that two at once do not begin two conversations.
create function helper._open_thread(workspace uuid, contact uuid, number uuid) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_thread uuid;
begin
  perform from helper.contacts c where c.workspace_id = workspace and c.id = contact for no key update;
  select t.id into v_thread
  from helper.wa_threads t
  where t.workspace_id = workspace and t.contact_id = contact and t.number_id = number and t.status = 'open'
  order by t.id desc
  limit 1;
  if not found then
    insert into helper.wa_threads as t (workspace_id, contact_id, number_id)
    values (workspace, contact, number)
    returning t.id into v_thread;
  end if;
  return v_thread;
end
$$;
comment on function helper._open_thread(uuid, uuid, uuid) is 'A contact''s open conversation through a number, begun where there is none';

create function helper._placeholders(body text) returns text[]
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(p.name order by p.place), '{}')
  from (
    select m.match[1] as name, min(m.place) as place
    from regexp_matches(body, '\{\{\s*([A-Za-z0-9_]+)\s*\}\}', 'g') with ordinality m (match, place)
    group by 1
  ) p
$$;
comment on function helper._placeholders(text) is 'Placeholders of a template''s text, in order, each once';

create function helper._template_parameters(template helper.wa_templates, parameters jsonb) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_names text[] := helper._placeholders(template.body);
  v_given integer;
begin
  v_given := case jsonb_typeof(parameters)
    when 'array' then jsonb_array_length(parameters)
    when 'object' then (select count(*) from jsonb_object_keys(parameters) k where k = any (v_names))
    else 0 end;
  if v_given <> cardinality(v_names) then
    raise exception using
      errcode = '22023',
      message = format('template "%s" has %s placeholders, %s were filled', template.name, cardinality(v_names), v_given),
      hint = format('Placeholders are %s.', coalesce(nullif(array_to_string(v_names, ', '), ''), 'none'));
  end if;
  if v_given = 0 then
    return '[]';
  end if;
  return jsonb_build_array(jsonb_build_object('type', 'body', 'parameters', (
    select jsonb_agg(
      case when n.name ~ '^[0-9]+$' then '{}' else jsonb_build_object('parameter_name', n.name) end
        || jsonb_build_object('type', 'text', 'text', case jsonb_typeof(parameters)
          when 'array' then parameters ->> (n.place - 1)::integer
          else parameters ->> n.name end)
      order by n.place)
    from unnest(v_names) with ordinality n (name, place))));
end
$$;
comment on function helper._template_parameters(helper.wa_templates, jsonb) is 'The components of a template message. Errors: 22023';

create function helper._template_submission(template helper.wa_templates) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'name', template.name,
    'category', template.category,
    'language', template.language,
    'components', (
      select jsonb_agg(c.component order by c.place)
      from (values
        (1, template.header is not null, jsonb_build_object('type', 'HEADER', 'format', 'TEXT', 'text', template.header)),
        (2, true, jsonb_build_object('type', 'BODY', 'text', template.body) || case
          -- WhatsApp wants to see what may stand in the placeholders.
          when cardinality(p.names) = 0 then '{}'
          when p.names[1] ~ '^[0-9]+$' then
            jsonb_build_object('example', jsonb_build_object('body_text', jsonb_build_array(to_jsonb(p.names))))
          else
            jsonb_build_object('example', jsonb_build_object('body_text_named_params', (
              select jsonb_agg(jsonb_build_object('param_name', n, 'example', n)) from unnest(p.names) n))) end),
        (3, template.footer is not null, jsonb_build_object('type', 'FOOTER', 'text', template.footer))) c (place, is_there, component)
      where c.is_there))
    || case when p.names[1] !~ '^[0-9]+$' then '{"parameter_format": "NAMED"}' else '{}'::jsonb end
  from (select helper._placeholders(template.body) as names) p
$$;
comment on function helper._template_submission(helper.wa_templates) is 'What is posted to have a template approved';

-- The request is made here and not by who adds the row, so that nobody can have another one sent.
create function helper._compose_whatsapp() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_number helper.wa_numbers;
  v_template helper.wa_templates;
  v_phone text;
begin
  if new.request is not null then
    -- Loaded from a dump.
    return new;
  end if;
  -- Before anything is read: what is said below is for members alone.
  perform helper._require_role(new.workspace_id, 'member');
  -- The number that the contact wrote to, else the workspace's first.
  select n.* into v_number
  from helper.wa_numbers n
  where n.workspace_id = new.workspace_id
  order by exists (
      select from helper.wa_threads t
      where t.workspace_id = n.workspace_id and t.contact_id = new.contact_id and t.number_id = n.id and t.status = 'open') desc,
    n.id
  limit 1;
  if not found then
    raise exception using
      errcode = '55000',
      message = 'workspace has no WhatsApp number',
      hint = 'The application''s service binds one with helper.set_whatsapp_number.';
  end if;
  if new.template_id is not null then
    select t.* into v_template from helper.wa_templates t where t.workspace_id = new.workspace_id and t.id = new.template_id;
    if not found then
      raise exception using errcode = '42704', message = format('template "%s" does not exist', new.template_id);
    end if;
  end if;
  if new.kind = 'submission' then
    if v_number.business_account_id is null then
      raise exception using errcode = '55000', message = 'the workspace''s WhatsApp number has no business account';
    end if;
    new.request := jsonb_build_object(
      'method', 'POST',
      'path', format('/%s/message_templates', v_number.business_account_id),
      'body', helper._template_submission(v_template));
    return new;
  end if;
  select c.phone into v_phone
  from helper.contacts c
  where c.workspace_id = new.workspace_id and c.id = new.contact_id
  for no key update;
  if not found then
    raise exception using errcode = '42704', message = format('contact "%s" does not exist', new.contact_id);
  end if;
  -- Said twice in a minute, it is a repetition and not a message.
  if exists (
    select from helper.wa_outbox o
    where o.workspace_id = new.workspace_id
      and o.contact_id = new.contact_id
      and o.created_at > (select clock_timestamp() - interval '1 minute')
      and o.send_at between new.send_at - interval '1 minute' and new.send_at + interval '1 minute'
      and o.status not in ('failed', 'cancelled')
      and (o.kind, o.body, o.template_id, o.parameters) is not distinct from (new.kind, new.body, new.template_id, new.parameters)
  ) then
    return null;
  end if;
  if new.kind = 'template' and v_template.status <> 'approved' then
    raise exception using
      errcode = '55000',
      message = format('template "%s" is not approved', v_template.name),
      detail = format('WhatsApp''s word on it is: %s.', v_template.status);
  end if;
  new.thread_id := helper._open_thread(new.workspace_id, new.contact_id, v_number.id);
  new.request := jsonb_build_object(
    'method', 'POST',
    'path', format('/%s/messages', v_number.phone_number_id),
    'body', jsonb_build_object(
      'messaging_product', 'whatsapp',
      'recipient_type', 'individual',
      'to', v_phone,
      'type', new.kind)
      || case new.kind
        when 'text' then jsonb_build_object('text', jsonb_build_object('preview_url', false, 'body', new.body))
        else jsonb_build_object('template', jsonb_strip_nulls(jsonb_build_object(
          'name', v_template.name,
          'language', jsonb_build_object('code', v_template.language),
          'components', nullif(helper._template_parameters(v_template, new.parameters), '[]'))))
      end);
  return new;
end
$$;
comment on function helper._compose_whatsapp() is
  'Makes the request of a row of the outbox; a message that repeats another is not added. Errors: 22023, 42704, 55000';
create trigger wa_outbox_compose before insert on helper.wa_outbox
  for each row execute function helper._compose_whatsapp();

create function helper.queue_whatsapp(
  contact_id uuid,
  body text default null,
  template_id uuid default null,
  parameters jsonb default null,
  send_at timestamptz default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_kind text := case when queue_whatsapp.template_id is null then 'text' else 'template' end;
  v_message helper.wa_outbox;
  v_received timestamptz;
begin
  insert into helper.wa_outbox as o (workspace_id, kind, contact_id, template_id, body, parameters, send_at)
  values (v_workspace, v_kind, queue_whatsapp.contact_id, queue_whatsapp.template_id, queue_whatsapp.body, queue_whatsapp.parameters,
    coalesce(queue_whatsapp.send_at, clock_timestamp()))
  returning o.* into v_message;
  if not found then
    select o.* into v_message
    from helper.wa_outbox o
    where o.workspace_id = v_workspace
      and o.contact_id = queue_whatsapp.contact_id
      and o.kind = v_kind
      and (o.body, o.template_id, o.parameters) is not distinct from (queue_whatsapp.body, queue_whatsapp.template_id, queue_whatsapp.parameters)
    order by o.id desc
    limit 1;
    return jsonb_build_object('message_id', v_message.id, 'thread_id', v_message.thread_id, 'contact_id', v_message.contact_id,
      'status', v_message.status, 'repeated', true);
  end if;
  select t.last_received_at into v_received
  from helper.wa_threads t
  where t.workspace_id = v_workspace and t.id = v_message.thread_id;
  return jsonb_build_object('message_id', v_message.id, 'thread_id', v_message.thread_id, 'contact_id', v_message.contact_id,
    'to', v_message.request #>> '{body,to}', 'status', v_message.status, 'send_at', v_message.send_at)
    || case
      when v_kind = 'text' and coalesce(v_received, '-infinity') < v_message.send_at - interval '24 hours' then
        '{"warning": "the contact has not written for 24 hours: WhatsApp delivers templates only"}'
      else '{}'::jsonb
    end;
end
$$;
comment on function helper.queue_whatsapp(uuid, text, uuid, jsonb, timestamptz, uuid) is
  'Puts a message to a contact into the outbox; one that repeats another within a minute is not added, and the other returned. Errors: 22023, 23514, 42501, 42704, 55000';

-- Sending

create function helper.send_whatsapp_message(phone_number text, message text, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
begin
  return helper.queue_whatsapp(helper.contact_for(phone_number, v_workspace), body => message, workspace => v_workspace);
end
$$;
comment on function helper.send_whatsapp_message(text, text, uuid) is
  'Sends a text to a phone number by WhatsApp.
@param phone_number who to write to, with the country''s code
@param message the text
Errors: 22023, 23514, 42501, 42704, 55000';

create function helper.send_whatsapp_template(
  phone_number text,
  template_name text,
  parameters jsonb default '[]',
  language text default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_template uuid;
begin
  -- Of several languages an approved one, and then the oldest.
  select t.id into v_template
  from helper.wa_templates t
  where t.workspace_id = v_workspace
    and t.name = template_name
    and (send_whatsapp_template.language is null or t.language = send_whatsapp_template.language)
  order by t.status = 'approved' desc, t.id
  limit 1;
  if not found then
    raise exception using errcode = '42704', message = format('template "%s" does not exist', template_name);
  end if;
  return helper.queue_whatsapp(helper.contact_for(phone_number, v_workspace), template_id => v_template,
    parameters => send_whatsapp_template.parameters, workspace => v_workspace);
end
$$;
comment on function helper.send_whatsapp_template(text, text, jsonb, text, uuid) is
  'Sends an approved template to a phone number by WhatsApp.
@param phone_number who to write to, with the country''s code
@param template_name name of the template
@param parameters what fills its placeholders: an array in their order, or an object by their names
@param language language of the template, such as id or en_US
Errors: 22023, 42501, 42704, 55000';

create function helper.schedule_message(
  contact_id uuid,
  message text,
  scheduled_for text,
  timezone text default 'UTC',
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_at timestamptz;
begin
  if not exists (select from pg_timezone_names z where z.name = timezone) then
    raise exception using
      errcode = '22023',
      message = format('time zone "%s" is not known', timezone),
      hint = 'Use a name such as Asia/Jakarta.';
  end if;
  -- A cast to timestamp would read over an offset that is written down.
  v_at := case
    when scheduled_for ~ ':[0-9.]+ *(Z|[-+][0-9]{2}(:?[0-9]{2})?)$' then scheduled_for::timestamptz
    else scheduled_for::timestamp at time zone timezone
  end;
  if v_at is null or v_at <= clock_timestamp() then
    raise exception using errcode = '22023', message = format('%s in %s is past', scheduled_for, timezone);
  end if;
  return helper.queue_whatsapp(schedule_message.contact_id, body => message, send_at => v_at, workspace => v_workspace);
end
$$;
comment on function helper.schedule_message(uuid, text, text, text, uuid) is
  'Sends a text to a contact by WhatsApp at a time.
@param contact_id the contact
@param message the text
@param scheduled_for date and time, such as 2027-01-31T09:00, or with an offset 2027-01-31T09:00+07:00
@param timezone the time zone''s name, such as Asia/Jakarta, where there is no offset
Errors: 22007, 22023, 23514, 42501, 42704, 55000';

create function helper.cancel_message(message_id uuid, workspace uuid default null) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_message helper.wa_outbox;
begin
  update helper.wa_outbox o
  set status = 'cancelled'
  where o.workspace_id = v_workspace and o.id = message_id and o.status = 'queued'
  returning o.* into v_message;
  if found then
    return jsonb_build_object('message_id', v_message.id, 'status', v_message.status);
  end if;
  select o.* into v_message from helper.wa_outbox o where o.workspace_id = v_workspace and o.id = message_id;
  if not found then
    raise exception using errcode = '42704', message = format('message "%s" does not exist', message_id);
  end if;
  raise exception using errcode = '55000', message = format('message is %s and cannot be cancelled', v_message.status);
end
$$;
comment on function helper.cancel_message(uuid, uuid) is
  'Takes back a message that was not sent yet.
@param message_id the message, as sending or scheduling it gave it
Errors: 42501, 42704, 55000 sent already';

create function helper.send_broadcast(
  message text,
  recipient_tags text[] default null,
  template_id uuid default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
  v_template boolean := send_broadcast.template_id is not null;
  v_parameters jsonb;
  v_broadcast uuid;
  v_count bigint;
begin
  if v_template then
    select case when t.body ~ '\{\{' then jsonb_build_array(message) else '[]' end into v_parameters
    from helper.wa_templates t
    where t.workspace_id = v_workspace and t.id = send_broadcast.template_id;
    if not found then
      raise exception using errcode = '42704', message = format('template "%s" does not exist', send_broadcast.template_id);
    end if;
  end if;
  insert into helper.wa_broadcasts as b (workspace_id, message, template_id, recipient_tags)
  values (v_workspace, send_broadcast.message, send_broadcast.template_id, send_broadcast.recipient_tags)
  returning b.id into v_broadcast;
  insert into helper.wa_outbox (workspace_id, broadcast_id, kind, contact_id, template_id, body, parameters)
  select v_workspace, v_broadcast, case when v_template then 'template' else 'text' end, c.id, send_broadcast.template_id,
    case when not v_template then message end, v_parameters
  from helper.contacts c
  where c.workspace_id = v_workspace
    and c.accepts_broadcasts
    and (send_broadcast.recipient_tags is null or c.tags && send_broadcast.recipient_tags)
  -- Contacts are held in one order, so that two broadcasts do not wait for each other.
  order by c.id;
  get diagnostics v_count = row_count;
  if v_count = 0 then
    raise exception using errcode = '22023', message = 'no contact has these tags and accepts broadcasts';
  end if;
  return jsonb_build_object('broadcast_id', v_broadcast, 'recipients', v_count, 'status', 'queued');
end
$$;
comment on function helper.send_broadcast(text, text[], uuid, uuid) is
  'Sends a message to many contacts by WhatsApp; those who do not accept broadcasts are left out. For admins.
@param message the text, or what fills the template''s placeholder
@param recipient_tags contacts with any of these tags; none given: all
@param template_id a template to send instead of a text
Errors: 22023 nobody to send to, 42501, 42704, 55000';

create function helper.create_template(
  name text,
  category text,
  language text,
  body text,
  header text default null,
  footer text default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
  v_template jsonb;
begin
  insert into helper.wa_templates as t (workspace_id, name, category, language, body, header, footer)
  values (v_workspace, create_template.name, upper(create_template.category), create_template.language, create_template.body,
    create_template.header, create_template.footer)
  returning to_jsonb(t) - 'workspace_id' into v_template;
  insert into helper.wa_outbox (workspace_id, kind, template_id)
  values (v_workspace, 'submission', (v_template ->> 'id')::uuid);
  return v_template;
end
$$;
comment on function helper.create_template(text, text, text, text, text, text, uuid) is
  'Makes a message template and has WhatsApp asked to approve it. For admins.
@param name lower-case letters, digits and underscores
@param category MARKETING, UTILITY or AUTHENTICATION
@param language such as id or en_US
@param body the text, with placeholders such as {{1}} or {{name}}
@param header line above the text
@param footer line below the text
Errors: 23505 there is one of that name and language, 23514, 42501, 42704, 55000';

create function helper.get_template_analytics(template_id uuid, start_date date default null, end_date date default null, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_counts jsonb;
begin
  select jsonb_build_object(
    'template_id', t.id, 'name', t.name, 'status', t.status,
    'queued', count(*) filter (where o.status in ('queued', 'sending')),
    'sent', count(o.sent_at),
    'delivered', count(o.delivered_at),
    'read', count(o.read_at),
    'failed', count(*) filter (where o.status = 'failed'),
    'read_rate', round(count(o.read_at)::numeric / nullif(count(o.delivered_at), 0), 4))
  into v_counts
  from helper.wa_templates t
  left join helper.wa_outbox o on o.workspace_id = t.workspace_id
    and o.template_id = t.id
    and o.kind = 'template'
    and (o.created_at at time zone 'UTC')::date between coalesce(start_date, '-infinity') and coalesce(end_date, 'infinity')
  where t.workspace_id = v_workspace and t.id = get_template_analytics.template_id
  group by t.id, t.name, t.status;
  if not found then
    raise exception using errcode = '42704', message = format('template "%s" does not exist', template_id);
  end if;
  return v_counts;
end
$$;
comment on function helper.get_template_analytics(uuid, date, date, uuid) is
  'How often a template was sent, delivered and read.
@param template_id the template
@param start_date first day, by UTC
@param end_date last day
Errors: 42501, 42704';
