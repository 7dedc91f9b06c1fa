-- The worker as WhatsApp's sender: how it reaches the Cloud API, and what becomes of a request that nobody answered. Where
-- no sender is named, the outbox is left to whoever calls claim_whatsapp.

create table helper.wa_sender (
  base_url text not null constraint wa_sender_base_url_check check (base_url ~ '^https?://[^/?#@[:space:]]+(/[^?#[:space:]]*)?$'),
  credential text constraint wa_sender_credential_check check (credential ~ '^(env|file|vault):.'),
  options jsonb not null default '{}' constraint wa_sender_options_check check (jsonb_typeof(options) = 'object'),
  updated_at timestamptz not null default clock_timestamp()
);
create unique index wa_sender_one_row_idx on helper.wa_sender ((true));
-- In no dump: a copy of the database would send what waits in it a second time.
comment on table helper.wa_sender is 'How the worker reaches the WhatsApp Cloud API: one row, or none where it does not send';
comment on column helper.wa_sender.base_url is 'Address that requests are made under';
comment on column helper.wa_sender.credential is 'Where the access token is, which is sent to that host alone: env:NAME, file:/path or vault:name; null: numbers have their own';
comment on column helper.wa_sender.options is 'How it is spoken to; see set_whatsapp_sender';
comment on column helper.wa_sender.updated_at is 'When it last changed';
alter table helper.wa_sender enable row level security;

create trigger wa_sender_wake after insert or update on helper.wa_sender
  for each statement execute function helper._wake_worker();
create trigger wa_outbox_wake after insert on helper.wa_outbox
  for each statement execute function helper._wake_worker();

create function helper.set_whatsapp_sender(
  credential text default null,
  base_url text default 'https://graph.facebook.com/v23.0',
  options jsonb default '{}',
  enabled boolean default true
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_url text := rtrim(base_url, '/');
  v_timeout jsonb := options -> 'timeout_ms';
begin
  perform helper._require_keeper(null);
  if enabled is not true then
    delete from helper.wa_sender s where true;
    return;
  end if;
  perform helper._check_options(options, array['allow_private', 'timeout_ms'], 'a WhatsApp sender');
  if coalesce(jsonb_typeof(options -> 'allow_private'), 'boolean') <> 'boolean' or coalesce(jsonb_typeof(v_timeout), 'number') <> 'number' then
    raise exception using errcode = '22023', message = 'an option of a WhatsApp sender has the wrong type';
  end if;
  -- What takes longer than five minutes counts as lost.
  if v_timeout::numeric not between 1000 and 240000 or v_timeout::numeric <> trunc(v_timeout::numeric) then
    raise exception using
      errcode = '22023',
      message = 'option "timeout_ms" of a WhatsApp sender is out of range',
      hint = 'Use a whole number from 1000 to 240000.';
  end if;
  if v_url is null or v_url !~ '^https?://[^/?#@[:space:]]+(/[^?#[:space:]]*)?$' then
    raise exception using
      errcode = '22023',
      message = 'base_url is not valid',
      hint = 'It is https, a host and perhaps a path, with no user, query or fragment.';
  end if;
  perform helper._check_request(options || jsonb_build_object('url', v_url), '{}');
  perform helper._check_credential(credential, null);
  insert into helper.wa_sender as s (base_url, credential, options)
  values (v_url, set_whatsapp_sender.credential, set_whatsapp_sender.options)
  on conflict ((true)) do update
  set base_url = excluded.base_url, credential = excluded.credential, options = excluded.options, updated_at = clock_timestamp();
end
$$;
comment on function helper.set_whatsapp_sender(text, text, jsonb, boolean) is
  'Has the worker send what is in WhatsApp''s outbox, or with enabled => false no longer. credential: where the access token is, as env:NAME or file:/path (superusers) or vault:name, for numbers that set_whatsapp_number gave none of their own. options: timeout_ms (30000), allow_private. For administrators. Errors: 22023, 42501';

-- A request that names no number of the workspace, as it was given to another one meanwhile say, has no sender.
create function helper._whatsapp_sender(workspace uuid, path text) returns table (base_url text, credential text, options jsonb, problem text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select s.base_url, case when n.credential is null then s.credential else n.credential end, s.options,
    case
      when n.id is null then 'the WhatsApp number is not the workspace''s any more'
      when n.credential_host <> helper._host(s.base_url) then 'the WhatsApp number''s credential is for another host'
      when n.credential is null and s.credential is null then 'the WhatsApp number has no credential'
    end
  from helper.wa_sender s
  left join lateral (
    select m.id, m.credential, m.credential_host
    from helper.wa_numbers m
    where m.workspace_id = workspace
      and path in (format('/%s/messages', m.phone_number_id), format('/%s/message_templates', m.business_account_id))
    order by m.credential is null, m.id
    limit 1
  ) n on true
$$;
comment on function helper._whatsapp_sender(uuid, text) is 'How a request of a workspace is sent: by the credential of the number that its path names, else the sender''s; with what is in the way, and no row where there is no sender';

create function helper._break_off_whatsapp(workspace uuid, message_id uuid, reached boolean, error jsonb) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
  update helper.wa_outbox o
  set status = case when reached then 'uncertain' when o.attempts < 10 then 'queued' else 'failed' end,
    send_at = case
      when reached then o.send_at
      else clock_timestamp() + least(interval '10 seconds' * 2 ^ (o.attempts - 1), interval '15 minutes') end,
    error = _break_off_whatsapp.error
  where o.workspace_id = workspace and o.id = _break_off_whatsapp.message_id and o.status in ('sending', 'uncertain')
$$;
comment on function helper._break_off_whatsapp(uuid, uuid, boolean, jsonb) is
  'Ends a request that was claimed and not answered: uncertain where WhatsApp may have it, else queued again, some times and with longer and longer pauses';

create function helper._settle_whatsapp(workspaces uuid[], messages uuid[]) returns table (workspace_id uuid, message uuid)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  with lost as (
    select o.workspace_id, o.id
    from unnest(workspaces, messages) l (workspace_id, id)
    join helper.wa_outbox o on o.workspace_id = l.workspace_id and o.id = l.id
    where o.status = 'sending' and o.by_worker
    for update of o skip locked
  )
  update helper.wa_outbox o
  set status = 'uncertain',
    error = '{"sqlstate": "55000", "message": "the server ended while it was sent"}'
  from lost l
  where o.workspace_id = l.workspace_id and o.id = l.id;
  return query
    select o.workspace_id, o.id
    from unnest(workspaces, messages) l (workspace_id, id)
    join helper.wa_outbox o on o.workspace_id = l.workspace_id and o.id = l.id
    where o.status = 'sending' and o.by_worker;
end
$$;
comment on function helper._settle_whatsapp(uuid[], uuid[]) is 'Settles what an earlier worker was sending when it ended; what is left for the next time, as somebody holds it';
