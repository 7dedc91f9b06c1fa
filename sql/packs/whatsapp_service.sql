-- WhatsApp, the Cloud API's side: for the application's service, which talks to it.

create function helper.set_whatsapp_number(
  workspace uuid,
  phone_number_id text,
  phone text,
  business_account_id text default null,
  region text default null,
  credential text default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_phone text := helper.normalize_phone(phone, region);
  v_credential text := nullif(credential, '');
  v_host text;
  v_id uuid;
begin
  if workspace is null then
    raise exception using errcode = '22023', message = 'workspace is null';
  end if;
  if v_phone is null then
    raise exception using errcode = '22023', message = format('"%s" is not a phone number', phone);
  end if;
  if v_credential is not null then
    perform helper._check_credential(v_credential, null);
    select helper._host(s.base_url) into v_host from helper.wa_sender s;
    if not found then
      raise exception using
        errcode = '55000',
        message = 'there is no WhatsApp sender that the credential could be for',
        hint = 'An administrator names one with helper.set_whatsapp_sender first.';
    end if;
  end if;
  insert into helper.wa_numbers as n (workspace_id, phone_number_id, business_account_id, phone, region, credential, credential_host)
  values (workspace, set_whatsapp_number.phone_number_id, set_whatsapp_number.business_account_id, v_phone, set_whatsapp_number.region,
    v_credential, v_host)
  on conflict on constraint wa_numbers_phone_number_id_key do update
  set business_account_id = excluded.business_account_id,
    phone = excluded.phone,
    region = excluded.region,
    credential = case when set_whatsapp_number.credential is null then n.credential else excluded.credential end,
    credential_host = case when set_whatsapp_number.credential is null then n.credential_host else excluded.credential_host end
  where n.workspace_id = excluded.workspace_id
  returning n.id into v_id;
  if not found then
    raise exception using errcode = '55000', message = format('number "%s" belongs to another workspace', phone_number_id);
  end if;
  return v_id;
end
$$;
comment on function helper.set_whatsapp_number(uuid, text, text, text, text, text) is
  'Binds a number of the WhatsApp Cloud API to a workspace, which sends by it and receives what people write to it. credential: where its own access token is, as env:NAME or file:/path (superusers) or vault:name, for the worker to send with; null leaves it as it is, an empty text has the sender''s used. For the application''s service, which knows whose it is. Errors: 22023, 23514, 42501, 55000 another workspace''s, or no sender that the credential could be for';

-- At most `share` of one workspace, and none of those in `without`.
create function helper._claim_whatsapp("limit" integer, share integer, without uuid[], by_worker boolean)
returns table (workspace_id uuid, message_id uuid, request jsonb)
language sql volatile set search_path = pg_catalog, pg_temp as $$
  -- A sender that was lost may have sent: what it held is never sent again by itself.
  with lost as (
    select o.workspace_id, o.id
    from helper.wa_outbox o
    where o.status = 'sending' and o.claimed_at < (select clock_timestamp() - interval '5 minutes')
    for update skip locked
  )
  update helper.wa_outbox o
  set status = 'uncertain'
  from lost l
  where o.workspace_id = l.workspace_id and o.id = l.id;
  -- Workspaces that have something to send, those who wait the longest first, share what is given out: nobody's broadcast
  -- keeps the others waiting. The recursion steps from one to the next, so that its cost depends on their number alone.
  with recursive waiting (workspace_id, send_at) as (
    (select o.workspace_id, o.send_at
    from helper.wa_outbox o
    where o.status = 'queued'
    order by o.workspace_id, o.send_at
    limit 1)
    union all
    select n.workspace_id, n.send_at
    from waiting w
    cross join lateral (
      select o.workspace_id, o.send_at
      from helper.wa_outbox o
      where o.status = 'queued' and o.workspace_id > w.workspace_id
      order by o.workspace_id, o.send_at
      limit 1
    ) n
  ), turn as (
    select w.workspace_id, least(greatest(least("limit", 1000) / count(*) over (), 1), _claim_whatsapp.share) as share
    from waiting w
    where w.send_at <= (select clock_timestamp()) and w.workspace_id <> all (without)
    order by w.send_at
    limit least(greatest("limit", 0), 1000)
  ), due as materialized (
    select d.workspace_id, d.id
    from turn t
    cross join lateral (
      select o.workspace_id, o.id
      from helper.wa_outbox o
      where o.status = 'queued' and o.workspace_id = t.workspace_id and o.send_at <= (select clock_timestamp())
      order by o.send_at
      limit t.share
      for update skip locked
    ) d
  )
  update helper.wa_outbox o
  set status = 'sending', claimed_at = clock_timestamp(), attempts = o.attempts + 1, by_worker = _claim_whatsapp.by_worker
  from due d
  where o.workspace_id = d.workspace_id and o.id = d.id
  -- WhatsApp gives the identifier back in the webhook, also where its reply was lost.
  returning o.workspace_id, o.id, case o.kind
    when 'submission' then o.request
    else jsonb_set(o.request, '{body,biz_opaque_callback_data}', to_jsonb(o.id)) end
$$;
comment on function helper._claim_whatsapp(integer, integer, uuid[], boolean) is 'Requests of the outbox that are due, each given out once, and workspaces sharing alike';

create function helper.claim_whatsapp("limit" integer default 20) returns table (workspace_id uuid, message_id uuid, request jsonb)
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  select c.workspace_id, c.message_id, c.request from helper._claim_whatsapp("limit", null, '{}', false) c
$$;
comment on function helper.claim_whatsapp(integer) is
  'Requests of the outbox that are due, each given out once, and workspaces sharing alike: commit, send them to the Cloud API, and tell finish_whatsapp what it replied. For the application''s service';

create function helper.finish_whatsapp(workspace uuid, message_id uuid, http_status integer, reply jsonb default null) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_status text;
begin
  update helper.wa_outbox o
  set status = case
      when http_status between 200 and 299 then 'sent'
      -- Too many at once: WhatsApp took nothing.
      when http_status = 429 and o.attempts < 5 then 'queued'
      when http_status >= 500 then 'uncertain'
      else 'failed' end,
    send_at = case when http_status = 429 then clock_timestamp() + interval '10 seconds' * 2 ^ o.attempts else o.send_at end,
    sent_at = case when http_status between 200 and 299 then clock_timestamp() end,
    wa_message_id = case when o.kind <> 'submission' then coalesce(o.wa_message_id, reply #>> '{messages,0,id}') end,
    error = case when http_status not between 200 and 299 then jsonb_strip_nulls(jsonb_build_object('http_status', http_status,
      'code', reply #> '{error,code}', 'message', left(reply #>> '{error,message}', 500))) end
  where o.workspace_id = finish_whatsapp.workspace and o.id = finish_whatsapp.message_id and o.status in ('sending', 'uncertain')
  returning o.status into v_status;
  return v_status;
end
$$;
comment on function helper.finish_whatsapp(uuid, uuid, integer, jsonb) is
  'What the Cloud API replied to a request that was claimed; returns the message''s status then, null where it was not under way. For the application''s service';

-- Reports come in any order and more than once: a message never goes back.
create function helper._take_delivery(number helper.wa_numbers, report jsonb) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_order constant text[] := array['queued', 'sending', 'uncertain', 'sent', 'failed', 'delivered', 'read'];
  v_status text := report ->> 'status';
  v_at timestamptz := to_timestamp((report ->> 'timestamp')::double precision);
  v_id uuid := substring(report ->> 'biz_opaque_callback_data' from '^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$')::uuid;
begin
  if v_status is null or v_status not in ('sent', 'delivered', 'read', 'failed') then
    return false;
  end if;
  update helper.wa_outbox o
  set status = v_status,
    wa_message_id = coalesce(o.wa_message_id, report ->> 'id'),
    sent_at = coalesce(o.sent_at, case when v_status <> 'failed' then v_at end),
    delivered_at = coalesce(o.delivered_at, case when v_status in ('delivered', 'read') then v_at end),
    read_at = coalesce(o.read_at, case when v_status = 'read' then v_at end),
    error = case when v_status = 'failed' then jsonb_strip_nulls(jsonb_build_object(
      'code', report #> '{errors,0,code}', 'message', left(coalesce(report #>> '{errors,0,message}', report #>> '{errors,0,title}'), 500))) end
  where o.workspace_id = number.workspace_id
    and o.kind <> 'submission'
    and (o.wa_message_id = report ->> 'id' or o.wa_message_id is null and o.id = v_id)
    and array_position(v_order, o.status) < array_position(v_order, v_status);
  return found;
end
$$;
comment on function helper._take_delivery(helper.wa_numbers, jsonb) is 'Takes in what became of a message; false where that was known or the message is not ours';

create function helper._take_message(number helper.wa_numbers, people jsonb, message jsonb) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_from text := message ->> 'from';
  v_kind text := message ->> 'type';
  v_at timestamptz := to_timestamp((message ->> 'timestamp')::double precision);
  v_name text;
  v_contact uuid;
  v_thread uuid;
begin
  if v_from is null or v_from !~ '^[1-9][0-9]{6,14}$' or message ->> 'id' is null or v_kind is null or v_at is null then
    return false;
  end if;
  select left(nullif(btrim(p.person #>> '{profile,name}'), ''), 300) into v_name
  from jsonb_array_elements(people) p (person)
  where p.person ->> 'wa_id' = v_from
  limit 1;
  insert into helper.contacts as c (workspace_id, phone, name, created_by)
  values (number.workspace_id, '+' || v_from, v_name, null)
  on conflict on constraint contacts_phone_key do update set name = coalesce(c.name, excluded.name)
  returning c.id into v_contact;
  -- Told twice, it neither begins a conversation nor is it kept again; the contact is held since it was written.
  if exists (select from helper.wa_messages m where m.workspace_id = number.workspace_id and m.wa_message_id = message ->> 'id') then
    return false;
  end if;
  v_thread := helper._open_thread(number.workspace_id, v_contact, number.id);
  insert into helper.wa_messages (workspace_id, thread_id, wa_message_id, kind, body, payload, sent_at)
  values (number.workspace_id, v_thread, message ->> 'id', v_kind,
    coalesce(message #>> '{text,body}', message #>> array[v_kind, 'caption'], message #>> '{button,text}',
      message #>> '{interactive,button_reply,title}', message #>> '{interactive,list_reply,title}', message #>> '{reaction,emoji}'),
    message, v_at);
  update helper.wa_threads t
  set last_received_at = greatest(t.last_received_at, v_at)
  where t.workspace_id = number.workspace_id and t.id = v_thread;
  return true;
end
$$;
comment on function helper._take_message(helper.wa_numbers, jsonb, jsonb) is 'Takes in what a contact wrote; false where that was known';

create function helper.whatsapp_status(payload jsonb) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_change record;
  v_number helper.wa_numbers;
  v_item jsonb;
  v_rows bigint;
  v_deliveries bigint := 0;
  v_messages bigint := 0;
  v_templates bigint := 0;
begin
  if payload ->> 'object' is distinct from 'whatsapp_business_account' then
    raise exception using errcode = '22023', message = 'payload is not of WhatsApp''s webhook';
  end if;
  for v_change in
    select e.entry ->> 'id' as account, c.change ->> 'field' as field, c.change -> 'value' as value
    from jsonb_array_elements(payload -> 'entry') e (entry)
    cross join jsonb_array_elements(e.entry -> 'changes') c (change)
  loop
    if v_change.field = 'message_template_status_update' then
      update helper.wa_templates t
      set status = case v_change.value ->> 'event'
          when 'APPROVED' then 'approved'
          when 'REJECTED' then 'rejected'
          when 'PAUSED' then 'paused'
          when 'DISABLED' then 'disabled'
          else t.status end,
        reason = nullif(v_change.value ->> 'reason', 'NONE')
      where t.workspace_id in (select n.workspace_id from helper.wa_numbers n where n.business_account_id = v_change.account)
        and t.name = v_change.value ->> 'message_template_name'
        and t.language = v_change.value ->> 'message_template_language';
      get diagnostics v_rows = row_count;
      v_templates := v_templates + v_rows;
    elsif v_change.field = 'messages' then
      select n.* into v_number
      from helper.wa_numbers n
      where n.phone_number_id = v_change.value #>> '{metadata,phone_number_id}';
      -- A number that no workspace has is somebody else's business.
      continue when not found;
      for v_item in select i from jsonb_array_elements(coalesce(v_change.value -> 'statuses', '[]')) i loop
        v_deliveries := v_deliveries + helper._take_delivery(v_number, v_item)::integer;
      end loop;
      for v_item in select i from jsonb_array_elements(coalesce(v_change.value -> 'messages', '[]')) i loop
        v_messages := v_messages + helper._take_message(v_number, coalesce(v_change.value -> 'contacts', '[]'), v_item)::integer;
      end loop;
    end if;
  end loop;
  return jsonb_build_object('deliveries', v_deliveries, 'messages', v_messages, 'templates', v_templates);
end
$$;
comment on function helper.whatsapp_status(jsonb) is
  'Takes in what WhatsApp''s webhook tells: what became of messages, what contacts wrote, which templates are approved; the same twice changes nothing. For the application''s service, which checks the request''s signature first. Errors: 22023';
