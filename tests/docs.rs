//! The documentation says what is true: every SQL block of README.md and docs/*.md is run, every printed result compared,
//! and no function, setting or page is left out of where people look for it.
//!
//! A page is one session of psql as a superuser in a database of its own; a page that wants another caller says
//! `set role` itself. A `sql` block that a `text` block follows must print exactly that, identifiers and times aside.
//! `UPDATE_DOCS=1` writes what is printed today into the pages; read the difference before it is committed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::Cluster;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What a fenced block may be. Only `sql` is run, so that nothing that looks like SQL escapes.
const LANGUAGES: &[&str] = &["", "sql", "text", "sh", "conf", "ts", "json"];

/// A fenced block of a page.
#[derive(Clone, Debug)]
struct Block {
    language: String,
    /// Line of the opening fence, from 0.
    begin: usize,
    /// Line of the closing fence.
    end: usize,
    text: String,
}

/// A statement block and what it must print, if the page says.
struct Example {
    sql: Block,
    printed: Option<Block>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and the guides, by their names from the root of the repository.
fn pages() -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_owned()];
    let mut guides: Vec<String> = std::fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    guides.sort();
    names.extend(guides);
    names.into_iter().map(|name| (name.clone(), std::fs::read_to_string(root().join(&name)).unwrap())).collect()
}

fn blocks(page: &str, text: &str) -> Vec<Block> {
    let lines: Vec<&str> = text.lines().collect();
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let Some(language) = lines[at].strip_prefix("```") else {
            at += 1;
            continue;
        };
        let length = lines[at + 1..].iter().position(|line| *line == "```");
        let end = at + 1 + length.unwrap_or_else(|| panic!("{page}:{}: the block has no end", at + 1));
        blocks.push(Block {
            language: language.to_owned(),
            begin: at,
            end,
            text: lines[at + 1..end].iter().map(|line| format!("{line}\n")).collect(),
        });
        at = end + 1;
    }
    blocks
}

fn examples(page: &str, text: &str) -> Vec<Example> {
    let lines: Vec<&str> = text.lines().collect();
    let blocks = blocks(page, text);
    let follows = |before: &Block, after: &Block| lines[before.end + 1..after.begin].iter().all(|line| line.is_empty());
    let mut examples = Vec::new();
    for (at, block) in blocks.iter().enumerate() {
        let line = block.begin + 1;
        assert!(
            LANGUAGES.contains(&block.language.as_str()),
            "{page}:{line}: a block cannot be \"{}\"",
            block.language
        );
        if block.language == "text" {
            let checked = at > 0 && blocks[at - 1].language == "sql" && follows(&blocks[at - 1], block);
            assert!(checked, "{page}:{line}: no sql block stands right before this output, so nothing checks it");
        }
        if block.language == "sql" {
            let printed = blocks.get(at + 1).filter(|next| next.language == "text" && follows(block, next)).cloned();
            examples.push(Example { sql: block.clone(), printed });
        }
    }
    examples
}

/// What psql prints for each example, in one session.
fn run(cluster: &Cluster, page: &str, database: &str, examples: &[Example]) -> Result<Vec<String>, String> {
    // Standard output and error are two pipes: the same mark in both tells which block a line belongs to.
    let mark = |n: usize| format!("----- block {n} -----");
    let mut script = String::from("\\set SHOW_CONTEXT never\n");
    for (n, example) in examples.iter().enumerate() {
        let fails = example.printed.as_ref().is_some_and(|printed| printed.text.contains("ERROR:"));
        let stop = if fails { "off" } else { "on" };
        write!(script, "\\echo '{0}'\n\\warn '{0}'\n\\set ON_ERROR_STOP {stop}\n{1}\n", mark(n), example.sql.text)
            .unwrap();
    }
    let mut psql = cluster
        .program("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-P", "pager=off", "-f", "-", &cluster.url(database)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = psql.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(script.as_bytes()));
    let output = psql.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let part = |text: &str, n: usize| -> Option<String> {
        let (_, rest) = text.split_once(&format!("{}\n", mark(n)))?;
        Some(rest.split(&mark(n + 1)).next().unwrap_or(rest).to_owned())
    };
    let mut printed = Vec::new();
    for (n, example) in examples.iter().enumerate() {
        let (Some(out), Some(err)) = (part(&out, n), part(&err, n)) else { break };
        // Notices tell progress, which depends on the machine.
        let told: String = err
            .lines()
            .map(|line| match line.strip_prefix("psql:<stdin>:").and_then(|rest| rest.split_once(": ")) {
                Some((_, message)) => format!("{message}\n"),
                None => format!("{line}\n"),
            })
            .filter(|line| !line.starts_with("NOTICE:"))
            .collect();
        let expected = example.printed.as_ref().map_or("", |printed| printed.text.as_str());
        if told.contains("ERROR:") && !expected.contains("ERROR:") {
            return Err(format!("{page}:{}: {told}", example.sql.begin + 1));
        }
        printed.push(tidy(&format!("{out}{told}")));
    }
    if printed.len() == examples.len() && output.status.success() {
        Ok(printed)
    } else {
        Err(format!("{page}: psql ended with {} after block {}: {err}", output.status, printed.len()))
    }
}

/// Without blanks at the ends of lines and empty lines at the end.
fn tidy(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let end = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |at| at + 1);
    lines[..end].iter().map(|line| format!("{line}\n")).collect()
}

/// Length of what matches a pattern at the beginning: `x` a hexadecimal digit, `9` a digit, else the character itself.
fn matched(text: &[u8], pattern: &str) -> Option<usize> {
    let fits = |byte: &u8, wanted: u8| match wanted {
        b'x' => byte.is_ascii_hexdigit(),
        b'9' => byte.is_ascii_digit(),
        other => *byte == other,
    };
    let length = pattern.len();
    (text.len() >= length && text.iter().zip(pattern.bytes()).all(|(byte, wanted)| fits(byte, wanted)))
        .then_some(length)
}

/// How times are written, the longest first; what follows of a fraction or a zone belongs to it.
const TIMES: &[&str] = &["9999-99-99 99:99:99", "9999-99-99T99:99:99", "9999-99-99 99:99"];

/// The text with every uuid and every time replaced by a word.
fn normal(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut normal = Vec::new();
    let mut times = false;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if let Some(length) = matched(rest, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") {
            normal.extend_from_slice(b"00000000-0000-0000-0000-000000000000");
            at += length;
        } else if let Some(length) = TIMES.iter().find_map(|pattern| matched(rest, pattern)) {
            times = true;
            let tail = rest[length..].iter().take_while(|byte| byte.is_ascii_digit() || b".+:".contains(*byte)).count();
            normal.extend_from_slice(b"<time>");
            at += length + tail;
        } else {
            normal.push(bytes[at]);
            at += 1;
        }
    }
    let normal = String::from_utf8(normal).unwrap();
    if !times {
        return normal;
    }
    // A time is printed without zeros at its end, so that columns are as wide as they happen to be.
    let mut narrow = String::new();
    for character in normal.chars() {
        if !(matches!(character, ' ' | '-') && narrow.ends_with(character)) {
            narrow.push(character);
        }
    }
    narrow
}

/// The page with other outputs.
fn rewritten(text: &str, changes: &[(Block, String)]) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    let mut at = 0;
    for (block, printed) in changes {
        for line in &lines[at..=block.begin] {
            writeln!(out, "{line}").unwrap();
        }
        out.push_str(printed);
        at = block.end;
    }
    for line in &lines[at..] {
        writeln!(out, "{line}").unwrap();
    }
    out
}

#[tokio::test]
async fn every_sql_block_runs_and_prints_what_the_page_says() {
    let cluster = Cluster::bare("").await;
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (page, text) in pages() {
        let examples = examples(&page, &text);
        if examples.is_empty() {
            continue;
        }
        let database = page.replace(|c: char| !c.is_ascii_alphanumeric(), "_").to_lowercase();
        cluster.admin().await.run(&format!("create database {database}")).await;
        if !text.contains("create extension helper_ai") {
            cluster.connect(&database, "postgres").await.run("create extension helper_ai cascade").await;
            // What a page says of the processes is of those that had the time to start.
            cluster.pids_of(&database).await;
        }
        match run(&cluster, &page, &database, &examples) {
            Err(error) => wrong.push(error),
            Ok(printed) => {
                let mut changes = Vec::new();
                for (example, printed) in examples.iter().zip(printed) {
                    let Some(expected) = &example.printed else { continue };
                    compared += 1;
                    if normal(&tidy(&expected.text)) != normal(&printed) {
                        wrong.push(format!(
                            "{page}:{}: the page says\n{}\nit prints\n{printed}",
                            expected.begin + 1,
                            expected.text
                        ));
                        changes.push((expected.clone(), printed));
                    }
                }
                if update && !changes.is_empty() {
                    std::fs::write(root().join(&page), rewritten(&text, &changes)).unwrap();
                }
            }
        }
        cluster.admin().await.run(&format!("drop database {database}")).await;
        // Each page may make the roles it talks of.
        let roles = "do $$ declare v_role name; begin for v_role in select rolname from pg_roles where oid >= 16384 \
             and rolname not in ('anon', 'authenticated', 'service_role', 'authenticator') loop \
             execute format('drop role %I', v_role); end loop; end $$";
        cluster.admin().await.run(roles).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 0, "no page shows an output");
}

/// Rows of the table under a heading of README.md, cell by cell, without marks.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    rows(section.split("\n## ").next().unwrap())
}

/// Rows of tables that begin with something in backticks.
fn rows(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let line = line.trim_matches('|').replace("\\|", "\u{1}");
            line.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
        })
        .collect()
}

/// What stands between the first pair of backticks.
fn code(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or_default()
}

#[tokio::test]
async fn the_readme_or_the_page_of_packs_lists_every_function_and_who_may_call_it() {
    let cluster = Cluster::shared().await;
    let granted = cluster
        .admin()
        .await
        .query(
            "select p.proname::text, string_agg(distinct r.name, ',')
             from pg_proc p
             join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
             join pg_extension e on e.oid = d.refobjid and e.extname = 'helper_ai'
             cross join (values ('anon'), ('authenticated'), ('service_role')) r (name)
             where left(p.proname, 1) <> '_' and has_function_privilege(r.name, p.oid, 'execute')
             group by p.proname
             union all
             select p.proname::text, ''
             from pg_proc p
             join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
             join pg_extension e on e.oid = d.refobjid and e.extname = 'helper_ai'
             where left(p.proname, 1) <> '_' and not has_function_privilege('service_role', p.oid, 'execute')",
            &[],
        )
        .await
        .unwrap();
    let granted: BTreeMap<String, &str> = granted
        .iter()
        .map(|row| {
            let who = match row.get::<_, String>(1).as_str() {
                "anon,authenticated,service_role" => "everyone",
                "authenticated,service_role" => "users",
                "service_role" => "services",
                "" => "administrators",
                other => panic!("{} is granted to {other}", row.get::<_, String>(0)),
            };
            (row.get(0), who)
        })
        .collect();
    // Those of the packs have a page of their own.
    let packs = std::fs::read_to_string(root().join("docs/packs.md")).unwrap();
    let listed: BTreeMap<String, String> = table("Functions")
        .into_iter()
        .chain(rows(&packs))
        .map(|row| (code(&row[0]).split('(').next().unwrap().to_owned(), row.last().unwrap().clone()))
        .collect();
    let granted: BTreeMap<String, String> = granted.into_iter().map(|(name, who)| (name, who.to_owned())).collect();
    assert_eq!(listed, granted);
}

#[tokio::test]
async fn the_readme_lists_every_setting_with_its_default() {
    let cluster = Cluster::shared().await;
    let defined = cluster
        .admin()
        .await
        .query(
            "select s.name, case when s.boot_val = '' then 'empty' when s.unit = 'kB' then pg_size_pretty(s.boot_val::bigint * 1024)
               when s.unit = 'min' then (s.boot_val::int / 1440) || ' days' else s.boot_val end,
               case s.context when 'sighup' then 'reload' when 'superuser' then 'superuser' when 'user' then 'anyone' else s.context end
             from pg_settings s where s.name like 'helper\\_ai.%' order by s.name",
            &[],
        )
        .await
        .unwrap();
    let defined: Vec<[String; 3]> = defined.iter().map(|row| [row.get(0), row.get(1), row.get(2)]).collect();
    let mut listed: Vec<[String; 3]> = table("Settings")
        .into_iter()
        .map(|row| [code(&row[0]).to_owned(), row[1].trim_matches('`').to_owned(), row[2].clone()])
        .collect();
    listed.sort();
    assert_eq!(listed, defined);
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let pages = pages();
    let anchors = |text: &str| -> Vec<String> {
        let headings =
            text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
        headings
            .map(|heading| {
                let kept = heading
                    .to_lowercase()
                    .chars()
                    .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                    .collect::<String>();
                kept.replace(' ', "-")
            })
            .collect()
    };
    for (page, text) in &pages {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path: PathBuf =
                if file.is_empty() { root().join(page) } else { root().join(page).parent().unwrap().join(file) };
            assert!(path.exists(), "{page}: {target} does not exist");
            if !anchor.is_empty() {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(anchors(&text).iter().any(|known| known == anchor), "{page}: {target} has no such heading");
            }
        }
        if page != "README.md" {
            assert!(pages[0].1.contains(&format!("]({page})")), "README.md does not link to {page}");
        }
    }
}
