-- The pack crm: leads on their way to a sale, what was done about them, and what is to be done next.

create table helper.leads (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  contact_id uuid,
  name text not null constraint leads_name_check check (name ~ '[^[:space:]]' and char_length(name) <= 300),
  email text constraint leads_email_check check (email ~ '^[^@[:space:]]+@[^@[:space:]]+$' and char_length(email) <= 320),
  phone text constraint leads_phone_check check (phone ~ '^\+[1-9][0-9]{6,14}$'),
  company text constraint leads_company_check check (char_length(company) <= 300),
  source text constraint leads_source_check check (char_length(source) <= 100),
  stage text not null default 'new' constraint leads_stage_check check (stage in ('new', 'contacted', 'qualified', 'proposal', 'won', 'lost')),
  value numeric(18, 2) constraint leads_value_check check (value >= 0),
  score integer constraint leads_score_check check (score between 0 and 100),
  assigned_to uuid,
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  closed_at timestamptz,
  primary key (workspace_id, id),
  constraint leads_contact_fkey foreign key (workspace_id, contact_id) references helper.contacts (workspace_id, id) on delete set null (contact_id)
);
create index leads_contact_id_idx on helper.leads (contact_id, workspace_id);
comment on table helper.leads is 'People who may become customers';
comment on column helper.leads.workspace_id is 'The workspace';
comment on column helper.leads.id is 'Identifier, in order of creation';
comment on column helper.leads.contact_id is 'The contact that it is about, if there is one';
comment on column helper.leads.name is 'Name';
comment on column helper.leads.email is 'Address';
comment on column helper.leads.phone is 'Phone number in E.164';
comment on column helper.leads.company is 'Company';
comment on column helper.leads.source is 'Where it came from';
comment on column helper.leads.stage is 'new, contacted, qualified, proposal, won or lost';
comment on column helper.leads.value is 'What the sale would bring';
comment on column helper.leads.score is 'How promising it is, 0 to 100; null until score_lead';
comment on column helper.leads.assigned_to is 'Who takes care of it';
comment on column helper.leads.created_by is 'Who added it';
comment on column helper.leads.created_at is 'When it was added';
comment on column helper.leads.updated_at is 'When it last changed';
comment on column helper.leads.closed_at is 'When it was won or lost';
select helper._share_table('helper.leads', 'member', 'admin');

create function helper._close_lead() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  new.updated_at := clock_timestamp();
  new.closed_at := case when new.stage in ('won', 'lost') then coalesce(new.closed_at, clock_timestamp()) end;
  return new;
end
$$;
comment on function helper._close_lead() is 'Sets closed_at with the stage, and updated_at';
create trigger leads_close before update on helper.leads
  for each row execute function helper._close_lead();

create table helper.lead_activities (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  lead_id uuid not null,
  kind text not null constraint lead_activities_kind_check check (kind in ('call', 'email', 'meeting', 'message', 'note', 'stage')),
  content text not null constraint lead_activities_content_check check (content ~ '[^[:space:]]' and char_length(content) <= 20000),
  occurred_at timestamptz not null default clock_timestamp(),
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint lead_activities_lead_fkey foreign key (workspace_id, lead_id) references helper.leads (workspace_id, id) on delete cascade
);
create index lead_activities_lead_id_occurred_at_idx on helper.lead_activities (lead_id, occurred_at);
comment on table helper.lead_activities is 'What was done about leads; added and never changed';
comment on column helper.lead_activities.workspace_id is 'The workspace';
comment on column helper.lead_activities.id is 'Identifier';
comment on column helper.lead_activities.lead_id is 'The lead';
comment on column helper.lead_activities.kind is 'call, email, meeting, message, note or stage';
comment on column helper.lead_activities.content is 'What was done or said';
comment on column helper.lead_activities.occurred_at is 'When it took place';
comment on column helper.lead_activities.created_by is 'Who wrote it down';
comment on column helper.lead_activities.created_at is 'When it was written down';
select helper._share_table('helper.lead_activities', 'member', null);

create table helper.follow_ups (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  lead_id uuid not null,
  title text not null constraint follow_ups_title_check check (title ~ '[^[:space:]]' and char_length(title) <= 500),
  due_at timestamptz not null,
  assigned_to uuid not null default helper.current_user_id(),
  outcome text constraint follow_ups_outcome_check check (char_length(outcome) <= 10000),
  completed_at timestamptz,
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint follow_ups_lead_fkey foreign key (workspace_id, lead_id) references helper.leads (workspace_id, id) on delete cascade
);
create index follow_ups_lead_id_idx on helper.follow_ups (lead_id, workspace_id);
create index follow_ups_due_at_idx on helper.follow_ups (due_at, workspace_id) where completed_at is null;
comment on table helper.follow_ups is 'What is to be done next about leads';
comment on column helper.follow_ups.workspace_id is 'The workspace';
comment on column helper.follow_ups.id is 'Identifier';
comment on column helper.follow_ups.lead_id is 'The lead';
comment on column helper.follow_ups.title is 'What';
comment on column helper.follow_ups.due_at is 'By when';
comment on column helper.follow_ups.assigned_to is 'Who does it';
comment on column helper.follow_ups.outcome is 'What came of it';
comment on column helper.follow_ups.completed_at is 'When it was done';
comment on column helper.follow_ups.created_by is 'Who asked for it';
comment on column helper.follow_ups.created_at is 'When it was asked for';
select helper._share_table('helper.follow_ups', 'member', null);

create function helper.add_lead(
  name text,
  email text default null,
  phone_number text default null,
  company text default null,
  source text default null,
  value numeric default null,
  contact_id uuid default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_lead jsonb;
begin
  insert into helper.leads as l (workspace_id, contact_id, name, email, phone, company, source, value)
  values (v_workspace, add_lead.contact_id, add_lead.name, add_lead.email,
    case when phone_number is not null then helper.contact_phone(phone_number, v_workspace) end,
    add_lead.company, add_lead.source, add_lead.value)
  returning to_jsonb(l) - 'workspace_id' into v_lead;
  return v_lead;
end
$$;
comment on function helper.add_lead(text, text, text, text, text, numeric, uuid, uuid) is
  'Adds a lead.
@param name name of the person
@param email address
@param phone_number phone number, with the country''s code
@param company company
@param source where the lead came from
@param value what the sale would bring
@param contact_id the contact, if the lead is one
Errors: 22023, 23503 no such contact, 23514, 42501, 42704';

create function helper.update_lead(
  lead_id uuid,
  name text default null,
  email text default null,
  phone_number text default null,
  company text default null,
  stage text default null,
  value numeric default null,
  assigned_to uuid default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_before text;
  v_lead jsonb;
begin
  if update_lead.assigned_to is not null and helper.is_colleague(update_lead.assigned_to, v_workspace) is not true then
    raise exception using errcode = '42704', message = format('user "%s" is not a member of the workspace', update_lead.assigned_to);
  end if;
  select l.stage into v_before
  from helper.leads l
  where l.workspace_id = v_workspace and l.id = update_lead.lead_id
  for update;
  if not found then
    raise exception using errcode = '42704', message = format('lead "%s" does not exist', lead_id);
  end if;
  update helper.leads l
  set name = coalesce(update_lead.name, l.name),
    email = coalesce(update_lead.email, l.email),
    phone = case when phone_number is null then l.phone else helper.contact_phone(phone_number, v_workspace) end,
    company = coalesce(update_lead.company, l.company),
    stage = coalesce(update_lead.stage, l.stage),
    value = coalesce(update_lead.value, l.value),
    assigned_to = coalesce(update_lead.assigned_to, l.assigned_to)
  where l.workspace_id = v_workspace and l.id = update_lead.lead_id
  returning to_jsonb(l) - 'workspace_id' into v_lead;
  if update_lead.stage <> v_before then
    insert into helper.lead_activities (workspace_id, lead_id, kind, content)
    values (v_workspace, update_lead.lead_id, 'stage', format('%s → %s', v_before, update_lead.stage));
  end if;
  return v_lead;
end
$$;
comment on function helper.update_lead(uuid, text, text, text, text, text, numeric, uuid, uuid) is
  'Changes a lead; what is not given stays.
@param lead_id the lead
@param name name
@param email address
@param phone_number phone number, with the country''s code
@param company company
@param stage new, contacted, qualified, proposal, won or lost
@param value what the sale would bring
@param assigned_to who takes care of it
Errors: 22023, 23514, 42501, 42704';

create function helper.score_lead(lead_id uuid, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_factors jsonb;
  v_score integer;
begin
  -- Points that add up to 100, each with its reason, so that a person can see why.
  select jsonb_object_agg(f.factor, f.points), sum(f.points) into v_factors, v_score
  from helper.leads l
  cross join lateral (
    select count(*) as activities, max(a.occurred_at) as last_at
    from helper.lead_activities a
    where a.workspace_id = l.workspace_id and a.lead_id = l.id and a.kind <> 'stage'
  ) a
  cross join lateral (values
    ('can_be_reached', case when l.email is not null and l.phone is not null then 15 when l.email is not null or l.phone is not null then 8 else 0 end),
    ('company_known', case when l.company is not null then 10 else 0 end),
    ('value_known', case when l.value > 0 then 15 else 0 end),
    ('stage', case l.stage when 'new' then 0 when 'contacted' then 8 when 'qualified' then 18 when 'proposal' then 25 when 'won' then 25 else 0 end),
    ('activities', least(a.activities, 5)::integer * 3),
    ('recent', case when a.last_at > clock_timestamp() - interval '7 days' then 20 when a.last_at > clock_timestamp() - interval '30 days' then 10 else 0 end)
  ) f (factor, points)
  where l.workspace_id = v_workspace and l.id = score_lead.lead_id;
  if v_score is null then
    raise exception using errcode = '42704', message = format('lead "%s" does not exist', lead_id);
  end if;
  update helper.leads l set score = v_score where l.workspace_id = v_workspace and l.id = score_lead.lead_id;
  return jsonb_build_object('lead_id', lead_id, 'score', v_score, 'factors', v_factors);
end
$$;
comment on function helper.score_lead(uuid, uuid) is
  'Says how promising a lead is, 0 to 100, with the points of each reason: reach, company, value, stage, activities.
@param lead_id the lead
Errors: 42501, 42704';

create function helper.search_leads(
  query text default null,
  stage text default null,
  assigned_to uuid default null,
  "limit" integer default 20,
  workspace uuid default null
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_like text := '%' || regexp_replace(coalesce(query, ''), '([\\%_])', '\\\1', 'g') || '%';
begin
  return (
    select jsonb_build_object('leads', coalesce(jsonb_agg(to_jsonb(f) - 'workspace_id' order by f.score desc nulls last, f.id desc), '[]'))
    from (
      select l.*
      from helper.leads l
      where l.workspace_id = v_workspace
        and (l.name ilike v_like or l.email ilike v_like or l.company ilike v_like or l.phone like v_like)
        and (search_leads.stage is null or l.stage = search_leads.stage)
        and (search_leads.assigned_to is null or l.assigned_to = search_leads.assigned_to)
      order by l.score desc nulls last, l.id desc
      limit least(greatest(coalesce("limit", 20), 1), 100)
    ) f);
end
$$;
comment on function helper.search_leads(text, text, uuid, integer, uuid) is
  'Finds leads, the most promising first.
@param query a part of the name, address, company or phone number
@param stage only those in this stage
@param assigned_to only those that this person takes care of
@param limit how many at most, up to 100
Errors: 42501, 42704';

create function helper.convert_lead(lead_id uuid, value numeric default null, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_lead helper.leads;
  v_contact uuid;
begin
  select l.* into v_lead
  from helper.leads l
  where l.workspace_id = v_workspace and l.id = convert_lead.lead_id
  for update;
  if not found then
    raise exception using errcode = '42704', message = format('lead "%s" does not exist', lead_id);
  end if;
  if v_lead.stage in ('won', 'lost') then
    raise exception using errcode = '55000', message = format('lead is %s already', v_lead.stage);
  end if;
  if v_lead.contact_id is null and v_lead.phone is not null then
    v_contact := helper.contact_for(v_lead.phone, v_workspace);
    update helper.contacts c
    set name = coalesce(c.name, v_lead.name), email = coalesce(c.email, v_lead.email)
    where c.workspace_id = v_workspace and c.id = v_contact;
  end if;
  update helper.leads l
  set stage = 'won', contact_id = coalesce(l.contact_id, v_contact), value = coalesce(convert_lead.value, l.value)
  where l.workspace_id = v_workspace and l.id = v_lead.id
  returning l.* into v_lead;
  insert into helper.lead_activities (workspace_id, lead_id, kind, content)
  values (v_workspace, v_lead.id, 'stage', 'won');
  return to_jsonb(v_lead) - 'workspace_id';
end
$$;
comment on function helper.convert_lead(uuid, numeric, uuid) is
  'Marks a lead as won, and makes a contact of it where it has a phone number.
@param lead_id the lead
@param value what the sale brings
Errors: 23514, 42501, 42704, 55000 won or lost already';

create function helper.create_follow_up(
  lead_id uuid,
  title text,
  due_at timestamptz,
  assigned_to uuid default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_follow_up jsonb;
begin
  if create_follow_up.assigned_to is not null and helper.is_colleague(create_follow_up.assigned_to, v_workspace) is not true then
    raise exception using errcode = '42704', message = format('user "%s" is not a member of the workspace', create_follow_up.assigned_to);
  end if;
  insert into helper.follow_ups as f (workspace_id, lead_id, title, due_at, assigned_to)
  values (v_workspace, create_follow_up.lead_id, create_follow_up.title, create_follow_up.due_at,
    coalesce(create_follow_up.assigned_to, helper.current_user_id()))
  returning to_jsonb(f) - 'workspace_id' into v_follow_up;
  return v_follow_up;
end
$$;
comment on function helper.create_follow_up(uuid, text, timestamptz, uuid, uuid) is
  'Notes what is to be done next about a lead.
@param lead_id the lead
@param title what
@param due_at by when, in ISO 8601 with a time zone
@param assigned_to who does it; the caller unless given
Errors: 23503 no such lead, 23514, 42501, 42704';

create function helper.complete_follow_up(follow_up_id uuid, outcome text default null, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_follow_up jsonb;
begin
  update helper.follow_ups f
  set completed_at = coalesce(f.completed_at, clock_timestamp()), outcome = coalesce(complete_follow_up.outcome, f.outcome)
  where f.workspace_id = v_workspace and f.id = follow_up_id
  returning to_jsonb(f) - 'workspace_id' into v_follow_up;
  if not found then
    raise exception using errcode = '42704', message = format('follow-up "%s" does not exist', follow_up_id);
  end if;
  return v_follow_up;
end
$$;
comment on function helper.complete_follow_up(uuid, text, uuid) is
  'Ticks off what was to be done about a lead.
@param follow_up_id the follow-up
@param outcome what came of it
Errors: 23514, 42501, 42704';

create function helper.list_follow_ups(
  assigned_to uuid default null,
  lead_id uuid default null,
  overdue boolean default false,
  "limit" integer default 20,
  workspace uuid default null
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
begin
  return (
    select jsonb_build_object('follow_ups', coalesce(jsonb_agg(to_jsonb(x) - 'workspace_id' order by x.due_at, x.id), '[]'))
    from (
      select f.*, l.name as lead, f.due_at <= clock_timestamp() as overdue
      from helper.follow_ups f
      join helper.leads l on l.workspace_id = f.workspace_id and l.id = f.lead_id
      where f.workspace_id = v_workspace
        and f.completed_at is null
        and (list_follow_ups.assigned_to is null or f.assigned_to = list_follow_ups.assigned_to)
        and (list_follow_ups.lead_id is null or f.lead_id = list_follow_ups.lead_id)
        and (list_follow_ups.overdue is not true or f.due_at <= clock_timestamp())
      order by f.due_at, f.id
      limit least(greatest(coalesce("limit", 20), 1), 100)
    ) x);
end
$$;
comment on function helper.list_follow_ups(uuid, uuid, boolean, integer, uuid) is
  'What is to be done about leads, the next first.
@param assigned_to only what this person does
@param lead_id only about this lead
@param overdue only what should have been done by now
@param limit how many at most, up to 100
Errors: 42501, 42704';

create function helper.log_activity(
  lead_id uuid,
  kind text,
  content text,
  occurred_at timestamptz default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_activity jsonb;
begin
  insert into helper.lead_activities as a (workspace_id, lead_id, kind, content, occurred_at)
  values (v_workspace, log_activity.lead_id, log_activity.kind, log_activity.content, coalesce(log_activity.occurred_at, clock_timestamp()))
  returning to_jsonb(a) - 'workspace_id' into v_activity;
  return v_activity;
end
$$;
comment on function helper.log_activity(uuid, text, text, timestamptz, uuid) is
  'Writes down what was done about a lead.
@param lead_id the lead
@param kind call, email, meeting, message or note
@param content what was done or said
@param occurred_at when it took place; now unless given
Errors: 23503 no such lead, 23514, 42501, 42704';

create function helper.get_pipeline(workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
begin
  return (
    select jsonb_build_object(
      'stages', jsonb_agg(jsonb_build_object('stage', s.stage, 'leads', s.leads, 'value', s.value, 'average_score', s.score) order by s.place),
      'open_value', coalesce(sum(s.value) filter (where s.stage not in ('won', 'lost')), 0),
      'win_rate', round(sum(s.leads) filter (where s.stage = 'won') / nullif(sum(s.leads) filter (where s.stage in ('won', 'lost')), 0), 4))
    from (
      select n.stage, n.place, count(l.id) as leads, coalesce(sum(l.value), 0) as value, round(avg(l.score)) as score
      from unnest(array['new', 'contacted', 'qualified', 'proposal', 'won', 'lost']) with ordinality n (stage, place)
      left join helper.leads l on l.workspace_id = v_workspace and l.stage = n.stage
      group by n.stage, n.place
    ) s);
end
$$;
comment on function helper.get_pipeline(uuid) is
  'Leads in each stage, how many and what they would bring.
Errors: 42501, 42704';

create function helper.get_ai_insights(
  data_source text default 'all',
  period text default 'week',
  focus_area text default null,
  workspace uuid default null
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_length interval;
  v_now timestamptz := clock_timestamp();
  v_like text := '%' || regexp_replace(coalesce(focus_area, ''), '([\\%_])', '\\\1', 'g') || '%';
begin
  if data_source is null or data_source not in ('conversations', 'contacts', 'sales', 'all') then
    raise exception using
      errcode = '22023',
      message = format('data_source "%s" is not known', data_source),
      hint = 'Sources are conversations, contacts, sales and all.';
  end if;
  if period is null or period not in ('day', 'week', 'month', 'quarter') then
    raise exception using errcode = '22023', message = format('period "%s" is not known', period), hint = 'Periods are day, week, month and quarter.';
  end if;
  v_length := case period when 'quarter' then interval '3 months' else ('1 ' || period)::interval end;
  return (
    with change as (
      select n.metric, m.source, n.value as now, b.value as before,
        round((n.value - b.value) * 100 / nullif(b.value, 0), 1) as percent
      from helper.workspace_metrics(v_now - v_length, v_now, v_workspace) n
      join helper.workspace_metrics(v_now - 2 * v_length, v_now - v_length, v_workspace) b on b.metric = n.metric
      join (values
        ('conversations_opened', 'conversations'), ('conversations_closed', 'conversations'), ('messages_received', 'conversations'),
        ('messages_sent', 'conversations'), ('messages_failed', 'conversations'), ('contacts_added', 'contacts'),
        ('leads_added', 'sales'), ('leads_won', 'sales'), ('leads_lost', 'sales'), ('value_won', 'sales')) m (metric, source)
        on m.metric = n.metric
    ), attention as (
      select 'conversations' as source, 'unanswered_conversations' as what, count(*) as number, jsonb_agg(t.id order by t.last_received_at) as ids
      from (
        select t.id, t.last_received_at
        from helper.wa_threads t
        where t.workspace_id = v_workspace
          and t.status = 'open'
          and t.last_received_at < v_now - interval '1 hour'
          and not exists (
            select from helper.wa_outbox o
            where o.workspace_id = t.workspace_id and o.thread_id = t.id and o.created_at > t.last_received_at and o.status not in ('failed', 'cancelled'))
        order by t.last_received_at
        limit 20
      ) t
      union all
      select 'sales', 'leads_without_activity_for_two_weeks', count(*), jsonb_agg(l.id order by l.id)
      from (
        select l.id
        from helper.leads l
        where l.workspace_id = v_workspace
          and l.stage not in ('won', 'lost')
          and l.updated_at < v_now - interval '14 days'
          and not exists (
            select from helper.lead_activities a
            where a.workspace_id = l.workspace_id and a.lead_id = l.id and a.occurred_at > v_now - interval '14 days')
        order by l.value desc nulls last, l.id
        limit 20
      ) l
      union all
      select 'sales', 'overdue_follow_ups', count(*), jsonb_agg(f.id order by f.due_at)
      from (
        select f.id, f.due_at
        from helper.follow_ups f
        where f.workspace_id = v_workspace and f.completed_at is null and f.due_at < v_now
        order by f.due_at
        limit 20
      ) f
      union all
      select 'contacts', 'contacts_without_name', count(*), null
      from helper.contacts c
      where c.workspace_id = v_workspace and c.name is null
    )
    select jsonb_build_object(
      'data_source', data_source, 'period', period,
      'changes', (
        select coalesce(jsonb_agg(to_jsonb(c) - 'source' order by abs(c.percent) desc nulls last, c.metric), '[]')
        from change c
        where data_source in (c.source, 'all') and (c.now, c.before) <> (0, 0) and c.metric ilike v_like),
      'attention', (
        select coalesce(jsonb_agg(jsonb_strip_nulls(to_jsonb(a)) order by a.number desc, a.what), '[]')
        from attention a
        where data_source in (a.source, 'all') and a.number > 0 and a.what ilike v_like)));
end
$$;
comment on function helper.get_ai_insights(text, text, text, uuid) is
  'What changed since the period before, and what waits for somebody: unanswered conversations, quiet leads, overdue follow-ups. Computed from the workspace''s data, for the assistant to put into words.
@param data_source conversations, contacts, sales or all
@param period day, week, month or quarter
@param focus_area only figures with this word in their name, such as leads
Errors: 22023, 42501, 42704';
