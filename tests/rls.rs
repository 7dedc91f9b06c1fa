//! Who may do what: two tenants, six roles in each, every table and every function, from both sides; and what callers
//! try who want more.
//!
//! Tables and functions are enumerated from the catalog, so that one without an expectation here fails the test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod tenants;

use std::collections::BTreeSet;
use tenants::actions::ACTIONS;
use tenants::{Outcome, ROLES, World, attempt, rank, rehearse};

/// What is expected of one table. A predicate says which rows; `None` means that the statement itself is refused.
struct Table {
    name: &'static str,
    /// Columns that may be read; empty for all.
    readable: &'static [&'static str],
    select: [Option<&'static str>; 6],
    updatable: &'static [&'static str],
    update: [Option<&'static str>; 6],
    delete: [Option<&'static str>; 6],
}

const NOBODY: [Option<&str>; 6] = [None; 6];
const MEMBERS: [Option<&str>; 6] = [
    None,
    Some("false"),
    Some("workspace_id = '$ws'"),
    Some("workspace_id = '$ws'"),
    Some("workspace_id = '$ws'"),
    Some("workspace_id = '$ws'"),
];
const HOLDER: [Option<&str>; 6] = [
    None,
    Some("false"),
    Some("user_id = '$me'"),
    Some("user_id = '$me'"),
    Some("user_id = '$me'"),
    Some("user_id = '$me'"),
];
const HELD: [Option<&str>; 6] = {
    const MINE: Option<&str> =
        Some("conversation_id in (select c.id from helper.conversations c where c.user_id = '$me')");
    [None, Some("false"), MINE, MINE, MINE, MINE]
};
const CITED: [Option<&str>; 6] = {
    const MINE: Option<&str> = Some(
        "message_id in (select m.id from helper.messages m join helper.conversations c on c.id = m.conversation_id where c.user_id = '$me')",
    );
    [None, Some("false"), MINE, MINE, MINE, MINE]
};
/// What is for all, and what is the workspace's own.
const SHARED: [Option<&str>; 6] = {
    const MINE: Option<&str> = Some("workspace_id is null or workspace_id = '$ws'");
    [None, Some("workspace_id is null"), MINE, MINE, MINE, MINE]
};
const SHARED_MODELS: [Option<&str>; 6] = {
    const MINE: Option<&str> = Some(
        "provider_id in (select p.id from helper.providers p where p.workspace_id is null or p.workspace_id = '$ws')",
    );
    const ALL: Option<&str> = Some("provider_id in (select p.id from helper.providers p where p.workspace_id is null)");
    [None, ALL, MINE, MINE, MINE, MINE]
};
const EVERYTHING: [Option<&str>; 6] = [None, Some("true"), Some("true"), Some("true"), Some("true"), Some("true")];
const NOTHING: [Option<&str>; 6] = [None, Some("false"), Some("false"), Some("false"), Some("false"), Some("false")];
const USED: [Option<&str>; 6] = {
    const MINE: Option<&str> = Some("workspace_id = '$ws' and user_id = '$me'");
    const ALL: Option<&str> = Some("workspace_id = '$ws'");
    [None, Some("false"), MINE, MINE, ALL, ALL]
};
const BOUND: [Option<&str>; 6] = {
    const ABOVE: &str = "workspace_id is null and (each_user or user_id = '$me')";
    const MINE: Option<&str> = Some(
        "workspace_id = '$ws' and (user_id is null or user_id = '$me') or workspace_id is null and (each_user or user_id = '$me')",
    );
    const ALL: Option<&str> = Some("workspace_id = '$ws' or workspace_id is null and (each_user or user_id = '$me')");
    [None, Some(ABOVE), MINE, MINE, ALL, ALL]
};
/// So many rows; which ones follows the caller, whoever looks.
const KEPT: [Option<&str>; 6] = [None, Some("rows 0"), Some("rows 0"), Some("rows 0"), Some("rows 1"), Some("rows 1")];
const ONE: [Option<&str>; 6] = [None, Some("rows 0"), Some("rows 1"), Some("rows 1"), Some("rows 1"), Some("rows 1")];
const ONE_FOR_MEMBERS: [Option<&str>; 6] =
    [None, Some("rows 0"), Some("rows 0"), Some("rows 1"), Some("rows 1"), Some("rows 1")];
const TWO: [Option<&str>; 6] = [None, Some("rows 0"), Some("rows 2"), Some("rows 2"), Some("rows 2"), Some("rows 2")];
const COLLEAGUES: [Option<&str>; 6] = {
    const MINE: Option<&str> =
        Some("id in (select m.user_id from helper.workspace_members m where m.workspace_id = '$ws')");
    [None, Some("id = '$me'"), MINE, MINE, MINE, MINE]
};
const SELF: [Option<&str>; 6] =
    [None, Some("id = '$me'"), Some("id = '$me'"), Some("id = '$me'"), Some("id = '$me'"), Some("id = '$me'")];
const ITSELF: [Option<&str>; 6] =
    [None, Some("false"), Some("id = '$ws'"), Some("id = '$ws'"), Some("id = '$ws'"), Some("id = '$ws'")];
const MANAGED: [Option<&str>; 6] =
    [None, Some("false"), Some("false"), Some("false"), Some("id = '$ws'"), Some("id = '$ws'")];
const OWNED: [Option<&str>; 6] = [None, Some("false"), Some("false"), Some("false"), Some("false"), Some("id = '$ws'")];
const BELOW: [Option<&str>; 6] = [
    None,
    Some("false"),
    Some("false"),
    Some("false"),
    Some("workspace_id = '$ws' and role <> 'owner'"),
    Some("workspace_id = '$ws'"),
];
const LEAVING: [Option<&str>; 6] = [
    None,
    Some("false"),
    Some("user_id = '$me'"),
    Some("user_id = '$me'"),
    Some("workspace_id = '$ws' and role <> 'owner'"),
    // The last owner stays, so that the statement on all rows fails.
    Some("error 55000"),
];

/// Those from member up may change what everyone in the workspace sees.
const WRITTEN: [Option<&str>; 6] = {
    const ALL: Option<&str> = Some("workspace_id = '$ws'");
    [None, Some("false"), Some("false"), ALL, ALL, ALL]
};
const KEPT_BY_ADMINS: [Option<&str>; 6] = {
    const ALL: Option<&str> = Some("workspace_id = '$ws'");
    [None, Some("false"), Some("false"), Some("false"), ALL, ALL]
};
const NOTED: [Option<&str>; 6] = {
    const SEEN: Option<&str> = Some("workspace_id = '$ws' and (shared or user_id = '$me')");
    [None, Some("false"), SEEN, SEEN, SEEN, SEEN]
};
/// One's own, as long as one is more than a viewer.
const HELD_BY_MEMBERS: [Option<&str>; 6] = {
    const MINE: Option<&str> = Some("workspace_id = '$ws' and user_id = '$me'");
    [None, Some("false"), Some("false"), MINE, MINE, MINE]
};
const TOLD: [Option<&str>; 6] = {
    const MINE: Option<&str> = Some("workspace_id = '$ws' and (user_id = '$me' or created_by = '$me')");
    [None, Some("false"), MINE, MINE, MINE, MINE]
};

const fn hidden(name: &'static str) -> Table {
    Table { name, readable: &[], select: NOBODY, updatable: &[], update: NOBODY, delete: NOBODY }
}

const fn read_only(name: &'static str, select: [Option<&'static str>; 6]) -> Table {
    Table { name, readable: &[], select, updatable: &[], update: NOBODY, delete: NOBODY }
}

const TABLES: &[Table] = &[
    Table {
        name: "workspaces",
        readable: &[],
        select: ITSELF,
        updatable: &["name", "slug", "settings"],
        update: MANAGED,
        delete: OWNED,
    },
    Table {
        name: "workspace_members",
        readable: &[],
        select: MEMBERS,
        updatable: &["role"],
        update: BELOW,
        delete: LEAVING,
    },
    Table {
        name: "profiles",
        readable: &[],
        select: COLLEAGUES,
        updatable: &["email", "full_name", "avatar_url"],
        update: SELF,
        delete: NOBODY,
    },
    Table {
        name: "conversations",
        readable: &[],
        select: HOLDER,
        updatable: &["title", "metadata"],
        update: HOLDER,
        delete: HOLDER,
    },
    read_only("messages", HELD),
    read_only("message_citations", CITED),
    read_only("message_attachments", CITED),
    read_only("knowledge_sources", MEMBERS),
    read_only("knowledge_chunks", MEMBERS),
    read_only("attached_tables", MEMBERS),
    read_only("knowledge_models", MEMBERS),
    read_only("reembed_progress", MEMBERS),
    Table {
        name: "index_progress",
        // Not the figures that follow the clock.
        readable: &["workspace_id", "documents", "chunks", "done", "failed", "pending"],
        select: MEMBERS,
        updatable: &[],
        update: NOBODY,
        delete: NOBODY,
    },
    Table {
        name: "jobs",
        readable: &[
            "workspace_id",
            "id",
            "kind",
            "key",
            "status",
            "attempts",
            "error",
            "created_at",
            "started_at",
            "finished_at",
        ],
        select: MEMBERS,
        updatable: &[],
        update: NOBODY,
        delete: NOBODY,
    },
    Table {
        name: "providers",
        readable: &["id", "workspace_id", "name", "kind", "enabled", "created_at", "updated_at"],
        select: SHARED,
        updatable: &[],
        update: NOBODY,
        delete: NOBODY,
    },
    read_only("models", SHARED_MODELS),
    read_only("model_catalog", EVERYTHING),
    read_only("model_defaults", SHARED),
    read_only("provider_status", KEPT),
    read_only("provider_keys", NOTHING),
    read_only("usage_records", USED),
    read_only("budgets", BOUND),
    read_only("modes", SHARED),
    Table {
        name: "conversation_summaries",
        // Not the seal, which nobody who writes into a prompt may know.
        readable: &[
            "workspace_id",
            "conversation_id",
            "content",
            "covers_to",
            "message_count",
            "made_by",
            "updated_at",
        ],
        select: HELD,
        updatable: &[],
        update: NOBODY,
        delete: NOBODY,
    },
    Table {
        name: "functions",
        // Not where endpoints and their keys are.
        readable: &[
            "id",
            "function_name",
            "product_slug",
            "description",
            "parameters_schema",
            "requires_confirmation",
            "kind",
            "minimum_role",
            "approver_role",
            "self_approval",
            "lapse",
            "recheck",
            "timeout_ms",
            "idempotent",
            "max_result_bytes",
            "tags",
            "read_only",
            "pack",
            "enabled",
            "created_at",
            "updated_at",
        ],
        select: EVERYTHING,
        updatable: &[],
        update: NOBODY,
        delete: NOBODY,
    },
    read_only("function_settings", MEMBERS),
    Table {
        name: "function_calls",
        // Not whose role and claims they run with.
        readable: &[
            "workspace_id",
            "id",
            "function_id",
            "function_name",
            "user_id",
            "conversation_id",
            "message_id",
            "tool_call_id",
            "run_id",
            "arguments",
            "arguments_hash",
            "status",
            "in_queue",
            "idempotency_key",
            "preview",
            "effect_hash",
            "result",
            "error",
            "approver_role",
            "self_approval",
            "decided_by",
            "decided_at",
            "reason",
            "lapses_at",
            "created_at",
            "started_at",
            "finished_at",
        ],
        select: USED,
        updatable: &[],
        update: NOBODY,
        delete: NOBODY,
    },
    hidden("function_counts"),
    hidden("function_turns"),
    hidden("mcp_servers"),
    Table {
        name: "notes",
        readable: &[],
        select: NOTED,
        updatable: &["shared", "pinned", "title", "content", "tags"],
        update: HELD_BY_MEMBERS,
        delete: HELD_BY_MEMBERS,
    },
    Table {
        name: "reminders",
        readable: &[],
        select: HOLDER,
        updatable: &["title", "description", "due_at", "related_to", "done_at"],
        update: HELD_BY_MEMBERS,
        delete: HELD_BY_MEMBERS,
    },
    Table {
        name: "notifications",
        readable: &[],
        select: TOLD,
        updatable: &["read_at"],
        update: HOLDER,
        delete: NOBODY,
    },
    Table {
        name: "contacts",
        readable: &[],
        select: MEMBERS,
        updatable: &["name", "email", "tags", "accepts_broadcasts"],
        update: WRITTEN,
        delete: KEPT_BY_ADMINS,
    },
    Table {
        name: "wa_threads",
        readable: &[],
        select: MEMBERS,
        updatable: &["status", "assigned_to", "tags", "closed_at"],
        update: WRITTEN,
        delete: NOBODY,
    },
    Table {
        name: "wa_numbers",
        // Not where the token is.
        readable: &["workspace_id", "id", "phone_number_id", "business_account_id", "phone", "region", "created_at"],
        select: MEMBERS,
        updatable: &[],
        update: NOBODY,
        delete: NOBODY,
    },
    read_only("wa_messages", MEMBERS),
    read_only("wa_templates", MEMBERS),
    read_only("wa_broadcasts", MEMBERS),
    read_only("wa_outbox", MEMBERS),
    Table {
        name: "leads",
        readable: &[],
        select: MEMBERS,
        updatable: &[
            "contact_id",
            "name",
            "email",
            "phone",
            "company",
            "source",
            "stage",
            "value",
            "score",
            "assigned_to",
        ],
        update: WRITTEN,
        delete: KEPT_BY_ADMINS,
    },
    read_only("lead_activities", MEMBERS),
    Table {
        name: "follow_ups",
        readable: &[],
        select: MEMBERS,
        updatable: &["title", "due_at", "assigned_to", "outcome", "completed_at"],
        update: WRITTEN,
        delete: NOBODY,
    },
    Table {
        name: "products",
        readable: &[],
        select: MEMBERS,
        updatable: &["name", "description", "price", "category", "images", "stock", "active"],
        update: WRITTEN,
        delete: KEPT_BY_ADMINS,
    },
    read_only("recommendations", MEMBERS),
    Table { name: "funnels", readable: &[], select: MEMBERS, updatable: &[], update: NOBODY, delete: KEPT_BY_ADMINS },
    read_only("funnel_stages", MEMBERS),
    read_only("funnel_events", MEMBERS),
    Table {
        name: "reports",
        readable: &[],
        select: MEMBERS,
        updatable: &["title", "metrics", "timezone", "run_at", "next_run_at"],
        update: WRITTEN,
        delete: KEPT_BY_ADMINS,
    },
    read_only("report_editions", MEMBERS),
    Table {
        name: "invitations",
        readable: &[],
        select: KEPT_BY_ADMINS,
        updatable: &[],
        update: NOBODY,
        delete: KEPT_BY_ADMINS,
    },
    read_only("workflows", WRITTEN),
    Table {
        name: "workflow_versions",
        // Not with whose role and claims it runs.
        readable: &["workspace_id", "workflow_id", "version", "definition", "user_id", "settings", "created_at"],
        select: WRITTEN,
        updatable: &[],
        update: NOBODY,
        delete: NOBODY,
    },
    // What a run was given and came to is not for viewers.
    read_only("workflow_runs", WRITTEN),
    read_only("workflow_steps", WRITTEN),
    hidden("workflow_queue"),
    hidden("workflow_waits"),
    hidden("workflow_step_messages"),
    read_only("workflow_limits", ONE),
    Table {
        name: "workflow_activity",
        // Not how long those have taken that go on.
        readable: &[
            "workspace_id",
            "id",
            "workflow_id",
            "workflow",
            "version",
            "status",
            "trigger",
            "error_code",
            "depth",
            "replay_of",
            "user_id",
            "created_at",
            "started_at",
            "finished_at",
        ],
        select: TWO,
        updatable: &[],
        update: NOBODY,
        delete: NOBODY,
    },
    read_only("workflow_step_activity", TWO),
    read_only("workflow_waiting", ONE),
    read_only("workflow_failures", ONE_FOR_MEMBERS),
    read_only("workflow_throughput", TWO),
    read_only("workflow_schedules", WRITTEN),
    read_only("workflow_event_triggers", WRITTEN),
    read_only("workflow_events", KEPT_BY_ADMINS),
    read_only("workflow_webhooks", KEPT_BY_ADMINS),
    read_only("workflow_webhook_keys", NOTHING),
    hidden("workflow_webhook_secrets"),
    hidden("wa_sender"),
    hidden("provider_secrets"),
    hidden("token_ratios"),
    hidden("usage_deleted"),
    hidden("reply_cancellations"),
    hidden("reply_states"),
    hidden("_routes"),
    hidden("membership_source"),
    hidden("knowledge_inputs"),
    hidden("knowledge_vectors"),
    hidden("knowledge_terms"),
    hidden("knowledge_stats"),
    hidden("knowledge_blocks"),
    hidden("knowledge_loose"),
    hidden("job_queue"),
    hidden("job_leases"),
];

/// Views all of whose columns may be read, some of which follow the clock.
const MOVING: &[&str] = &["index_progress", "workflow_activity"];

/// 42501, or for a view that cannot be written 55000, for a column of one 0A000, for an endpoint that is not there 42704.
fn is_refused(outcome: &Outcome, table: &str) -> bool {
    const VIEWS: &[&str] = &[
        "index_progress",
        "reembed_progress",
        "provider_status",
        "provider_keys",
        "workflow_webhook_keys",
        "workflow_activity",
        "workflow_step_activity",
        "workflow_waiting",
        "workflow_failures",
        "workflow_throughput",
        "_routes",
    ];
    let unknown = table == "workflow_webhook_keys";
    matches!(outcome, Err(code) if code == "42501" || (VIEWS.contains(&table) && (code == "55000" || code == "0A000")) || (unknown && code == "42704"))
}

#[tokio::test]
async fn every_table_shows_and_takes_what_each_role_may() {
    let world = World::new().await;
    let tables = world.tables().await;
    let expected: BTreeSet<&str> = TABLES.iter().map(|table| table.name).collect();
    let found: BTreeSet<&str> = tables.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(found, expected, "every table of the schema has an expectation");
    let before = world.fingerprints().await;
    let mut wrong = Vec::new();
    let mut checks = 0;
    for tenant in 0..2 {
        for (at, role) in ROLES.iter().enumerate() {
            let session = world.be(tenant, role).await;
            for table in TABLES {
                let name = table.name;
                let columns = world.columns(name).await;
                let readable: Vec<&str> = if table.readable.is_empty() {
                    columns.iter().map(String::as_str).collect()
                } else {
                    table.readable.to_vec()
                };
                let mut check = |what: String, outcome: Outcome, fine: bool| {
                    checks += 1;
                    if !fine {
                        wrong.push(format!("tenant {tenant}, {role}, {name}: {what} gave {outcome:?}"));
                    }
                };

                // select: exactly the rows expected, column by column
                let read = |condition: &str| {
                    format!(
                        "select count(*) || coalesce(md5(string_agg(x::text, '|' order by x::text)), '') from (select {} from helper.{name} where {condition}) x",
                        readable.join(", ")
                    )
                };
                let outcome = attempt(&session, &read("true")).await;
                match table.select[at] {
                    None => check("select".into(), outcome.clone(), is_refused(&outcome, "")),
                    Some(condition) if condition.starts_with("rows ") => {
                        let seen = outcome.as_ref().is_ok_and(|seen| seen.starts_with(&condition["rows ".len()..]));
                        check(format!("select, expected {condition}"), outcome, seen);
                    }
                    Some(condition) => {
                        let condition = world.fill(condition, tenant, role);
                        let expected: String = world.admin.one(&read(&condition), &[]).await;
                        if condition != "false" {
                            assert!(!expected.starts_with('0'), "{name}: nothing that {role} could see: {condition}");
                        }
                        check(format!("select, expected {expected}"), outcome.clone(), outcome == Ok(expected));
                    }
                }
                for column in &columns {
                    let outcome = attempt(&session, &format!("select count({column}) from helper.{name}")).await;
                    let may =
                        table.select[at].is_some() && (MOVING.contains(&name) || readable.contains(&column.as_str()));
                    check(
                        format!("select of {column}"),
                        outcome.clone(),
                        if may { outcome.is_ok() } else { is_refused(&outcome, "") },
                    );
                }

                // update: each column of all rows
                for column in &columns {
                    let outcome = rehearse(&session, &format!("update helper.{name} set {column} = {column}")).await;
                    match table.update[at].filter(|_| table.updatable.contains(&column.as_str())) {
                        None => {
                            // A generated column is refused before privileges are looked at.
                            let fine = is_refused(&outcome, name)
                                || (column == "search_vector" && outcome == Err("428C9".into()));
                            check(format!("update of {column}"), outcome, fine);
                        }
                        Some(condition) => {
                            let condition = world.fill(condition, tenant, role);
                            let expected: i64 = world
                                .admin
                                .one(&format!("select count(*) from helper.{name} where {condition}"), &[])
                                .await;
                            check(
                                format!("update of {column}, expected {expected}"),
                                outcome.clone(),
                                outcome == Ok(expected.to_string()),
                            );
                        }
                    }
                }

                // delete of all rows
                let outcome = rehearse(&session, &format!("delete from helper.{name}")).await;
                match table.delete[at] {
                    None => check("delete".into(), outcome.clone(), is_refused(&outcome, name)),
                    Some(condition) => {
                        let expected = match condition.strip_prefix("error ") {
                            Some(code) => Err(code.to_owned()),
                            None => {
                                let condition = world.fill(condition, tenant, role);
                                let count: i64 = world
                                    .admin
                                    .one(&format!("select count(*) from helper.{name} where {condition}"), &[])
                                    .await;
                                Ok(count.to_string())
                            }
                        };
                        check(format!("delete, expected {expected:?}"), outcome.clone(), outcome == expected);
                    }
                }

                // insert of a copy of every row, one's own and another tenant's, with all its columns
                if name != "index_progress" {
                    let writable: Vec<&str> =
                        columns.iter().map(String::as_str).filter(|column| *column != "search_vector").collect();
                    let list = writable.join(", ");
                    let rows = world
                        .admin
                        .query(&format!("select to_jsonb(t)::text from helper.{name} t limit 20"), &[])
                        .await
                        .unwrap();
                    let mut rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
                    rows.push("{}".into());
                    for row in rows {
                        let sql = format!(
                            "insert into helper.{name} ({list}) select {list} from json_populate_record(null::helper.{name}, $r${row}$r$)"
                        );
                        let outcome = rehearse(&session, &sql).await;
                        check("insert".into(), outcome.clone(), is_refused(&outcome, name));
                    }
                }
            }
            // Whole tables at once are for their owner.
            for statement in [
                "truncate helper.conversations cascade",
                "lock table helper.messages",
                "create table helper.mine ()",
                "create trigger t before insert on helper.messages execute function pg_catalog.suppress_redundant_updates_trigger()",
                "create policy mine on helper.messages using (true)",
                "alter table helper.messages disable row level security",
                "create table public.refers (id uuid references helper.conversations (id))",
            ] {
                let outcome = rehearse(&session, statement).await;
                assert_eq!(outcome, Err("42501".into()), "{role}: {statement}");
                checks += 1;
            }
        }
    }
    assert_eq!(world.fingerprints().await, before, "something was changed");
    assert!(wrong.is_empty(), "{} of {checks} checks:\n{}", wrong.len(), wrong.join("\n"));
    println!("{checks} checks of {} tables", TABLES.len());
}

#[tokio::test]
async fn rows_are_inserted_where_they_belong_and_nowhere_else() {
    let world = World::new().await;
    let before = world.fingerprints().await;
    let denied = || [Err("42501"); 6];
    let own = [Err("42501"), Err("42501"), Ok("1"), Ok("1"), Ok("1"), Ok("1")];
    let cases: Vec<(&str, [Result<&str, &str>; 6])> = vec![
        ("insert into helper.conversations (workspace_id, user_id, title) values ('$ws', '$me', 'Mine')", own),
        ("insert into helper.conversations (workspace_id, user_id) values ('$foreign', '$me')", denied()),
        ("insert into helper.conversations (workspace_id, user_id) values ('$ws', '$foreign_person')", denied()),
        ("insert into helper.conversations (workspace_id, user_id) values ('$foreign', '$foreign_person')", denied()),
        ("insert into helper.conversations (workspace_id, user_id) values (gen_random_uuid(), '$me')", denied()),
        ("insert into helper.conversations (workspace_id, user_id, message_count) values ('$ws', '$me', 9)", denied()),
        (
            "insert into helper.workspace_members (workspace_id, user_id, role) values ('$ws', '$outsider', 'member')",
            [Err("42501"), Err("42501"), Err("42501"), Err("42501"), Ok("1"), Ok("1")],
        ),
        (
            "insert into helper.workspace_members (workspace_id, user_id, role) values ('$ws', '$outsider', 'owner')",
            [Err("42501"), Err("42501"), Err("42501"), Err("42501"), Err("42501"), Ok("1")],
        ),
        (
            "insert into helper.workspace_members (workspace_id, user_id, role) values ('$foreign', '$me', 'viewer')",
            denied(),
        ),
        (
            "insert into helper.workspace_members (workspace_id, user_id, role) values ('$foreign', '$me', 'owner')",
            denied(),
        ),
        (
            "update helper.workspace_members set role = 'owner' where user_id = '$me'",
            // Nobody but an owner makes owners, least of all of themselves.
            [Err("42501"), Ok("0"), Ok("0"), Ok("0"), Err("42501"), Ok("1")],
        ),
        ("insert into helper.profiles (id, full_name) values ('$foreign_person', 'Me')", denied()),
        ("insert into helper.profiles (id, full_name) values (gen_random_uuid(), 'Me')", denied()),
        // What is the extension's own, even with one's own parent rows.
        (
            "insert into helper.messages (workspace_id, conversation_id, role, content) values ('$ws', '$conversation', 'assistant', 'Forged')",
            denied(),
        ),
        (
            "insert into helper.messages (workspace_id, conversation_id, role, content) values ('$foreign', '$foreign_conversation', 'user', 'Forged')",
            denied(),
        ),
        ("update helper.messages set content = 'Forged'", denied()),
        ("update helper.messages set grounded = true, status = 'done'", denied()),
        (
            "insert into helper.message_citations (workspace_id, message_id, ordinal, source_id, quote) values ('$ws', '$reply', 9, '$member_document', 'Forged')",
            denied(),
        ),
        ("update helper.message_citations set quote = 'Forged'", denied()),
        (
            "insert into helper.message_attachments (workspace_id, message_id, ordinal, mime_type, content) values ('$ws', '$reply', 9, 'image/png', 'x')",
            denied(),
        ),
        ("insert into helper.jobs (workspace_id, kind, principal_role) values ('$ws', 'index', 'postgres')", denied()),
        (
            "insert into helper.job_queue (workspace_id, kind, job_id) select j.workspace_id, j.kind, j.id from helper.jobs j",
            denied(),
        ),
        ("update helper.jobs set status = 'queued'", denied()),
        (
            "insert into helper.knowledge_sources (workspace_id, source_type, title, input_hash) values ('$ws', 'kb_article', 'Forged', '')",
            denied(),
        ),
        ("update helper.knowledge_sources set status = 'ready', content = 'Forged'", denied()),
        ("update helper.knowledge_chunks set content = 'Forged'", denied()),
        (
            "insert into helper.provider_keys (workspace, provider, key) values ('$ws', 'own', 'sk-new')",
            [Err("42501"), Err("42704"), Err("42501"), Err("42501"), Ok("1"), Ok("1")],
        ),
        (
            "insert into helper.provider_keys (workspace, provider, key) values ('$foreign', 'own', 'sk-new')",
            [Err("42501"), Err("42704"), Err("42704"), Err("42704"), Err("42704"), Err("42704")],
        ),
        ("insert into helper.provider_keys (provider, key) values ('shared', 'sk-new')", denied()),
        ("insert into helper.provider_keys (provider, key) values ('own', 'sk-new')", denied()),
        (
            "insert into helper.workflow_webhook_keys (endpoint, key) values ('$endpoint', 'chosen by the sender')",
            [Err("42501"), Err("42704"), Err("42704"), Err("42704"), Err("22023"), Err("22023")],
        ),
        (
            "insert into helper.workflow_webhook_keys (endpoint, key) values ('$endpoint', 'chosen-by-the-sender')",
            [Err("42501"), Err("42704"), Err("42704"), Err("42704"), Ok("1"), Ok("1")],
        ),
        (
            "insert into helper.workflow_webhook_keys (endpoint, key) values ('$foreign_endpoint', 'chosen-by-the-sender')",
            [Err("42501"), Err("42704"), Err("42704"), Err("42704"), Err("42704"), Err("42704")],
        ),
        (
            "insert into helper.workflow_runs (workspace_id, workflow_id, version, trigger, input) values ('$ws', '$workflow', 1, '{}', '{}')",
            denied(),
        ),
        ("insert into helper.workflow_queue (workspace_id, run_id) values ('$ws', '$held_run')", denied()),
        ("update helper.workflow_versions set definition = '{}'", denied()),
        ("update helper.workflows set enabled = true", denied()),
        ("update helper.workflow_versions set principal_role = 'postgres'", denied()),
        ("update helper.workflow_steps set status = 'succeeded', output = '{}'", denied()),
        ("delete from helper.workflow_waits", denied()),
        ("update helper.workflow_schedules set done_through = now(), look_at = now()", denied()),
        ("update helper.workflow_event_triggers set condition = null", denied()),
        (
            "insert into helper.workflow_events (workspace_id, name, payload, depth) values ('$ws', 'unheard', '{}', 0)",
            denied(),
        ),
        ("update helper.workflow_webhooks set endpoint = 'mine'", denied()),
        (
            "insert into helper.usage_records (workspace_id, id, user_id, purpose, provider, model, status) values ('$ws', gen_random_uuid(), '$me', 'ask', 'own', 'm', 'succeeded')",
            denied(),
        ),
        ("update helper.usage_records set cost = 0", denied()),
        ("delete from helper.usage_records", denied()),
        (
            "insert into helper.budgets (workspace_id, period, unit, amount) values ('$ws', 'day', 'tokens', 1e9)",
            denied(),
        ),
        ("delete from helper.budgets", denied()),
        ("insert into helper.modes (workspace_id, name, instructions) values ('$ws', 'mine', 'Obey me.')", denied()),
        ("update helper.providers set base_url = 'https://elsewhere.example'", denied()),
        (
            "insert into helper.reply_cancellations (workspace_id, message_id) values ('$foreign', '$foreign_reply')",
            denied(),
        ),
        (
            "insert into helper.reply_states (workspace_id, message_id, payload, principal_role, state) values ('$foreign', '$foreign_reply', '{}', 'authenticated', '{}')",
            denied(),
        ),
        ("update helper.conversation_summaries set content = 'Forged'", denied()),
        (
            "insert into helper.function_settings (workspace_id, function_name, enabled) values ('$ws', 'shout_later', true)",
            denied(),
        ),
        ("update helper.function_calls set status = 'queued', approver_role = null", denied()),
        ("update helper.functions set requires_confirmation = false", denied()),
        ("delete from helper.function_counts", denied()),
        ("update helper.conversations set user_id = '$foreign_person'", denied()),
        ("update helper.conversations set workspace_id = '$foreign'", denied()),
        (
            "merge into helper.messages m using (select 1) x on false when not matched then insert (role) values ('assistant')",
            denied(),
        ),
        ("copy helper.messages (workspace_id, conversation_id, role) from stdin", denied()),
        ("copy helper.knowledge_vectors to stdout", denied()),
    ];
    let mut wrong = Vec::new();
    for tenant in 0..2 {
        for (at, role) in ROLES.iter().enumerate() {
            let session = world.be(tenant, role).await;
            for (sql, expected) in &cases {
                let sql = world.fill(sql, tenant, role);
                let outcome = rehearse(&session, &sql).await;
                if outcome != expected[at].map(str::to_owned).map_err(str::to_owned) {
                    wrong.push(format!("tenant {tenant}, {role}: {sql} gave {outcome:?}, expected {:?}", expected[at]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(world.fingerprints().await, before);
    // A message of one tenant cannot hang on another tenant's conversation, not even by the tables' owner.
    for sql in [
        "insert into helper.messages (workspace_id, conversation_id, role) values ('$ws', '$foreign_conversation', 'assistant')",
        "insert into helper.message_citations (workspace_id, message_id, ordinal, source_id) values ('$ws', '$foreign_reply', 1, '$member_document')",
        "insert into helper.knowledge_chunks (workspace_id, source_id, ordinal, heading, content, token_count, start_offset, end_offset, content_hash) \
         values ('$ws', '$foreign_document', 0, '', 'x', 1, 0, 1, '')",
        "insert into helper.knowledge_inputs (workspace_id, source_id, content, is_file) values ('$ws', '$foreign_document', 'x', false)",
        "insert into helper.job_queue (workspace_id, kind, job_id) select '$ws', j.kind, j.id from helper.jobs j where j.workspace_id = '$foreign' limit 1",
    ] {
        let outcome = rehearse(&world.admin, &world.fill(sql, 0, "owner")).await;
        assert_eq!(outcome, Err("23503".into()), "{sql}");
    }
}

/// Calls of one function with what each role gets.
struct Function {
    name: &'static str,
    calls: &'static [(&'static str, [Result<&'static str, &'static str>; 6])],
}

const NO: Result<&str, &str> = Err("42501");
const UNKNOWN: Result<&str, &str> = Err("42704");
const T: Result<&str, &str> = Ok("t");
const F: Result<&str, &str> = Ok("f");
const NULL: Result<&str, &str> = Ok("null");
const TRUE: Result<&str, &str> = Ok("true");
const VOID: Result<&str, &str> = Ok("");
const N36: Result<&str, &str> = Ok("36");
const WAITS: Result<&str, &str> = Ok("awaiting_confirmation");
const AT: Result<&str, &str> = Ok("00000000-03e9-7000-8000-000000000000");
const NOT_READY: Result<&str, &str> = Err("55000");
/// Not for anon, unknown to everyone else.
const FOREIGN: [Result<&str, &str>; 6] = [NO, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN];
const NEVER: [Result<&str, &str>; 6] = [NO; 6];

const FUNCTIONS: &[Function] = &[
    Function {
        name: "uuid_v7_at",
        calls: &[("helper.uuid_v7_at('1970-01-01 00:00:01.0015+00')", [NO, AT, AT, AT, AT, AT])],
    },
    Function {
        name: "uuid_v7",
        calls: &[("length(helper.uuid_v7()::text)", [NO, Ok("36"), Ok("36"), Ok("36"), Ok("36"), Ok("36")])],
    },
    Function {
        name: "caller_role",
        calls: &[
            ("helper.caller_role() = current_user", [T; 6]),
            ("helper.caller_role() = 'anon'", [T, F, F, F, F, F]),
        ],
    },
    Function {
        name: "caller_claims",
        calls: &[(
            "helper.caller_claims() ->> 'sub' is not distinct from nullif('$me', '00000000-0000-7000-8000-000000000000')",
            [T; 6],
        )],
    },
    Function {
        name: "current_user_id",
        calls: &[("helper.current_user_id()", [NULL, Ok("$me"), Ok("$me"), Ok("$me"), Ok("$me"), Ok("$me")])],
    },
    Function {
        name: "my_workspaces",
        calls: &[
            ("helper.my_workspaces()", [Ok("{}"), Ok("{}"), Ok("{$ws}"), Ok("{$ws}"), Ok("{$ws}"), Ok("{$ws}")]),
            ("helper.my_workspaces('member')", [Ok("{}"), Ok("{}"), Ok("{}"), Ok("{$ws}"), Ok("{$ws}"), Ok("{$ws}")]),
            ("helper.my_workspaces('admin')", [Ok("{}"), Ok("{}"), Ok("{}"), Ok("{}"), Ok("{$ws}"), Ok("{$ws}")]),
            ("helper.my_workspaces('owner')", [Ok("{}"), Ok("{}"), Ok("{}"), Ok("{}"), Ok("{}"), Ok("{$ws}")]),
            ("helper.my_workspaces('boss')", [Err("22023"); 6]),
            ("helper.my_workspaces(null)", [Err("22023"); 6]),
        ],
    },
    Function {
        name: "my_role",
        calls: &[
            ("helper.my_role('$ws')", [NULL, NULL, Ok("viewer"), Ok("member"), Ok("admin"), Ok("owner")]),
            ("helper.my_role('$foreign')", [NULL; 6]),
            ("helper.my_role(null)", [NULL; 6]),
        ],
    },
    Function {
        name: "is_member",
        calls: &[
            ("helper.is_member('$ws')", [F, F, T, T, T, T]),
            ("helper.is_member('$ws', 'member')", [F, F, F, T, T, T]),
            ("helper.is_member('$ws', 'admin')", [F, F, F, F, T, T]),
            ("helper.is_member('$ws', 'owner')", [F, F, F, F, F, T]),
            ("helper.is_member('$foreign')", [F; 6]),
        ],
    },
    Function {
        name: "my_colleagues",
        calls: &[
            ("cardinality(helper.my_colleagues())", [NO, Ok("0"), Ok("4"), Ok("4"), Ok("4"), Ok("4")]),
            ("'$foreign_person' = any (helper.my_colleagues())", [NO, F, F, F, F, F]),
        ],
    },
    Function {
        name: "current_workspace",
        calls: &[
            ("helper.current_workspace('$ws')", [NO, UNKNOWN, Ok("$ws"), Ok("$ws"), Ok("$ws"), Ok("$ws")]),
            ("helper.current_workspace()", [NO, UNKNOWN, Ok("$ws"), Ok("$ws"), Ok("$ws"), Ok("$ws")]),
            ("helper.current_workspace('$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "create_workspace",
        calls: &[(
            "length(helper.create_workspace('New')::text)",
            [NO, Ok("36"), Ok("36"), Ok("36"), Ok("36"), Ok("36")],
        )],
    },
    Function {
        name: "add_member",
        calls: &[
            ("helper.add_member('$ws', '$outsider')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.add_member('$ws', '$outsider', 'owner')", [NO, UNKNOWN, NO, NO, NO, VOID]),
            ("helper.add_member('$ws', '$me', 'owner')", [NO, UNKNOWN, NO, NO, NO, VOID]),
            ("helper.add_member('$ws', '$owner', 'viewer')", [NO, UNKNOWN, NO, NO, NO, Err("55000")]),
            ("helper.add_member('$foreign', '$me', 'owner')", FOREIGN),
            ("helper.add_member(null, '$me', 'owner')", FOREIGN),
        ],
    },
    Function {
        name: "remove_member",
        calls: &[
            ("helper.remove_member('$ws', '$viewer')", [NO, UNKNOWN, VOID, NO, VOID, VOID]),
            ("helper.remove_member('$ws', '$owner')", [NO, UNKNOWN, NO, NO, NO, Err("55000")]),
            ("helper.remove_member('$ws', '$me')", [NO, UNKNOWN, VOID, VOID, VOID, Err("55000")]),
            ("helper.remove_member('$foreign', '$foreign_person')", FOREIGN),
        ],
    },
    Function {
        name: "delete_workspace",
        calls: &[
            ("helper.delete_workspace('$ws')", [NO, UNKNOWN, NO, NO, NO, VOID]),
            ("helper.delete_workspace('$foreign')", FOREIGN),
        ],
    },
    Function { name: "add_mcp_server", calls: &[("helper.add_mcp_server('s', 'https://api.example.com/mcp')", NEVER)] },
    Function { name: "refresh_mcp_server", calls: &[("helper.refresh_mcp_server('s')", NEVER)] },
    Function { name: "remove_mcp_server", calls: &[("helper.remove_mcp_server('s')", NEVER)] },
    Function {
        name: "use_membership",
        calls: &[("helper.use_membership(null)", NEVER), ("helper.use_membership('helper.workspace_members')", NEVER)],
    },
    Function {
        name: "add_document",
        calls: &[
            ("length(helper.add_document('T', 'Text')::text)", [NO, UNKNOWN, NO, Ok("36"), Ok("36"), Ok("36")]),
            (
                "length(helper.add_document('T', 'Text', workspace => '$ws')::text)",
                [NO, UNKNOWN, NO, Ok("36"), Ok("36"), Ok("36")],
            ),
            ("helper.add_document('T', 'Text', workspace => '$foreign')", FOREIGN),
            // A document of another person is not replaced, whatever its identifier.
            (
                "helper.add_document('T', 'Text', 'kb_article', 'admin') = '$admin_document'",
                [NO, UNKNOWN, NO, NO, T, T],
            ),
            (
                "helper.add_document('T', 'Text', 'kb_article', 'member') = '$member_document'",
                [NO, UNKNOWN, NO, T, T, T],
            ),
            ("helper.add_document('T', 'Text', 'table_row', '1')", [NO, UNKNOWN, NO, NO, Err("55000"), Err("55000")]),
        ],
    },
    Function {
        name: "add_file",
        calls: &[
            ("length(helper.add_file('a.txt', 'Text')::text)", [NO, UNKNOWN, NO, Ok("36"), Ok("36"), Ok("36")]),
            ("helper.add_file('a.txt', 'Text', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "remove_document",
        calls: &[
            ("helper.remove_document('$member_document')", [NO, UNKNOWN, NO, VOID, VOID, VOID]),
            ("helper.remove_document('$admin_document')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.remove_document('$foreign_document')", FOREIGN),
            ("helper.remove_document(null)", FOREIGN),
        ],
    },
    Function {
        name: "reindex",
        calls: &[
            ("helper.reindex('$member_document')", [NO, UNKNOWN, NO, Ok("1"), Ok("1"), Ok("1")]),
            ("helper.reindex('$admin_document')", [NO, UNKNOWN, NO, NO, Ok("1"), Ok("1")]),
            ("helper.reindex('$foreign_document')", FOREIGN),
            ("helper.reindex(workspace => '$ws')", [NO, UNKNOWN, NO, NO, Ok("3"), Ok("3")]),
            ("helper.reindex(only_failed => true)", [NO, UNKNOWN, NO, NO, Ok("0"), Ok("0")]),
            ("helper.reindex(workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "reembed",
        calls: &[
            ("helper.reembed('local')", [NO, UNKNOWN, NO, NO, Ok("0"), Ok("0")]),
            ("helper.reembed('local', '$ws')", [NO, UNKNOWN, NO, NO, Ok("0"), Ok("0")]),
            ("helper.reembed('local', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "stop_reembed",
        calls: &[
            ("helper.stop_reembed(discard => true)", [NO, UNKNOWN, NO, NO, T, T]),
            ("helper.stop_reembed('$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "attach_table",
        calls: &[
            ("helper.attach_table('pg_catalog.pg_class', 'relname', 'relname')", NEVER),
            ("helper.attach_table(null, null, null)", NEVER),
        ],
    },
    Function {
        name: "detach_table",
        calls: &[("helper.detach_table('pg_catalog.pg_class')", NEVER), ("helper.detach_table(null)", NEVER)],
    },
    Function {
        name: "wait_indexed",
        calls: &[
            ("helper.wait_indexed('$ws')", [NO, UNKNOWN, Ok("3"), Ok("3"), Ok("3"), Ok("3")]),
            ("helper.wait_indexed()", [NO, Ok("0"), Ok("3"), Ok("3"), Ok("3"), Ok("3")]),
            ("helper.wait_indexed('$foreign')", FOREIGN),
        ],
    },
    Function { name: "embed", calls: &[("length(helper.embed('x')::text) > 1000", [NO, T, T, T, T, T])] },
    Function {
        name: "embed_many",
        calls: &[(
            "count(*) from helper.embed_many(array['x', 'y'])",
            [NO, Ok("2"), Ok("2"), Ok("2"), Ok("2"), Ok("2")],
        )],
    },
    Function { name: "count_tokens", calls: &[("helper.count_tokens('one two') > 1", [NO, T, T, T, T, T])] },
    Function {
        name: "chunk",
        calls: &[("count(*) from helper.chunk('One sentence.')", [NO, Ok("1"), Ok("1"), Ok("1"), Ok("1"), Ok("1")])],
    },
    Function {
        name: "search",
        calls: &[
            (
                "count(*) > 0 and bool_and(s.source_id in ('$member_document', '$admin_document') or s.source_type = 'table_row') from helper.search('refunds', '$ws') s",
                [NO, UNKNOWN, T, T, T, T],
            ),
            ("count(*) > 0 from helper.search('refunds', method => 'vector')", [NO, UNKNOWN, T, T, T, T]),
            ("count(*) > 0 from helper.search('refunds', method => 'text')", [NO, UNKNOWN, T, T, T, T]),
            ("count(*) from helper.search('refunds', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "answer",
        calls: &[
            ("(helper.answer('How are refunds paid?')).grounded", [NO, UNKNOWN, T, T, T, T]),
            (
                "(helper.answer('How are refunds paid?', '$conversation')).conversation_id = '$conversation'",
                [NO, UNKNOWN, T, T, T, T],
            ),
            ("helper.answer('How?', '$colleague_conversation')", FOREIGN),
            ("helper.answer('How?', '$foreign_conversation')", FOREIGN),
            ("helper.answer('How?', '$foreign_conversation', workspace => '$ws')", FOREIGN),
            ("helper.answer('How?', '$conversation', workspace => '$foreign')", FOREIGN),
            ("helper.answer('How?', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "ask",
        calls: &[
            ("helper.ask('How are refunds paid?') like '%30 days%'", [NO, UNKNOWN, T, T, T, T]),
            ("helper.ask('How?', '$foreign_conversation')", FOREIGN),
            ("helper.ask('How?', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "ask_stream",
        calls: &[
            (
                "string_agg(distinct event, ',') from helper.ask_stream('How are refunds paid?')",
                [
                    NO,
                    UNKNOWN,
                    Ok("delta,done,meta"),
                    Ok("delta,done,meta"),
                    Ok("delta,done,meta"),
                    Ok("delta,done,meta"),
                ],
            ),
            ("count(*) from helper.ask_stream('How?', '$colleague_conversation')", FOREIGN),
            ("count(*) from helper.ask_stream('How?', '$foreign_conversation')", FOREIGN),
            ("count(*) from helper.ask_stream('How?', workspace => '$foreign')", FOREIGN),
            ("count(*) from helper.ask_stream('How?', model => '$foreign_model')", FOREIGN),
        ],
    },
    Function {
        name: "ask_async",
        calls: &[
            ("length(helper.ask_async('How are refunds paid?')::text)", [NO, UNKNOWN, N36, N36, N36, N36]),
            ("helper.ask_async('How?', '$colleague_conversation')", FOREIGN),
            ("helper.ask_async('How?', '$foreign_conversation')", FOREIGN),
            ("helper.ask_async('How?', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "cancel",
        calls: &[
            // It is the member's, and has ended.
            ("helper.cancel('$reply')", [NO, UNKNOWN, UNKNOWN, F, UNKNOWN, UNKNOWN]),
            ("helper.cancel('$foreign_reply')", FOREIGN),
            ("helper.cancel(null)", FOREIGN),
        ],
    },
    Function {
        name: "complete",
        calls: &[
            ("helper.complete('Hello')", [NO, UNKNOWN, NOT_READY, NOT_READY, NOT_READY, NOT_READY]),
            ("helper.complete('Hello', model => '$foreign_model')", FOREIGN),
            ("helper.complete('Hello', model => 'own/$foreign_model')", FOREIGN),
            ("helper.complete('Hello', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "complete_json",
        calls: &[
            ("helper.complete_json('Hello', '{}')", [NO, UNKNOWN, NOT_READY, NOT_READY, NOT_READY, NOT_READY]),
            ("helper.complete_json('Hello', '{}', model => '$foreign_model')", FOREIGN),
            ("helper.complete_json('Hello', '{}', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "workflow_schema",
        calls: &[("helper.workflow_schema() ->> 'type' = 'object'", [NO, T, T, T, T, T])],
    },
    Function {
        name: "validate_workflow",
        calls: &[
            (
                "helper.validate_workflow('{\"steps\": [{\"name\": \"s\", \"type\": \"stop\", \"status\": \"succeeded\"}]}') ? 'steps'",
                [NO, T, T, T, T, T],
            ),
            (
                "helper.validate_workflow('{\"steps\": []}')",
                [NO, Err("22023"), Err("22023"), Err("22023"), Err("22023"), Err("22023")],
            ),
        ],
    },
    Function {
        name: "create_workflow",
        calls: &[
            (
                "length(helper.create_workflow('new', '{\"steps\": [{\"name\": \"s\", \"type\": \"stop\", \"status\": \"succeeded\"}]}')::text)",
                [NO, UNKNOWN, NO, NO, N36, N36],
            ),
            // A new version of what is there.
            (
                "helper.create_workflow('w', '{\"steps\": [{\"name\": \"s\", \"type\": \"stop\", \"status\": \"succeeded\"}]}') = '$workflow'",
                [NO, UNKNOWN, NO, NO, T, T],
            ),
            (
                "helper.create_workflow('new', '{\"steps\": [{\"name\": \"s\", \"type\": \"stop\", \"status\": \"succeeded\"}]}', '$foreign')",
                FOREIGN,
            ),
        ],
    },
    Function {
        name: "pause_workflow",
        calls: &[
            ("helper.pause_workflow('w')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.pause_workflow('w', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "resume_workflow",
        calls: &[
            ("helper.resume_workflow('w')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.resume_workflow('w', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "delete_workflow",
        calls: &[
            ("helper.delete_workflow('w')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.delete_workflow('w', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "run_workflow",
        calls: &[
            ("length(helper.run_workflow('w')::text)", [NO, UNKNOWN, NO, N36, N36, N36]),
            ("helper.run_workflow('none')", [NO, UNKNOWN, NO, UNKNOWN, UNKNOWN, UNKNOWN]),
            ("helper.run_workflow('w', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "cancel_run",
        calls: &[
            // The member's, and an admin's that has ended.
            ("helper.cancel_run('$held_run')", [NO, UNKNOWN, NO, T, T, T]),
            ("helper.cancel_run('$broken_run')", [NO, UNKNOWN, NO, NO, F, F]),
            ("helper.cancel_run('$foreign_held_run')", FOREIGN),
            ("helper.cancel_run(null)", FOREIGN),
        ],
    },
    Function {
        name: "pause_run",
        calls: &[
            ("helper.pause_run('$held_run')", [NO, UNKNOWN, NO, NO, T, T]),
            ("helper.pause_run('$foreign_held_run')", FOREIGN),
        ],
    },
    Function {
        name: "resume_run",
        calls: &[
            ("helper.resume_run('$held_run')", [NO, UNKNOWN, NO, NO, T, T]),
            ("helper.resume_run('$foreign_held_run')", FOREIGN),
        ],
    },
    Function {
        name: "retry_step",
        calls: &[
            ("helper.retry_step('$broken_run', 'divide')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.retry_step('$held_run', 'hold')", [NO, UNKNOWN, NO, NO, NOT_READY, NOT_READY]),
            ("helper.retry_step('$foreign_broken_run', 'divide')", FOREIGN),
        ],
    },
    Function {
        name: "replay_run",
        calls: &[
            ("length(helper.replay_run('$broken_run')::text)", [NO, UNKNOWN, NO, NO, N36, N36]),
            ("helper.replay_run('$held_run')", [NO, UNKNOWN, NO, NO, NOT_READY, NOT_READY]),
            ("helper.replay_run('$foreign_broken_run')", FOREIGN),
        ],
    },
    Function {
        name: "redrive_runs",
        calls: &[
            ("helper.redrive_runs('broken')", [NO, UNKNOWN, NO, NO, Ok("1"), Ok("1")]),
            ("helper.redrive_runs('broken', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "set_workflow_limit",
        calls: &[
            ("helper.set_workflow_limit(50)", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.set_workflow_limit(null, '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "run_status",
        calls: &[
            (
                "helper.run_status('$held_run') ->> 'status'",
                [NO, UNKNOWN, Ok("waiting"), Ok("waiting"), Ok("waiting"), Ok("waiting")],
            ),
            ("helper.run_status('$held_run') ? 'input'", [NO, UNKNOWN, T, T, T, T]),
            (
                "helper.run_status('$held_run') #>> '{input,for}'",
                [NO, UNKNOWN, NULL, Ok("members"), Ok("members"), Ok("members")],
            ),
            // A message may say what the run was given.
            (
                "helper.run_status('$broken_run') #>> '{error,sqlstate}'",
                [NO, UNKNOWN, Ok("22012"), Ok("22012"), Ok("22012"), Ok("22012")],
            ),
            ("helper.run_status('$broken_run') #> '{error,message}' is null", [NO, UNKNOWN, T, F, F, F]),
            ("helper.run_status('$broken_run') #> '{steps,0,error,message}' is null", [NO, UNKNOWN, T, F, F, F]),
            ("helper.run_status('$foreign_held_run')", FOREIGN),
        ],
    },
    Function {
        name: "wait_run",
        calls: &[
            ("helper.wait_run('$broken_run')", [NO, UNKNOWN, Ok("failed"), Ok("failed"), Ok("failed"), Ok("failed")]),
            ("helper.wait_run('$foreign_broken_run')", FOREIGN),
        ],
    },
    Function {
        name: "workflow_mermaid",
        calls: &[
            ("helper.workflow_mermaid('w') like '%hold%'", [NO, UNKNOWN, T, T, T, T]),
            ("helper.workflow_mermaid('w', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "run_mermaid",
        calls: &[
            ("helper.run_mermaid('$held_run') like '%hold%'", [NO, UNKNOWN, T, T, T, T]),
            ("helper.run_mermaid('$foreign_held_run')", FOREIGN),
        ],
    },
    Function {
        name: "workflow_templates",
        calls: &[("count(*) from helper.workflow_templates()", [NO, Ok("7"), Ok("7"), Ok("7"), Ok("7"), Ok("7")])],
    },
    Function {
        name: "install_workflow",
        calls: &[
            ("length(helper.install_workflow('nightly_reindex')::text)", [NO, UNKNOWN, NO, NO, N36, N36]),
            ("helper.install_workflow('none')", [NO, UNKNOWN, NO, NO, UNKNOWN, UNKNOWN]),
            ("helper.install_workflow('nightly_reindex', '$foreign')", FOREIGN),
        ],
    },
    Function {
        // It decides nothing by itself: a step that waits looks at its own call.
        name: "workflow_approval",
        calls: &[("helper.workflow_approval('Yes?') ->> 'approved'", [NO, TRUE, TRUE, TRUE, TRUE, TRUE])],
    },
    Function {
        name: "schedule_workflow",
        calls: &[
            ("length(helper.schedule_workflow('w', '0 9 * * *')::text)", [NO, UNKNOWN, NO, NO, N36, N36]),
            ("helper.schedule_workflow('w', '0 9 * * *', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "unschedule_workflow",
        calls: &[
            ("helper.unschedule_workflow('w', '$schedule')", [NO, UNKNOWN, NO, NO, Ok("1"), Ok("1")]),
            ("helper.unschedule_workflow('w', '$foreign_schedule')", [NO, UNKNOWN, NO, NO, UNKNOWN, UNKNOWN]),
            ("helper.unschedule_workflow('w', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "emit_event",
        calls: &[
            ("length(helper.emit_event('unheard')::text)", [NO, UNKNOWN, NO, N36, N36, N36]),
            ("helper.emit_event('unheard', workspace => '$foreign')", FOREIGN),
            ("helper.emit_event('contact_created')", [NO, UNKNOWN, NO, NO, NO, NO]),
        ],
    },
    Function {
        name: "on_event",
        calls: &[
            ("length(helper.on_event('w', 'heard')::text)", [NO, UNKNOWN, NO, NO, N36, N36]),
            ("helper.on_event('w', 'heard', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "on_table",
        calls: &[
            // Another's table, with the caller's workspace in no column of it.
            ("helper.on_table('w', 'public.rows_a')", [NO, UNKNOWN, NO, NO, NO, NO]),
            (
                "helper.on_table('w', 'helper.messages', workspace_column => 'workspace_id')",
                [NO, UNKNOWN, NO, NO, NO, NO],
            ),
            ("helper.on_table('w', 'public.rows_a', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "remove_trigger",
        calls: &[
            ("helper.remove_trigger('$trigger')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.remove_trigger('$foreign_trigger')", FOREIGN),
        ],
    },
    Function {
        name: "create_webhook",
        calls: &[
            ("length(helper.create_webhook('w', 'new') ->> 'endpoint')", [NO, UNKNOWN, NO, NO, Ok("35"), Ok("35")]),
            ("helper.create_webhook('w', 'new', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "rotate_webhook_secret",
        calls: &[
            ("length(helper.rotate_webhook_secret('$endpoint'))", [NO, UNKNOWN, NO, NO, Ok("50"), Ok("50")]),
            ("helper.rotate_webhook_secret('$foreign_endpoint')", FOREIGN),
        ],
    },
    Function {
        name: "remove_webhook",
        calls: &[
            ("helper.remove_webhook('$endpoint')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.remove_webhook('$foreign_endpoint')", FOREIGN),
        ],
    },
    Function {
        name: "webhook",
        calls: &[
            ("helper.webhook('$endpoint', '{}', '{}')", NEVER),
            ("helper.webhook('no such endpoint', '{}', '{}')", NEVER),
        ],
    },
    Function {
        name: "set_provider",
        calls: &[
            ("length(helper.set_provider('new', 'openai', workspace => '$ws')::text)", [NO, UNKNOWN, NO, NO, N36, N36]),
            ("helper.set_provider('new', 'openai', workspace => '$foreign')", FOREIGN),
            ("helper.set_provider('new', 'openai')", NEVER),
            ("helper.set_provider('shared', 'openai', 'https://elsewhere.example')", NEVER),
            (
                "helper.set_provider('new', 'openai', credential => 'env:HOME', workspace => '$ws')",
                [NO, UNKNOWN, NO, NO, NO, NO],
            ),
            (
                "helper.set_provider('new', 'openai', credential => 'file:/etc/passwd', workspace => '$ws')",
                [NO, UNKNOWN, NO, NO, NO, NO],
            ),
            (
                "helper.set_provider('new', 'openai', credential => 'vault:x', workspace => '$ws')",
                [NO, UNKNOWN, NO, NO, NO, NO],
            ),
            (
                "helper.set_provider('new', 'openai', options => '{\"allow_private\": true}', workspace => '$ws')",
                [NO, UNKNOWN, NO, NO, NO, NO],
            ),
        ],
    },
    Function {
        name: "remove_provider",
        calls: &[
            ("helper.remove_provider('own', '$ws')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.remove_provider('shared', '$ws')", [NO, UNKNOWN, NO, NO, UNKNOWN, UNKNOWN]),
            ("helper.remove_provider('own', '$foreign')", FOREIGN),
            ("helper.remove_provider('shared')", NEVER),
        ],
    },
    Function {
        name: "set_model",
        calls: &[
            ("helper.set_model('own', 'n', workspace => '$ws')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            // Its prices are the administrator's to say.
            ("helper.set_model('shared', 'model', workspace => '$ws')", [NO, UNKNOWN, NO, NO, UNKNOWN, UNKNOWN]),
            ("helper.set_model('own', 'n', workspace => '$foreign')", FOREIGN),
            ("helper.set_model('shared', 'model')", NEVER),
        ],
    },
    Function {
        name: "set_default",
        calls: &[
            ("helper.set_default('chat', 'own', 'm', '$ws')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.set_default('chat', 'shared', 'model', '$ws')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.set_default('chat', 'shared', 'no-model', '$ws')", [NO, UNKNOWN, NO, NO, UNKNOWN, UNKNOWN]),
            ("helper.set_default('chat', 'own', 'm', '$foreign')", FOREIGN),
            ("helper.set_default('chat', 'shared', 'model')", NEVER),
            ("helper.set_default('image', null, null)", NEVER),
        ],
    },
    Function {
        name: "set_budget",
        calls: &[
            ("helper.set_budget(5, workspace => '$ws')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.set_budget(null, user_id => '$me', workspace => '$ws')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.set_budget(5)", NEVER),
            ("helper.set_budget(null, each_user => true)", NEVER),
            ("helper.set_budget(5, workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "set_mode",
        calls: &[
            ("helper.set_mode('brief', 'Be terse.', workspace => '$ws')", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            ("helper.set_mode('brief', null, workspace => '$foreign')", FOREIGN),
            ("helper.set_mode('chat', 'Obey me.')", NEVER),
        ],
    },
    Function {
        name: "register_function",
        calls: &[
            ("helper.register_function('mine', 'shout', 'Mine')", NEVER),
            ("helper.register_function('shout', 'shout', 'Mine')", NEVER),
        ],
    },
    Function { name: "unregister_function", calls: &[("helper.unregister_function('shout')", NEVER)] },
    Function {
        name: "set_function",
        calls: &[
            ("helper.set_function('shout', false)", [NO, UNKNOWN, NO, NO, VOID, VOID]),
            (
                "helper.set_function('shout', limits => '{\"user_per_hour\": 1}', workspace => '$ws')",
                [NO, UNKNOWN, NO, NO, VOID, VOID],
            ),
            ("helper.set_function('shout', true, workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "mcp",
        calls: &[
            (
                "helper.mcp('{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"tools/list\"}') #>> '{result,tools,0,name}'",
                [NO, NULL, Ok("call_status"), Ok("call_status"), Ok("call_status"), Ok("call_status")],
            ),
            (
                "helper.mcp('{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"resources/list\"}', '$foreign') #>> '{error,data,sqlstate}'",
                [NO, Ok("42704"), Ok("42704"), Ok("42704"), Ok("42704"), Ok("42704")],
            ),
            (
                "helper.mcp('{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"resources/read\", \"params\": {\"uri\": \"helper://documents/$foreign_document\"}}') #>> '{error,code}'",
                [NO, Ok("-32602"), Ok("-32002"), Ok("-32002"), Ok("-32002"), Ok("-32002")],
            ),
            (
                "helper.mcp('{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"tools/call\", \"params\": {\"name\": \"confirm_call\", \"arguments\": {\"call\": \"$foreign_call\"}}}', approvals => true) #>> '{result,isError}'",
                [NO, NULL, Ok("true"), Ok("true"), Ok("true"), Ok("true")],
            ),
        ],
    },
    Function {
        name: "available_functions",
        calls: &[
            (
                "count(*) filter (where pack is null) from helper.available_functions()",
                [NO, UNKNOWN, Ok("1"), Ok("2"), Ok("2"), Ok("2")],
            ),
            ("count(*) from helper.available_functions('$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "call",
        calls: &[
            ("length(helper.call('shout', '{\"what\": \"x\"}')::text)", [NO, UNKNOWN, N36, N36, N36, N36]),
            ("length(helper.call('shout_later', '{\"what\": \"x\"}')::text)", [NO, UNKNOWN, NO, N36, N36, N36]),
            ("helper.call('shout', '{\"what\": \"x\"}', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "call_status",
        calls: &[
            ("helper.call_status('$call') ->> 'status'", [NO, UNKNOWN, UNKNOWN, WAITS, WAITS, WAITS]),
            ("helper.call_status('$foreign_call')", FOREIGN),
            ("helper.call_status(null)", FOREIGN),
        ],
    },
    Function {
        name: "confirm",
        calls: &[
            // It is the member's, and theirs to approve.
            ("helper.confirm('$call') ->> 'status'", [NO, UNKNOWN, UNKNOWN, Ok("succeeded"), NO, NO]),
            ("helper.confirm('$foreign_call')", FOREIGN),
            ("helper.confirm(null)", FOREIGN),
        ],
    },
    Function {
        name: "preview",
        calls: &[
            ("helper.preview('$call') ->> 'status'", [NO, UNKNOWN, UNKNOWN, WAITS, NO, NO]),
            ("helper.preview('$foreign_call')", FOREIGN),
        ],
    },
    Function {
        name: "reject",
        calls: &[
            (
                "helper.reject('$call', 'No') ->> 'status'",
                [NO, UNKNOWN, UNKNOWN, Ok("rejected"), Ok("rejected"), Ok("rejected")],
            ),
            ("helper.reject('$foreign_call')", FOREIGN),
        ],
    },
    Function {
        name: "cancel_call",
        calls: &[
            ("helper.cancel_call('$call')", [NO, UNKNOWN, UNKNOWN, T, T, T]),
            ("helper.cancel_call('$foreign_call')", FOREIGN),
        ],
    },
    Function {
        name: "usage",
        calls: &[
            ("helper.usage() ->> 'requests'", [NO, UNKNOWN, Ok("1"), Ok("1"), Ok("4"), Ok("4")]),
            ("jsonb_array_length(helper.usage('$ws') -> 'by_user')", [NO, UNKNOWN, Ok("1"), Ok("1"), Ok("4"), Ok("4")]),
            ("helper.usage('$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "budget_status",
        calls: &[
            (
                "(select count(*) from helper.budget_status('$ws')) = (select count(*) from helper.budgets b where b.workspace_id = '$ws' or b.workspace_id is null)",
                [NO, UNKNOWN, T, T, T, T],
            ),
            ("helper.budget_status('$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "provider_health",
        calls: &[("count(*) from helper.provider_health()", [NO, Ok("0"), Ok("0"), Ok("0"), Ok("1"), Ok("1")])],
    },
    Function {
        name: "related_conversations",
        calls: &[
            (
                "count(*) from helper.related_conversations('$conversation')",
                [NO, UNKNOWN, Ok("0"), Ok("0"), Ok("0"), Ok("0")],
            ),
            ("count(*) from helper.related_conversations('$colleague_conversation')", FOREIGN),
            ("count(*) from helper.related_conversations('$foreign_conversation')", FOREIGN),
        ],
    },
    Function {
        name: "create_conversation",
        calls: &[
            (
                "length(helper.create_conversation('x', '$ws')::text)",
                [NO, UNKNOWN, Ok("36"), Ok("36"), Ok("36"), Ok("36")],
            ),
            ("helper.create_conversation('x', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "rename_conversation",
        calls: &[
            ("helper.rename_conversation('$conversation', 'x')", [NO, UNKNOWN, VOID, VOID, VOID, VOID]),
            ("helper.rename_conversation('$colleague_conversation', 'x')", FOREIGN),
            ("helper.rename_conversation('$foreign_conversation', 'x')", FOREIGN),
        ],
    },
    Function {
        name: "delete_conversation",
        calls: &[
            ("helper.delete_conversation('$conversation')", [NO, UNKNOWN, VOID, VOID, VOID, VOID]),
            ("helper.delete_conversation('$colleague_conversation')", FOREIGN),
            ("helper.delete_conversation('$foreign_conversation')", FOREIGN),
        ],
    },
    Function {
        name: "export_conversation",
        calls: &[
            ("helper.export_conversation('$conversation') like '%30 days%'", [NO, UNKNOWN, T, T, T, T]),
            ("helper.export_conversation('$colleague_conversation', 'json')", FOREIGN),
            ("helper.export_conversation('$foreign_conversation', 'json')", FOREIGN),
        ],
    },
    Function {
        name: "list_conversations",
        calls: &[
            (
                "string_agg(id::text, ',') from helper.list_conversations('$ws')",
                [NO, UNKNOWN, Ok("$conversation"), Ok("$conversation"), Ok("$conversation"), Ok("$conversation")],
            ),
            ("count(*) from helper.list_conversations('$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "search_conversations",
        calls: &[
            (
                "string_agg(id::text, ',') from helper.search_conversations('refunds', '$ws')",
                [NO, UNKNOWN, Ok("$conversation"), Ok("$conversation"), Ok("$conversation"), Ok("$conversation")],
            ),
            ("count(*) from helper.search_conversations('refunds', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "workspace_for",
        calls: &[
            ("helper.workspace_for('viewer')", [NO, UNKNOWN, Ok("$ws"), Ok("$ws"), Ok("$ws"), Ok("$ws")]),
            ("helper.workspace_for('admin', '$ws')", [NO, UNKNOWN, NO, NO, Ok("$ws"), Ok("$ws")]),
            ("helper.workspace_for('viewer', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "is_colleague",
        calls: &[
            ("helper.is_colleague('$owner')", [NO, UNKNOWN, T, T, T, T]),
            ("helper.is_colleague('$foreign_person')", [NO, UNKNOWN, F, F, F, F]),
            ("helper.is_colleague('$foreign_person', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "with_tags",
        calls: &[("helper.with_tags('{b,a}', '{c}', '{a}') = '{b,c}'", [NO, T, T, T, T, T])],
    },
    Function {
        name: "normalize_phone",
        calls: &[("helper.normalize_phone('0812 3456 7890', 'ID') = '+6281234567890'", [NO, T, T, T, T, T])],
    },
    Function {
        name: "contact_phone",
        calls: &[
            ("helper.contact_phone('0812 3456 7890') = '+6281234567890'", [NO, UNKNOWN, T, T, T, T]),
            ("helper.contact_phone('0812 3456 7890', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "file_text",
        calls: &[
            ("helper.file_text('$member_document') is not null", [NO, UNKNOWN, T, T, T, T]),
            ("helper.file_text('$foreign_document')", FOREIGN),
        ],
    },
    Function {
        name: "parse_csv",
        calls: &[("count(*) from helper.parse_csv('a,b')", [NO, Ok("1"), Ok("1"), Ok("1"), Ok("1"), Ok("1")])],
    },
    Function { name: "csv_field", calls: &[("helper.csv_field('=1') = '\"''=1\"'", [NO, T, T, T, T, T])] },
    Function {
        name: "contact_for",
        calls: &[
            ("helper.contact_for('$phone') = '$contact'", [NO, UNKNOWN, NO, T, T, T]),
            ("helper.contact_for('$phone', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "queue_whatsapp",
        calls: &[
            ("helper.queue_whatsapp('$contact', 'Hi') ->> 'status' = 'queued'", [NO, UNKNOWN, NO, T, T, T]),
            ("helper.queue_whatsapp('$foreign_contact', 'Hi')", [NO, UNKNOWN, NO, UNKNOWN, UNKNOWN, UNKNOWN]),
            (
                "helper.queue_whatsapp('$contact', template_id => '$foreign_template')",
                [NO, UNKNOWN, NO, UNKNOWN, UNKNOWN, UNKNOWN],
            ),
            ("helper.queue_whatsapp('$foreign_contact', 'Hi', workspace => '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "set_whatsapp_number",
        calls: &[("helper.set_whatsapp_number('$ws', '77', '+6281200000077')", NEVER)],
    },
    Function {
        name: "set_whatsapp_sender",
        calls: &[("helper.set_whatsapp_sender()", NEVER), ("helper.set_whatsapp_sender(enabled => false)", NEVER)],
    },
    Function { name: "claim_whatsapp", calls: &[("count(*) from helper.claim_whatsapp()", NEVER)] },
    Function { name: "finish_whatsapp", calls: &[("helper.finish_whatsapp('$ws', '$message', 200)", NEVER)] },
    Function {
        name: "whatsapp_status",
        calls: &[("helper.whatsapp_status('{\"object\": \"whatsapp_business_account\", \"entry\": []}')", NEVER)],
    },
    Function {
        name: "workspace_metrics",
        calls: &[
            ("sum(m.value) > 0 from helper.workspace_metrics('-infinity', 'infinity') m", [NO, UNKNOWN, T, T, T, T]),
            ("count(*) from helper.workspace_metrics('-infinity', 'infinity', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "next_report_at",
        calls: &[(
            "helper.next_report_at('daily', '09:00', 'UTC', '2026-01-01 09:00Z') = '2026-01-02 09:00Z'",
            [NO, T, T, T, T, T],
        )],
    },
    Function {
        name: "run_due_reports",
        calls: &[
            ("helper.run_due_reports()", [NO, UNKNOWN, NO, Ok("0"), Ok("0"), Ok("0")]),
            ("helper.run_due_reports('$foreign')", FOREIGN),
        ],
    },
    Function {
        // Nobody in these tests has a claim email.
        name: "accept_invitation",
        calls: &[("helper.accept_invitation(helper.uuid_v7())", FOREIGN)],
    },
    Function {
        name: "install_pack",
        calls: &[
            ("helper.install_pack('crm')", [NO, UNKNOWN, NO, NO, Ok("11"), Ok("11")]),
            ("helper.install_pack('none')", [NO, UNKNOWN, NO, NO, UNKNOWN, UNKNOWN]),
            ("helper.install_pack('crm', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "uninstall_pack",
        calls: &[
            ("helper.uninstall_pack('crm')", [NO, UNKNOWN, NO, NO, Ok("11"), Ok("11")]),
            ("helper.uninstall_pack('crm', '$foreign')", FOREIGN),
        ],
    },
    Function {
        name: "list_packs",
        calls: &[
            ("count(*) from helper.list_packs()", [NO, UNKNOWN, Ok("6"), Ok("6"), Ok("6"), Ok("6")]),
            ("count(*) from helper.list_packs('$foreign')", FOREIGN),
        ],
    },
    Function { name: "version", calls: &[("helper.version() = '0.1.0'", [NO, T, T, T, T, T])] },
    Function { name: "pack_vectors", calls: &[("helper.pack_vectors()", NEVER)] },
    Function {
        name: "workspace_progress",
        calls: &[
            ("(helper.workspace_progress('$ws')).ready", [NO, Ok("0"), Ok("3"), Ok("3"), Ok("3"), Ok("3")]),
            ("(helper.workspace_progress(null)).ready", [NO, Ok("0"), Ok("3"), Ok("3"), Ok("3"), Ok("3")]),
            ("(helper.workspace_progress('$foreign')).ready", [NO, Ok("0"), Ok("0"), Ok("0"), Ok("0"), Ok("0")]),
        ],
    },
    Function { name: "status", calls: &[("helper.status()", NEVER)] },
    Function {
        name: "grant_usage",
        calls: &[("helper.grant_usage('anon')", NEVER), ("helper.grant_usage('authenticated')", NEVER)],
    },
];

#[tokio::test]
async fn every_function_does_what_each_role_may() {
    let world = World::new().await;
    let rows = world
        .admin
        .query(
            "select p.proname::text, pg_catalog.array_to_string(array(select '(select null::' || pg_catalog.format_type(t, null) || ')' from unnest(p.proargtypes) t), ', '), \
               p.prorettype = 'trigger'::regtype \
             from pg_proc p where p.pronamespace = 'helper'::regnamespace order by 1",
            &[],
        )
        .await
        .unwrap();
    let functions: Vec<(String, String, bool)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let public: BTreeSet<&str> =
        functions.iter().map(|(name, ..)| name.as_str()).filter(|name| !name.starts_with('_')).collect();
    let actions = ACTIONS.iter().map(|action| action.name);
    let expected: BTreeSet<&str> = FUNCTIONS.iter().map(|function| function.name).chain(actions).collect();
    assert_eq!(public, expected, "every function of the schema has an expectation");
    let before = world.fingerprints().await;
    let mut wrong = Vec::new();
    let mut checks = 0;
    for tenant in 0..2 {
        for (at, role) in ROLES.iter().enumerate() {
            let session = world.be(tenant, role).await;
            for (name, arguments, is_trigger) in &functions {
                if name.starts_with('_') && !is_trigger {
                    let sql = format!("select helper.{name}({arguments})");
                    let outcome = rehearse(&session, &sql).await;
                    checks += 1;
                    if outcome != Err("42501".into()) {
                        wrong.push(format!("tenant {tenant}, {role}: {sql} gave {outcome:?}"));
                    }
                }
            }
            // A tool of a pack does the same for whoever calls it without the registry.
            for action in ACTIONS {
                let arguments = world.fill(action.arguments, tenant, role);
                let shares = world.fill(&action.arguments.replace('$', "$foreign_"), tenant, role);
                let foreign = world.fill("workspace => '$foreign'", tenant, role);
                let may = *role != "anon" && rank(role) >= rank(action.minimum);
                let is_for_all = ["describe_data", "query_data", "workflow_approval"].contains(&action.name);
                let refusal = match *role {
                    "anon" => Some("42501"),
                    "outsider" if !is_for_all => Some("42704"),
                    _ if !may && !is_for_all => Some("42501"),
                    // It is the member's.
                    "admin" | "owner" if action.name == "complete_reminder" => Some("42704"),
                    _ => None,
                };
                let mut tries = vec![(action.sql(&arguments, ""), refusal)];
                if !is_for_all {
                    tries.push((
                        action.sql(&arguments, &foreign),
                        Some(if *role == "anon" { "42501" } else { "42704" }),
                    ));
                }
                // Things of the other tenant are as good as none. A phone number is nobody's, the rest has no meaning there.
                if may
                    && shares != world.fill(action.arguments, tenant, role)
                    && !shares.contains("$foreign")
                    && !action.arguments.contains("$phone")
                {
                    tries.push((action.sql(&shares, ""), Some("42704")));
                }
                for (sql, expected) in tries {
                    let outcome = rehearse(&session, &format!("select {sql}")).await;
                    checks += 1;
                    let fine = match expected {
                        // A row that would refer to another tenant's is refused by its foreign key.
                        Some("42704") => matches!(&outcome, Err(code) if code == "42704" || code == "23503"),
                        Some(code) => outcome == Err(code.to_owned()),
                        None => outcome.is_ok(),
                    };
                    if !fine {
                        wrong.push(format!("tenant {tenant}, {role}: {sql} gave {outcome:?}, expected {expected:?}"));
                    }
                }
            }
            for function in FUNCTIONS {
                for (call, expected) in function.calls {
                    let sql = format!("select {}", world.fill(call, tenant, role));
                    let expected = expected[at].map(|value| world.fill(value, tenant, role)).map_err(str::to_owned);
                    let outcome = rehearse(&session, &sql).await;
                    checks += 1;
                    if outcome != expected {
                        wrong.push(format!("tenant {tenant}, {role}: {sql} gave {outcome:?}, expected {expected:?}"));
                    }
                }
            }
        }
    }
    assert_eq!(world.fingerprints().await, before, "something was changed");
    assert!(wrong.is_empty(), "{} of {checks} checks:\n{}", wrong.len(), wrong.join("\n"));
    println!("{checks} checks of {} functions", functions.len());
}
