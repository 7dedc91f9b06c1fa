-- Who answers: providers, their models, which is used for what, and their keys. A provider with no workspace is for all
-- of them and an administrator's; a workspace may have its own, which its admins keep and nobody else can use.

create table helper.providers (
  id uuid not null default helper.uuid_v7(),
  workspace_id uuid,
  name text not null constraint providers_name_check check (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$' and name not in ('local', 'auto')),
  kind text not null constraint providers_kind_check check (kind in ('openai', 'anthropic', 'gemini', 'ollama', 'openai_compatible')),
  base_url text not null constraint providers_base_url_check check (base_url ~ '^https?://[^/?#@[:space:]]+(/[^?#[:space:]]*)?$'),
  credential text constraint providers_credential_check check (credential ~ '^(env|file|vault):.'),
  options jsonb not null default '{}' constraint providers_options_check check (jsonb_typeof(options) = 'object'),
  enabled boolean not null default true,
  created_by uuid,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  primary key (id),
  constraint providers_name_key unique nulls not distinct (workspace_id, name)
);
comment on table helper.providers is 'Servers of models that may be asked';
comment on column helper.providers.id is 'Identifier; limits and health are kept by it';
comment on column helper.providers.workspace_id is 'Workspace whose own it is; null: an administrator''s, for all';
comment on column helper.providers.name is 'Name by which calls choose it';
comment on column helper.providers.kind is 'Its protocol: openai, anthropic, gemini, ollama or openai_compatible';
comment on column helper.providers.base_url is 'Address that requests are made under';
comment on column helper.providers.credential is 'Where its key is: env:NAME or file:/path as the gateway sees them, vault:name; null where the key is in provider_secrets, or none is needed';
comment on column helper.providers.options is 'Limits, timeouts and what sets its server apart; see set_provider';
comment on column helper.providers.enabled is 'Whether it is asked';
comment on column helper.providers.created_by is 'Who set it up';
comment on column helper.providers.created_at is 'When it was set up';
comment on column helper.providers.updated_at is 'When it last changed';

create table helper.provider_secrets (
  provider_id uuid not null,
  host text not null,
  secret text not null,
  updated_at timestamptz not null default clock_timestamp(),
  primary key (provider_id),
  constraint provider_secrets_provider_fkey foreign key (provider_id) references helper.providers (id) on delete cascade
);
comment on table helper.provider_secrets is 'Keys of providers, each bound to the host it was given for; nobody may read it, and no dump holds it';
comment on column helper.provider_secrets.provider_id is 'The provider';
comment on column helper.provider_secrets.host is 'Scheme, host and port that the key may be sent to';
comment on column helper.provider_secrets.secret is 'The key';
comment on column helper.provider_secrets.updated_at is 'When it was given';

create table helper.models (
  provider_id uuid not null,
  name text not null constraint models_name_check check (name ~ '^[^[:space:]]{1,200}$'),
  kind text not null default 'chat' constraint models_kind_check check (kind in ('chat', 'embedding', 'transcription', 'speech', 'image')),
  context_window integer constraint models_context_window_check check (context_window > 0),
  output_limit integer constraint models_output_limit_check check (output_limit > 0),
  dimensions integer constraint models_dimensions_check check (dimensions between 1 and 4000),
  input_price numeric constraint models_input_price_check check (input_price >= 0),
  cached_price numeric constraint models_cached_price_check check (cached_price >= 0),
  cache_write_price numeric constraint models_cache_write_price_check check (cache_write_price >= 0),
  output_price numeric constraint models_output_price_check check (output_price >= 0),
  priced_on date,
  options jsonb not null default '{}' constraint models_options_check check (jsonb_typeof(options) = 'object'),
  primary key (provider_id, name),
  constraint models_provider_fkey foreign key (provider_id) references helper.providers (id) on delete cascade
);
comment on table helper.models is 'Models that somebody has set up; what they leave open is taken from model_catalog';
comment on column helper.models.provider_id is 'The provider';
comment on column helper.models.name is 'The provider''s name for it';
comment on column helper.models.kind is 'What it does: chat, embedding, transcription, speech or image';
comment on column helper.models.context_window is 'Tokens of prompt and reply together';
comment on column helper.models.output_limit is 'Tokens of a reply at most';
comment on column helper.models.dimensions is 'Numbers in an embedding';
comment on column helper.models.input_price is 'Price of a million tokens of prompt';
comment on column helper.models.cached_price is 'Price of a million tokens of prompt that come from the provider''s cache';
comment on column helper.models.cache_write_price is 'Price of a million tokens of prompt that are written to the provider''s cache; null: as others';
comment on column helper.models.output_price is 'Price of a million tokens of reply';
comment on column helper.models.priced_on is 'When the prices were true';
comment on column helper.models.options is 'What else is known: tools, images, json_schema, ...';

create table helper.model_catalog (
  kind text not null,
  name text not null,
  purpose text not null default 'chat',
  context_window integer,
  output_limit integer,
  dimensions integer,
  input_price numeric,
  cached_price numeric,
  cache_write_price numeric,
  output_price numeric,
  options jsonb not null default '{}',
  priced_on date not null,
  primary key (kind, name)
);
comment on table helper.model_catalog is
  'Models that providers publish, with list prices in US dollars; a row of models overrides one. Where long prompts cost more, the price is that of the shorter ones';
comment on column helper.model_catalog.kind is 'Kind of provider';
comment on column helper.model_catalog.name is 'The provider''s name for the model';
comment on column helper.model_catalog.purpose is 'chat, embedding, transcription, speech or image';
comment on column helper.model_catalog.context_window is 'Tokens of prompt and reply together';
comment on column helper.model_catalog.output_limit is 'Tokens of a reply at most';
comment on column helper.model_catalog.dimensions is 'Numbers in an embedding';
comment on column helper.model_catalog.input_price is 'Price of a million tokens of prompt';
comment on column helper.model_catalog.cached_price is 'Price of a million tokens of prompt from the cache';
comment on column helper.model_catalog.cache_write_price is 'Price of a million tokens of prompt that are written to the cache; null: as others';
comment on column helper.model_catalog.output_price is 'Price of a million tokens of reply';
comment on column helper.model_catalog.options is 'What else there is to know of it, as options of helper.set_model';
comment on column helper.model_catalog.priced_on is 'When the prices were last looked up';

insert into helper.model_catalog
  (kind, name, purpose, context_window, output_limit, dimensions, input_price, cached_price, cache_write_price, output_price, options, priced_on)
values
  ('openai', 'gpt-6.2-astra', 'chat', 1050000, 128000, null, 8, 0.4, 10, 40, '{"temperature": false, "tools": false}', '2026-11-18'),
  ('openai', 'gpt-6.2-sol', 'chat', 1050000, 128000, null, 2, 0.1, 2.5, 10, '{"temperature": false, "tool_effort": "none"}', '2026-11-18'),
  ('openai', 'gpt-6.1-sol', 'chat', 1050000, 128000, null, 2, 0.1, 2.5, 10, '{"temperature": false, "tool_effort": "none"}', '2026-11-18'),
  ('openai', 'gpt-6.1-terra', 'chat', 1050000, 128000, null, 1, 0.05, 1.25, 5, '{"temperature": false, "tool_effort": "none"}', '2026-11-18'),
  ('openai', 'gpt-6-astra', 'chat', 1050000, 128000, null, 10, 1, 12.5, 50, '{"temperature": false, "tools": false}', '2026-11-18'),
  ('openai', 'gpt-6-sol', 'chat', 1050000, 128000, null, 2, 0.2, 2.5, 10, '{"temperature": false, "tool_effort": "none"}', '2026-11-18'),
  ('openai', 'gpt-6-luna', 'chat', 1050000, 128000, null, 0.1, 0.01, 0.125, 0.5, '{"temperature": false, "tool_effort": "none"}', '2026-11-18'),
  ('openai', 'gpt-5.4', 'chat', 1050000, 128000, null, 2.5, 0.25, null, 15, '{}', '2026-11-18'),
  ('openai', 'gpt-5.4-mini', 'chat', 400000, 128000, null, 0.75, 0.075, null, 4.5, '{}', '2026-11-18'),
  ('openai', 'gpt-5.4-nano', 'chat', 400000, 128000, null, 0.2, 0.02, null, 1.25, '{}', '2026-11-18'),
  ('openai', 'gpt-5', 'chat', 400000, 128000, null, 1.25, 0.125, null, 10, '{"temperature": false}', '2026-11-18'),
  ('openai', 'gpt-5-mini', 'chat', 400000, 128000, null, 0.25, 0.025, null, 2, '{"temperature": false}', '2026-11-18'),
  ('openai', 'gpt-5-nano', 'chat', 400000, 128000, null, 0.05, 0.005, null, 0.4, '{"temperature": false}', '2026-11-18'),
  ('openai', 'gpt-4.1', 'chat', 1047576, 32768, null, 2, 0.5, null, 8, '{}', '2026-11-18'),
  ('openai', 'gpt-4.1-mini', 'chat', 1047576, 32768, null, 0.4, 0.1, null, 1.6, '{}', '2026-11-18'),
  ('openai', 'gpt-4o', 'chat', 128000, 16384, null, 2.5, 1.25, null, 10, '{}', '2026-11-18'),
  ('openai', 'gpt-4o-mini', 'chat', 128000, 16384, null, 0.15, 0.075, null, 0.6, '{}', '2026-11-18'),
  ('openai', 'text-embedding-3-small', 'embedding', 8192, null, 1536, 0.02, null, null, null, '{}', '2026-11-18'),
  ('openai', 'text-embedding-3-large', 'embedding', 8192, null, 3072, 0.13, null, null, null, '{}', '2026-11-18'),
  ('openai', 'gpt-4o-transcribe', 'transcription', 16000, 2000, null, 2.5, null, null, 10, '{}', '2026-11-18'),
  ('openai', 'gpt-4o-mini-transcribe', 'transcription', 16000, 2000, null, 1.25, null, null, 5, '{}', '2026-11-18'),
  ('openai', 'gpt-4o-mini-tts', 'speech', 2000, null, null, 0.6, null, null, 10, '{}', '2026-11-18'),
  ('anthropic', 'claude-fable-5-1', 'chat', 1000000, 128000, null, 10, 0.25, 12.5, 50, '{"temperature": false}', '2026-11-18'),
  ('anthropic', 'claude-opus-5-5', 'chat', 1000000, 128000, null, 4, 0.2, 5, 20, '{"temperature": false}', '2026-11-18'),
  ('anthropic', 'claude-sonnet-5-5', 'chat', 1000000, 128000, null, 2, 0.1, 2.5, 10, '{"temperature": false}', '2026-11-18'),
  ('anthropic', 'claude-haiku-5-5', 'chat', 1000000, 128000, null, 0.1, 0.01, 0.125, 0.5, '{"temperature": false}', '2026-11-18'),
  ('anthropic', 'claude-opus-5', 'chat', 1000000, 128000, null, 5, 0.5, 6.25, 25, '{"temperature": false}', '2026-11-18'),
  ('anthropic', 'claude-sonnet-5', 'chat', 1000000, 128000, null, 2, 0.2, 2.5, 10, '{"temperature": false}', '2026-11-18'),
  ('anthropic', 'claude-sonnet-4-6', 'chat', 1000000, 128000, null, 3, 0.3, 3.75, 15, '{}', '2026-11-18'),
  ('anthropic', 'claude-haiku-4-5', 'chat', 200000, 64000, null, 1, 0.1, 1.25, 5, '{}', '2026-11-18'),
  ('gemini', 'gemini-4-neon', 'chat', 1048576, 65536, null, 3, 0.15, null, 15, '{}', '2026-11-18'),
  ('gemini', 'gemini-4-argon', 'chat', 1048576, 65536, null, 2, 0.1, null, 10, '{}', '2026-11-18'),
  ('gemini', 'gemini-4-hydrogen', 'chat', 1048576, 65536, null, 1.5, 0.075, null, 7.5, '{}', '2026-11-18'),
  ('gemini', 'gemini-3.8-flash', 'chat', 1048576, 65536, null, 0.75, 0.075, null, 3.75, '{}', '2026-11-18'),
  ('gemini', 'gemini-3.5-flash-lite', 'chat', 1048576, 65536, null, 0.3, 0.03, null, 2.5, '{}', '2026-11-18'),
  ('gemini', 'gemini-2.5-pro', 'chat', 1048576, 65536, null, 1.25, 0.125, null, 10, '{}', '2026-11-18'),
  ('gemini', 'gemini-2.5-flash', 'chat', 1048576, 65536, null, 0.3, 0.03, null, 2.5, '{}', '2026-11-18'),
  ('gemini', 'gemini-embedding-2', 'embedding', 8192, null, 3072, 0.2, null, null, null, '{}', '2026-11-18'),
  ('gemini', 'gemini-embedding-001', 'embedding', 2048, null, 3072, 0.15, null, null, null, '{}', '2026-11-18'),
  ('gemini', 'gemini-3.5-transcribe', 'transcription', 98304, 32768, null, 2, null, null, 12, '{}', '2026-11-18'),
  ('gemini', 'gemini-3.8-flash-tts', 'speech', 8192, 16384, null, 0.5, 0.125, null, 9, '{}', '2026-11-18'),
  ('gemini', 'gemini-nano-banana-2.1', 'image', 131072, 32768, null, 1.5, null, null, 7.5, '{}', '2026-11-18');

-- How many tokens a model's provider counts where we guess one: learned from what it tells, for families whose tokenizer
-- we do not have.
create table helper.token_ratios (
  provider_id uuid not null,
  model text not null,
  ratio real not null constraint token_ratios_ratio_check check (ratio between 0.5 and 2.5),
  primary key (provider_id, model),
  constraint token_ratios_provider_fkey foreign key (provider_id) references helper.providers (id) on delete cascade
);
comment on table helper.token_ratios is 'Tokens of prompts as providers told them, for each that was estimated; smoothed, and learned again after a restore';
comment on column helper.token_ratios.provider_id is 'The provider';
comment on column helper.token_ratios.model is 'Its model';
comment on column helper.token_ratios.ratio is 'Tokens for each that was estimated';

create table helper.model_defaults (
  workspace_id uuid,
  purpose text not null constraint model_defaults_purpose_check check (purpose in ('chat', 'embedding', 'transcription', 'speech', 'image')),
  place integer not null default 1 constraint model_defaults_place_check check (place between 1 and 10),
  provider_id uuid not null,
  model text not null,
  constraint model_defaults_key unique nulls not distinct (workspace_id, purpose, place),
  constraint model_defaults_provider_fkey foreign key (provider_id) references helper.providers (id) on delete cascade
);
comment on table helper.model_defaults is 'Which model is used where a call names none, and which ones take its place when it fails';
comment on column helper.model_defaults.workspace_id is 'Workspace; null: all that have none of their own';
comment on column helper.model_defaults.purpose is 'What for';
comment on column helper.model_defaults.place is '1 is asked first';
comment on column helper.model_defaults.provider_id is 'The provider';
comment on column helper.model_defaults.model is 'Its model';

alter table helper.providers enable row level security;
alter table helper.provider_secrets enable row level security;
alter table helper.models enable row level security;
alter table helper.model_catalog enable row level security;
alter table helper.model_defaults enable row level security;
alter table helper.token_ratios enable row level security;
-- Members have to know what they may ask and what it costs; where a key is, is for those who set it up (see the columns
-- in grants.sql).
create policy providers_select_member on helper.providers for select
  using (workspace_id is null or workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy providers_select_member on helper.providers is 'Members see their workspaces'' providers and those for all';
create policy models_select_member on helper.models for select
  using (exists (select from helper.providers p where p.id = provider_id));
comment on policy models_select_member on helper.models is 'Who sees a provider sees its models';
create policy model_catalog_select_all on helper.model_catalog for select using (true);
comment on policy model_catalog_select_all on helper.model_catalog is 'List prices are public';
create policy model_defaults_select_member on helper.model_defaults for select
  using (workspace_id is null or workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy model_defaults_select_member on helper.model_defaults is 'Members see what their workspaces use';

select pg_catalog.pg_extension_config_dump('helper.providers', '');
select pg_catalog.pg_extension_config_dump('helper.models', '');
select pg_catalog.pg_extension_config_dump('helper.model_defaults', '');

-- Who may change what

create function helper._is_administrator() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select pg_has_role(helper.caller_role(), d.datdba, 'MEMBER')
  from pg_database d
  where d.datname = current_database()
$$;
comment on function helper._is_administrator() is 'Whether the caller''s role is the database''s owner, a member of it, or a superuser';

create function helper._is_superuser() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce((select r.rolsuper from pg_roles r where r.rolname = helper.caller_role()), false)
$$;
comment on function helper._is_superuser() is 'Whether the caller''s role is a superuser';

-- What is looked for by name in a schema that may not exist could be put there by whoever may create schemas, and runs as
-- the extension's owner.
create function helper._is_trusted(owner oid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (
    select
    from pg_roles r
    where r.oid = owner
      and (r.rolsuper or r.oid = (select e.extowner from pg_extension e where e.extname = 'helper_ai')))
$$;
comment on function helper._is_trusted(oid) is 'Whether a role is a superuser or the extension''s owner';

create function helper._has_vault() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (
    select
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.oid = to_regclass('vault.decrypted_secrets') and helper._is_trusted(c.relowner) and helper._is_trusted(n.nspowner))
$$;
comment on function helper._has_vault() is 'Whether there is a vault, and it is nobody''s but a superuser''s';

create function helper._require_keeper(workspace uuid) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if workspace is not null then
    perform helper._require_role(workspace, 'admin');
  elsif not helper._is_administrator() then
    raise exception using
      errcode = '42501',
      message = 'permission denied to change what is for all workspaces',
      hint = 'An administrator of the database may; an admin of a workspace passes workspace => ....';
  end if;
end
$$;
comment on function helper._require_keeper(uuid) is 'Checks that the caller keeps a workspace''s settings, or with null those for all. Errors: 42501, 42704';

create function helper._host(url text) returns text
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp as $$
  select lower(substring(url from '^(https?://[^/]+)'))
$$;
comment on function helper._host(text) is 'Scheme, host and port of an address';

create function helper._check_options(options jsonb, allowed text[], what text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_name text;
begin
  if options is null or jsonb_typeof(options) <> 'object' then
    raise exception using errcode = '22023', message = 'options is not a JSON object';
  end if;
  select k into v_name from jsonb_object_keys(options) k where k <> all (allowed) order by k limit 1;
  if v_name is not null then
    raise exception using
      errcode = '22023',
      message = format('option "%s" of %s does not exist', v_name, what),
      hint = format('Options are %s.', array_to_string(allowed, ', '));
  end if;
end
$$;
comment on function helper._check_options(jsonb, text[], text) is 'Refuses options that nobody reads. Errors: 22023';

create function helper._check_credential(reference text, workspace uuid) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if reference is not null then
    if reference !~ '^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|vault:.+)$' then
      -- Not shown: it may be the key itself.
      raise exception using
        errcode = '22023',
        message = 'credential is not a reference',
        hint = 'Use env:NAME, file:/path or vault:name; a key itself goes into the view helper.provider_keys.';
    end if;
    if reference like 'vault:%' then
      if workspace is not null or not helper._has_vault()
        or not has_table_privilege(helper.caller_role(), to_regclass('vault.decrypted_secrets'), 'select')
      then
        raise exception using
          errcode = '42501',
          message = 'permission denied to use a secret of the vault',
          hint = 'The caller must be able to read a superuser''s vault.decrypted_secrets, and the provider be for all workspaces.';
      end if;
    elsif workspace is not null or not helper._is_superuser() then
      -- Anybody else could send any variable or file to a host of theirs.
      raise exception using
        errcode = '42501',
        message = 'permission denied to refer to the server''s environment and files',
        hint = 'A superuser may; others put the key into the view helper.provider_keys.';
    end if;
  end if;
end
$$;
comment on function helper._check_credential(text, uuid) is 'Refuses a reference to a secret that the caller may not use, for what is a workspace''s or, with null, for all. Errors: 22023, 42501';

create function helper.set_provider(
  name text,
  kind text,
  base_url text default null,
  credential text default null,
  options jsonb default '{}',
  workspace uuid default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_numbers constant text[] := array['max_concurrent', 'requests_per_minute', 'tokens_per_minute', 'connect_timeout_ms', 'first_byte_timeout_ms',
    'idle_timeout_ms', 'timeout_ms', 'max_retries', 'max_reply_bytes'];
  v_flags constant text[] := array['allow_private', 'enabled', 'max_tokens', 'stream_usage', 'json_schema'];
  v_old helper.providers;
  v_id uuid;
  v_url text;
  v_option record;
  v_most numeric;
begin
  perform helper._require_keeper(workspace);
  if set_provider.name is null or set_provider.name !~ '^[a-z0-9][a-z0-9_.-]{0,62}$' or set_provider.name in ('local', 'auto') then
    raise exception using
      errcode = '22023',
      message = format('provider name "%s" is not valid', set_provider.name),
      hint = 'Use at most 63 lower-case letters, digits, "_", "." and "-"; local and auto have a meaning already.';
  end if;
  if set_provider.kind is null or set_provider.kind not in ('openai', 'anthropic', 'gemini', 'ollama', 'openai_compatible') then
    raise exception using
      errcode = '22023',
      message = format('provider kind "%s" is not known', set_provider.kind),
      hint = 'Kinds are openai, anthropic, gemini, ollama and openai_compatible; local needs no setting up.';
  end if;
  v_url := rtrim(coalesce(set_provider.base_url, case set_provider.kind
    when 'openai' then 'https://api.openai.com/v1'
    when 'anthropic' then 'https://api.anthropic.com'
    when 'gemini' then 'https://generativelanguage.googleapis.com'
    when 'ollama' then 'http://127.0.0.1:11434'
  end), '/');
  if v_url is null then
    raise exception using errcode = '22023', message = 'base_url must be given for kind openai_compatible';
  end if;
  if v_url !~ '^https?://[^/?#@[:space:]]+(/[^?#[:space:]]*)?$' then
    raise exception using
      errcode = '22023',
      message = 'base_url is not valid',
      hint = 'It is http or https, a host and perhaps a path, with no user, query or fragment.';
  end if;
  perform helper._check_options(set_provider.options, v_numbers || v_flags || array['num_ctx'], 'a provider');
  for v_option in select o.key, o.value from jsonb_each(set_provider.options) o loop
    if v_option.key = any (v_flags) and jsonb_typeof(v_option.value) <> 'boolean'
      or v_option.key <> all (v_flags) and jsonb_typeof(v_option.value) <> 'number'
    then
      raise exception using errcode = '22023', message = format('option "%s" of a provider has the wrong type', v_option.key);
    end if;
    continue when v_option.key = any (v_flags);
    -- The gateway is everybody's: no server of one workspace may fill its memory or hold a call for days.
    v_most := case
      when v_option.key = 'max_retries' then 10
      when v_option.key like '%timeout_ms' then 3600000
      when v_option.key = 'max_reply_bytes' and workspace is not null then 33554432
      when v_option.key = 'max_reply_bytes' then 1073741824
      else 1000000000
    end;
    if (v_option.value)::numeric not between 0 and v_most or (v_option.value)::numeric <> trunc((v_option.value)::numeric) then
      raise exception using
        errcode = '22023',
        message = format('option "%s" of a provider is out of range', v_option.key),
        hint = format('Use a whole number up to %s.', v_most);
    end if;
  end loop;
  -- A server of one's own on this machine is meant where its usual address is.
  if workspace is null and set_provider.base_url is null and set_provider.kind = 'ollama' and not set_provider.options ? 'allow_private' then
    options := set_provider.options || '{"allow_private": true}';
  end if;
  if workspace is not null and set_provider.options ? 'allow_private' and (set_provider.options -> 'allow_private')::boolean then
    raise exception using
      errcode = '42501',
      message = 'permission denied to allow private addresses',
      hint = 'An administrator may, for a provider that is for all workspaces.';
  end if;
  perform helper._check_credential(set_provider.credential, set_provider.workspace);
  select p.* into v_old
  from helper.providers p
  where p.workspace_id is not distinct from workspace and p.name = set_provider.name
  for update;
  if found then
    -- A key stays where it was given for, and a new host gets none.
    if helper._host(v_old.base_url) <> helper._host(v_url) or v_old.kind <> set_provider.kind or set_provider.credential is not null then
      delete from helper.provider_secrets s where s.provider_id = v_old.id;
    end if;
    update helper.providers p
    set kind = set_provider.kind,
      base_url = v_url,
      credential = case
        when set_provider.credential is not null then set_provider.credential
        when helper._host(v_old.base_url) = helper._host(v_url) and v_old.kind = set_provider.kind then v_old.credential
      end,
      options = set_provider.options - 'enabled',
      enabled = coalesce((set_provider.options -> 'enabled')::boolean, true),
      updated_at = clock_timestamp()
    where p.id = v_old.id;
    return v_old.id;
  end if;
  insert into helper.providers as p (workspace_id, name, kind, base_url, credential, options, enabled, created_by)
  values (workspace, set_provider.name, set_provider.kind, v_url, set_provider.credential, set_provider.options - 'enabled',
    coalesce((set_provider.options -> 'enabled')::boolean, true), helper.current_user_id())
  returning p.id into v_id;
  return v_id;
end
$$;
comment on function helper.set_provider(text, text, text, text, jsonb, uuid) is
  'Sets up or changes a provider, for all workspaces (administrators) or one (its admins), and returns its id. credential is env:NAME or file:/path (superusers) or vault:name; a key itself goes into the view provider_keys. options: max_concurrent, requests_per_minute, tokens_per_minute, timeout_ms, connect_timeout_ms, first_byte_timeout_ms, idle_timeout_ms, max_retries, max_reply_bytes, allow_private, enabled, max_tokens, stream_usage, json_schema, num_ctx. Errors: 22023, 42501, 42704';

create function helper.remove_provider(name text, workspace uuid default null) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._require_keeper(workspace);
  delete from helper.providers p
  where p.workspace_id is not distinct from workspace and p.name = remove_provider.name;
  if not found then
    raise exception using errcode = '42704', message = format('provider "%s" does not exist', remove_provider.name);
  end if;
end
$$;
comment on function helper.remove_provider(text, uuid) is
  'Removes a provider with its models, defaults and key; what it was used for stays recorded. Errors: 42501, 42704';

-- Keys come in as rows and never go out: COPY and insert leave nothing in a log of statements but parameters, and COPY
-- not even those.

create view helper.provider_keys with (security_barrier) as
  select p.workspace_id as workspace, p.name as provider, null::text as key
  from helper.providers p
  where false;
comment on view helper.provider_keys is
  'Takes keys of providers and shows none: copy helper.provider_keys (provider, key) from stdin, or insert; for workspace admins and administrators';
comment on column helper.provider_keys.workspace is 'Workspace whose provider it is; null: one that is for all';
comment on column helper.provider_keys.provider is 'Name of the provider';
comment on column helper.provider_keys.key is 'The key; null removes it';

-- COPY adds the line that it reads to an error, and the server's log the statement: both may hold the key.
create function helper._refuse(sqlstate text, message text, detail text, hint text) returns void
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'refuse_wrapper';
comment on function helper._refuse(text, text, text, text) is 'Raises an error that says neither where it happened nor in which statement';

-- No handler here: the subtransaction that it begins would be told of in the log, by debug5, with the line.
create function helper._keep_key() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_provider helper.providers;
begin
  if new.workspace is null then
    if not helper._is_administrator() then
      perform helper._refuse('42501', 'permission denied to give keys to providers that are for all workspaces', null,
        'An administrator of the database may; an admin of a workspace fills the column workspace.');
    end if;
  elsif not helper.is_member(new.workspace, 'admin') then
    if helper.is_member(new.workspace) then
      perform helper._refuse('42501', format('permission denied for workspace "%s"', new.workspace), 'That needs the role admin.', null);
    end if;
    perform helper._refuse('42704', format('workspace "%s" does not exist', new.workspace), null, null);
  end if;
  select p.* into v_provider
  from helper.providers p
  where p.workspace_id is not distinct from new.workspace and p.name = new.provider
  for update;
  if not found then
    -- Not shown: it may be the key, where the columns were given in another order.
    perform helper._refuse('42704', 'the provider does not exist', null,
      'Set it up with helper.set_provider; for a workspace''s own, fill the column workspace too.');
  end if;
  if new.key is null then
    delete from helper.provider_secrets s where s.provider_id = v_provider.id;
    return new;
  end if;
  if new.key !~ '^[!-~]+$' or char_length(new.key) > 4096 then
    perform helper._refuse('22023', 'key is not valid', 'A key has 1 to 4096 visible ASCII characters and no spaces.', null);
  end if;
  update helper.providers p set credential = null, updated_at = clock_timestamp() where p.id = v_provider.id;
  insert into helper.provider_secrets (provider_id, host, secret)
  values (v_provider.id, helper._host(v_provider.base_url), new.key)
  on conflict (provider_id) do update set host = excluded.host, secret = excluded.secret, updated_at = clock_timestamp();
  return new;
end
$$;
comment on function helper._keep_key() is 'Keeps a key that was inserted into provider_keys. Errors: 22023, 42501, 42704';
create trigger provider_keys_keep instead of insert on helper.provider_keys
  for each row execute function helper._keep_key();
