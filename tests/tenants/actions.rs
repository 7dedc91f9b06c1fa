//! Every tool that comes with the extension: arguments that fit, who may call it, and what shows that it worked.

use serde_json::Value;

pub struct Action {
    pub name: &'static str,
    /// The least role in the workspace that may.
    pub minimum: &'static str,
    /// An object; names that begin with a dollar are filled in by [`super::World::fill`].
    pub arguments: &'static str,
    /// A condition on the result `r` and the tables, as the caller sees them afterwards.
    pub shows: &'static str,
    /// Whether it changes rows.
    pub writes: bool,
}

const fn read(name: &'static str, arguments: &'static str, shows: &'static str) -> Action {
    Action { name, minimum: "viewer", arguments, shows, writes: false }
}

const fn write(name: &'static str, arguments: &'static str, shows: &'static str) -> Action {
    Action { name, minimum: "member", arguments, shows, writes: true }
}

const fn manage(name: &'static str, arguments: &'static str, shows: &'static str) -> Action {
    Action { name, minimum: "admin", arguments, shows, writes: true }
}

pub const ACTIONS: &[Action] = &[
    // builtin
    read(
        "search_knowledge",
        r#"{"query": "How are refunds paid?", "max_results": 3}"#,
        "jsonb_array_length(r -> 'passages') between 1 and 3 and r #>> '{passages,0,content}' ~ 'efund'",
    ),
    read(
        "get_document",
        r#"{"document_id": "$member_document", "start": 2, "length": 7}"#,
        "r ->> 'content' = 'Refunds' and (r ->> 'total')::int > 100",
    ),
    write(
        "create_note",
        r#"{"content": "Call the bank", "tags": [" money ", "money"]}"#,
        "exists (select from helper.notes n where n.content = 'Call the bank' and not n.shared and n.tags = '{money}' and n.user_id = '$me')",
    ),
    write(
        "create_reminder",
        r#"{"title": "Tax", "due_at": "2099-03-31T09:00:00+07:00"}"#,
        "exists (select from helper.reminders m where m.title = 'Tax' and m.due_at = '2099-03-31 02:00Z' and m.user_id = '$me')",
    ),
    read("list_reminders", "{}", "r #>> '{reminders,0,title}' = 'Something'"),
    write(
        "complete_reminder",
        r#"{"reminder_id": "$reminder"}"#,
        "exists (select from helper.reminders m where m.id = '$reminder' and m.done_at is not null)",
    ),
    write(
        "send_notification",
        r#"{"user_id": "$owner", "title": "Look"}"#,
        "exists (select from helper.notifications n where n.title = 'Look' and n.user_id = '$owner' and n.created_by = '$me')",
    ),
    read("list_notifications", "{}", "r #>> '{notifications,0,title}' = 'Hello'"),
    read(
        "get_workspace_usage",
        r#"{"metric": "all"}"#,
        "(r #>> '{storage,documents}')::int = 3 and r ? 'tokens' and (r #>> '{messages,received}')::int >= 0",
    ),
    read(
        "get_conversation_history",
        r#"{"phone_number": "$phone"}"#,
        "r #>> '{messages,0,content}' = 'Is it open?' and r #>> '{contact,id}' = '$contact'",
    ),
    read(
        "describe_data",
        r#"{"table_name": "helper.contacts"}"#,
        "r #>> '{tables,0,table}' = 'helper.contacts' and r #> '{tables,0,columns}' @> '[{\"name\": \"phone\", \"type\": \"text\"}]'",
    ),
    read(
        "query_data",
        r#"{"query": "select count(*) as contacts from helper.contacts"}"#,
        "r = '{\"rows\": [{\"contacts\": 2}], \"row_count\": 1, \"truncated\": false}'",
    ),
    read(
        "generate_report",
        r#"{"report_type": "weekly", "metrics": ["leads_added"]}"#,
        "r ->> 'content' ~ 'leads added'",
    ),
    Action {
        name: "workflow_approval",
        minimum: "member",
        arguments: r#"{"title": "Pay the invoice?", "details": {"amount": 12}}"#,
        shows: "r = '{\"approved\": true}'",
        writes: false,
    },
    // meta_hub
    write(
        "send_whatsapp_message",
        r#"{"phone_number": "0812 9999 0000", "message": "Halo"}"#,
        "exists (select from helper.wa_outbox o join helper.contacts c on c.id = o.contact_id where c.phone = '+6281299990000' and o.status = 'queued' \
         and o.request #>> '{body,text,body}' = 'Halo' and o.request #>> '{body,to}' = '+6281299990000' and o.created_by = '$me')",
    ),
    write(
        "send_whatsapp_template",
        r#"{"phone_number": "$phone", "template_name": "greeting", "parameters": {"name": "Ani"}}"#,
        "exists (select from helper.wa_outbox o where o.template_id = '$template' and o.kind = 'template' \
         and o.request #> '{body,template,components,0,parameters,0}' = '{\"type\": \"text\", \"text\": \"Ani\", \"parameter_name\": \"name\"}')",
    ),
    write(
        "schedule_message",
        r#"{"contact_id": "$contact", "message": "Soon", "scheduled_for": "2099-01-31T09:00:00", "timezone": "Asia/Jakarta"}"#,
        "exists (select from helper.wa_outbox o where o.body = 'Soon' and o.send_at = '2099-01-31 02:00Z' and o.contact_id = '$contact')",
    ),
    write(
        "cancel_message",
        r#"{"message_id": "$message"}"#,
        "exists (select from helper.wa_outbox o where o.id = '$message' and o.status = 'cancelled')",
    ),
    manage(
        "send_broadcast",
        r#"{"message": "Sale", "recipient_tags": ["vip"]}"#,
        "(r ->> 'recipients')::int = 1 and exists (select from helper.wa_outbox o where o.body = 'Sale' and o.broadcast_id::text = r ->> 'broadcast_id')",
    ),
    manage(
        "create_template",
        r#"{"name": "order_sent", "category": "UTILITY", "language": "id", "body": "Pesanan {{1}} dikirim"}"#,
        "exists (select from helper.wa_templates t join helper.wa_outbox o on o.template_id = t.id and o.kind = 'submission' \
         where t.name = 'order_sent' and t.status = 'pending' and o.request #>> '{body,name}' = 'order_sent')",
    ),
    read(
        "get_template_analytics",
        r#"{"template_id": "$template"}"#,
        "r ->> 'name' = 'greeting' and r ->> 'sent' = '0'",
    ),
    write(
        "create_contact",
        r#"{"phone_number": "+62 811 3333 4444", "name": "Dewi", "tags": ["new"]}"#,
        "exists (select from helper.contacts c where c.phone = '+6281133334444' and c.name = 'Dewi' and c.created_by = '$me')",
    ),
    write(
        "update_contact",
        r#"{"contact_id": "$contact", "email": "ani@example.com"}"#,
        "exists (select from helper.contacts c where c.id = '$contact' and c.email = 'ani@example.com' and c.name = 'Ani')",
    ),
    write(
        "tag_contact",
        r#"{"contact_id": "$contact", "add_tags": ["gold"], "remove_tags": ["vip"]}"#,
        "exists (select from helper.contacts c where c.id = '$contact' and c.tags = '{gold}')",
    ),
    read("search_contacts", r#"{"query": "an"}"#, "r #>> '{contacts,0,id}' = '$contact'"),
    manage(
        "merge_contacts",
        r#"{"primary_contact_id": "$contact", "duplicate_contact_ids": ["$other_contact"]}"#,
        "not exists (select from helper.contacts c where c.id = '$other_contact') and exists (select from helper.leads l where l.id = '$lead' and l.contact_id = '$contact')",
    ),
    manage(
        "import_contacts",
        r#"{"csv": "Phone,Name\n+62 811 2222 3333,\"Citra, Ms\"\nnone,Nobody\n"}"#,
        "r @> '{\"rows\": 2, \"added\": 1, \"without_phone_number\": 1}' and exists (select from helper.contacts c where c.phone = '+6281122223333' and c.name = 'Citra, Ms')",
    ),
    read("export_contacts", r#"{"filters": {"tags": ["vip"]}}"#, "r ->> 'count' = '1' and r ->> 'content' ~ 'Ani'"),
    write(
        "tag_conversation",
        r#"{"thread_id": "$thread", "tags": ["complaint"]}"#,
        "exists (select from helper.wa_threads t where t.id = '$thread' and 'complaint' = any (t.tags))",
    ),
    write(
        "bulk_tag_conversations",
        r#"{"conversation_ids": ["$thread"], "tags": ["old"], "action": "replace"}"#,
        "exists (select from helper.wa_threads t where t.id = '$thread' and t.tags = '{old}')",
    ),
    write(
        "assign_conversation",
        r#"{"thread_id": "$thread", "assign_to_user_id": "$owner"}"#,
        "exists (select from helper.wa_threads t where t.id = '$thread' and t.assigned_to = '$owner')",
    ),
    write(
        "close_conversation",
        r#"{"thread_id": "$thread"}"#,
        "exists (select from helper.wa_threads t where t.id = '$thread' and t.status = 'closed' and t.closed_at is not null)",
    ),
    read(
        "get_conversation_analytics",
        r#"{"group_by": "week"}"#,
        "(r ->> 'opened')::int >= 1 and r ->> 'group_by' = 'week'",
    ),
    // crm
    write(
        "add_lead",
        r#"{"name": "Eka", "phone_number": "0813 7777 8888", "value": 250}"#,
        "exists (select from helper.leads l where l.name = 'Eka' and l.phone = '+6281377778888' and l.stage = 'new' and l.created_by = '$me')",
    ),
    write(
        "update_lead",
        r#"{"lead_id": "$lead", "stage": "proposal"}"#,
        "exists (select from helper.leads l join helper.lead_activities a on a.lead_id = l.id and a.kind = 'stage' where l.id = '$lead' and l.stage = 'proposal')",
    ),
    write(
        "score_lead",
        r#"{"lead_id": "$lead"}"#,
        "exists (select from helper.leads l where l.id = '$lead' and l.score = (r ->> 'score')::int and l.score > 0)",
    ),
    read("search_leads", r#"{"query": "prospect"}"#, "r #>> '{leads,0,id}' = '$lead'"),
    write(
        "convert_lead",
        r#"{"lead_id": "$lead", "value": 500}"#,
        "exists (select from helper.leads l where l.id = '$lead' and l.stage = 'won' and l.value = 500 and l.closed_at is not null)",
    ),
    write(
        "create_follow_up",
        r#"{"lead_id": "$lead", "title": "Send the offer", "due_at": "2099-01-01T09:00:00Z"}"#,
        "exists (select from helper.follow_ups f where f.title = 'Send the offer' and f.assigned_to = '$me')",
    ),
    write(
        "complete_follow_up",
        r#"{"follow_up_id": "$follow_up", "outcome": "Reached"}"#,
        "exists (select from helper.follow_ups f where f.id = '$follow_up' and f.outcome = 'Reached' and f.completed_at is not null)",
    ),
    read("list_follow_ups", r#"{"overdue": true}"#, "r #>> '{follow_ups,0,id}' = '$follow_up'"),
    write(
        "log_activity",
        r#"{"lead_id": "$lead", "kind": "call", "content": "No answer"}"#,
        "exists (select from helper.lead_activities a where a.lead_id = '$lead' and a.content = 'No answer')",
    ),
    read("get_pipeline", "{}", "r #> '{stages,0}' @> '{\"stage\": \"new\", \"leads\": 1}'"),
    read(
        "get_ai_insights",
        r#"{"data_source": "sales"}"#,
        "r -> 'attention' @> '[{\"what\": \"overdue_follow_ups\", \"number\": 1}]'",
    ),
    // marketplace
    read("search_products", r#"{"query": "gayo coffee", "max_price": 90000}"#, "r #>> '{products,0,id}' = '$product'"),
    write(
        "create_product",
        r#"{"name": "Tea", "description": "Black tea", "price": 20000.50}"#,
        "exists (select from helper.products p where p.name = 'Tea' and p.price = 20000.50)",
    ),
    write(
        "update_product",
        r#"{"product_id": "$product", "updates": {"price": 60000, "active": false}}"#,
        "exists (select from helper.products p where p.id = '$product' and p.price = 60000 and not p.active and p.name = 'Coffee')",
    ),
    write(
        "set_stock",
        r#"{"product_id": "$product", "stock": 7}"#,
        "exists (select from helper.products p where p.id = '$product' and p.stock = 7)",
    ),
    write(
        "create_recommendation",
        r#"{"product_id": "$product", "contact_id": "$other_contact", "reason": "Asked for it"}"#,
        "exists (select from helper.recommendations x where x.contact_id = '$other_contact' and x.reason = 'Asked for it')",
    ),
    read("list_recommendations", "{}", "r #>> '{recommendations,0,product}' = 'Coffee'"),
    // studio
    write(
        "create_funnel",
        r#"{"name": "Trial", "stages": ["visit", "trial", "sale"]}"#,
        "(select count(*) from helper.funnel_stages s where s.funnel_id::text = r ->> 'id') = 3",
    ),
    write(
        "record_funnel_event",
        r#"{"funnel_id": "$funnel", "stage": "buy", "subject": "somebody"}"#,
        "r = '{\"recorded\": true}' and exists (select from helper.funnel_events e where e.subject = 'somebody')",
    ),
    read(
        "get_funnel_metrics",
        r#"{"funnel_id": "$funnel"}"#,
        "r #> '{stages,0}' @> '{\"stage\": \"see\", \"subjects\": 1}'",
    ),
    write(
        "create_report",
        r#"{"title": "Sales", "report_type": "weekly", "timezone": "Asia/Jakarta"}"#,
        "exists (select from helper.reports p join helper.report_editions e on e.report_id = p.id where p.title = 'Sales' and e.content ~ '# Weekly report')",
    ),
    write(
        "run_report",
        r#"{"report_id": "$report"}"#,
        "exists (select from helper.report_editions e where e.id::text = r ->> 'edition_id' and e.report_id = '$report')",
    ),
    write(
        "schedule_report",
        r#"{"report_id": "$report", "run_at": "08:30", "timezone": "Asia/Jakarta"}"#,
        "exists (select from helper.reports p where p.id = '$report' and (p.next_run_at at time zone 'Asia/Jakarta')::time = '08:30')",
    ),
    // platform
    manage(
        "invite_team_member",
        r#"{"email": "New@Example.com", "role": "member"}"#,
        "exists (select from helper.invitations i where i.email = 'new@example.com' and i.status = 'pending' and i.invited_by = '$me')",
    ),
    read(
        "list_members",
        "{}",
        "r #> '{members,0}' @> '{\"role\": \"owner\", \"user_id\": \"$owner\"}' and jsonb_array_length(r -> 'members') = 4",
    ),
    manage(
        "change_member_role",
        r#"{"user_id": "$viewer", "role": "member"}"#,
        "exists (select from helper.workspace_members m where m.user_id = '$viewer' and m.role = 'member')",
    ),
    write(
        "create_workspace_note",
        r#"{"title": "Door", "content": "The code is on the wall", "pinned": true}"#,
        "exists (select from helper.notes n where n.title = 'Door' and n.shared and n.pinned)",
    ),
    read(
        "search_workspace",
        r#"{"query": "coffee"}"#,
        "r #> '{found,0}' @> '{\"kind\": \"product\", \"id\": \"$product\"}'",
    ),
    read("get_activity", "{}", "r -> 'activity' @> '[{\"what\": \"product added\", \"id\": \"$product\"}]'"),
];

impl Action {
    /// The least role that may call it, and the next below, which may not.
    pub fn refused(&self) -> &'static str {
        match self.minimum {
            "viewer" => "outsider",
            "member" => "viewer",
            _ => "member",
        }
    }

    /// The call as a caller of SQL writes it, with more arguments behind; things are filled in already.
    pub fn sql(&self, arguments: &str, more: &str) -> String {
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let mut list: Vec<String> = arguments
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| format!("\"{name}\" => '{}'", literal(value).replace('\'', "''")))
            .collect();
        if !more.is_empty() && self.name != "describe_data" && self.name != "query_data" {
            list.push(more.to_owned());
        }
        format!("helper.{}({})", self.name, list.join(", "))
    }
}

/// A value as Postgres reads it from text.
fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(Value::to_string).collect();
            format!("{{{}}}", items.join(","))
        }
        other => other.to_string(),
    }
}
