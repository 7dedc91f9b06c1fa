-- Who may call and touch what. By convention a function whose name begins with an underscore is for the extension alone;
-- every other one is for users, unless it is listed here as an administrator's. Tables and views are listed here.

create function helper._grant(grantee name, level text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  -- What an application's own policies need, and what says nothing to a caller without identity.
  v_predicates constant text[] := array['caller_claims', 'caller_role', 'current_user_id', 'is_member', 'my_role', 'my_workspaces'];
  v_administrators constant text[] := array['add_mcp_server', 'attach_table', 'detach_table', 'grant_usage', 'pack_vectors', 'refresh_mcp_server', 'register_function', 'remove_mcp_server', 'set_whatsapp_sender', 'status', 'unregister_function', 'use_membership'];
  -- What speaks for the WhatsApp Cloud API, whichever workspace it is about.
  v_services constant text[] := array['claim_whatsapp', 'finish_whatsapp', 'set_whatsapp_number', 'whatsapp_status'];
  v_user_tables constant text[][] := array[
    ['workspaces', 'select, update (name, slug, settings), delete'],
    ['workspace_members', 'select, insert (workspace_id, user_id, role), update (role), delete'],
    ['profiles', 'select, insert (id, email, full_name, avatar_url), update (email, full_name, avatar_url)'],
    ['conversations', 'select, insert (workspace_id, id, user_id, title, metadata), update (title, metadata), delete'],
    ['messages', 'select'],
    ['message_citations', 'select'],
    ['message_attachments', 'select'],
    ['knowledge_sources', 'select'],
    ['knowledge_chunks', 'select'],
    ['attached_tables', 'select'],
    ['knowledge_models', 'select'],
    ['reembed_progress', 'select'],
    ['providers', 'select (id, workspace_id, name, kind, enabled, created_at, updated_at)'],
    ['models', 'select'],
    ['model_catalog', 'select'],
    ['model_defaults', 'select'],
    ['provider_status', 'select'],
    ['provider_keys', 'select, insert'],
    ['usage_records', 'select'],
    ['budgets', 'select'],
    ['modes', 'select'],
    ['functions', 'select (id, function_name, product_slug, description, parameters_schema, requires_confirmation, kind, minimum_role, approver_role, self_approval, lapse, recheck, timeout_ms, idempotent, max_result_bytes, tags, read_only, pack, enabled, created_at, updated_at)'],
    ['function_settings', 'select'],
    ['function_calls', 'select (workspace_id, id, function_id, function_name, user_id, conversation_id, message_id, tool_call_id, run_id, arguments, arguments_hash, status, in_queue, idempotency_key, preview, effect_hash, result, error, approver_role, self_approval, decided_by, decided_at, reason, lapses_at, created_at, started_at, finished_at)'],
    ['conversation_summaries', 'select (workspace_id, conversation_id, content, covers_to, message_count, made_by, updated_at)'],
    ['workflows', 'select (workspace_id, id, name, description, version, enabled, problem, user_id, settings, start_id, created_at, updated_at)'],
    ['workflow_versions', 'select (workspace_id, workflow_id, version, definition, user_id, settings, created_at)'],
    ['workflow_runs', 'select'],
    ['workflow_steps', 'select'],
    ['workflow_limits', 'select'],
    ['workflow_activity', 'select'],
    ['workflow_step_activity', 'select'],
    ['workflow_waiting', 'select'],
    ['workflow_failures', 'select'],
    ['workflow_throughput', 'select'],
    ['workflow_schedules', 'select'],
    ['workflow_event_triggers', 'select'],
    ['workflow_events', 'select'],
    ['workflow_webhooks', 'select'],
    ['workflow_webhook_keys', 'select, insert'],
    ['index_progress', 'select'],
    ['jobs', 'select (workspace_id, id, kind, key, status, attempts, error, created_at, started_at, finished_at)'],
    ['notes', 'select, insert (workspace_id, shared, pinned, title, content, tags), update (shared, pinned, title, content, tags), delete'],
    ['reminders', 'select, insert (workspace_id, title, description, due_at, related_to), update (title, description, due_at, related_to, done_at), delete'],
    ['notifications', 'select, insert (workspace_id, user_id, title, body), update (read_at)'],
    ['wa_numbers', 'select (workspace_id, id, phone_number_id, business_account_id, phone, region, created_at)'],
    ['contacts', 'select, insert (workspace_id, phone, name, email, tags, accepts_broadcasts), update (name, email, tags, accepts_broadcasts), delete'],
    ['wa_threads', 'select, update (status, assigned_to, tags, closed_at)'],
    ['wa_messages', 'select'],
    ['wa_templates', 'select, insert (workspace_id, name, category, language, header, body, footer)'],
    ['wa_broadcasts', 'select, insert (workspace_id, message, template_id, recipient_tags)'],
    ['wa_outbox', 'select, insert (workspace_id, kind, contact_id, template_id, broadcast_id, body, parameters, send_at)'],
    ['leads', 'select, insert (workspace_id, contact_id, name, email, phone, company, source, value), update (contact_id, name, email, phone, company, source, stage, value, score, assigned_to), delete'],
    ['lead_activities', 'select, insert (workspace_id, lead_id, kind, content, occurred_at)'],
    ['follow_ups', 'select, insert (workspace_id, lead_id, title, due_at, assigned_to), update (title, due_at, assigned_to, outcome, completed_at)'],
    ['products', 'select, insert (workspace_id, name, description, price, category, images, stock), update (name, description, price, category, images, stock, active), delete'],
    ['recommendations', 'select, insert (workspace_id, product_id, contact_id, reason)'],
    ['funnels', 'select, insert (workspace_id, name, description), delete'],
    ['funnel_stages', 'select, insert (workspace_id, funnel_id, ordinal, name)'],
    ['funnel_events', 'select, insert (workspace_id, funnel_id, stage_id, subject, occurred_at)'],
    ['reports', 'select, insert (workspace_id, title, report_type, metrics, timezone), update (title, metrics, timezone, run_at, next_run_at), delete'],
    ['report_editions', 'select, insert (workspace_id, report_id, start_date, end_date, content)'],
    ['invitations', 'select, insert (workspace_id, email, role, message), delete']
  ];
  -- A service keeps people and workspaces in step with where they come from.
  v_service_tables constant text[][] := array[
    ['workspaces', 'insert, update'],
    ['workspace_members', 'insert, update'],
    ['profiles', 'insert, update, delete']
  ];
  v_tables text[][] := '{}';
  v_function regprocedure;
begin
  if level not in ('anon', 'user', 'service', 'administrator') then
    raise exception using errcode = '22023', message = format('level "%s" is not known', level);
  end if;
  execute format('grant usage on schema helper to %I', grantee);
  for v_function in
    select p.oid
    from pg_depend d
    join pg_proc p on p.oid = d.objid
    where d.classid = 'pg_proc'::regclass
      and d.refclassid = 'pg_extension'::regclass
      and d.refobjid = helper._extension()
      and d.deptype = 'e'
      and left(p.proname, 1) <> '_'
      and case
        when p.proname = any (v_administrators) then level = 'administrator'
        when p.proname = any (v_services) then level in ('service', 'administrator')
        else level <> 'anon' or p.proname = any (v_predicates) or p.proname = 'webhook'
      end
  loop
    execute format('grant execute on routine %s to %I', v_function, grantee);
  end loop;
  if level <> 'anon' then
    v_tables := v_user_tables;
  end if;
  if level = 'service' then
    v_tables := v_tables || v_service_tables;
  end if;
  for v_number in 1..cardinality(v_tables) / 2 loop
    execute format('grant %s on helper.%I to %I', v_tables[v_number][2], v_tables[v_number][1], grantee);
  end loop;
end
$$;
comment on function helper._grant(name, text) is
  'Grants a role what a level needs: anon (predicates and webhook only), user, service (user, keeping people and workspaces, and the WhatsApp Cloud API) or administrator (user, and the administrator''s functions). Errors: 22023';

create function helper.grant_usage(role regrole) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_role name;
begin
  select r.rolname into v_role from pg_roles r where r.oid = grant_usage.role;
  if not found then
    raise exception using errcode = '22023', message = 'role is null';
  end if;
  perform helper._grant(v_role, case v_role when 'service_role' then 'service' else 'user' end);
end
$$;
comment on function helper.grant_usage(regrole) is
  'Lets a role use the extension as authenticated does; row-level security decides what it sees. For the database''s owner. Errors: 22023';

do $$
declare
  v_function regprocedure;
  v_grant record;
begin
  for v_function in
    select p.oid
    from pg_depend d
    join pg_proc p on p.oid = d.objid
    where d.classid = 'pg_proc'::regclass
      and d.refclassid = 'pg_extension'::regclass
      and d.refobjid = helper._extension()
      and d.deptype = 'e'
  loop
    execute format('revoke all on routine %s from public', v_function);
  end loop;
  for v_grant in
    select r.rolname, l.level
    from (values ('anon', 'anon'), ('authenticated', 'user'), ('service_role', 'service')) l (role, level)
    join pg_roles r on r.rolname = l.role
    union all
    select r.rolname, 'administrator'
    from pg_database b
    join pg_roles r on r.oid = b.datdba
    where b.datname = current_database()
  loop
    perform helper._grant(v_grant.rolname, v_grant.level);
  end loop;
end
$$;
