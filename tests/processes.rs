//! The processes of the extension: when they are there, when they are gone, and whose way they never stand in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::{Cluster, Session, is_alive, signal, until};
use helper_ai::core::wire::{self, Frames, Hello, PROTOCOL, Tag};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

const NOT_READY: &SqlState = &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;

/// Makes a database with the extension and more documents than are indexed soon.
async fn indexing_database(cluster: &Cluster, name: &str) -> i32 {
    cluster.admin().await.run(&format!("create database {name}")).await;
    let session = cluster.connect(name, "postgres").await;
    session.run("create extension helper_ai cascade; select helper.create_workspace('Test')").await;
    add_documents(&session, 200).await;
    until("indexing to be under way", async || {
        session.one::<bool>("select exists (select from helper.job_leases)", &[]).await.then_some(())
    })
    .await;
    cluster.pids_of(name).await.worker
}

async fn add_documents(session: &Session, count: i32) {
    let sql = "select count(helper.add_document('Document ' || n, repeat('Number ' || n || ' has a sentence. ', 5))) \
        from generate_series(1, $1::int) n";
    session.one::<i64>(sql, &[&count]).await;
}

/// Runs a statement that needs a database for itself. Postgres waits five seconds for others to leave before it gives up.
async fn timed(session: &Session, sql: &str) {
    let begin = Instant::now();
    session.run("set statement_timeout = '20s'").await;
    session.run(sql).await;
    println!("{sql}: {:?}", begin.elapsed());
}

async fn until_gone(what: &str, pid: i32) {
    until(what, async || (!is_alive(pid)).then_some(())).await;
}

async fn wait_for_log(cluster: &Cluster, what: &str) {
    until(what, async || cluster.log().contains(what).then_some(())).await;
}

/// The launcher, once it waits for a process to be started by a postmaster that does nothing.
async fn starting_launcher(session: &Session) -> i32 {
    let waits = "select pid from pg_stat_activity where backend_type = 'helper_ai launcher'
         and lower(wait_event) = 'bgworkerstartup'";
    until("the launcher to start a worker", async || session.query_opt(waits, &[]).await.unwrap().map(|row| row.get(0)))
        .await
}

/// Less than the launcher, which looks by itself every ten seconds, takes where nobody tells it.
const SOON: Duration = Duration::from_secs(9);

/// Workers of all databases.
async fn workers(session: &Session) -> i64 {
    session.one("select count(*) from pg_stat_activity where backend_type = 'helper_ai worker'", &[]).await
}

#[tokio::test]
async fn a_worker_comes_with_the_extension_and_goes_with_it() {
    let cluster = Cluster::bare("").await;
    let session = cluster.admin().await;
    session.run("begin; create extension helper_ai cascade; rollback").await;
    session.run("create extension helper_ai cascade").await;
    let first = cluster.pids().await;
    session.run("select helper.create_workspace('Test')").await;
    add_documents(&session, 50).await;

    session.run("begin; drop extension helper_ai; rollback").await;
    assert!(is_alive(first.worker));
    // In the middle of indexing.
    timed(&session, "drop extension helper_ai").await;
    until_gone("the worker to leave", first.worker).await;
    assert_eq!(workers(&session).await, 0);

    session.run("create extension helper_ai").await;
    let second = cluster.pids().await;
    assert_ne!(second.worker, first.worker);
    assert_eq!((second.launcher, second.gateway), (first.launcher, first.gateway));
    session.run("select helper.create_workspace('Test'); select helper.add_document('One', 'Text.')").await;
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 1);

    // Both in one transaction: the worker goes on with the new one.
    session.run("begin; drop extension helper_ai; create extension helper_ai; commit").await;
    session.run("select helper.create_workspace('Test'); select helper.add_document('One', 'Text.')").await;
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 1);
}

#[tokio::test]
async fn nobody_waits_for_a_database_in_which_documents_are_being_indexed() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    let mut former = Vec::new();
    for name in ["dropped", "forced", "renamed", "copied", "moved", "restarted"] {
        former.push(indexing_database(&cluster, name).await);
    }
    timed(&admin, "drop database dropped").await;
    timed(&admin, "drop database forced with (force)").await;
    timed(&admin, "alter database renamed rename to renewed").await;
    timed(&admin, "create database copy template copied").await;
    timed(&admin, "create database copy_of_files template copied strategy file_copy").await;
    let tablespace = cluster.home().join("tablespace");
    std::fs::create_dir(&tablespace).unwrap();
    assert!(Command::new("chown").arg("--reference").arg(cluster.data()).arg(&tablespace).status().unwrap().success());
    admin.run(&format!("create tablespace elsewhere location '{}'", tablespace.display())).await;
    timed(&admin, "alter database moved set tablespace elsewhere").await;
    for pid in &former[..5] {
        until_gone("the former worker to leave", *pid).await;
    }
    assert!(is_alive(former[5]), "a worker that was in nobody's way had to leave");

    // Where the database is still there, and in its copies, a worker goes on.
    for name in ["renewed", "copied", "copy", "copy_of_files", "moved"] {
        let session = cluster.connect(name, "postgres").await;
        let ready = "select count(*) from helper.knowledge_sources where status = 'ready'";
        let before: i64 = session.one(ready, &[]).await;
        until("indexing to go on", async || (session.one::<i64>(ready, &[]).await > before).then_some(())).await;
    }
    // A statement that fails gives the database back.
    let held = cluster.connect("renewed", "postgres").await;
    assert_eq!(admin.error("drop database renewed").await.code(), &SqlState::OBJECT_IN_USE);
    drop(held);
    cluster.pids_of("renewed").await;

    // No slot is left to a database that is gone, or its worker would be tried for ever.
    assert!(!cluster.log().contains("does not exist"), "{}", cluster.log());
    assert!(!cluster.log().contains("invalid database"), "{}", cluster.log());

    let pids = cluster.pids().await;
    println!("fast restart in the middle of indexing: {:?}", cluster.restart());
    until_gone("the former launcher", pids.launcher).await;
    until_gone("the former gateway", pids.gateway).await;
    for name in ["postgres", "renewed", "copied", "copy", "copy_of_files", "moved", "restarted"] {
        cluster.pids_of(name).await;
    }
    println!("fast stop in the middle of indexing: {:?}", cluster.stop("fast"));
}

#[tokio::test]
async fn a_server_that_is_stopped_just_as_a_worker_is_started_stops() {
    let cluster = Cluster::bare("").await;
    let session = cluster.admin().await;
    let postmaster = cluster.postmaster();
    // Whoever has a process started waits for it, as the postmaster does nothing for now.
    signal(postmaster, "STOP");
    session.run("create extension helper_ai cascade").await;
    let launcher = starting_launcher(&session).await;
    // The order to stop is there before the request to start.
    signal(postmaster, "INT");
    signal(postmaster, "CONT");
    until_gone("the launcher to end", launcher).await;
    until_gone("the server to stop", postmaster).await;
}

#[tokio::test]
async fn what_is_wanted_while_a_worker_is_started_is_started_next() {
    let cluster = Cluster::bare("").await;
    let session = cluster.admin().await;
    session.run("create database other").await;
    // It goes on though the postmaster does nothing.
    let other = cluster.connect("other", "postgres").await;
    let postmaster = cluster.postmaster();
    signal(postmaster, "STOP");
    session.run("create extension helper_ai cascade").await;
    starting_launcher(&session).await;
    other.run("create extension helper_ai cascade").await;
    let begin = Instant::now();
    signal(postmaster, "CONT");
    until("both workers", async || (workers(&session).await == 2).then_some(())).await;
    assert!(begin.elapsed() < SOON, "the launcher saw one of them only when it looked again by itself");
}

#[tokio::test]
async fn a_cancel_ends_no_process_that_has_nothing_to_cancel() {
    let cluster = Cluster::start().await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    session.run("create database other").await;
    let other = cluster.connect("other", "postgres").await;
    let before = cluster.pids().await;
    for pid in [before.worker, before.launcher] {
        assert!(session.one::<bool>("select pg_cancel_backend($1)", &[&pid]).await);
    }
    add_documents(&session, 1).await;
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 1);
    let postmaster = cluster.postmaster();
    signal(postmaster, "STOP");
    other.run("create extension helper_ai cascade").await;
    let launcher = starting_launcher(&session).await;
    assert!(session.one::<bool>("select pg_cancel_backend($1)", &[&launcher]).await);
    signal(postmaster, "CONT");
    assert_eq!(cluster.pids_of("other").await.launcher, before.launcher);
    assert_eq!(cluster.pids().await, before);
}

#[tokio::test]
async fn a_worker_that_cannot_look_for_its_extension_stays() {
    let cluster = Cluster::start().await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    let before = cluster.pids().await;
    let author = cluster.admin().await;
    author.run("begin; select helper.add_document('One', 'Text.')").await;
    session.run("begin; lock table pg_catalog.pg_extension in access exclusive mode").await;
    author.run("commit").await;
    wait_for_log(&cluster, "canceling statement due to lock timeout").await;
    session.run("rollback").await;
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 1);
    assert_eq!(cluster.pids().await, before);
}

#[tokio::test]
async fn a_worker_that_an_earlier_launcher_started_is_missed_too() {
    let cluster = Cluster::start().await;
    let session = cluster.admin().await;
    let first = cluster.pids().await;
    assert!(session.one::<bool>("select pg_terminate_backend($1, 10000)", &[&first.launcher]).await);
    let second = cluster.pids().await;
    assert!(second.launcher != first.launcher && second.worker == first.worker);
    let begin = Instant::now();
    assert!(session.one::<bool>("select pg_terminate_backend($1, 10000)", &[&second.worker]).await);
    let third = until("another worker", async || {
        let pids = session.pids().await;
        (pids.worker != 0 && pids.worker != second.worker).then_some(pids)
    })
    .await;
    assert!(begin.elapsed() < SOON, "the launcher missed it only when it looked again by itself");
    assert_eq!(third.launcher, second.launcher);
}

#[tokio::test]
async fn a_database_that_was_closed_or_a_template_has_its_worker_again() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    for name in ["closed", "model"] {
        admin.run(&format!("create database {name}")).await;
        cluster.connect(name, "postgres").await.run("create extension helper_ai cascade").await;
    }
    let worker = cluster.pids_of("closed").await.worker;
    admin.run("alter database closed allow_connections false").await;
    assert!(!is_alive(worker), "it is still in the database");
    admin.run("alter database model is_template true").await;
    cluster.restart();
    // The launcher has looked which databases there are.
    cluster.pids().await;
    let admin = cluster.admin().await;
    admin.run("alter database closed allow_connections true").await;
    cluster.pids_of("closed").await;
    timed(&admin, "create database copy template model").await;
    cluster.pids_of("copy").await;
    admin.run("alter database model is_template false").await;
    cluster.pids_of("model").await;
}

#[tokio::test]
async fn who_may_create_databases_may_copy_a_template_with_a_worker() {
    let cluster = Cluster::bare("").await;
    cluster.connect("template1", "postgres").await.run("create extension helper_ai cascade").await;
    let worker = cluster.pids_of("template1").await.worker;
    cluster.admin().await.run("create role creator login createdb").await;
    let creator = cluster.connect("postgres", "creator").await;
    timed(&creator, "create database mine").await;
    until_gone("the former worker to leave", worker).await;
    for name in ["template1", "mine"] {
        cluster.pids_of(name).await;
    }
    // A stranger's statement fails, and nobody has to leave for it.
    let worker = cluster.pids_of("template1").await.worker;
    let stranger = cluster.connect("postgres", "authenticator").await;
    assert_eq!(stranger.error("create database theirs").await.code(), &SqlState::INSUFFICIENT_PRIVILEGE);
    assert!(is_alive(worker), "a worker had to leave for somebody who may not create databases");
}

#[tokio::test]
async fn a_database_is_altered_with_its_worker_in_it() {
    let cluster = Cluster::shared().await;
    let before = cluster.pids().await;
    cluster.admin().await.run("alter database postgres connection limit -1").await;
    assert!(is_alive(before.worker), "a worker that was in nobody's way had to leave");
}

#[tokio::test]
async fn whatever_an_administrator_terminates_comes_back() {
    let cluster = Cluster::start().await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    add_documents(&session, 40).await;
    let first = cluster.pids().await;

    assert!(session.one::<bool>("select pg_terminate_backend($1, 10000)", &[&first.worker]).await);
    let second = until("another worker", async || {
        let pids = session.pids().await;
        (pids.worker != 0 && pids.worker != first.worker).then_some(pids)
    })
    .await;

    assert!(session.one::<bool>("select pg_terminate_backend($1, 10000)", &[&second.launcher]).await);
    until_gone("the gateway of the former launcher", second.gateway).await;
    let third = cluster.pids().await;
    assert!(third.launcher != second.launcher && third.gateway != second.gateway);
    assert_eq!(third.worker, second.worker);

    // A cancel is an error of one transaction at most.
    assert!(session.one::<bool>("select pg_cancel_backend($1)", &[&third.worker]).await);
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 40);

    // A changed setting takes a new gateway and nothing else.
    session.run("alter system set helper_ai.gateway_threads = 1").await;
    cluster.reload();
    let fourth = until("a gateway with the new setting", async || {
        let pids = session.pids().await;
        (pids.gateway != 0 && pids.gateway != third.gateway).then_some(pids)
    })
    .await;
    assert_eq!(fourth.launcher, third.launcher);
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", fourth.gateway)).unwrap();
    assert!(command.contains("--threads\x001\x00"), "{command}");
}

#[tokio::test]
async fn the_socket_is_for_the_servers_user_alone() {
    let cluster = Cluster::shared().await;
    cluster.pids().await;
    let path = cluster.data().join("helper_ai.sock");
    let socket = std::fs::metadata(&path).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    assert_eq!(socket.uid(), std::fs::metadata(cluster.data()).unwrap().uid());
    // Another user can only get this far as root, whom no mode stops.
    if socket.uid() != std::fs::metadata("/proc/self").unwrap().uid() {
        let mut stream = UnixStream::connect(&path).unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        assert!(heard.is_empty(), "the gateway talks to another user");
        wait_for_log(&cluster, "refused a connection of another user").await;
    }
    // The gateway has nothing of the server's open, nor a socket to the network.
    let gateway = cluster.pids().await.gateway;
    for entry in std::fs::read_dir(format!("/proc/{gateway}/fd")).unwrap().flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        assert!(!target.contains("/base/") && !target.contains("pg_wal"), "the gateway has {target} open");
    }
}

/// Stands in for a gateway of another version.
fn stranger(path: &Path) -> std::thread::JoinHandle<()> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
    std::thread::spawn(move || {
        let hello = Hello { protocol: PROTOCOL + 1, version: "9.9.9".into() };
        let hello = wire::encode(Tag::Hello, 0, &hello).unwrap();
        while let Ok((mut stream, _)) = listener.accept() {
            let (mut frames, mut buffer) = (Frames::default(), [0; 4096]);
            let _ = stream.write_all(&hello);
            // Reads the other side's hello and, as it is of another version, closes.
            while let Ok(None) = frames.next() {
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => frames.push(&buffer[..count]),
                    _ => break,
                }
            }
        }
    })
}

/// Puts a program that does nothing in the gateway's place.
async fn no_gateway(cluster: &Cluster, session: &Session, former: i32) {
    let idle = cluster.home().join("idle");
    std::fs::write(&idle, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&idle, std::fs::Permissions::from_mode(0o755)).unwrap();
    session.run(&format!("alter system set helper_ai.gateway_path = '{}'", idle.display())).await;
    cluster.reload();
    until_gone("the former gateway", former).await;
}

#[tokio::test]
async fn a_gateway_that_is_gone_when_documents_are_claimed_costs_them_nothing() {
    let cluster = Cluster::start().await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    add_documents(&session, 1).await;
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 1);
    let before = cluster.pids().await;
    // The worker cannot see that its gateway goes away until there are documents to claim.
    signal(before.worker, "STOP");
    no_gateway(&cluster, &session, before.gateway).await;
    add_documents(&session, 20).await;
    signal(before.worker, "CONT");
    let claimed = "select count(*) from helper.jobs where status = 'queued' and started_at is not null";
    until("a claim in vain", async || (session.one::<i64>(claimed, &[]).await > 0).then_some(())).await;
    // One that is claimed again just now has its attempt given back with it.
    let blamed = "select (select count(*) from helper.jobs where status not in ('succeeded', 'running') and attempts > 0) \
        + (select count(*) from helper.knowledge_sources where error is not null)";
    assert_eq!(session.one::<i64>(blamed, &[]).await, 0);
    session.run("alter system reset helper_ai.gateway_path").await;
    cluster.reload();
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 21);
    assert_eq!(session.one::<i64>("select count(*) from helper.jobs where attempts <> 1", &[]).await, 0);
}

#[tokio::test]
async fn a_gateway_of_another_version_is_told_and_no_document_suffers() {
    let cluster = Cluster::start().await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    let before = cluster.pids().await;
    no_gateway(&cluster, &session, before.gateway).await;
    stranger(&cluster.data().join("helper_ai.sock"));

    add_documents(&session, 20).await;
    for sql in [
        "select helper.embed('x')",
        // Longer than the socket takes before the other side closes.
        "select count(*) from helper.chunk(repeat('word ', 1000000))",
    ] {
        let error = session.error(sql).await;
        assert_eq!(error.code(), NOT_READY, "{error:?}");
        assert_eq!(error.message(), "the helper_ai gateway is of another version", "{sql}");
        assert!(error.detail().unwrap().contains("9.9.9"), "{error:?}");
        assert!(error.hint().is_some());
    }
    let status = session.status().await;
    assert_eq!(status["error"], "the helper_ai gateway is of another version", "{status}");
    wait_for_log(&cluster, "helper_ai worker: the helper_ai gateway is of another version").await;
    assert_eq!(session.one::<i64>("select count(*) from helper.jobs where attempts > 0", &[]).await, 0);

    session.run("alter system reset helper_ai.gateway_path").await;
    cluster.reload();
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 20);
}

#[tokio::test]
async fn without_preloading_calls_fail_with_a_hint_and_documents_wait() {
    let mut cluster = Cluster::with("shared_preload_libraries = ''").await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    add_documents(&session, 3).await;
    for sql in ["select helper.embed('x')", "select * from helper.search('x')", "select helper.wait_indexed()"] {
        let error = session.error(sql).await;
        assert_eq!(error.code(), NOT_READY, "{sql}: {error:?}");
        assert_eq!(error.message(), "helper_ai is not preloaded");
        assert!(error.hint().unwrap().contains("shared_preload_libraries"));
    }
    assert_eq!(session.status().await["preloaded"], false);
    cluster.configure("shared_preload_libraries = 'helper_ai'");
    cluster.restart();
    let session = cluster.admin().await;
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 3);
}

#[tokio::test]
async fn without_a_usable_model_calls_fail_with_the_cause_and_indexing_waits_until_it_is_there() {
    let mut cluster = Cluster::with("helper_ai.model_path = '/nonexistent/model'").await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    add_documents(&session, 60).await;
    let error = session.error("select helper.embed('x')").await;
    assert_eq!(error.code(), NOT_READY, "{error:?}");
    assert!(error.detail().unwrap().contains("/nonexistent/model"), "{error:?}");
    assert!(error.hint().is_some());
    // Whoever waits for a document can read why.
    let told = "select exists (select from helper.knowledge_sources where status = 'pending' and error ->> 'sqlstate' = '55000')";
    until("the cause to be with a document", async || session.one::<bool>(told, &[]).await.then_some(())).await;
    // One document now and then, at growing intervals, finds out whether the model is there; the others are left alone.
    let pauses = "select count(*) from (select j.started_at - lag(j.started_at) over (order by j.started_at) as pause from helper.jobs j) p \
        where p.pause > interval '400 milliseconds'";
    until("pauses between two tries", async || (session.one::<i64>(pauses, &[]).await >= 2).then_some(())).await;
    let tried = "select count(*) from helper.knowledge_sources where error is not null";
    let tried: i64 = session.one(tried, &[]).await;
    assert!((1..20).contains(&tried), "{tried} documents were tried in vain");
    let lost = "select count(*) from helper.jobs where status in ('failed', 'cancelled')";
    assert_eq!(session.one::<i64>(lost, &[]).await, 0);

    // A directory with half a file in it.
    let installed = Command::new("sh")
        .args(["-c", "echo \"$($PG_CONFIG --sharedir)/helper_ai/all-MiniLM-L6-v2\""])
        .env("PG_CONFIG", std::env::var("PG_CONFIG").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin/pg_config".into()))
        .output()
        .unwrap();
    let installed = String::from_utf8(installed.stdout).unwrap();
    let installed = Path::new(installed.trim());
    let model = cluster.home().join("all-MiniLM-L6-v2");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(installed).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        let bytes = std::fs::read(entry.path()).unwrap();
        let half = if entry.file_name() == "model.safetensors" { bytes.len() / 2 } else { bytes.len() };
        std::fs::write(model.join(entry.file_name()), &bytes[..half]).unwrap();
    }
    cluster.configure(&format!("helper_ai.model_path = '{}'", model.display()));
    cluster.reload();
    let error = until("the damaged model to be refused", async || {
        let error = session.error("select helper.embed('x')").await;
        error.detail().is_some_and(|detail| detail.contains("model.safetensors")).then_some(error)
    })
    .await;
    assert_eq!(error.code(), NOT_READY, "{error:?}");
    println!("{}: {}", error.message(), error.detail().unwrap());

    // Mended in place: nobody has to restart anything.
    let mended = model.join("model.safetensors");
    std::fs::copy(installed.join("model.safetensors"), model.join("part")).unwrap();
    std::fs::rename(model.join("part"), &mended).unwrap();
    let begin = Instant::now();
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 60);
    println!("model mended: all indexed after {:?}", begin.elapsed());
    session.run("select helper.embed('x')").await;
}

#[tokio::test]
async fn without_the_gateways_program_calls_fail_with_the_cause_and_indexing_waits_until_it_is_there() {
    let mut cluster = Cluster::with("helper_ai.gateway_path = '/nonexistent/gateway'").await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    add_documents(&session, 3).await;
    let error = session.error("select helper.embed('x')").await;
    assert_eq!(error.code(), NOT_READY, "{error:?}");
    assert!(error.detail().unwrap().contains("No such file"), "{error:?}");
    assert!(!error.detail().unwrap().contains("/nonexistent"), "the path is for administrators: {error:?}");
    assert!(error.hint().unwrap().contains("helper_ai.gateway_path"));
    wait_for_log(&cluster, "could not start helper_ai gateway \"/nonexistent/gateway\"").await;
    assert_eq!(session.one::<i64>("select count(*) from helper.jobs where attempts > 0", &[]).await, 0);
    cluster.configure("helper_ai.gateway_path = ''");
    cluster.reload();
    let begin = Instant::now();
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 3);
    println!("program back: all indexed after {:?}", begin.elapsed());
    // Tried again and again, told once.
    assert_eq!(cluster.log().matches("could not start helper_ai gateway").count(), 1);
}

#[tokio::test]
async fn without_room_for_a_worker_the_log_says_what_to_raise() {
    // The server's own launcher of logical replication takes one, ours another.
    let cluster = Cluster::with("max_worker_processes = 2").await;
    wait_for_log(&cluster, "could not start a helper_ai worker").await;
    wait_for_log(&cluster, "Raise max_worker_processes").await;
    // Backends need no worker.
    cluster.admin().await.run("select helper.embed('x')").await;
}

#[tokio::test]
async fn a_standby_says_what_it_is_and_starts_to_work_when_it_is_promoted() {
    let mut cluster = Cluster::with("").await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    add_documents(&session, 3).await;
    // Each second makes up for itself, however late somebody looks.
    session
        .run(
            "select helper.create_workflow('tick', '{\"steps\": [{\"name\": \"n\", \"type\": \"sql\", \"sql\": \"select 1\"}]}'); \
             select helper.schedule_workflow('tick', '* * * * * *', options => '{\"misfire\": \"backfill\", \"overlap\": \"allow\"}')",
        )
        .await;
    let fired = "select count(*) from helper.workflow_runs";
    until("a time to have come", async || (session.one::<i64>(fired, &[]).await > 0).then_some(())).await;
    drop(session);
    // A standby of nothing: it waits for what never comes.
    cluster.stop("fast");
    let marker = cluster.data().join("standby.signal");
    assert!(Command::new("touch").arg(&marker).status().unwrap().success());
    assert!(Command::new("chown").arg("--reference").arg(cluster.data()).arg(&marker).status().unwrap().success());
    cluster.configure("log_min_messages = notice");
    cluster.up();
    let session = cluster.admin().await;
    assert!(session.one::<bool>("select pg_is_in_recovery()", &[]).await);
    let before: i64 = session.one(fired, &[]).await;
    let begin = Instant::now();
    let error = session.error("select helper.embed('x')").await;
    assert_eq!(error.code(), NOT_READY, "{error:?}");
    assert_eq!(error.message(), "the helper_ai gateway does not run on a standby server");
    assert!(begin.elapsed() < Duration::from_secs(3), "it waited for what cannot come");
    assert_eq!(session.status().await["error"], error.message());
    assert_eq!(session.one::<i64>(fired, &[]).await, before);
    assert!(session.one::<bool>("select pg_promote()", &[]).await);
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 3);
    // What came due meanwhile is started once, and nothing of before again.
    until("times to come on the server that was promoted", async || {
        (session.one::<i64>(fired, &[]).await > before + 2).then_some(())
    })
    .await;
    let each = "select count(*), count(distinct r.trigger ->> 'at'), \
          1 + extract(epoch from max((r.trigger ->> 'at')::timestamptz) - min((r.trigger ->> 'at')::timestamptz))::bigint \
        from helper.workflow_runs r";
    let row = session.query_one(each, &[]).await.unwrap();
    let (runs, times, seconds): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((times, seconds), (runs, runs));
}

#[tokio::test]
async fn a_prepared_transaction_s_documents_are_indexed_after_its_commit() {
    let cluster = Cluster::with("max_prepared_transactions = 2").await;
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    session.run("begin; select helper.add_document('One', 'Text.'); prepare transaction 'one'").await;
    assert_eq!(session.one::<i64>("select count(*) from helper.knowledge_sources", &[]).await, 0);
    cluster.admin().await.run("commit prepared 'one'").await;
    assert_eq!(session.one::<i64>("select helper.wait_indexed()", &[]).await, 1);
}

#[tokio::test]
async fn a_gateway_that_dies_is_missed_for_a_moment_only() {
    let cluster = Cluster::start().await;
    let session = cluster.admin().await;
    let before = cluster.pids().await;
    let begin = Instant::now();
    signal(before.gateway, "KILL");
    let after = until("another gateway", async || {
        let pids = session.pids().await;
        (pids.gateway != 0 && pids.gateway != before.gateway).then_some(pids)
    })
    .await;
    println!("gateway back after {:?}", begin.elapsed());
    assert_eq!((after.launcher, after.worker), (before.launcher, before.worker));
    wait_for_log(&cluster, "helper_ai gateway ended: signal: 9").await;
}
