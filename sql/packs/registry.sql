-- The packs in the registry of tools: what belongs to which, who may call it, and whether a person has to agree. The
-- built-in ones are on in every workspace; a pack's are once its admins install it.

create function helper._packs()
returns table (
  pack text,
  function_name text,
  target regprocedure,
  product_slug text,
  requires_confirmation boolean,
  minimum_role text,
  tags text[],
  read_only boolean
)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select t.pack, t.name, format('helper.%I', t.name)::regproc::regprocedure, t.product, t.confirm, t.role, t.tags,
    -- These two are volatile for other reasons than writing.
    p.provolatile <> 'v' or t.name in ('query_data', 'search_knowledge')
  from (values
    ('builtin', 'search_knowledge', 'helper', false, 'viewer', array['knowledge']),
    ('builtin', 'get_document', 'helper', false, 'viewer', array['knowledge']),
    ('builtin', 'create_note', 'helper', false, 'member', array['notes']),
    ('builtin', 'create_reminder', 'helper', false, 'member', array['reminders']),
    ('builtin', 'list_reminders', 'helper', false, 'viewer', array['reminders']),
    ('builtin', 'complete_reminder', 'helper', false, 'member', array['reminders']),
    ('builtin', 'send_notification', 'helper', true, 'member', array['notifications']),
    ('builtin', 'list_notifications', 'helper', false, 'viewer', array['notifications']),
    ('builtin', 'get_workspace_usage', 'platform', false, 'viewer', array['usage']),
    ('builtin', 'get_conversation_history', 'meta-hub', false, 'viewer', array['conversations']),
    ('builtin', 'describe_data', 'helper', false, 'viewer', array['data']),
    ('builtin', 'query_data', 'helper', false, 'viewer', array['data']),
    ('builtin', 'generate_report', 'helper', false, 'viewer', array['reports']),
    ('builtin', 'workflow_approval', 'helper', true, 'member', array['internal']),
    ('meta_hub', 'send_whatsapp_message', 'meta-hub', true, 'member', array['whatsapp', 'sending']),
    ('meta_hub', 'send_whatsapp_template', 'meta-hub', true, 'member', array['whatsapp', 'sending']),
    ('meta_hub', 'schedule_message', 'meta-hub', true, 'member', array['whatsapp', 'sending']),
    ('meta_hub', 'cancel_message', 'meta-hub', false, 'member', array['whatsapp']),
    ('meta_hub', 'send_broadcast', 'meta-hub', true, 'admin', array['whatsapp', 'sending']),
    ('meta_hub', 'create_template', 'meta-hub', true, 'admin', array['whatsapp', 'templates']),
    ('meta_hub', 'get_template_analytics', 'meta-hub', false, 'viewer', array['whatsapp', 'templates']),
    ('meta_hub', 'create_contact', 'meta-hub', false, 'member', array['contacts']),
    ('meta_hub', 'update_contact', 'meta-hub', false, 'member', array['contacts']),
    ('meta_hub', 'tag_contact', 'meta-hub', false, 'member', array['contacts']),
    ('meta_hub', 'search_contacts', 'meta-hub', false, 'viewer', array['contacts']),
    ('meta_hub', 'merge_contacts', 'meta-hub', true, 'admin', array['contacts']),
    ('meta_hub', 'import_contacts', 'meta-hub', true, 'admin', array['contacts']),
    ('meta_hub', 'export_contacts', 'meta-hub', false, 'viewer', array['contacts']),
    ('meta_hub', 'tag_conversation', 'meta-hub', false, 'member', array['conversations']),
    ('meta_hub', 'bulk_tag_conversations', 'meta-hub', false, 'member', array['conversations']),
    ('meta_hub', 'assign_conversation', 'meta-hub', false, 'member', array['conversations']),
    ('meta_hub', 'close_conversation', 'meta-hub', false, 'member', array['conversations']),
    ('meta_hub', 'get_conversation_analytics', 'meta-hub', false, 'viewer', array['conversations']),
    ('crm', 'add_lead', 'helper', false, 'member', array['leads']),
    ('crm', 'update_lead', 'helper', false, 'member', array['leads']),
    ('crm', 'score_lead', 'helper', false, 'member', array['leads']),
    ('crm', 'search_leads', 'helper', false, 'viewer', array['leads']),
    ('crm', 'convert_lead', 'helper', false, 'member', array['leads']),
    ('crm', 'create_follow_up', 'helper', false, 'member', array['leads']),
    ('crm', 'complete_follow_up', 'helper', false, 'member', array['leads']),
    ('crm', 'list_follow_ups', 'helper', false, 'viewer', array['leads']),
    ('crm', 'log_activity', 'helper', false, 'member', array['leads']),
    ('crm', 'get_pipeline', 'helper', false, 'viewer', array['leads']),
    ('crm', 'get_ai_insights', 'helper', false, 'viewer', array['insights']),
    ('marketplace', 'search_products', 'marketplace', false, 'viewer', array['products']),
    ('marketplace', 'create_product', 'marketplace', true, 'member', array['products']),
    ('marketplace', 'update_product', 'marketplace', false, 'member', array['products']),
    ('marketplace', 'set_stock', 'marketplace', false, 'member', array['products']),
    ('marketplace', 'create_recommendation', 'marketplace', false, 'member', array['products']),
    ('marketplace', 'list_recommendations', 'marketplace', false, 'viewer', array['products']),
    ('studio', 'create_funnel', 'studio', false, 'member', array['funnels']),
    ('studio', 'record_funnel_event', 'studio', false, 'member', array['funnels']),
    ('studio', 'get_funnel_metrics', 'studio', false, 'viewer', array['funnels']),
    ('studio', 'create_report', 'studio', false, 'member', array['reports']),
    ('studio', 'run_report', 'studio', false, 'member', array['reports']),
    ('studio', 'schedule_report', 'studio', false, 'member', array['reports']),
    ('platform', 'invite_team_member', 'platform', true, 'admin', array['members']),
    ('platform', 'list_members', 'platform', false, 'viewer', array['members']),
    ('platform', 'change_member_role', 'platform', true, 'admin', array['members']),
    ('platform', 'create_workspace_note', 'platform', false, 'member', array['notes']),
    ('platform', 'search_workspace', 'platform', false, 'viewer', array['search']),
    ('platform', 'get_activity', 'platform', false, 'viewer', array['activity'])) t (pack, name, product, confirm, role, tags)
  join pg_proc p on p.oid = format('helper.%I', t.name)::regproc
$$;
comment on function helper._packs() is 'Tools that came with the extension';

-- A function's comment begins with what it does, for a model; what its arguments are follows, and then its errors.
select helper._register_function(
  t.function_name,
  t.target::text,
  split_part(obj_description(t.target, 'pg_proc'), E'\n', 1),
  jsonb_build_object('product', t.product_slug, 'requires_confirmation', t.requires_confirmation, 'minimum_role', t.minimum_role,
    'tags', to_jsonb(t.tags), 'read_only', t.read_only,
    -- Less than the ten seconds that a query may take by itself, so that the call fails and not the statement around it.
    'timeout_ms', case t.function_name when 'query_data' then 8000 else 30000 end,
    'max_result_bytes', case t.function_name when 'export_contacts' then 4194304 else 131072 end),
  t.pack)
from helper._packs() t;

create function helper.install_pack(name text, workspace uuid default null) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
  v_count integer;
begin
  select count(helper.set_function(f.function_name, true, workspace => v_workspace)) into v_count
  from helper.functions f
  where f.pack = install_pack.name;
  if v_count = 0 then
    raise exception using
      errcode = '42704',
      message = format('pack "%s" does not exist', name),
      hint = (select format('Packs are %s.', string_agg(distinct f.pack, ', ')) from helper.functions f where f.pack <> 'builtin');
  end if;
  return v_count;
end
$$;
comment on function helper.install_pack(text, uuid) is
  'Switches on the tools of a pack in a workspace and returns how many: crm, marketplace, meta_hub, platform or studio. Needs the role admin. Errors: 42501, 42704';

create function helper.uninstall_pack(name text, workspace uuid default null) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
  v_count integer;
begin
  select count(helper.set_function(f.function_name, false, workspace => v_workspace)) into v_count
  from helper.functions f
  where f.pack = uninstall_pack.name;
  if v_count = 0 then
    raise exception using errcode = '42704', message = format('pack "%s" does not exist', name);
  end if;
  return v_count;
end
$$;
comment on function helper.uninstall_pack(text, uuid) is
  'Switches off the tools of a pack in a workspace and returns how many; its data stay. Needs the role admin. Errors: 42501, 42704';

create function helper.list_packs(workspace uuid default null) returns table (pack text, functions text[], installed integer)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
begin
  return query
    select f.pack, array_agg(f.function_name order by f.function_name),
      count(*) filter (where f.enabled and coalesce(s.enabled, f.pack = 'builtin'))::integer
    from helper.functions f
    left join helper.function_settings s on s.workspace_id = v_workspace and s.function_name = f.function_name
    where f.pack is not null
    group by f.pack
    order by f.pack;
end
$$;
comment on function helper.list_packs(uuid) is 'Packs with their tools, and how many of each are switched on in a workspace. Errors: 42501, 42704';

-- Every table that it is for is there.
drop function helper._share_table(regclass, text, text);
