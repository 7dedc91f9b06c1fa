-- Conversations of the pack meta_hub.

create function helper.tag_conversation(thread_id uuid, tags text[], workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_thread jsonb;
begin
  update helper.wa_threads t
  set tags = helper.with_tags(t.tags, tag_conversation.tags)
  where t.workspace_id = v_workspace and t.id = thread_id
  returning to_jsonb(t) - 'workspace_id' into v_thread;
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', thread_id);
  end if;
  return v_thread;
end
$$;
comment on function helper.tag_conversation(uuid, text[], uuid) is
  'Adds tags to a conversation with a contact.
@param thread_id the conversation
@param tags tags to add
Errors: 23514, 42501, 42704';

create function helper.bulk_tag_conversations(conversation_ids uuid[], tags text[], action text, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_missing uuid;
  v_count bigint;
begin
  if action is null or action not in ('add', 'remove', 'replace') then
    raise exception using errcode = '22023', message = format('action "%s" is not known', action), hint = 'Actions are add, remove and replace.';
  end if;
  select i into v_missing
  from unnest(conversation_ids) i
  where not exists (select from helper.wa_threads t where t.workspace_id = v_workspace and t.id = i)
  limit 1;
  if found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', v_missing);
  end if;
  update helper.wa_threads t
  set tags = case action
    when 'add' then helper.with_tags(t.tags, bulk_tag_conversations.tags)
    when 'remove' then helper.with_tags(t.tags, '{}', bulk_tag_conversations.tags)
    else helper.with_tags(bulk_tag_conversations.tags, '{}') end
  where t.workspace_id = v_workspace and t.id = any (conversation_ids);
  get diagnostics v_count = row_count;
  return jsonb_build_object('changed', v_count);
end
$$;
comment on function helper.bulk_tag_conversations(uuid[], text[], text, uuid) is
  'Adds, removes or replaces tags of several conversations with contacts.
@param conversation_ids the conversations
@param tags the tags
@param action add, remove or replace
Errors: 22023, 23514, 42501, 42704';

create function helper.assign_conversation(thread_id uuid, assign_to_user_id uuid, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_thread jsonb;
begin
  if helper.is_colleague(assign_to_user_id, v_workspace) is not true then
    raise exception using errcode = '42704', message = format('user "%s" is not a member of the workspace', assign_to_user_id);
  end if;
  update helper.wa_threads t
  set assigned_to = assign_to_user_id
  where t.workspace_id = v_workspace and t.id = thread_id
  returning to_jsonb(t) - 'workspace_id' into v_thread;
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', thread_id);
  end if;
  return v_thread;
end
$$;
comment on function helper.assign_conversation(uuid, uuid, uuid) is
  'Says who in the workspace answers a conversation with a contact.
@param thread_id the conversation
@param assign_to_user_id who answers
Errors: 42501, 42704';

create function helper.close_conversation(thread_id uuid, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_thread jsonb;
begin
  update helper.wa_threads t
  set status = 'closed', closed_at = coalesce(t.closed_at, clock_timestamp())
  where t.workspace_id = v_workspace and t.id = thread_id
  returning to_jsonb(t) - 'workspace_id' into v_thread;
  if not found then
    raise exception using errcode = '42704', message = format('conversation "%s" does not exist', thread_id);
  end if;
  return v_thread;
end
$$;
comment on function helper.close_conversation(uuid, uuid) is
  'Closes a conversation with a contact; the next message begins another.
@param thread_id the conversation
Errors: 42501, 42704';

create function helper.get_conversation_history(
  phone_number text default null,
  "limit" integer default 50,
  conversation_id uuid default null,
  workspace uuid default null
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_limit integer := least(greatest(coalesce("limit", 50), 1), 200);
  v_contact helper.contacts;
begin
  if (phone_number is null) = (conversation_id is null) then
    raise exception using errcode = '22023', message = 'either phone_number or conversation_id has to be given';
  end if;
  if conversation_id is not null then
    perform from helper.conversations c
    where c.workspace_id = v_workspace and c.id = conversation_id and c.user_id = helper.current_user_id();
    if not found then
      raise exception using errcode = '42704', message = format('conversation "%s" does not exist', conversation_id);
    end if;
    return (
      select jsonb_build_object('messages', coalesce(jsonb_agg(
        jsonb_build_object('from', m.role, 'content', m.content, 'at', m.created_at) order by m.id), '[]'))
      from (
        select x.*
        from helper.messages x
        where x.workspace_id = v_workspace and x.conversation_id = get_conversation_history.conversation_id and x.content <> ''
        order by x.id desc
        limit v_limit
      ) m);
  end if;
  select c.* into v_contact
  from helper.contacts c
  where c.workspace_id = v_workspace and c.phone = helper.contact_phone(phone_number, v_workspace);
  if not found then
    raise exception using errcode = '42704', message = format('no contact has the phone number "%s"', phone_number);
  end if;
  return (
    select jsonb_build_object(
      'contact', to_jsonb(v_contact) - 'workspace_id',
      'messages', coalesce(jsonb_agg(jsonb_strip_nulls(to_jsonb(h)) order by h.at, h.id), '[]'))
    from (
      select x.*
      from (
        (select 'contact' as "from", m.id, m.thread_id, m.kind, m.body as content, m.sent_at as at, null as status
        from helper.wa_threads t
        join helper.wa_messages m on m.workspace_id = t.workspace_id and m.thread_id = t.id
        where t.workspace_id = v_workspace and t.contact_id = v_contact.id
        order by m.sent_at desc
        limit v_limit)
        union all
        (select 'workspace', o.id, o.thread_id, o.kind,
          coalesce(o.body, format('template %s %s', e.name, o.parameters)), coalesce(o.sent_at, o.send_at), o.status
        from helper.wa_outbox o
        left join helper.wa_templates e on e.workspace_id = o.workspace_id and e.id = o.template_id
        where o.workspace_id = v_workspace and o.contact_id = v_contact.id
        order by o.created_at desc
        limit v_limit)
      ) x
      order by x.at desc, x.id desc
      limit v_limit
    ) h);
end
$$;
comment on function helper.get_conversation_history(text, integer, uuid, uuid) is
  'What was said in a conversation: with a contact over WhatsApp, or of the caller with the assistant.
@param phone_number the contact''s phone number
@param limit how many of the latest messages, up to 200
@param conversation_id or a conversation of the caller with the assistant
Errors: 22023, 42501, 42704';

create function helper.get_conversation_analytics(
  start_date date default null,
  end_date date default null,
  group_by text default 'day',
  workspace uuid default null
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_end date := coalesce(end_date, (clock_timestamp() at time zone 'UTC')::date);
  v_start date := coalesce(start_date, v_end - 30);
begin
  if group_by is null or group_by not in ('day', 'week', 'month') then
    raise exception using errcode = '22023', message = format('group_by "%s" is not known', group_by), hint = 'Groups are day, week and month.';
  end if;
  if v_start > v_end or v_end - v_start > 1100 then
    raise exception using errcode = '22023', message = 'start_date is after end_date, or more than three years before it';
  end if;
  return (
    with event as (
      select t.created_at as at, 'opened' as what from helper.wa_threads t where t.workspace_id = v_workspace
      union all
      select t.closed_at, 'closed' from helper.wa_threads t where t.workspace_id = v_workspace and t.closed_at is not null
      union all
      select m.sent_at, 'received' from helper.wa_messages m where m.workspace_id = v_workspace
      union all
      select o.sent_at, 'sent' from helper.wa_outbox o where o.workspace_id = v_workspace and o.kind <> 'submission' and o.sent_at is not null
    ), counted as (
      select date_trunc(group_by, e.at at time zone 'UTC')::date as period,
        count(*) filter (where e.what = 'opened') as opened,
        count(*) filter (where e.what = 'closed') as closed,
        count(*) filter (where e.what = 'received') as received,
        count(*) filter (where e.what = 'sent') as sent
      from event e
      where (e.at at time zone 'UTC')::date between v_start and v_end
      group by 1
    )
    select jsonb_build_object(
      'start_date', v_start, 'end_date', v_end, 'group_by', group_by,
      'opened', coalesce(sum(c.opened), 0), 'closed', coalesce(sum(c.closed), 0),
      'received', coalesce(sum(c.received), 0), 'sent', coalesce(sum(c.sent), 0),
      'open_now', (select count(*) from helper.wa_threads t where t.workspace_id = v_workspace and t.status = 'open'),
      'periods', coalesce(jsonb_agg(to_jsonb(c) order by c.period), '[]'))
    from counted c);
end
$$;
comment on function helper.get_conversation_analytics(date, date, text, uuid) is
  'How many conversations with contacts were opened and closed, and messages received and sent, by UTC.
@param start_date first day; a month ago unless given
@param end_date last day; today unless given
@param group_by day, week or month
Errors: 22023, 42501, 42704';
