//! Workflows while processes are killed with -9: every run ends, and what it does in SQL is done once. And runs in flight
//! stand in nobody's way: what ends a server or a database does not wait for them, and none is lost.
//!
//! `scripts/chaos` makes it 2,000 runs and ten minutes; `CHAOS_SEED` kills the same at the same times again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;

use cluster::{Cluster, DEADLINE, Session, is_alive, signal, until};
use place::{ANN, Place};
use provider::{Answer, Say, Seen, Server};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// What runs write, with nothing that would keep out a second line.
const LEDGER: &str = "
create table public.ledger (run text not null, what text not null, item integer not null default -1);
grant select, insert on public.ledger to authenticated;
create function public.write_line(run text) returns text language sql
  as 'insert into public.ledger (run, what) values (run, ''tool'') returning what';
select helper.register_function('write_line', 'write_line', 'Writes', '{\"requires_confirmation\": false}');
";

/// What `pg_ctl stop -m fast`, `drop database` and `drop extension` may take with 500 runs in flight.
const QUICK: Duration = Duration::from_secs(2);

fn setting<T: FromStr + Display>(name: &str, otherwise: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number")),
        Err(_) => otherwise,
    }
}

/// Numbers that the seed decides.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % most
    }
}

/// Somebody who goes on when the connection or the server is gone.
struct Stubborn {
    cluster: Arc<Cluster>,
    /// A person, or the superuser.
    sub: Option<&'static str>,
    session: Option<Session>,
}

impl Stubborn {
    fn new(cluster: &Arc<Cluster>, sub: Option<&'static str>) -> Self {
        Stubborn { cluster: Arc::clone(cluster), sub, session: None }
    }

    async fn connect(&self) -> Option<Session> {
        let Some(sub) = self.sub else { return self.cluster.try_connect("postgres", "postgres").await.ok() };
        let session = self.cluster.try_connect("postgres", "authenticator").await.ok()?;
        let claims = json!({ "sub": sub, "role": "authenticated" }).to_string();
        session.batch_execute("set role authenticated").await.ok()?;
        let set = "select pg_catalog.set_config('request.jwt.claims', $1, false)";
        session.query(set, &[&claims]).await.ok().map(|_| session)
    }

    /// The rows; what went wrong where somebody was killed in the middle, or something else is the matter.
    async fn query(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, String> {
        if self.session.is_none() {
            self.session = self.connect().await;
        }
        let Some(session) = &self.session else { return Err("no connection".into()) };
        let result = match tokio::time::timeout(DEADLINE, session.query(sql, values)).await {
            Ok(result) => result.map_err(|error| format!("{error:?}")),
            Err(_) => panic!("{sql}: did not end"),
        };
        if session.is_closed() {
            self.session = None;
        }
        result
    }

    /// The rows, once nobody is killed in the middle; what never succeeds is a failure.
    async fn must(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        let begin = Instant::now();
        loop {
            match self.query(sql, values).await {
                Ok(rows) => return rows,
                Err(error) => assert!(begin.elapsed() < DEADLINE, "{sql}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Five steps of every kind, and a call of an HTTP endpoint that may be uncertain.
fn definition() -> Value {
    let insert = |what: &str, parameters: Value| {
        json!({ "type": "sql", "parameters": parameters, "sql": format!(
            "insert into public.ledger (run, what, item) values ($1 ->> 'run', '{what}', coalesce(($1 ->> 'item')::integer, -1)) returning what") })
    };
    let mut first = insert("sql", json!({ "run": "{{ run.id }}" }));
    first["name"] = json!("write");
    json!({ "steps": [
        first,
        { "name": "tool", "type": "tool", "tool": "write_line", "arguments": { "run": "{{ run.id }}" },
          "retry": { "attempts": 3, "delay": "100 ms" } },
        { "name": "post", "type": "http", "tool": "post", "arguments": { "run": "{{ run.id }}" }, "on_error": "skip" },
        { "name": "say", "type": "complete", "needs": ["tool", "post"], "prompt": "Speak of run {{ run.id }}.",
          "retry": { "attempts": 20, "delay": "200 ms", "factor": 1.5, "most": "2 s" } },
        { "name": "tell", "type": "complete", "needs": ["tool", "post"], "prompt": "Tell of run {{ run.id }}.", "on_error": "skip" },
        { "name": "each", "type": "map", "needs": ["say"], "over": "{{ input.items }}", "concurrency": 4,
          "step": insert("map", json!({ "run": "{{ run.id }}", "item": "{{ item }}" })) },
        { "name": "approve", "type": "approval", "title": "Is {{ steps.say.output.text }} right?", "self_approval": true }
    ], "output": { "text": "{{ steps.say.output.text }}" } })
}

/// The run that a request to the provider or the endpoint is of.
fn run_of(seen: &Seen) -> Option<String> {
    let body = String::from_utf8_lossy(&seen.body).into_owned();
    let from = match seen.path.as_str() {
        "/post" => body.find("\"run\":\"")? + 7,
        _ => body.rfind(" of run ")? + 8,
    };
    body.get(from..from + 36).map(str::to_owned)
}

/// The step that a request is of.
fn step_of(seen: &Seen) -> &'static str {
    match String::from_utf8_lossy(&seen.body).contains("Tell of run ") {
        _ if seen.path == "/post" => "post",
        true => "tell",
        false => "say",
    }
}

/// Requests that were seen at the endpoint, or by the model, for each run.
fn requests(server: &Server, step: &str) -> HashMap<String, usize> {
    let mut requests = HashMap::new();
    for seen in server.seen().iter().filter(|seen| step_of(seen) == step) {
        *requests.entry(run_of(seen).unwrap_or_default()).or_default() += 1;
    }
    requests
}

/// Process ids of what may be killed; none where it is not there at the moment.
async fn victim(kind: &str, admin: &mut Stubborn) -> Option<i32> {
    let of_type = "select pid from pg_stat_activity where backend_type = $1 and datname = 'postgres' \
        and pid <> pg_backend_pid() and usename is distinct from $2 order by pid limit 1";
    let sql = match kind {
        "postmaster" => return Some(admin.cluster.postmaster()),
        "gateway" => {
            let rows = admin.query("select helper.status()", &[]).await.ok()?;
            let pid = rows[0].get::<_, Value>(0)["gateway"]["pid"].as_i64()?;
            return (pid > 1).then_some(pid as i32);
        }
        _ => of_type,
    };
    let (backend_type, but) = match kind {
        "backend" => ("client backend", "postgres"),
        "worker" => ("helper_ai worker", ""),
        _ => ("helper_ai runner", ""),
    };
    let rows = admin.query(sql, &[&backend_type, &but]).await.ok()?;
    rows.first().map(|row| row.get(0))
}

/// Starts the server again whose postmaster was killed, once its processes have gone.
async fn start_again(cluster: &Cluster, children: &[i32]) {
    for pid in children {
        until("the server's processes to end", async || (!is_alive(*pid)).then_some(())).await;
    }
    until("the server to start again", async || cluster.try_up().then_some(())).await;
}

/// Kills at times and of kinds that the seed decides, as long as it is told; says how many of each.
async fn kill(cluster: Arc<Cluster>, seed: u64, lasts: Duration) -> BTreeMap<&'static str, usize> {
    const KINDS: [&str; 8] = ["gateway", "runner", "worker", "gateway", "backend", "runner", "gateway", "postmaster"];
    let mut dice = Dice(seed | 1);
    let mut admin = Stubborn::new(&cluster, None);
    let mut killed = BTreeMap::new();
    let begin = Instant::now();
    while begin.elapsed() < lasts {
        let (pause, kind) = (200 + dice.below(1800), KINDS[dice.below(8) as usize]);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        // The server may have to come back first; a runner is there only while one is needed.
        let found = until("somebody to kill", async || victim(kind, &mut admin).await);
        let Ok(pid) = tokio::time::timeout(Duration::from_secs(5), found).await else { continue };
        let children: Vec<i32> = match kind {
            "postmaster" => {
                let sql = "select pid from pg_stat_activity";
                admin.must(sql, &[]).await.iter().map(|row| row.get(0)).collect()
            }
            _ => Vec::new(),
        };
        signal(pid, "KILL");
        *killed.entry(kind).or_default() += 1;
        match kind {
            "gateway" => {}
            "postmaster" => {
                admin.session = None;
                start_again(&cluster, &children).await;
            }
            // Postgres ends all of its processes when one of them is killed.
            _ => {
                let ended = async || admin.query("select 1", &[]).await.is_err().then_some(());
                until("the end of the old server", ended).await;
            }
        }
    }
    killed
}

/// Starts runs, spread over a time.
async fn start(cluster: Arc<Cluster>, runs: usize, over: Duration) {
    let mut ann = Stubborn::new(&cluster, Some(ANN));
    let begin = Instant::now();
    for number in 0..runs {
        let due = over.mul_f64(number as f64 / runs as f64);
        tokio::time::sleep(due.saturating_sub(begin.elapsed())).await;
        let input = json!({ "items": (0..10).collect::<Vec<i32>>() });
        ann.must("select helper.run_workflow('chaos', $1, $2)", &[&input, &format!("run {number}")]).await;
    }
}

/// Approves whatever waits for it, until it is dropped.
async fn approve(cluster: Arc<Cluster>, approved: Arc<AtomicUsize>) {
    let mut ann = Stubborn::new(&cluster, Some(ANN));
    loop {
        let sql = "select c.id::text from helper.function_calls c where c.status = 'awaiting_confirmation' limit 20";
        for row in ann.query(sql, &[]).await.unwrap_or_default() {
            let confirm = "select helper.confirm($1::text::uuid)";
            if ann.query(confirm, &[&row.get::<_, String>(0)]).await.is_ok() {
                approved.fetch_add(1, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Waits until every run has ended; one that gets no further is a failure.
async fn all_ended(admin: &Session) {
    let left = "select count(*) from helper.workflow_runs where finished_at is null";
    let (mut least, mut since) = (i64::MAX, Instant::now());
    loop {
        let now: i64 = admin.one(left, &[]).await;
        if now == 0 {
            return;
        }
        if now < least {
            (least, since) = (now, Instant::now());
        }
        if since.elapsed() > DEADLINE {
            let stuck = "select jsonb_agg(to_jsonb(r) || jsonb_build_object( \
                'steps', (select jsonb_agg(to_jsonb(s)) from helper.workflow_steps s where s.run_id = r.id and s.finished_at is null), \
                'queue', (select jsonb_agg(to_jsonb(q)) from helper.workflow_queue q where q.run_id = r.id), \
                'waits', (select jsonb_agg(to_jsonb(w)) from helper.workflow_waits w where w.run_id = r.id))) \
                from (select * from helper.workflow_runs where finished_at is null order by id limit 3) r";
            panic!("{now} runs got no further: {:#}", admin.one::<Value>(stuck, &[]).await);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nothing is left of runs that have ended.
async fn nothing_left(admin: &Session) {
    for table in ["workflow_queue", "workflow_waits", "job_queue", "job_leases"] {
        let sql = format!("select count(*) from helper.{table}");
        until(&format!("the end of {table}"), async || (admin.one::<i64>(&sql, &[]).await == 0).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_run_ends_and_writes_once_whoever_is_killed() {
    let runs: usize = setting("CHAOS_RUNS", 200);
    let lasts = Duration::from_secs(setting("CHAOS_SECONDS", 40));
    let seed: u64 = setting("CHAOS_SEED", 20_261_123);
    println!("CHAOS_RUNS={runs} CHAOS_SECONDS={} CHAOS_SEED={seed}", lasts.as_secs());
    let Place { cluster, admin, ann, server, .. } = Place::new().await;
    let cluster = Arc::new(cluster);
    admin.run(LEDGER).await;
    let options = json!({ "allow_private": true, "requires_confirmation": false, "parameters_schema":
        { "type": "object", "properties": { "run": { "type": "string" } }, "required": ["run"] } });
    let register = "select helper.register_function('post', $1, 'Posts', $2)::text";
    admin.one::<String>(register, &[&server.url("/post"), &options]).await;
    server.answer_by(|seen| match (seen.path.as_str(), run_of(seen)) {
        ("/post", _) => Answer::status(200, r#"{"posted": true}"#),
        (_, Some(run)) => {
            Answer::Say(Say { text: format!("said of {run}"), delay: Duration::from_millis(5), ..Say::default() })
        }
        _ => Answer::status(400, r#"{"error": {"message": "of no run"}}"#),
    });
    ann.one::<String>("select helper.create_workflow('chaos', $1)::text", &[&definition()]).await;
    drop((admin, ann));

    let approved = Arc::new(AtomicUsize::new(0));
    let approving = tokio::spawn(approve(Arc::clone(&cluster), Arc::clone(&approved)));
    let starting = tokio::spawn(start(Arc::clone(&cluster), runs, lasts.mul_f64(0.8)));
    let killed = kill(Arc::clone(&cluster), seed, lasts).await;
    starting.await.unwrap();
    let begin = Instant::now();
    let admin = until("the server", async || cluster.try_connect("postgres", "postgres").await.ok()).await;
    let left: i64 = admin.one("select count(*) from helper.workflow_runs where finished_at is null", &[]).await;
    all_ended(&admin).await;
    println!("killed: {killed:?}; {left} runs were left and ended after {:?}", begin.elapsed());
    approving.abort();

    // Every run succeeded, and what it wrote is there once.
    let rows =
        admin.query("select r.id::text, r.status, r.output, r.error from helper.workflow_runs r", &[]).await.unwrap();
    assert_eq!(rows.len(), runs);
    for row in &rows {
        let (id, status): (String, String) = (row.get(0), row.get(1));
        assert_eq!(status, "succeeded", "{id}: {:?}", row.get::<_, Option<Value>>(3));
        assert_eq!(row.get::<_, Value>(2)["text"], format!("said of {id}"));
    }
    let lines: i64 = admin.one("select count(*) from public.ledger", &[]).await;
    let other = "select count(*) from (select l.run, l.what, l.item, count(*) from public.ledger l group by 1, 2, 3) l \
        where l.count <> 1 or l.run not in (select r.id::text from helper.workflow_runs r)";
    assert_eq!(admin.one::<i64>(other, &[]).await, 0, "lines that were written twice, or by nobody");
    assert_eq!(lines, 12 * runs as i64);

    // A model's reply counts once, and each attempt asked the model once at most; so does an approval.
    let once = "select (select count(*) from helper.messages m where m.role = 'assistant' and m.status = 'done') \
        - (select count(*) from helper.workflow_steps s where s.step = 'tell' and s.status = 'succeeded')";
    assert_eq!(admin.one::<i64>(once, &[]).await, runs as i64);
    let attempts =
        "select coalesce(sum(s.attempt), 0)::bigint from helper.workflow_steps s where s.step in ('say', 'tell')";
    let attempts: i64 = admin.one(attempts, &[]).await;
    let replies: i64 = admin.one("select count(*) from helper.messages m where m.role = 'assistant'", &[]).await;
    assert_eq!(replies, attempts);
    let asked = requests(&server, "say");
    assert_eq!(asked.len(), runs, "runs of which a model was asked");
    let told = requests(&server, "tell");
    let mut tells = BTreeMap::new();
    let rows = admin
        .query("select s.run_id::text, s.step, s.status, s.attempt from helper.workflow_steps s where s.step in ('say', 'tell')", &[])
        .await
        .unwrap();
    for row in rows {
        let (id, step, status, attempts): (String, String, String, i32) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let count = if step == "say" { &asked } else { &told }.get(&id).copied().unwrap_or_default();
        let fits = match status.as_str() {
            "succeeded" => (1..=attempts as usize).contains(&count),
            "uncertain" => step == "tell" && count <= 1,
            "failed" => step == "tell" && count <= 1,
            _ => false,
        };
        assert!(fits, "{id}: {step} {status}, asked {count} times in {attempts} attempts");
        if step == "tell" {
            *tells.entry(status).or_insert(0) += 1;
        }
    }
    let approvals = "select count(*) from helper.function_calls c where c.function_name = 'workflow_approval' and c.status = 'succeeded'";
    assert_eq!(admin.one::<i64>(approvals, &[]).await, runs as i64);

    // What was posted was posted once; what may or may not have been is uncertain.
    let posted = requests(&server, "post");
    let mut posts = BTreeMap::new();
    let rows = admin
        .query("select s.run_id::text, s.status from helper.workflow_steps s where s.step = 'post'", &[])
        .await
        .unwrap();
    for row in rows {
        let (id, status): (String, String) = (row.get(0), row.get(1));
        let count = posted.get(&id).copied().unwrap_or_default();
        let fits = match status.as_str() {
            "succeeded" => count == 1,
            "uncertain" => count <= 1,
            "failed" => count == 0,
            _ => false,
        };
        assert!(fits, "{id}: {status}, posted {count} times");
        *posts.entry(status).or_insert(0) += 1;
    }
    nothing_left(&admin).await;
    println!(
        "{runs} runs: {lines} lines, {} requests to the model for {replies} replies ({tells:?} without another attempt), {} posts ({posts:?}), {} approvals by us",
        asked.values().chain(told.values()).sum::<usize>(),
        posted.values().sum::<usize>(),
        approved.load(Ordering::Relaxed)
    );
    assert!(killed.len() >= 4 || lasts < Duration::from_secs(40), "too little was killed: {killed:?}");
}

/// 500 runs in flight in a database: some wait, some sleep in a statement, the rest is in the queue.
async fn in_flight(cluster: &Cluster, database: &str, seconds: f64) -> Session {
    let session = cluster.connect(database, "postgres").await;
    session.run("select helper.create_workspace('Test')").await;
    session.run("create table public.ledger (run text not null, what text not null)").await;
    let write = |seconds: f64| {
        json!({ "name": "write", "type": "sql", "timeout": "1 min", "parameters": { "run": "{{ run.id }}" }, "sql": format!(
            "insert into public.ledger (run, what) select $1 ->> 'run', 'once' from (select pg_sleep({seconds}) offset 0) s") })
    };
    let waits = json!({ "steps": [{ "name": "wait", "type": "wait", "event": "go" }, write(0.0)] });
    let sleeps = json!({ "steps": [write(seconds)] });
    for (name, definition) in [("waits", waits), ("sleeps", sleeps)] {
        session.one::<String>("select helper.create_workflow($1, $2)::text", &[&name, &definition]).await;
    }
    let begin = "select count(helper.run_workflow($1)) from generate_series(1, 250)";
    session.one::<i64>(begin, &[&"waits"]).await;
    let waiting = "select count(*) = 250 from helper.workflow_runs where status = 'waiting'";
    until("runs to wait", async || session.one::<bool>(waiting, &[]).await.then_some(())).await;
    session.one::<i64>(begin, &[&"sleeps"]).await;
    until("a runner to sleep", async || {
        let sql = "select exists (select from pg_stat_activity where backend_type = 'helper_ai runner' \
            and wait_event = 'PgSleep' and datname = current_database())";
        session.one::<bool>(sql, &[]).await.then_some(())
    })
    .await;
    let unfinished: i64 = session.one("select count(*) from helper.workflow_runs where finished_at is null", &[]).await;
    assert!(unfinished > 450, "{unfinished} runs are in flight");
    session
}

fn assert_quick(what: &str, took: Duration) {
    println!("{what}: {took:?}");
    assert!(took < QUICK, "{what}: {took:?}");
}

#[tokio::test]
async fn runs_in_flight_stand_in_nobodys_way_and_none_is_lost() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    let timed = async |session: &Session, sql: &str| {
        let begin = Instant::now();
        session.run(sql).await;
        assert_quick(sql, begin.elapsed());
    };
    for name in ["dropped", "forced", "bare"] {
        admin.run(&format!("create database {name}")).await;
        cluster.connect(name, "postgres").await.run("create extension helper_ai cascade").await;
        let session = in_flight(&cluster, name, 20.0).await;
        match name {
            "bare" => timed(&session, "drop extension helper_ai cascade").await,
            "forced" => timed(&admin, "drop database forced with (force)").await,
            _ => {
                let pid = session.pid().await;
                drop(session);
                let gone = "select not exists (select from pg_stat_activity where pid = $1)";
                until("the session to end", async || admin.one::<bool>(gone, &[&pid]).await.then_some(())).await;
                timed(&admin, "drop database dropped").await;
            }
        }
    }
    drop(in_flight(&cluster, "postgres", 0.05).await);
    drop(admin);
    assert_quick("stop", cluster.stop("fast"));
    cluster.up();
    let admin = cluster.admin().await;
    until("a runner to sleep again", async || {
        let sql = "select exists (select from pg_stat_activity where backend_type = 'helper_ai runner' and wait_event = 'PgSleep')";
        admin.one::<bool>(sql, &[]).await.then_some(())
    })
    .await;
    drop(admin);
    assert_quick("restart", cluster.restart());
    let admin = cluster.admin().await;
    let unfinished: i64 = admin.one("select count(*) from helper.workflow_runs where finished_at is null", &[]).await;
    println!("{unfinished} runs in flight after the restart");
    assert!(unfinished >= 250, "{unfinished}");
    admin.run("select helper.emit_event('go')").await;
    all_ended(&admin).await;
    let succeeded: i64 = admin.one("select count(*) from helper.workflow_runs where status = 'succeeded'", &[]).await;
    let lines: i64 = admin.one("select count(*) from public.ledger", &[]).await;
    let written: i64 = admin.one("select count(distinct run) from public.ledger", &[]).await;
    assert_eq!((succeeded, lines, written), (500, 500, 500));
    nothing_left(&admin).await;
}
