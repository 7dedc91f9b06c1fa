//! A private cluster that a test starts, breaks and throws away.
//!
//! The installed extension is what is tested: a cluster that cannot preload or create it fails the test. Nothing outlives
//! the [`Cluster`], not even when the test panics; what a killed test program left is removed by the next one.

#![allow(dead_code)]

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio_postgres::error::DbError;
use tokio_postgres::types::{FromSqlOwned, ToSql};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

/// What [`until`] allows; reached only when something is broken.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A server of our own, running or stopped.
pub struct Cluster {
    home: PathBuf,
    /// Directory of the Unix socket.
    sockets: PathBuf,
    bin: PathBuf,
    port: u16,
    settings: String,
}

/// The processes of the extension as `helper.status()` tells them; 0 for one that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pids {
    pub launcher: i32,
    pub gateway: i32,
    pub worker: i32,
}

/// A connection; dropping it closes it at once, whatever is under way.
pub struct Session {
    client: Client,
    connection: tokio::task::JoinHandle<()>,
    notices: Arc<Mutex<Vec<String>>>,
    notifications: Arc<Mutex<Vec<(String, String)>>>,
}

fn pg_config(what: &str) -> PathBuf {
    let program = std::env::var("PG_CONFIG").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin/pg_config".into());
    let output = Command::new(&program).arg(what).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {what}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0
}

/// A command as the user that runs the server, which refuses to run as root.
fn as_server(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--reset-env"]).arg(program);
    command
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn must(command: &mut Command) {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Whether a process runs; one that has ended and was not yet waited for does not.
pub fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X']))
}

/// Sends a signal, such as `KILL`, to a process.
pub fn signal(pid: i32, name: &str) {
    assert!(pid > 1, "there is no process {pid} to send {name} to");
    run(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]));
}

/// Looks again and again until it sees something; what takes longer than [`DEADLINE`] is a failure.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(begin.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What never ends is a failure too.
async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(3 * DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: did not end"),
    }
}

/// Where clusters are made.
fn base() -> PathBuf {
    let base = PathBuf::from(std::env::var("HELPER_CLUSTERS").unwrap_or_else(|_| "/var/tmp/helper_ai".into()));
    std::fs::create_dir_all(&base).unwrap();
    base.canonicalize().unwrap()
}

fn sockets_of(home: &Path) -> PathBuf {
    // The name of a Unix socket has at most 107 bytes.
    PathBuf::from("/tmp").join(format!("helper-ai-{}", home.file_name().unwrap().to_str().unwrap()))
}

fn remove(home: &Path) {
    if let Ok(pid) = std::fs::read_to_string(home.join("data/postmaster.pid"))
        && let Some(pid) = pid.lines().next().and_then(|pid| pid.trim().parse().ok())
        && std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == home.join("data"))
    {
        // A postmaster that is killed takes everything with it, be it stuck or not.
        signal(pid, "QUIT");
        let begin = Instant::now();
        while is_alive(pid) && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if is_alive(pid) {
            signal(pid, "KILL");
        }
    }
    let _ = std::fs::remove_dir_all(home);
    let _ = std::fs::remove_dir_all(sockets_of(home));
}

fn remove_leftovers(base: &Path) {
    for entry in std::fs::read_dir(base).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("test-").and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|pid: i32| !is_alive(pid)) {
            remove(&entry.path());
        }
    }
}

/// A data directory fresh from initdb, made once for each version of the server and copied.
fn template(base: &Path, bin: &Path) -> PathBuf {
    let lock = std::fs::File::create(base.join("template.lock")).unwrap();
    lock.lock().unwrap();
    remove_leftovers(base);
    let version: String = pg_config("--version")
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    let template = base.join(format!("template-{version}"));
    if !template.join("data/PG_VERSION").exists() {
        let part = base.join("template.part");
        let _ = std::fs::remove_dir_all(&part);
        std::fs::create_dir(&part).unwrap();
        own(&part);
        must(as_server(bin.join("initdb")).arg("-D").arg(part.join("data")).args([
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-instructions",
            "--no-sync",
        ]));
        let _ = std::fs::remove_dir_all(&template);
        std::fs::rename(part, &template).unwrap();
    }
    template
}

/// Gives a directory to the server's user.
fn own(path: &Path) {
    if is_root() {
        must(Command::new("chown").arg("postgres:postgres").arg(path));
    }
}

static COUNT: AtomicU32 = AtomicU32::new(0);
static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

impl Cluster {
    /// A running cluster with the roles that applications have, and the extension in database `postgres`.
    pub async fn start() -> Cluster {
        Self::with("").await
    }

    /// The same with more lines of `postgresql.conf`.
    pub async fn with(settings: &str) -> Cluster {
        let cluster = Self::bare(settings).await;
        cluster.admin().await.run("create extension helper_ai cascade").await;
        cluster
    }

    /// One for all tests of a program that run at the same time; it ends with the last of them.
    pub async fn shared() -> Arc<Cluster> {
        static STARTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _one = STARTING.lock().await;
        let running = SHARED.lock().unwrap().upgrade();
        if let Some(cluster) = running {
            return cluster;
        }
        let cluster = Arc::new(Self::start().await);
        *SHARED.lock().unwrap() = Arc::downgrade(&cluster);
        cluster
    }

    /// A running cluster with the roles, but the extension in no database.
    pub async fn bare(settings: &str) -> Cluster {
        let (base, bin) = (base(), pg_config("--bindir"));
        let template = template(&base, &bin);
        let home = base.join(format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let sockets = sockets_of(&home);
        remove(&home);
        std::fs::create_dir(&home).unwrap();
        std::fs::create_dir(&sockets).unwrap();
        own(&home);
        own(&sockets);
        must(Command::new("cp").args(["-a", "--reflink=auto"]).arg(template.join("data")).arg(&home));
        let mut cluster = Cluster { home, sockets, bin, port: 0, settings: settings.to_owned() };
        let mut tries = 0;
        loop {
            // Somebody else may take the port between the look and the start.
            cluster.port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            cluster.write_settings();
            tries += 1;
            if cluster.try_up() {
                break;
            }
            let taken = cluster.log().contains("could not create any TCP/IP sockets");
            assert!(taken && tries < 5, "the server does not start:\n{}", cluster.log());
        }
        let roles = "create role anon nologin; create role authenticated nologin; \
             create role service_role nologin bypassrls; \
             create role authenticator login noinherit; grant anon, authenticated, service_role to authenticator";
        cluster.admin().await.run(roles).await;
        cluster
    }

    fn write_settings(&self) {
        let mut text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/pg_test.conf")).unwrap();
        let sockets = self.sockets.display();
        // Several clusters run at once, and none holds much.
        write!(
            text,
            "\nport = {}\nunix_socket_directories = '{sockets}'\nshared_buffers = 64MB\n{}\n",
            self.port, self.settings
        )
        .unwrap();
        std::fs::write(self.home.join("helper.conf"), text).unwrap();
        std::fs::write(self.data().join("postgresql.conf"), "include '../helper.conf'\n").unwrap();
    }

    /// Adds lines to the configuration; the server reads them at its next start or [`Cluster::reload`].
    pub fn configure(&mut self, settings: &str) {
        self.settings.push('\n');
        self.settings.push_str(settings);
        self.write_settings();
    }

    /// Has the server read its configuration again.
    pub fn reload(&self) {
        must(&mut self.pg_ctl(&["reload"]));
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// A directory of the cluster's own, for whatever else a test needs; the server's user may read it.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// URL for other programs.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// One of the server's programs, as the server's user.
    pub fn program(&self, name: &str) -> Command {
        as_server(self.bin.join(name))
    }

    fn pg_ctl(&self, words: &[&str]) -> Command {
        let mut command = self.program("pg_ctl");
        command.arg("-D").arg(self.data()).arg("-l").arg(self.home.join("log")).args(words);
        // The server goes on with what it is given here.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Tries to start the server.
    pub fn try_up(&self) -> bool {
        self.pg_ctl(&["-w", "-t", "60", "start"]).status().unwrap().success()
    }

    /// Starts the server.
    pub fn up(&self) {
        assert!(self.try_up(), "the server does not start:\n{}", self.log());
    }

    /// Stops the server, `smart`, `fast` or `immediate`, and says how long that took.
    pub fn stop(&self, mode: &str) -> Duration {
        let begin = Instant::now();
        let stopped = self.pg_ctl(&["-w", "-t", "60", "-m", mode, "stop"]).status().unwrap().success();
        assert!(stopped, "the server does not stop:\n{}", self.log());
        begin.elapsed()
    }

    /// Stops the server fast and starts it again.
    pub fn restart(&self) -> Duration {
        let begin = Instant::now();
        let restarted = self.pg_ctl(&["-w", "-t", "60", "-m", "fast", "restart"]).status().unwrap().success();
        assert!(restarted, "the server does not restart:\n{}", self.log());
        begin.elapsed()
    }

    /// Process id of the postmaster.
    pub fn postmaster(&self) -> i32 {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().trim().parse().unwrap()
    }

    /// The server's log since the cluster was made.
    pub fn log(&self) -> String {
        std::fs::read(self.home.join("log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// A connection as a role to a database.
    pub async fn connect(&self, database: &str, role: &str) -> Session {
        self.try_connect(database, role)
            .await
            .unwrap_or_else(|error| panic!("{role}@{database}: {error}\n{}", self.log()))
    }

    /// The same where it may fail.
    pub async fn try_connect(&self, database: &str, role: &str) -> Result<Session, tokio_postgres::Error> {
        let mut config = Config::new();
        config.host_path(&self.sockets).port(self.port).user(role).dbname(database);
        let (client, mut connection) = config.connect(NoTls).await?;
        let notices = Arc::new(Mutex::new(Vec::new()));
        let notifications = Arc::new(Mutex::new(Vec::new()));
        let (heard, told) = (Arc::clone(&notices), Arc::clone(&notifications));
        let connection = tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
                match message {
                    AsyncMessage::Notice(notice) => {
                        heard.lock().unwrap().push(format!("{}: {}", notice.severity(), notice.message()));
                    }
                    AsyncMessage::Notification(told_of) => {
                        told.lock().unwrap().push((told_of.channel().to_owned(), told_of.payload().to_owned()));
                    }
                    _ => {}
                }
            }
        });
        Ok(Session { client, connection, notices, notifications })
    }

    /// A session of the superuser's, once the server has ended all of its processes and is back. One that came before they
    /// were told to end would end with them.
    pub async fn back_after(&self, before: &Pids) -> Session {
        until("the server to be back", async || {
            let is_gone = !is_alive(before.worker) && !is_alive(before.launcher);
            if is_gone { self.try_connect("postgres", "postgres").await.ok() } else { None }
        })
        .await
    }

    /// The superuser in database `postgres`.
    pub async fn admin(&self) -> Session {
        self.connect("postgres", "postgres").await
    }

    /// A person of the application, known by the claim `sub`, in database `postgres`.
    pub async fn user(&self, sub: &str) -> Session {
        self.session("postgres", "authenticated", &json!({ "sub": sub, "role": "authenticated" })).await
    }

    /// An API role with claims, as PostgREST connects, but for the whole session.
    pub async fn session(&self, database: &str, role: &str, claims: &Value) -> Session {
        let session = self.connect(database, "authenticator").await;
        session.run(&format!("set role {role}")).await;
        session.claims(claims).await;
        session
    }

    /// The processes, once all three are there and the gateway answers.
    pub async fn pids(&self) -> Pids {
        self.pids_of("postgres").await
    }

    /// The same with the worker of another database.
    pub async fn pids_of(&self, database: &str) -> Pids {
        let session = self.connect(database, "postgres").await;
        until("launcher, gateway and worker", async || {
            let pids = session.pids().await;
            (pids.launcher != 0 && pids.gateway != 0 && pids.worker != 0).then_some(pids)
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(6000);
            eprintln!("the server's log ends:\n{}", log.get(from..).unwrap_or(&log));
        }
        remove(&self.home);
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Runs statements that must succeed.
    pub async fn run(&self, sql: &str) {
        if let Err(error) = in_time(sql, self.client.batch_execute(sql)).await {
            panic!("{sql}: {error:?}");
        }
    }

    /// The one value of a query that gives one row.
    pub async fn one<T: FromSqlOwned>(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> T {
        match in_time(sql, self.client.query_one(sql, values)).await {
            Ok(row) => row.get(0),
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }

    /// The error of statements that must fail.
    pub async fn error(&self, sql: &str) -> DbError {
        match in_time(sql, self.client.batch_execute(sql)).await {
            Ok(()) => panic!("{sql}: succeeded"),
            Err(error) => error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone(),
        }
    }

    /// Sets the claims of the session.
    pub async fn claims(&self, claims: &Value) {
        let set = "select pg_catalog.set_config('request.jwt.claims', $1, false)";
        self.one::<String>(set, &[&claims.to_string()]).await;
    }

    /// `helper.status()`.
    pub async fn status(&self) -> Value {
        self.one("select helper.status()", &[]).await
    }

    /// The processes as they are now.
    pub async fn pids(&self) -> Pids {
        let status = self.status().await;
        let pid = |value: &Value| value.as_i64().unwrap_or(0) as i32;
        // A gateway that does not answer is none.
        let gateway = if status["error"].is_null() { pid(&status["gateway"]["pid"]) } else { 0 };
        Pids { launcher: pid(&status["launcher_pid"]), gateway, worker: pid(&status["worker_pid"]) }
    }

    /// Process id of the server process at the other end.
    pub async fn pid(&self) -> i32 {
        self.one("select pg_catalog.pg_backend_pid()", &[]).await
    }

    /// Notifications of the channels that it listens to: channel and payload.
    pub fn notifications(&self) -> Vec<(String, String)> {
        self.notifications.lock().unwrap().clone()
    }

    /// What the server told besides its replies.
    pub fn notices(&self) -> Vec<String> {
        self.notices.lock().unwrap().clone()
    }
}
