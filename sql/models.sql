-- Models: what a provider has, which one is used, and how providers are.

-- Models

create function helper._provider(name text, workspace uuid) returns helper.providers
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_provider helper.providers;
begin
  select p.* into v_provider
  from helper.providers p
  where p.name = _provider.name and (p.workspace_id = workspace or p.workspace_id is null)
  order by p.workspace_id nulls last
  limit 1;
  if not found then
    raise exception using
      errcode = '42704',
      message = format('provider "%s" does not exist', _provider.name),
      hint = 'Set it up with helper.set_provider.';
  end if;
  return v_provider;
end
$$;
comment on function helper._provider(text, uuid) is 'A workspace''s provider of that name, else the one for all. Errors: 42704';

create function helper.set_model(
  provider text,
  model text,
  kind text default 'chat',
  options jsonb default '{}',
  workspace uuid default null
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_provider helper.providers;
  v_known constant text[] := array['context_window', 'output_limit', 'dimensions', 'input_price', 'cached_price', 'cache_write_price', 'output_price'];
  v_price boolean := options ?| array['input_price', 'cached_price', 'cache_write_price', 'output_price'];
begin
  perform helper._require_keeper(workspace);
  select p.* into v_provider
  from helper.providers p
  where p.workspace_id is not distinct from workspace and p.name = set_model.provider;
  if not found then
    raise exception using
      errcode = '42704',
      message = format('provider "%s" does not exist', set_model.provider),
      hint = 'Set it up with helper.set_provider.';
  end if;
  if model is null or model !~ '^[^[:space:]]{1,200}$' then
    raise exception using errcode = '22023', message = 'model is not a name';
  end if;
  if set_model.kind is null or set_model.kind not in ('chat', 'embedding', 'transcription', 'speech', 'image') then
    raise exception using
      errcode = '22023',
      message = format('model kind "%s" is not known', set_model.kind),
      hint = 'Kinds are chat, embedding, transcription, speech and image.';
  end if;
  perform helper._check_options(options, v_known || array['tools', 'images', 'documents', 'json_schema', 'encoding', 'shorten', 'temperature', 'tool_effort'], 'a model');
  if jsonb_typeof(options -> 'temperature') <> 'boolean' then
    raise exception using
      errcode = '22023',
      message = 'option "temperature" of a model has the wrong type',
      hint = 'It is false where the model may not be told a temperature or top_p; the number itself is an option of the call or the mode.';
  end if;
  if jsonb_typeof(options -> 'tool_effort') not in ('string', 'null') then
    raise exception using
      errcode = '22023',
      message = 'option "tool_effort" of a model has the wrong type',
      hint = 'It is the reasoning effort that the model is told where it may call tools, such as none.';
  end if;
  begin
    insert into helper.models as m
      (provider_id, name, kind, context_window, output_limit, dimensions, input_price, cached_price, cache_write_price, output_price, priced_on,
        options)
    values
      (v_provider.id, model, set_model.kind, (options ->> 'context_window')::integer, (options ->> 'output_limit')::integer,
        (options ->> 'dimensions')::integer, (options ->> 'input_price')::numeric, (options ->> 'cached_price')::numeric,
        (options ->> 'cache_write_price')::numeric, (options ->> 'output_price')::numeric, case when v_price then current_date end, options - v_known)
    on conflict (provider_id, name) do update
    set kind = excluded.kind,
      context_window = excluded.context_window,
      output_limit = excluded.output_limit,
      dimensions = excluded.dimensions,
      input_price = excluded.input_price,
      cached_price = excluded.cached_price,
      cache_write_price = excluded.cache_write_price,
      output_price = excluded.output_price,
      priced_on = excluded.priced_on,
      options = excluded.options;
  exception
    when data_exception or check_violation then
      raise exception using
        errcode = '22023',
        message = 'a limit or price of the model is not valid',
        hint = 'Limits are whole numbers above 0, prices are numbers from 0, per million tokens.';
  end;
end
$$;
comment on function helper.set_model(text, text, text, jsonb, uuid) is
  'Says what a provider''s model can do and costs. options: context_window, output_limit, dimensions, input_price, cached_price, cache_write_price, output_price (per million tokens), tools, images, documents, json_schema, encoding, shorten (ask for embeddings of that many dimensions), temperature (false: the model is told neither temperature nor top_p), tool_effort (the reasoning effort that it is told where it may call tools, by OpenAI''s protocol). What is left out comes from model_catalog. Errors: 22023, 42501, 42704';

create function helper.set_default(
  purpose text,
  provider text,
  model text,
  workspace uuid default null,
  fallback text[] default '{}'
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_provider helper.providers;
  v_place integer := 1;
  v_next text;
  v_model text;
  v_kind text;
begin
  perform helper._require_keeper(workspace);
  if purpose is null or purpose not in ('chat', 'embedding', 'transcription', 'speech', 'image') then
    raise exception using
      errcode = '22023',
      message = format('purpose "%s" is not known', purpose),
      hint = 'Purposes are chat, embedding, transcription, speech and image.';
  end if;
  delete from helper.model_defaults d where d.workspace_id is not distinct from workspace and d.purpose = set_default.purpose;
  if provider is null or provider = 'local' then
    return;
  end if;
  if model is null then
    raise exception using errcode = '22023', message = 'model is null';
  end if;
  foreach v_next in array array[provider || '/' || model] || coalesce(fallback, '{}') loop
    v_provider := helper._provider(split_part(v_next, '/', 1), workspace);
    if strpos(v_next, '/') = 0 or v_next ~ '/$' then
      raise exception using
        errcode = '22023',
        message = format('fallback "%s" is not valid', v_next),
        hint = 'Write provider/model.';
    end if;
    v_model := substring(v_next from strpos(v_next, '/') + 1);
    select k.kind into v_kind
    from (
      select m.kind, 1 as place from helper.models m where m.provider_id = v_provider.id and m.name = v_model
      union all
      select c.purpose, 2 from helper.model_catalog c where c.kind = v_provider.kind and c.name = v_model
    ) k
    order by k.place
    limit 1;
    if v_kind <> set_default.purpose then
      raise exception using
        errcode = '22023',
        message = format('model "%s" is for %s, not for %s', v_next, v_kind, set_default.purpose),
        hint = format('Choose a model of kind %s, or correct its kind with helper.set_model.', set_default.purpose);
    elsif v_kind is null then
      if v_provider.workspace_id is distinct from workspace then
        raise exception using errcode = '42704', message = format('model "%s" does not exist', v_next);
      end if;
      insert into helper.models (provider_id, name, kind) values (v_provider.id, v_model, set_default.purpose);
    end if;
    insert into helper.model_defaults (workspace_id, purpose, place, provider_id, model)
    values (workspace, set_default.purpose, v_place, v_provider.id, v_model);
    v_place := v_place + 1;
  end loop;
end
$$;
comment on function helper.set_default(text, text, text, uuid, text[]) is
  'Chooses the model that is used where a call names none, and in fallback (provider/model) those that take its place when it fails; provider null or local goes back to the local one. Errors: 22023, 23514 too many, 42501, 42704';

-- What a call needs to know of who may answer it, best first: read by the library as the owner.
create view helper._routes as
  select
    p.workspace_id,
    p.id as provider_id,
    p.name as provider,
    p.kind,
    p.base_url,
    p.credential,
    s.secret,
    p.options,
    p.enabled,
    k.name as model,
    k.purpose,
    k.context_window,
    k.output_limit,
    k.dimensions,
    round(coalesce(k.input_price, 0) * 1000000)::bigint as input_price,
    round(coalesce(k.cached_price, k.input_price, 0) * 1000000)::bigint as cached_price,
    round(coalesce(k.cache_write_price, k.input_price, 0) * 1000000)::bigint as cache_write_price,
    round(coalesce(k.output_price, 0) * 1000000)::bigint as output_price,
    k.options as model_options,
    coalesce(t.ratio, 1) as token_ratio
  from helper.providers p
  left join helper.provider_secrets s on s.provider_id = p.id and s.host = helper._host(p.base_url)
  cross join lateral (
    select
      m.name,
      m.kind as purpose,
      coalesce(m.context_window, c.context_window) as context_window,
      coalesce(m.output_limit, c.output_limit) as output_limit,
      coalesce(m.dimensions, c.dimensions) as dimensions,
      coalesce(m.input_price, c.input_price) as input_price,
      coalesce(m.cached_price, c.cached_price) as cached_price,
      coalesce(m.cache_write_price, c.cache_write_price) as cache_write_price,
      coalesce(m.output_price, c.output_price) as output_price,
      coalesce(c.options, '{}') || m.options as options
    from helper.models m
    left join helper.model_catalog c on c.kind = p.kind and c.name = m.name
    where m.provider_id = p.id
    union all
    select c.name, c.purpose, c.context_window, c.output_limit, c.dimensions, c.input_price, c.cached_price, c.cache_write_price, c.output_price, c.options
    from helper.model_catalog c
    where c.kind = p.kind
      and not exists (select from helper.models m where m.provider_id = p.id and m.name = c.name)
  ) k
  left join helper.token_ratios t on t.provider_id = p.id and t.model = k.name;
comment on view helper._routes is 'Every model of every provider with what a call of it needs, keys included; for the extension alone';
comment on column helper._routes.workspace_id is 'Workspace whose own the provider is; null: for all';
comment on column helper._routes.provider_id is 'The provider';
comment on column helper._routes.provider is 'Its name';
comment on column helper._routes.kind is 'Its protocol';
comment on column helper._routes.base_url is 'Its address';
comment on column helper._routes.credential is 'Reference to its key';
comment on column helper._routes.secret is 'Its key, where it was given for this host';
comment on column helper._routes.options is 'Its options';
comment on column helper._routes.enabled is 'Whether it is asked';
comment on column helper._routes.model is 'The provider''s name for the model';
comment on column helper._routes.purpose is 'What the model does';
comment on column helper._routes.context_window is 'Tokens of prompt and reply together';
comment on column helper._routes.output_limit is 'Tokens of a reply at most';
comment on column helper._routes.dimensions is 'Numbers in an embedding';
comment on column helper._routes.input_price is 'Price of a million tokens of prompt, in millionths';
comment on column helper._routes.cached_price is 'The same from the cache';
comment on column helper._routes.cache_write_price is 'The same written to the cache';
comment on column helper._routes.output_price is 'The same for the reply';
comment on column helper._routes.model_options is 'What else is known of the model';
comment on column helper._routes.token_ratio is 'Tokens of a prompt for each that is estimated';

create function helper._provider_states()
returns table (id uuid, circuit text, in_flight integer, waiting integer, requests bigint, errors bigint, last_error text,
  retry_seconds bigint, latency_p50 integer, latency_p95 integer, latency_p99 integer)
language c volatile parallel unsafe rows 10 as 'MODULE_PATHNAME', 'provider_states_wrapper';
comment on function helper._provider_states() is 'How the gateway finds the providers that it called. Errors: 55000';

create function helper.provider_health()
returns table (workspace uuid, provider text, kind text, enabled boolean, has_key boolean, state text, in_flight integer, waiting integer,
  requests bigint, errors bigint, last_error text, retry_seconds bigint, latency_p50 integer, latency_p95 integer, latency_p99 integer)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query
    select p.workspace_id, p.name, p.kind, p.enabled,
      p.credential is not null or exists (select from helper.provider_secrets s where s.provider_id = p.id),
      coalesce(s.circuit, 'unused'), coalesce(s.in_flight, 0), coalesce(s.waiting, 0), coalesce(s.requests, 0), coalesce(s.errors, 0),
      s.last_error, s.retry_seconds, s.latency_p50, s.latency_p95, s.latency_p99
    from helper.providers p
    left join helper._provider_states() s on s.id = p.id
    where case
      when p.workspace_id is null then helper._is_administrator()
      else p.workspace_id = any (helper.my_workspaces('admin'))
    end
    order by p.workspace_id nulls first, p.name;
end
$$;
comment on function helper.provider_health() is 'What the view provider_status shows. Errors: 55000';

create view helper.provider_status as
  select * from helper.provider_health();
comment on view helper.provider_status is
  'How providers are, to those who keep them: state (unused, closed: well, open: cooling down, half_open: trying again), requests in flight and waiting, requests and errors since the gateway started, the last error, seconds until the next try, latency in milliseconds';
comment on column helper.provider_status.workspace is 'Workspace whose own it is; null: for all';
comment on column helper.provider_status.provider is 'Its name';
comment on column helper.provider_status.kind is 'Its protocol';
comment on column helper.provider_status.enabled is 'Whether it is asked';
comment on column helper.provider_status.has_key is 'Whether it has a key or a reference to one';
comment on column helper.provider_status.state is 'unused, closed (well), open (cooling down) or half_open (trying again)';
comment on column helper.provider_status.in_flight is 'Requests under way';
comment on column helper.provider_status.waiting is 'Requests that wait for their turn';
comment on column helper.provider_status.requests is 'Requests since the gateway started';
comment on column helper.provider_status.errors is 'Of these, failed';
comment on column helper.provider_status.last_error is 'What went wrong last';
comment on column helper.provider_status.retry_seconds is 'Seconds until it is tried again';
comment on column helper.provider_status.latency_p50 is 'Median of the latency in milliseconds';
comment on column helper.provider_status.latency_p95 is '95th percentile of it';
comment on column helper.provider_status.latency_p99 is '99th percentile of it';
