-- The pack studio: funnels, and reports on what happened in the workspace.

create table helper.funnels (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  name text not null constraint funnels_name_check check (name ~ '[^[:space:]]' and char_length(name) <= 300),
  description text constraint funnels_description_check check (char_length(description) <= 10000),
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id)
);
comment on table helper.funnels is 'Ways that people go in stages';
comment on column helper.funnels.workspace_id is 'The workspace';
comment on column helper.funnels.id is 'Identifier, in order of creation';
comment on column helper.funnels.name is 'Name';
comment on column helper.funnels.description is 'What it is for';
comment on column helper.funnels.created_by is 'Who made it';
comment on column helper.funnels.created_at is 'When it was made';
select helper._share_table('helper.funnels', 'member', 'admin');

create table helper.funnel_stages (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  funnel_id uuid not null,
  ordinal integer not null constraint funnel_stages_ordinal_check check (ordinal > 0),
  name text not null constraint funnel_stages_name_check check (name ~ '[^[:space:]]' and char_length(name) <= 100),
  primary key (workspace_id, id),
  constraint funnel_stages_ordinal_key unique (funnel_id, ordinal, workspace_id),
  constraint funnel_stages_name_key unique (funnel_id, name, workspace_id),
  constraint funnel_stages_funnel_fkey foreign key (workspace_id, funnel_id) references helper.funnels (workspace_id, id) on delete cascade
);
comment on table helper.funnel_stages is 'Stages of funnels';
comment on column helper.funnel_stages.workspace_id is 'The workspace';
comment on column helper.funnel_stages.id is 'Identifier';
comment on column helper.funnel_stages.funnel_id is 'The funnel';
comment on column helper.funnel_stages.ordinal is 'Place in it, from 1';
comment on column helper.funnel_stages.name is 'Name';
select helper._share_table('helper.funnel_stages', 'member', null);

create table helper.funnel_events (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  funnel_id uuid not null,
  stage_id uuid not null,
  subject text not null constraint funnel_events_subject_check check (subject ~ '[^[:space:]]' and char_length(subject) <= 300),
  occurred_at timestamptz not null default clock_timestamp(),
  created_by uuid not null default helper.current_user_id(),
  primary key (workspace_id, id),
  constraint funnel_events_subject_key unique (stage_id, subject, workspace_id),
  constraint funnel_events_funnel_fkey foreign key (workspace_id, funnel_id) references helper.funnels (workspace_id, id) on delete cascade,
  constraint funnel_events_stage_fkey foreign key (workspace_id, stage_id) references helper.funnel_stages (workspace_id, id) on delete cascade
);
create index funnel_events_funnel_id_occurred_at_idx on helper.funnel_events (funnel_id, occurred_at);
comment on table helper.funnel_events is 'Who reached which stage, first';
comment on column helper.funnel_events.workspace_id is 'The workspace';
comment on column helper.funnel_events.id is 'Identifier';
comment on column helper.funnel_events.funnel_id is 'The funnel';
comment on column helper.funnel_events.stage_id is 'The stage';
comment on column helper.funnel_events.subject is 'Who, as the application knows them';
comment on column helper.funnel_events.occurred_at is 'When they first reached it';
comment on column helper.funnel_events.created_by is 'Who recorded it';
select helper._share_table('helper.funnel_events', 'member', null);

create function helper.create_funnel(name text, stages text[], description text default null, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_funnel uuid;
begin
  if coalesce(cardinality(stages), 0) not between 2 and 20 then
    raise exception using errcode = '22023', message = format('a funnel has 2 to 20 stages, %s were given', coalesce(cardinality(stages), 0));
  end if;
  insert into helper.funnels as f (workspace_id, name, description)
  values (v_workspace, create_funnel.name, create_funnel.description)
  returning f.id into v_funnel;
  insert into helper.funnel_stages (workspace_id, funnel_id, ordinal, name)
  select v_workspace, v_funnel, s.ordinal, btrim(s.name)
  from unnest(stages) with ordinality s (name, ordinal);
  return jsonb_build_object('id', v_funnel, 'name', create_funnel.name, 'stages', to_jsonb(stages));
end
$$;
comment on function helper.create_funnel(text, text[], text, uuid) is
  'Makes a funnel.
@param name name
@param stages names of its stages, in order
@param description what it is for
Errors: 22023, 23502, 23505 two stages of one name, 23514, 42501, 42704';

create function helper.record_funnel_event(
  funnel_id uuid,
  stage text,
  subject text,
  occurred_at timestamptz default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_stage uuid;
begin
  select s.id into v_stage
  from helper.funnel_stages s
  where s.workspace_id = v_workspace and s.funnel_id = record_funnel_event.funnel_id and s.name = record_funnel_event.stage;
  if not found then
    raise exception using errcode = '42704', message = format('funnel "%s" has no stage "%s"', funnel_id, stage);
  end if;
  insert into helper.funnel_events (workspace_id, funnel_id, stage_id, subject, occurred_at)
  values (v_workspace, record_funnel_event.funnel_id, v_stage, record_funnel_event.subject, coalesce(record_funnel_event.occurred_at, clock_timestamp()))
  on conflict on constraint funnel_events_subject_key do nothing;
  return jsonb_build_object('recorded', found);
end
$$;
comment on function helper.record_funnel_event(uuid, text, text, timestamptz, uuid) is
  'Records that somebody reached a stage of a funnel; the first time counts.
@param funnel_id the funnel
@param stage name of the stage
@param subject who, such as a contact''s id
@param occurred_at when; now unless given
Errors: 23502, 23514, 42501, 42704';

create function helper.get_funnel_metrics(funnel_id uuid, start_date date default null, end_date date default null, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_funnel helper.funnels;
begin
  select f.* into v_funnel from helper.funnels f where f.workspace_id = v_workspace and f.id = get_funnel_metrics.funnel_id;
  if not found then
    raise exception using errcode = '42704', message = format('funnel "%s" does not exist', funnel_id);
  end if;
  return (
    select jsonb_build_object('id', v_funnel.id, 'name', v_funnel.name, 'stages', jsonb_agg(jsonb_build_object(
      'stage', c.name,
      'subjects', c.subjects,
      'of_previous', round(c.subjects::numeric / nullif(c.previous, 0), 4),
      'of_first', round(c.subjects::numeric / nullif(c.first, 0), 4)) order by c.ordinal))
    from (
      select s.ordinal, s.name, count(e.id) as subjects,
        lag(count(e.id)) over (order by s.ordinal) as previous,
        first_value(count(e.id)) over (order by s.ordinal) as first
      from helper.funnel_stages s
      left join helper.funnel_events e on e.workspace_id = s.workspace_id
        and e.stage_id = s.id
        and (e.occurred_at at time zone 'UTC')::date between coalesce(start_date, '-infinity') and coalesce(end_date, 'infinity')
      where s.workspace_id = v_workspace and s.funnel_id = v_funnel.id
      group by s.id, s.ordinal, s.name
    ) c);
end
$$;
comment on function helper.get_funnel_metrics(uuid, date, date, uuid) is
  'How many reached each stage of a funnel, and what part of the stage before.
@param funnel_id the funnel
@param start_date first day, by UTC
@param end_date last day
Errors: 42501, 42704';

-- Reports

create function helper.workspace_metrics(since timestamptz, until timestamptz, workspace uuid default null) returns table (metric text, value numeric)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
begin
  return query
    select 'contacts_added', count(*)::numeric
    from helper.contacts c where c.workspace_id = v_workspace and c.created_at >= since and c.created_at < until
    union all
    select 'conversations_opened', count(*)
    from helper.wa_threads t where t.workspace_id = v_workspace and t.created_at >= since and t.created_at < until
    union all
    select 'conversations_closed', count(*)
    from helper.wa_threads t where t.workspace_id = v_workspace and t.closed_at >= since and t.closed_at < until
    union all
    select 'messages_received', count(*)
    from helper.wa_messages m where m.workspace_id = v_workspace and m.sent_at >= since and m.sent_at < until
    union all
    select m.metric, m.value
    from (
      select count(*) filter (where o.sent_at >= since and o.sent_at < until) as sent,
        count(*) filter (where o.status = 'failed' and o.created_at >= since and o.created_at < until) as failed
      from helper.wa_outbox o
      where o.workspace_id = v_workspace and o.kind <> 'submission'
    ) o
    cross join lateral (values ('messages_sent', o.sent::numeric), ('messages_failed', o.failed)) m (metric, value)
    union all
    select m.metric, m.value
    from (
      select count(*) filter (where l.created_at >= since and l.created_at < until) as added,
        count(*) filter (where l.stage = 'won' and l.closed_at >= since and l.closed_at < until) as won,
        count(*) filter (where l.stage = 'lost' and l.closed_at >= since and l.closed_at < until) as lost,
        coalesce(sum(l.value) filter (where l.stage = 'won' and l.closed_at >= since and l.closed_at < until), 0) as value
      from helper.leads l
      where l.workspace_id = v_workspace
    ) l
    cross join lateral (values ('leads_added', l.added::numeric), ('leads_won', l.won), ('leads_lost', l.lost), ('value_won', l.value)) m (metric, value)
    union all
    select 'follow_ups_completed', count(*)
    from helper.follow_ups f where f.workspace_id = v_workspace and f.completed_at >= since and f.completed_at < until
    union all
    select 'products_added', count(*)
    from helper.products p where p.workspace_id = v_workspace and p.created_at >= since and p.created_at < until
    union all
    select 'documents_added', count(*)
    from helper.knowledge_sources s where s.workspace_id = v_workspace and s.created_at >= since and s.created_at < until;
end
$$;
comment on function helper.workspace_metrics(timestamptz, timestamptz, uuid) is
  'Figures of a workspace between two times, as far as the caller sees it: contacts, conversations, messages, leads, follow-ups, products, documents. Errors: 42501, 42704';

create function helper.generate_report(
  report_type text,
  metrics text[] default null,
  format text default 'markdown',
  start_date date default null,
  end_date date default null,
  timezone text default 'UTC',
  workspace uuid default null
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_today date;
  v_start date := start_date;
  v_end date := end_date;
  v_since timestamptz;
  v_until timestamptz;
  v_unknown text;
  v_rows jsonb;
begin
  if format is null or format not in ('markdown', 'json') then
    raise exception using errcode = '22023', message = pg_catalog.format('format "%s" is not known', format), hint = 'Formats are markdown and json.';
  end if;
  if not exists (select from pg_timezone_names z where z.name = timezone) then
    raise exception using errcode = '22023', message = pg_catalog.format('time zone "%s" is not known', timezone), hint = 'Use a name such as Asia/Jakarta.';
  end if;
  v_today := (clock_timestamp() at time zone timezone)::date;
  -- The day, week or month that ended last, unless dates are given.
  case report_type
    when 'daily' then
      v_end := coalesce(v_end, v_today - 1);
      v_start := coalesce(v_start, v_end);
    when 'weekly' then
      v_end := coalesce(v_end, date_trunc('week', v_today)::date - 1);
      v_start := coalesce(v_start, v_end - 6);
    when 'monthly' then
      v_end := coalesce(v_end, date_trunc('month', v_today)::date - 1);
      v_start := coalesce(v_start, date_trunc('month', v_end)::date);
    when 'custom' then
      if v_start is null or v_end is null then
        raise exception using errcode = '22023', message = 'a custom report needs start_date and end_date';
      end if;
    else
      raise exception using
        errcode = '22023',
        message = pg_catalog.format('report_type "%s" is not known', report_type),
        hint = 'Types are daily, weekly, monthly and custom.';
  end case;
  if v_start > v_end then
    raise exception using errcode = '22023', message = 'start_date is after end_date';
  end if;
  v_since := v_start::timestamp at time zone timezone;
  v_until := (v_end + 1)::timestamp at time zone timezone;
  select jsonb_agg(jsonb_build_object('metric', n.metric, 'value', n.value, 'before', b.value) order by coalesce(array_position(metrics, n.metric), n.place))
  into v_rows
  from helper.workspace_metrics(v_since, v_until, v_workspace) with ordinality n (metric, value, place)
  join helper.workspace_metrics((v_start - (v_end - v_start + 1))::timestamp at time zone timezone, v_since, v_workspace) b on b.metric = n.metric
  where metrics is null or n.metric = any (metrics);
  select m into v_unknown from unnest(metrics) m where not v_rows @> jsonb_build_array(jsonb_build_object('metric', m)) is true limit 1;
  if found then
    raise exception using
      errcode = '22023',
      message = pg_catalog.format('metric "%s" does not exist', v_unknown),
      hint = (select pg_catalog.format('Metrics are %s.', string_agg(x.metric, ', ')) from helper.workspace_metrics(v_until, v_until, v_workspace) x);
  end if;
  return jsonb_build_object('report_type', report_type, 'start_date', v_start, 'end_date', v_end, 'timezone', timezone)
    || case format
      when 'json' then jsonb_build_object('metrics', v_rows)
      else jsonb_build_object('content', pg_catalog.format(E'# %s report\n\n%s to %s, %s\n\n| | now | before | change |\n|---|---:|---:|---:|\n%s\n',
        initcap(report_type), v_start, v_end, timezone, (
          select string_agg(pg_catalog.format('| %s | %s | %s | %s |', replace(r.metric, '_', ' '), r.value, r.before,
            coalesce(to_char((r.value - r.before) * 100 / nullif(r.before, 0), 'FMSG999999990') || ' %', '')), E'\n' order by r.place)
          from rows from (jsonb_to_recordset(v_rows) as (metric text, value numeric, before numeric)) with ordinality r (metric, value, before, place))))
    end;
end
$$;
comment on function helper.generate_report(text, text[], text, date, date, text, uuid) is
  'Reports the workspace''s figures over a time, beside the time before.
@param report_type daily, weekly or monthly: the one that ended last; custom: between the dates
@param metrics which figures; all unless given
@param format markdown or json
@param start_date first day
@param end_date last day
@param timezone the time zone whose days these are, such as Asia/Jakarta
Errors: 22023, 42501, 42704';

create table helper.reports (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  title text not null constraint reports_title_check check (title ~ '[^[:space:]]' and char_length(title) <= 300),
  report_type text not null constraint reports_report_type_check check (report_type in ('daily', 'weekly', 'monthly')),
  metrics text[],
  timezone text not null default 'UTC',
  run_at time,
  next_run_at timestamptz,
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id)
);
create index reports_next_run_at_idx on helper.reports (next_run_at) where next_run_at is not null;
comment on table helper.reports is 'Reports that a workspace wants again and again';
comment on column helper.reports.workspace_id is 'The workspace';
comment on column helper.reports.id is 'Identifier, in order of creation';
comment on column helper.reports.title is 'Title';
comment on column helper.reports.report_type is 'daily, weekly or monthly';
comment on column helper.reports.metrics is 'Which figures; null: all';
comment on column helper.reports.timezone is 'The time zone whose days these are';
comment on column helper.reports.run_at is 'Time of day at which it is made; null: when asked for';
comment on column helper.reports.next_run_at is 'When it is due next';
comment on column helper.reports.created_by is 'Who set it up';
comment on column helper.reports.created_at is 'When it was set up';
select helper._share_table('helper.reports', 'member', 'admin');

create table helper.report_editions (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  report_id uuid not null,
  start_date date not null,
  end_date date not null,
  content text not null,
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint report_editions_report_fkey foreign key (workspace_id, report_id) references helper.reports (workspace_id, id) on delete cascade
);
create index report_editions_report_id_idx on helper.report_editions (report_id, id);
comment on table helper.report_editions is 'Reports as they were made';
comment on column helper.report_editions.workspace_id is 'The workspace';
comment on column helper.report_editions.id is 'Identifier, in order of creation';
comment on column helper.report_editions.report_id is 'The report';
comment on column helper.report_editions.start_date is 'First day';
comment on column helper.report_editions.end_date is 'Last day';
comment on column helper.report_editions.content is 'The report, in Markdown';
comment on column helper.report_editions.created_by is 'As whom it was made';
comment on column helper.report_editions.created_at is 'When it was made';
select helper._share_table('helper.report_editions', 'member', null);

create function helper.run_report(report_id uuid, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_report helper.reports;
  v_made jsonb;
  v_edition uuid;
begin
  select r.* into v_report from helper.reports r where r.workspace_id = v_workspace and r.id = run_report.report_id;
  if not found then
    raise exception using errcode = '42704', message = format('report "%s" does not exist', report_id);
  end if;
  v_made := helper.generate_report(v_report.report_type, v_report.metrics, timezone => v_report.timezone, workspace => v_workspace);
  insert into helper.report_editions as e (workspace_id, report_id, start_date, end_date, content)
  values (v_workspace, v_report.id, (v_made ->> 'start_date')::date, (v_made ->> 'end_date')::date, v_made ->> 'content')
  returning e.id into v_edition;
  return jsonb_build_object('report_id', v_report.id, 'edition_id', v_edition) || v_made;
end
$$;
comment on function helper.run_report(uuid, uuid) is
  'Makes a report now, and keeps it.
@param report_id the report
Errors: 42501, 42704';

create function helper.create_report(
  title text,
  report_type text,
  metrics text[] default null,
  timezone text default 'UTC',
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_report uuid;
begin
  insert into helper.reports as r (workspace_id, title, report_type, metrics, timezone)
  values (v_workspace, create_report.title, create_report.report_type, create_report.metrics, create_report.timezone)
  returning r.id into v_report;
  -- Made once at the start, which shows that its figures and time zone are known.
  return jsonb_build_object('title', create_report.title) || helper.run_report(v_report, v_workspace);
end
$$;
comment on function helper.create_report(text, text, text[], text, uuid) is
  'Sets up a report of the workspace''s figures and makes it for the first time.
@param title title
@param report_type daily, weekly or monthly
@param metrics which figures; all unless given
@param timezone the time zone whose days these are, such as Asia/Jakarta
Errors: 22023, 23502, 23514, 42501, 42704';

-- The first time of day after `after` at which a report of its type is due: each day, Mondays, or firsts of a month. Days
-- are counted and not hours, so that it stays the same time of day where clocks change.
create function helper.next_report_at(report_type text, run_at time, timezone text, after timestamptz) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $$
  select min(d.at)
  from (
    select (f.day + run_at) at time zone timezone as at
    from (
      select case report_type
        when 'daily' then (after at time zone timezone)::date + n
        when 'weekly' then date_trunc('week', after at time zone timezone)::date + 7 * n
        else (date_trunc('month', after at time zone timezone) + n * interval '1 month')::date end as day
      from generate_series(0, 1) n
    ) f
  ) d
  where d.at > after
$$;
comment on function helper.next_report_at(text, time, text, timestamptz) is 'When a daily, weekly (Monday) or monthly (the first) report is due next after a time';

create function helper.schedule_report(report_id uuid, run_at time default '09:00', timezone text default null, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_report jsonb;
begin
  if timezone is not null and not exists (select from pg_timezone_names z where z.name = timezone) then
    raise exception using errcode = '22023', message = format('time zone "%s" is not known', timezone), hint = 'Use a name such as Asia/Jakarta.';
  end if;
  update helper.reports r
  set run_at = schedule_report.run_at,
    timezone = coalesce(schedule_report.timezone, r.timezone),
    next_run_at = helper.next_report_at(r.report_type, schedule_report.run_at, coalesce(schedule_report.timezone, r.timezone), clock_timestamp())
  where r.workspace_id = v_workspace and r.id = schedule_report.report_id
  returning to_jsonb(r) - 'workspace_id' into v_report;
  if not found then
    raise exception using errcode = '42704', message = format('report "%s" does not exist', report_id);
  end if;
  return v_report;
end
$$;
comment on function helper.schedule_report(uuid, time, text, uuid) is
  'Has a report made each day, Monday or first of the month, as is its type.
@param report_id the report
@param run_at time of day; null: no longer
@param timezone the time zone''s name, such as Asia/Jakarta; as it is unless given
Errors: 22023, 42501, 42704';

create function helper.run_due_reports(workspace uuid default null) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_report helper.reports;
  v_count integer := 0;
begin
  -- Two at once each take others; one that was due several times is made once, for the time that ended last.
  for v_report in
    select r.*
    from helper.reports r
    where r.workspace_id = v_workspace and r.next_run_at <= (select clock_timestamp())
    order by r.next_run_at
    for update skip locked
  loop
    begin
      perform helper.run_report(v_report.id, v_workspace);
    exception
      when invalid_parameter_value then
        -- Written by hand, with a figure or a time zone that there is not: it must not hold up the others.
        update helper.reports r set next_run_at = null where r.workspace_id = v_workspace and r.id = v_report.id;
        continue;
    end;
    update helper.reports r
    set next_run_at = helper.next_report_at(v_report.report_type, v_report.run_at, v_report.timezone, clock_timestamp())
    where r.workspace_id = v_workspace and r.id = v_report.id;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function helper.run_due_reports(uuid) is
  'Makes the reports of a workspace that are due, as the caller, and returns how many; called again and again by pg_cron or the application, as a member. Errors: 42501, 42704';
