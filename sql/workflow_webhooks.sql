-- Workflows that start by a request from outside. Whoever sends it has no role here: what it is worth is said by its
-- signature alone. What may be learnt by asking is the same for an endpoint that is not there and for a wrong signature.

create table helper.workflow_webhooks (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  workflow_id uuid not null,
  name text not null constraint workflow_webhooks_name_check check (name ~ '[^[:space:]]' and char_length(name) <= 200),
  kind text not null constraint workflow_webhooks_kind_check check (kind in ('standard', 'github', 'meta')),
  endpoint text not null,
  per_second integer not null default 2000 constraint workflow_webhooks_per_second_check check (per_second between 1 and 100000),
  created_by uuid,
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint workflow_webhooks_workflow_fkey foreign key (workspace_id, workflow_id) references helper.workflows on delete cascade,
  constraint workflow_webhooks_name_key unique (workflow_id, name),
  constraint workflow_webhooks_endpoint_key unique (endpoint)
);
comment on table helper.workflow_webhooks is 'Endpoints that start workflows';
comment on column helper.workflow_webhooks.workspace_id is 'Workspace of the workflow';
comment on column helper.workflow_webhooks.id is 'Identifier, in order of creation';
comment on column helper.workflow_webhooks.workflow_id is 'The workflow';
comment on column helper.workflow_webhooks.name is 'What it is for';
comment on column helper.workflow_webhooks.kind is 'How requests are signed: standard (Standard Webhooks), github or meta';
comment on column helper.workflow_webhooks.endpoint is 'Name by which requests choose it';
comment on column helper.workflow_webhooks.per_second is 'Requests that are accepted in a second';
comment on column helper.workflow_webhooks.created_by is 'Who set it up';
comment on column helper.workflow_webhooks.created_at is 'When it was set up';

create table helper.workflow_webhook_secrets (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  webhook_id uuid not null,
  purpose text not null constraint workflow_webhook_secrets_purpose_check check (purpose in ('signature', 'handshake')),
  secret text not null,
  valid_until timestamptz not null default 'infinity',
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint workflow_webhook_secrets_webhook_fkey foreign key (workspace_id, webhook_id) references helper.workflow_webhooks on delete cascade
);
comment on table helper.workflow_webhook_secrets is 'What requests are signed with; nobody may read it, and no dump holds it';
comment on column helper.workflow_webhook_secrets.workspace_id is 'Workspace of the endpoint';
comment on column helper.workflow_webhook_secrets.id is 'Identifier, in order of creation';
comment on column helper.workflow_webhook_secrets.webhook_id is 'The endpoint';
comment on column helper.workflow_webhook_secrets.purpose is 'signature, or handshake: Meta''s verify token';
comment on column helper.workflow_webhook_secrets.secret is 'The secret';
comment on column helper.workflow_webhook_secrets.valid_until is 'Until when it is good';
comment on column helper.workflow_webhook_secrets.created_at is 'When it was made or given';
create index workflow_webhook_secrets_webhook_id_idx on helper.workflow_webhook_secrets (webhook_id);

alter table helper.workflow_webhooks enable row level security;
-- No policy: for the extension alone.
alter table helper.workflow_webhook_secrets enable row level security;
create policy workflow_webhooks_select_admin on helper.workflow_webhooks for select
  using (workspace_id = any ((select helper.my_workspaces('admin'))::uuid[]));
comment on policy workflow_webhooks_select_admin on helper.workflow_webhooks is 'Admins see their workspaces'' endpoints';
select pg_catalog.pg_extension_config_dump('helper.workflow_webhooks', '');

create function helper._new_secret() returns text
language c volatile parallel safe as 'MODULE_PATHNAME', 'new_secret_wrapper';
comment on function helper._new_secret() is 'A secret that nobody can guess, as Standard Webhooks writes them';

create function helper._secret_fits(kind text, secret text) returns boolean
language c immutable strict parallel safe as 'MODULE_PATHNAME', 'secret_fits_wrapper';
comment on function helper._secret_fits(text, text) is 'Whether a secret is one that requests of a kind can be signed with';

create function helper._delivery(kind text, secrets text[], headers json, body text) returns text
language c volatile parallel safe as 'MODULE_PATHNAME', 'delivery_wrapper';
comment on function helper._delivery(text, text[], json, text) is
  'What identifies a signed delivery, the same whenever it is sent again; null for one that none of the secrets signed, or at another time';

create function helper._challenge(token text, query text) returns text
language c immutable parallel safe as 'MODULE_PATHNAME', 'challenge_wrapper';
comment on function helper._challenge(text, text) is 'Answer to Meta''s question whether an endpoint is ours; null where the token is another';

create function helper._admitted(webhook uuid, per_second integer) returns boolean
language c volatile strict parallel unsafe as 'MODULE_PATHNAME', 'admitted_wrapper';
comment on function helper._admitted(uuid, integer) is 'Counts a request; false where there were as many in this second already';

create function helper._new_webhook_secret(webhook helper.workflow_webhooks, secret text, overlap interval) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  -- Two at most live: the one before is good for a while, those before it no longer.
  delete from helper.workflow_webhook_secrets s
  where s.workspace_id = webhook.workspace_id and s.webhook_id = webhook.id and s.purpose = 'signature'
    and exists (
      select
      from helper.workflow_webhook_secrets l
      where l.workspace_id = s.workspace_id and l.webhook_id = s.webhook_id and l.purpose = 'signature' and l.id > s.id);
  update helper.workflow_webhook_secrets s
  set valid_until = least(s.valid_until, clock_timestamp() + overlap)
  where s.workspace_id = webhook.workspace_id and s.webhook_id = webhook.id and s.purpose = 'signature';
  insert into helper.workflow_webhook_secrets (workspace_id, webhook_id, purpose, secret)
  values (webhook.workspace_id, webhook.id, 'signature', _new_webhook_secret.secret);
end
$$;
comment on function helper._new_webhook_secret(helper.workflow_webhooks, text, interval) is 'Signs from now on with another secret; the one before is good a while longer';

create function helper.create_webhook(
  workflow text,
  name text,
  kind text default 'standard',
  options jsonb default '{}',
  workspace uuid default null
) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workflow helper.workflows := helper._workflow(workflow, workspace, 'admin');
  v_webhook helper.workflow_webhooks;
  v_secret constant text := helper._new_secret();
  v_token text;
begin
  if name is null or name !~ '[^[:space:]]' or char_length(name) > 200 then
    raise exception using errcode = '22023', message = 'name of a webhook is not valid', hint = 'Use at most 200 characters.';
  end if;
  if kind is null or kind not in ('standard', 'github', 'meta') then
    raise exception using errcode = '22023', message = format('webhook kind "%s" is not known', kind), hint = 'Kinds are standard, github and meta.';
  end if;
  perform helper._check_options(options, array['per_second'], 'a webhook');
  if options ? 'per_second' and (jsonb_typeof(options -> 'per_second') <> 'number' or (options ->> 'per_second')::numeric not between 1 and 100000) then
    raise exception using errcode = '22023', message = 'option "per_second" of a webhook is out of range', hint = 'Use 1 to 100000.';
  end if;
  insert into helper.workflow_webhooks (workspace_id, workflow_id, name, kind, endpoint, per_second, created_by)
  values (v_workflow.workspace_id, v_workflow.id, create_webhook.name, create_webhook.kind,
    'wh_' || replace(gen_random_uuid()::text, '-', ''), coalesce((options ->> 'per_second')::numeric::integer, 2000), helper.current_user_id())
  on conflict on constraint workflow_webhooks_name_key do nothing
  returning * into v_webhook;
  if v_webhook.id is null then
    raise exception using errcode = '42710', message = format('workflow "%s" has a webhook "%s" already', workflow, name);
  end if;
  perform helper._new_webhook_secret(v_webhook, v_secret, '0');
  if kind = 'meta' then
    v_token := replace(gen_random_uuid()::text, '-', '');
    insert into helper.workflow_webhook_secrets (workspace_id, webhook_id, purpose, secret)
    values (v_webhook.workspace_id, v_webhook.id, 'handshake', v_token);
  end if;
  return jsonb_strip_nulls(jsonb_build_object('endpoint', v_webhook.endpoint, 'secret', v_secret, 'verify_token', v_token));
end
$$;
comment on function helper.create_webhook(text, text, text, jsonb, uuid) is
  'Makes an endpoint that starts a workflow and returns endpoint and secret (for meta also verify_token), which are shown this once. kind is standard (Standard Webhooks), github or meta; a secret that the sender chose goes into the view workflow_webhook_keys. options: per_second. For workspace admins. Errors: 22023, 42501, 42704, 42710';

create function helper._webhook(endpoint text) returns helper.workflow_webhooks
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_webhook helper.workflow_webhooks;
begin
  select w.* into v_webhook
  from helper.workflow_webhooks w
  where w.endpoint = _webhook.endpoint and w.workspace_id = any (helper.my_workspaces());
  if not found then
    raise exception using errcode = '42704', message = 'the webhook does not exist';
  end if;
  perform helper._require_role(v_webhook.workspace_id, 'admin');
  return v_webhook;
end
$$;
comment on function helper._webhook(text) is 'A webhook by its endpoint, for its workspace''s admins. Errors: 42501, 42704';

create function helper.rotate_webhook_secret(endpoint text, overlap interval default '1 day') returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_webhook helper.workflow_webhooks := helper._webhook(endpoint);
  v_secret constant text := helper._new_secret();
begin
  if overlap is null or overlap not between interval '0' and interval '30 days' then
    raise exception using errcode = '22023', message = 'overlap is out of range', hint = 'Use up to 30 days.';
  end if;
  perform helper._new_webhook_secret(v_webhook, v_secret, overlap);
  return v_secret;
end
$$;
comment on function helper.rotate_webhook_secret(text, interval) is
  'Makes a new secret for an endpoint and returns it, which is shown this once; the one before is good for a while longer. For workspace admins. Errors: 22023, 42501, 42704';

create function helper.remove_webhook(endpoint text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_webhook helper.workflow_webhooks := helper._webhook(endpoint);
begin
  delete from helper.workflow_webhooks w where w.workspace_id = v_webhook.workspace_id and w.id = v_webhook.id;
end
$$;
comment on function helper.remove_webhook(text) is 'Removes an endpoint with its secrets; runs that it started go on. For workspace admins. Errors: 42501, 42704';

-- Secrets that senders chose come in as rows and never go out, as providers' keys do.

create view helper.workflow_webhook_keys with (security_barrier) as
  select w.endpoint, null::text as key
  from helper.workflow_webhooks w
  where false;
comment on view helper.workflow_webhook_keys is
  'Takes secrets of webhooks and shows none: copy helper.workflow_webhook_keys (endpoint, key) from stdin, or insert; the one before is good for a day longer; for workspace admins';
comment on column helper.workflow_webhook_keys.endpoint is 'The endpoint';
comment on column helper.workflow_webhook_keys.key is 'The secret that its requests are signed with';

create function helper._keep_webhook_key() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_webhook helper.workflow_webhooks;
begin
  select w.* into v_webhook
  from helper.workflow_webhooks w
  where w.endpoint = new.endpoint and w.workspace_id = any (helper.my_workspaces('admin'));
  if not found then
    -- Not shown: it may be the key, where the columns were given in another order.
    perform helper._refuse('42704', 'the webhook does not exist', null, 'Make one with helper.create_webhook.');
  end if;
  if not coalesce(helper._secret_fits(v_webhook.kind, new.key), false) then
    perform helper._refuse('22023', 'key is not valid', case v_webhook.kind
      when 'standard' then 'It is whsec_ and 16 to 64 bytes in base64.'
      else 'A key has 16 to 4096 visible ASCII characters and no spaces.'
    end, null);
  end if;
  perform helper._new_webhook_secret(v_webhook, new.key, '1 day');
  return new;
end
$$;
comment on function helper._keep_webhook_key() is 'Keeps a secret that was inserted into workflow_webhook_keys. Errors: 22023, 42704';
create trigger workflow_webhook_keys_keep instead of insert on helper.workflow_webhook_keys
  for each row execute function helper._keep_webhook_key();

-- What is not there is looked up and checked like what is, with no secret that fits.
create function helper.webhook(endpoint text, headers json, body text) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_most constant bigint := helper._limit_bytes('helper_ai.max_webhook_size', '256kB');
  v_webhook helper.workflow_webhooks;
  v_secrets text[];
  v_token text;
  v_delivery text;
  v_challenge text;
  v_input jsonb;
  v_run uuid;
begin
  if octet_length(body) > v_most or octet_length(headers::text) > 65536 then
    raise exception using errcode = '53400', message = 'request is too large', detail = format('A body has at most %s bytes, headers 65536.', v_most);
  end if;
  select w.* into v_webhook from helper.workflow_webhooks w where w.endpoint = webhook.endpoint;
  select array_agg(s.secret) filter (where s.purpose = 'signature'), max(s.secret) filter (where s.purpose = 'handshake')
  into v_secrets, v_token
  from helper.workflow_webhook_secrets s
  where s.webhook_id = v_webhook.id and s.valid_until > clock_timestamp();
  v_delivery := helper._delivery(coalesce(v_webhook.kind, 'standard'), v_secrets, headers, body);
  v_challenge := helper._challenge(v_token, body);
  if v_challenge is not null then
    return jsonb_build_object('challenge', v_challenge);
  end if;
  if v_delivery is null then
    raise exception using errcode = '42501', message = 'permission denied for webhook';
  end if;
  if not helper._admitted(v_webhook.id, v_webhook.per_second) then
    raise exception using errcode = '53400', message = 'too many requests', hint = 'Send it again later.';
  end if;
  begin
    v_input := body::jsonb;
  exception
    when data_exception or program_limit_exceeded then
      raise exception using errcode = '22023', message = 'body is not JSON';
  end;
  v_run := helper._start_run(
    v_webhook.workspace_id,
    v_webhook.workflow_id,
    jsonb_build_object('kind', 'webhook', 'name', v_webhook.name, 'webhook', v_webhook.id, 'delivery', v_delivery,
      'at', to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')),
    case when jsonb_typeof(v_input) = 'object' then v_input else jsonb_build_object('body', v_input) end,
    format('webhook:%s:%s', v_webhook.endpoint, v_delivery),
    1);
  if v_run is null then
    raise exception using errcode = '55000', message = 'the workflow is paused', hint = 'Send it again later.';
  end if;
  return jsonb_build_object('run', v_run);
end
$$;
comment on function helper.webhook(text, json, text) is
  'Takes a signed request to an endpoint, its body as it came, and returns the run that it started; the same delivery again returns the same run. Meta''s question comes as its query string for a body. For everyone. Errors: 22023 not JSON, 42501 no such endpoint or no signature that fits, 53400 too large or too many, 55000 paused';
