-- What a definition in one of the application's formats says of its start. It is set up with the workflow, in the same
-- transaction and with the rights that doing so by hand takes, and is changed or taken away by the next version that says
-- something else; one that says nothing leaves what there is.

create function helper._schedule_as_defined(workflow helper.workflows, start jsonb) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_schedule uuid;
begin
  -- With the options that somebody gave it since.
  select s.id into v_schedule
  from helper.workflow_schedules s
  where s.workspace_id = workflow.workspace_id
    and s.workflow_id = workflow.id
    and s.cron = regexp_replace(btrim(start ->> 'cron'), '\s+', ' ', 'g')
    and s.time_zone = start ->> 'time_zone';
  if v_schedule is not null and v_schedule is distinct from workflow.start_id then
    raise exception using errcode = '42710',
      message = format('workflow "%s" is started at "%s" %s already', workflow.name, start ->> 'cron', start ->> 'time_zone'),
      hint = 'Remove that schedule with helper.unschedule_workflow, or have the definition say nothing of its start.';
  end if;
  return coalesce(v_schedule,
    helper.schedule_workflow(workflow.name, start ->> 'cron', start ->> 'time_zone', '{}', workflow.workspace_id));
end
$$;
comment on function helper._schedule_as_defined(helper.workflows, jsonb) is
  'The schedule that a definition speaks of; one that somebody made by hand is not taken for it. Errors: 22023, 42501, 42710';

create function helper._event_as_defined(workflow helper.workflows, start jsonb) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  if exists (
    select
    from helper.workflow_event_triggers t
    where t.workspace_id = workflow.workspace_id and t.workflow_id = workflow.id and t.event = start ->> 'event'
      and t.id is distinct from workflow.start_id)
  then
    raise exception using errcode = '42710',
      message = format('workflow "%s" is started by event "%s" already', workflow.name, start ->> 'event'),
      hint = 'Remove that trigger with helper.remove_trigger, or have the definition say nothing of its start.';
  end if;
  return helper.on_event(workflow.name, start ->> 'event', start ->> 'condition', workflow.workspace_id);
end
$$;
comment on function helper._event_as_defined(helper.workflows, jsonb) is
  'The event that a definition speaks of, with its condition; a trigger that somebody made by hand is not taken for it. Errors: 22023, 42501, 42710';

create function helper._webhook_as_defined(workflow helper.workflows, secret text) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  -- A secret that is only a text signs the body, as GitHub does it.
  v_kind constant text := case when secret not like 'whsec\_%' then 'github' else 'standard' end;
  v_webhook helper.workflow_webhooks;
begin
  select w.* into v_webhook
  from helper.workflow_webhooks w
  where w.workspace_id = workflow.workspace_id and w.workflow_id = workflow.id and w.id = workflow.start_id;
  if not found then
    perform helper.create_webhook(workflow.name, 'definition', v_kind, '{}', workflow.workspace_id);
    select w.* into v_webhook
    from helper.workflow_webhooks w
    where w.workspace_id = workflow.workspace_id and w.workflow_id = workflow.id and w.name = 'definition';
    if secret is not null then
      -- Nobody was told the one that was made.
      perform helper._new_webhook_secret(v_webhook, secret, '0');
    end if;
    return v_webhook.id;
  end if;
  if secret is null or exists (
    select
    from helper.workflow_webhook_secrets s
    where s.workspace_id = v_webhook.workspace_id and s.webhook_id = v_webhook.id and s.purpose = 'signature'
      and s.secret = _webhook_as_defined.secret and s.valid_until = 'infinity')
  then
    return v_webhook.id;
  end if;
  if v_webhook.kind <> v_kind then
    update helper.workflow_webhooks w
    set kind = v_kind
    where w.workspace_id = v_webhook.workspace_id and w.id = v_webhook.id;
    delete from helper.workflow_webhook_secrets s
    where s.workspace_id = v_webhook.workspace_id and s.webhook_id = v_webhook.id;
  end if;
  perform helper._new_webhook_secret(v_webhook, secret, '1 day');
  return v_webhook.id;
end
$$;
comment on function helper._webhook_as_defined(helper.workflows, text) is
  'The endpoint that a definition speaks of, with its secret; a secret that it had before is good for a day longer. Errors: 42710';

create function helper._start_as_defined(workflow helper.workflows, start jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_start constant uuid := case start ->> 'type'
    when 'schedule' then helper._schedule_as_defined(workflow, start)
    when 'event' then helper._event_as_defined(workflow, start)
    when 'webhook' then helper._webhook_as_defined(workflow, start ->> 'secret')
  end;
begin
  if workflow.start_id is not distinct from v_start then
    return;
  end if;
  delete from helper.workflow_schedules s
  where s.workspace_id = workflow.workspace_id and s.workflow_id = workflow.id and s.id = workflow.start_id;
  delete from helper.workflow_event_triggers t
  where t.workspace_id = workflow.workspace_id and t.workflow_id = workflow.id and t.id = workflow.start_id;
  delete from helper.workflow_webhooks w
  where w.workspace_id = workflow.workspace_id and w.workflow_id = workflow.id and w.id = workflow.start_id;
  update helper.workflows w
  set start_id = v_start
  where w.workspace_id = workflow.workspace_id and w.id = workflow.id;
end
$$;
comment on function helper._start_as_defined(helper.workflows, jsonb) is
  'Has a workflow start as its definition says, and no more as the one before said. Errors: 22023, 42501, 42710';
