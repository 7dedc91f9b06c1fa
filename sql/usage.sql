-- What calls cost: a record for each, however it ended, written by the worker from the gateway's account of it; and
-- budgets, which a call must fit into before it is sent.

create table helper.usage_records (
  workspace_id uuid not null,
  id uuid not null,
  user_id uuid,
  conversation_id uuid,
  message_id uuid,
  purpose text not null,
  provider_id uuid,
  own_provider boolean not null default false,
  provider text not null,
  model text not null,
  status text not null constraint usage_records_status_check check (status in ('succeeded', 'failed', 'cancelled', 'interrupted')),
  input_tokens bigint not null default 0,
  cached_tokens bigint not null default 0,
  cache_written_tokens bigint not null default 0,
  output_tokens bigint not null default 0,
  estimated boolean not null default false,
  cost numeric(20, 9) not null default 0,
  latency_ms bigint not null default 0,
  first_token_ms bigint,
  attempts integer not null default 1,
  sqlstate text,
  error text,
  request_id text,
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id)
);
create index usage_records_workspace_id_created_at_idx on helper.usage_records (workspace_id, created_at);
create index usage_records_user_id_created_at_idx on helper.usage_records (user_id, created_at);
create index usage_records_created_at_idx on helper.usage_records (created_at);
create index usage_records_message_id_idx on helper.usage_records (message_id) where message_id is not null;
comment on table helper.usage_records is 'Every call of a model, whole, failed, cancelled or broken off';
comment on column helper.usage_records.workspace_id is 'Workspace that it is charged to';
comment on column helper.usage_records.id is 'Identifier of the call';
comment on column helper.usage_records.user_id is 'Who asked';
comment on column helper.usage_records.conversation_id is 'The conversation; no foreign key, so that it outlives it';
comment on column helper.usage_records.message_id is 'The reply';
comment on column helper.usage_records.purpose is 'What for: ask, complete, embed, ...';
comment on column helper.usage_records.provider_id is 'The provider; no foreign key, so that it outlives it';
comment on column helper.usage_records.own_provider is 'It is the workspace''s own, so that budgets for all workspaces are not about it';
comment on column helper.usage_records.provider is 'Its name then';
comment on column helper.usage_records.model is 'The model';
comment on column helper.usage_records.status is 'succeeded, failed, cancelled (the asker went away) or interrupted (the provider broke off)';
comment on column helper.usage_records.input_tokens is 'Tokens of the prompt, cached ones included';
comment on column helper.usage_records.cached_tokens is 'Of these, tokens from the provider''s cache';
comment on column helper.usage_records.cache_written_tokens is 'Of the prompt, tokens that were written to the provider''s cache';
comment on column helper.usage_records.output_tokens is 'Tokens of the reply, reasoning included';
comment on column helper.usage_records.estimated is 'Whether the tokens were counted here, as the provider did not say';
comment on column helper.usage_records.cost is 'Cost at the model''s prices then';
comment on column helper.usage_records.latency_ms is 'Milliseconds in all';
comment on column helper.usage_records.first_token_ms is 'Milliseconds until the first word';
comment on column helper.usage_records.attempts is 'Requests that were sent';
comment on column helper.usage_records.sqlstate is 'Kind of the error';
comment on column helper.usage_records.error is 'Message of the error';
comment on column helper.usage_records.request_id is 'The provider''s id of it, for its support';
comment on column helper.usage_records.created_at is 'When it began';

create table helper.budgets (
  workspace_id uuid,
  id uuid not null default helper.uuid_v7(),
  user_id uuid,
  each_user boolean not null default false,
  period text not null constraint budgets_period_check check (period in ('day', 'month')),
  unit text not null constraint budgets_unit_check check (unit in ('tokens', 'money', 'requests')),
  amount numeric not null constraint budgets_amount_check check (amount >= 0 and amount <= 1000000000000),
  created_by uuid,
  created_at timestamptz not null default clock_timestamp(),
  primary key (id),
  constraint budgets_key unique nulls not distinct (workspace_id, user_id, each_user, period, unit),
  constraint budgets_each_user_check check (not (each_user and user_id is not null))
);
comment on table helper.budgets is 'What a workspace, or all of them together, and their people may use in a day or month, by UTC';
comment on column helper.budgets.workspace_id is 'The workspace; null: an administrator''s, for all of them together';
comment on column helper.budgets.id is 'Identifier';
comment on column helper.budgets.user_id is 'The person it binds; null: see each_user';
comment on column helper.budgets.each_user is 'Whether it binds each person alone rather than all together';
comment on column helper.budgets.period is 'day or month';
comment on column helper.budgets.unit is 'tokens (of prompt and reply), money or requests';
comment on column helper.budgets.amount is 'How much';
comment on column helper.budgets.created_by is 'Who set it';
comment on column helper.budgets.created_at is 'When it was set';

-- Whoever may delete a workspace must not get a budget of all workspaces back with it. Days are enough: every period
-- begins with one.
create table helper.usage_deleted (
  user_id uuid,
  day date not null,
  requests bigint not null,
  tokens numeric not null,
  cost numeric not null,
  constraint usage_deleted_key unique nulls not distinct (user_id, day)
);
comment on table helper.usage_deleted is 'What was used of providers for all in workspaces that are deleted, summed up, for budgets that are for all workspaces; kept for two months';
comment on column helper.usage_deleted.user_id is 'Who asked';
comment on column helper.usage_deleted.day is 'Day, by UTC';
comment on column helper.usage_deleted.requests is 'Calls';
comment on column helper.usage_deleted.tokens is 'Tokens of prompts and replies';
comment on column helper.usage_deleted.cost is 'Cost at the models'' prices then';

create function helper._keep_deleted_usage() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from helper.usage_deleted d where d.day < (clock_timestamp() at time zone 'UTC')::date - 62;
  insert into helper.usage_deleted as d (user_id, day, requests, tokens, cost)
  select r.user_id, (r.created_at at time zone 'UTC')::date, count(*), sum(r.input_tokens + r.output_tokens), sum(r.cost)
  from gone r
  where not r.own_provider and r.created_at > (select clock_timestamp() - interval '62 days')
  group by 1, 2
  -- Two that delete at once take the rows in the same order.
  order by 1, 2
  on conflict on constraint usage_deleted_key do update
  set requests = d.requests + excluded.requests, tokens = d.tokens + excluded.tokens, cost = d.cost + excluded.cost;
  return null;
end
$$;
comment on function helper._keep_deleted_usage() is 'Keeps sums of the records that are deleted with their workspace';
create trigger usage_records_keep_deleted after delete on helper.usage_records
  referencing old table as gone for each statement execute function helper._keep_deleted_usage();

alter table helper.usage_deleted enable row level security;
alter table helper.usage_records enable row level security;
alter table helper.budgets enable row level security;
create policy usage_records_select_self on helper.usage_records for select
  using (user_id = (select helper.current_user_id()) and workspace_id = any ((select helper.my_workspaces())::uuid[]));
comment on policy usage_records_select_self on helper.usage_records is 'People see what they used';
create policy usage_records_select_admin on helper.usage_records for select
  using (workspace_id = any ((select helper.my_workspaces('admin'))::uuid[]));
comment on policy usage_records_select_admin on helper.usage_records is 'Admins see what their workspaces used';
create policy budgets_select_member on helper.budgets for select
  using (workspace_id = any ((select helper.my_workspaces())::uuid[])
    and (user_id is null or user_id = (select helper.current_user_id())));
comment on policy budgets_select_member on helper.budgets is 'Members see the budgets that bind them';
create policy budgets_select_admin on helper.budgets for select
  using (workspace_id = any ((select helper.my_workspaces('admin'))::uuid[]));
comment on policy budgets_select_admin on helper.budgets is 'Admins see all budgets of their workspaces';
-- What all workspaces together may use is told to nobody else: what is left of it says what strangers use.
create policy budgets_select_bound on helper.budgets for select
  using (workspace_id is null and (each_user or user_id = (select helper.current_user_id())));
comment on policy budgets_select_bound on helper.budgets is 'People see what they may use over all workspaces';
create policy budgets_select_administrator on helper.budgets for select
  using (workspace_id is null and (
    select pg_catalog.pg_has_role(helper.caller_role(), d.datdba, 'MEMBER')
    from pg_catalog.pg_database d
    where d.datname = pg_catalog.current_database()));
comment on policy budgets_select_administrator on helper.budgets is 'Administrators see the budgets for all workspaces';

select pg_catalog.pg_extension_config_dump('helper.usage_records', '');
select pg_catalog.pg_extension_config_dump('helper.usage_deleted', '');
select pg_catalog.pg_extension_config_dump('helper.budgets', '');

create function helper.set_budget(
  amount numeric,
  unit text default 'tokens',
  period text default 'month',
  user_id uuid default null,
  each_user boolean default false,
  workspace uuid default null
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform helper._require_keeper(workspace);
  if unit is null or unit not in ('tokens', 'money', 'requests') then
    raise exception using errcode = '22023', message = format('unit "%s" is not known', unit), hint = 'Units are tokens, money and requests.';
  end if;
  if period is null or period not in ('day', 'month') then
    raise exception using errcode = '22023', message = format('period "%s" is not known', period), hint = 'Periods are day and month.';
  end if;
  if amount < 0 or amount > 1000000000000 or amount = 'NaN' then
    raise exception using errcode = '22023', message = 'amount is out of range', hint = 'Use 0 to a million million, or null for no budget.';
  end if;
  if coalesce(each_user, false) and user_id is not null then
    raise exception using errcode = '22023', message = 'a budget is for one person or for each, not both';
  end if;
  delete from helper.budgets b
  where b.workspace_id is not distinct from workspace
    and b.user_id is not distinct from set_budget.user_id
    and b.each_user = coalesce(set_budget.each_user, false)
    and b.period = set_budget.period
    and b.unit = set_budget.unit;
  if amount is not null then
    insert into helper.budgets (workspace_id, user_id, each_user, period, unit, amount, created_by)
    values (workspace, set_budget.user_id, coalesce(set_budget.each_user, false), set_budget.period, set_budget.unit, set_budget.amount,
      helper.current_user_id());
  end if;
end
$$;
comment on function helper.set_budget(numeric, text, text, uuid, boolean, uuid) is
  'Limits what a workspace (its admins) or all of them together (workspace null, administrators; of providers that are for all), a person or each person may use in a day or month (UTC), in tokens, money or requests; amount null lifts the limit. Errors: 22023, 42501, 42704';

-- Budgets that bind a call, with what is used of each as far as it is recorded. What is under way is counted in shared
-- memory, which this fills when a budget is first asked for.
create function helper._budgets(workspace uuid, person uuid)
returns table (id uuid, for_all boolean, each_user boolean, user_id uuid, unit text, amount numeric, period text, began timestamptz, renews timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select b.id, b.workspace_id is null, b.each_user, b.user_id, b.unit, b.amount, b.period, p.began at time zone 'UTC',
    (p.began + ('1 ' || b.period)::interval) at time zone 'UTC'
  from helper.budgets b
  cross join lateral (select date_trunc(b.period, clock_timestamp() at time zone 'UTC') as began) p
  where (b.workspace_id = workspace or b.workspace_id is null)
    and (b.user_id is null or b.user_id = person)
$$;
comment on function helper._budgets(uuid, uuid) is 'Budgets that bind a person''s calls in a workspace';

-- Each branch has an index of its own.
create function helper._used(budget uuid, person uuid, began timestamptz) returns numeric
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_budget helper.budgets;
  v_all boolean;
  v_person uuid;
  v_requests bigint;
  v_tokens numeric;
  v_cost numeric;
begin
  select b.* into v_budget from helper.budgets b where b.id = budget;
  v_all := not v_budget.each_user and v_budget.user_id is null;
  v_person := coalesce(v_budget.user_id, person);
  if v_budget.workspace_id is not null then
    select count(*), sum(u.input_tokens + u.output_tokens), sum(u.cost) into v_requests, v_tokens, v_cost
    from helper.usage_records u
    where u.workspace_id = v_budget.workspace_id and u.created_at >= began
      and (v_all or u.user_id = v_person or v_person is null and u.user_id is null);
  elsif v_all then
    select sum(x.requests), sum(x.tokens), sum(x.cost) into v_requests, v_tokens, v_cost
    from (
      select count(*) as requests, sum(u.input_tokens + u.output_tokens) as tokens, sum(u.cost) as cost
      from helper.usage_records u
      where u.created_at >= began and not u.own_provider
      union all
      select sum(d.requests), sum(d.tokens), sum(d.cost)
      from helper.usage_deleted d
      where d.day >= (began at time zone 'UTC')::date
    ) x;
  else
    select sum(x.requests), sum(x.tokens), sum(x.cost) into v_requests, v_tokens, v_cost
    from (
      select count(*) as requests, sum(u.input_tokens + u.output_tokens) as tokens, sum(u.cost) as cost
      from helper.usage_records u
      where u.created_at >= began and not u.own_provider and (u.user_id = v_person or v_person is null and u.user_id is null)
      union all
      select sum(d.requests), sum(d.tokens), sum(d.cost)
      from helper.usage_deleted d
      where d.day >= (began at time zone 'UTC')::date and d.user_id is not distinct from v_person
    ) x;
  end if;
  return coalesce(case v_budget.unit when 'tokens' then v_tokens when 'money' then v_cost else v_requests end, 0);
end
$$;
comment on function helper._used(uuid, uuid, timestamptz) is 'What is recorded as used of a budget since a time, in its unit';

-- One statement for as many calls as ended meanwhile; one that was recorded before is left alone.
create function helper._record(records jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  insert into helper.usage_records
    (workspace_id, id, user_id, conversation_id, message_id, purpose, provider_id, own_provider, provider, model, status,
      input_tokens, cached_tokens, cache_written_tokens, output_tokens, estimated, cost, latency_ms, first_token_ms, attempts, sqlstate, error,
      request_id, created_at)
  select r.workspace_id, r.id, r.user_id, r.conversation_id, r.message_id, r.purpose, r.provider_id, r.own_provider, r.provider, r.model, r.status,
    r.input_tokens, r.cached_tokens, r.cache_written_tokens, r.output_tokens, r.estimated, r.cost_nanos / 1000000000.0, r.latency_ms,
    r.first_token_ms, r.attempts, r.sqlstate, r.error, r.request_id, to_timestamp(r.began_ms / 1000.0)
  from jsonb_to_recordset(records) r (
    workspace_id uuid, id uuid, user_id uuid, conversation_id uuid, message_id uuid, purpose text, provider_id uuid, own_provider boolean, provider text, model text,
    status text, input_tokens bigint, cached_tokens bigint, cache_written_tokens bigint, output_tokens bigint, estimated boolean,
    cost_nanos numeric, latency_ms bigint, first_token_ms bigint, attempts integer, sqlstate text, error text, request_id text, began_ms bigint)
  on conflict do nothing;
  -- Short prompts are mostly what stands around them. A provider that somebody holds for a change is not waited for:
  -- there are more calls to learn from.
  with told as materialized (
    select r.provider_id, r.model, least(2.5, greatest(0.5, sum(r.input_tokens) / sum(r.guessed_tokens))) as ratio
    from jsonb_to_recordset(records) r (
      provider_id uuid, model text, status text, input_tokens numeric, guessed_tokens numeric, estimated boolean)
    where r.status = 'succeeded' and not r.estimated and r.guessed_tokens >= 100
    group by 1, 2
  ), present as materialized (
    select p.id from helper.providers p where p.id in (select t.provider_id from told t) for key share skip locked
  )
  insert into helper.token_ratios as t (provider_id, model, ratio)
  select o.provider_id, o.model, o.ratio
  from told o
  join present p on p.id = o.provider_id
  on conflict (provider_id, model) do update set ratio = t.ratio + (excluded.ratio - t.ratio) * 0.2;
end
$$;
comment on function helper._record(jsonb) is 'Stores records of calls, a JSON array';

-- What is used of what all share is told to administrators alone, as row-level security tells it of the budgets; of what a
-- workspace shares, to its admins.
create function helper.budget_status(workspace uuid default null)
returns table (id uuid, workspace_id uuid, user_id uuid, each_user boolean, unit text, period text, amount numeric, used numeric, remaining numeric, renews_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.current_workspace(workspace);
  v_me uuid := helper.current_user_id();
  v_is_admin boolean := v_workspace = any (helper.my_workspaces('admin'));
  v_is_administrator boolean := (
    select pg_has_role(helper.caller_role(), d.datdba, 'MEMBER')
    from pg_database d
    where d.datname = current_database());
begin
  return query
    select b.id, b.workspace_id, b.user_id, b.each_user, b.unit, b.period, b.amount, u.used,
      case when u.used is not null then greatest(b.amount - u.used, 0) end,
      (p.began + ('1 ' || b.period)::interval) at time zone 'UTC'
    from helper.budgets b
    cross join lateral (select date_trunc(b.period, clock_timestamp() at time zone 'UTC') as began) p
    cross join lateral (
      select case
        when v_is_admin or b.workspace_id is null or b.each_user or b.user_id is not null
        then helper._used(b.id, v_me, p.began at time zone 'UTC')
      end as used) u
    where case
      when b.workspace_id = v_workspace then v_is_admin or b.user_id is null or b.user_id = v_me
      when b.workspace_id is null then v_is_administrator or b.each_user or b.user_id = v_me
    end
    order by b.id;
end
$$;
comment on function helper.budget_status(uuid) is
  'Budgets of a workspace, and for all of them, that the caller sees: what is recorded as used of each in its day or month, and what remains; of each person''s budget what the caller used, and of one that a workspace shares null unless the caller is its admin. Calls under way are not in it. Errors: 42501, 42704';

create function helper.usage(workspace uuid default null, since timestamptz default null, until timestamptz default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.current_workspace(workspace);
  v_since timestamptz := coalesce(since, date_trunc('month', clock_timestamp() at time zone 'UTC') at time zone 'UTC');
  v_until timestamptz := coalesce(until, 'infinity');
begin
  return (
    with u as materialized (
      select * from helper.usage_records r
      where r.workspace_id = v_workspace and r.created_at >= v_since and r.created_at < v_until
    )
    select jsonb_build_object(
      'workspace_id', v_workspace,
      'since', v_since,
      'until', nullif(v_until, 'infinity'),
      'requests', count(*),
      'failed', count(*) filter (where u.status = 'failed'),
      'cancelled', count(*) filter (where u.status = 'cancelled'),
      'interrupted', count(*) filter (where u.status = 'interrupted'),
      'input_tokens', coalesce(sum(u.input_tokens), 0),
      'cached_tokens', coalesce(sum(u.cached_tokens), 0),
      'cache_written_tokens', coalesce(sum(u.cache_written_tokens), 0),
      'output_tokens', coalesce(sum(u.output_tokens), 0),
      'cost', coalesce(sum(u.cost), 0),
      'users', count(distinct u.user_id),
      'latency_ms', jsonb_build_object(
        'p50', percentile_cont(0.5) within group (order by u.latency_ms),
        'p95', percentile_cont(0.95) within group (order by u.latency_ms)),
      'first_token_ms', jsonb_build_object(
        'p50', percentile_cont(0.5) within group (order by u.first_token_ms),
        'p95', percentile_cont(0.95) within group (order by u.first_token_ms)),
      'by_day', coalesce((select jsonb_agg(to_jsonb(d) order by d.day) from (
        select (x.created_at at time zone 'UTC')::date as day, count(*) as requests, sum(x.input_tokens) as input_tokens,
          sum(x.output_tokens) as output_tokens, sum(x.cost) as cost
        from u x group by 1) d), '[]'),
      'by_model', coalesce((select jsonb_agg(to_jsonb(d) order by d.cost desc, d.provider, d.model) from (
        select x.provider, x.model, count(*) as requests, count(*) filter (where x.status = 'failed') as failed,
          sum(x.input_tokens) as input_tokens, sum(x.output_tokens) as output_tokens, sum(x.cost) as cost,
          percentile_cont(0.5) within group (order by x.latency_ms) as latency_p50,
          percentile_cont(0.95) within group (order by x.latency_ms) as latency_p95,
          percentile_cont(0.5) within group (order by x.first_token_ms) as first_token_p50,
          percentile_cont(0.95) within group (order by x.first_token_ms) as first_token_p95
        from u x group by 1, 2) d), '[]'),
      'by_purpose', coalesce((select jsonb_agg(to_jsonb(d) order by d.purpose) from (
        select x.purpose, count(*) as requests, sum(x.input_tokens) as input_tokens, sum(x.output_tokens) as output_tokens, sum(x.cost) as cost
        from u x group by 1) d), '[]'),
      'by_user', coalesce((select jsonb_agg(to_jsonb(d) order by d.cost desc, d.user_id) from (
        select x.user_id, count(*) as requests, sum(x.input_tokens) as input_tokens, sum(x.output_tokens) as output_tokens, sum(x.cost) as cost
        from u x group by 1) d), '[]'),
      'budgets', coalesce((select jsonb_agg(jsonb_build_object(
          'workspace_id', b.workspace_id, 'unit', b.unit, 'period', b.period, 'amount', b.amount, 'each_user', b.each_user,
          'user_id', b.user_id, 'used', b.used, 'left', b.remaining, 'renews_at', b.renews_at) order by b.id)
        from helper.budget_status(v_workspace) b), '[]'))
    from u);
end
$$;
comment on function helper.usage(uuid, timestamptz, timestamptz) is
  'What a workspace used between two times (since the month began, unless given): totals, latency and time to the first word, by_day, by_model, by_purpose, by_user, and budgets with what is used and left of each now; an admin''s covers everyone, a member''s their own calls. Errors: 42501, 42704';
