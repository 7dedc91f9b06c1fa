//! Documents on their way into the index: what is embedded again and what is not, what is searchable when, what is
//! refused and why, and attached tables.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::{Cluster, Session, until};
use serde_json::{Value, json};

const ANN: &str = "00000000-0000-4000-8000-00000000000a";

/// A cluster, its superuser, and Ann with a workspace of her own.
async fn start(settings: &str) -> (Cluster, Session, Session) {
    let cluster = Cluster::with(settings).await;
    let admin = cluster.admin().await;
    let ann = cluster.user(ANN).await;
    ann.run("select helper.create_workspace('Acme')").await;
    (cluster, admin, ann)
}

async fn add(session: &Session, id: &str, title: &str, content: &str) -> String {
    session.one("select helper.add_document($2, $3, 'kb_article', $1)::text", &[&id, &title, &content]).await
}

async fn indexed(session: &Session) -> i64 {
    session.one("select helper.wait_indexed()", &[]).await
}

async fn tokens(admin: &Session) -> i64 {
    admin.status().await["gateway"]["tokens"].as_i64().unwrap()
}

async fn strings(session: &Session, sql: &str) -> Vec<String> {
    session
        .query(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
        .iter()
        .map(|row| row.get(0))
        .collect()
}

fn code(error: &tokio_postgres::error::DbError) -> (&str, &str) {
    (error.code().code(), error.message())
}

/// A long text of numbered sections, one of which is special.
fn manual(sections: usize, special: usize, text: &str) -> String {
    (0..sections)
        .map(|n| {
            let filler = if n == special {
                text.to_owned()
            } else {
                format!("Section number {n} speaks of thing {} at length.", n * 7)
            };
            format!(
                "# Chapter {n}\n\n{filler} {}\n\n",
                format!("It goes on about item {n} and its {} parts. ", n + 3).repeat(6)
            )
        })
        .collect()
}

#[tokio::test]
async fn what_did_not_change_is_not_embedded_again() {
    let (_cluster, admin, ann) = start("").await;
    let text = manual(30, 12, "The blue widget costs ten.");
    let id = add(&ann, "manual", "Manual", &text).await;
    assert_eq!(indexed(&ann).await, 1);
    let chunks: i64 = ann.one("select count(*) from helper.knowledge_chunks", &[]).await;
    assert!(chunks >= 15, "{chunks}");
    let whole = tokens(&admin).await;
    assert!(whole > 1000);

    // The same again: the same document, and nothing to do.
    assert_eq!(add(&ann, "manual", "Manual", &text).await, id);
    assert_eq!(ann.one::<String>("select status from helper.knowledge_sources", &[]).await, "ready");
    indexed(&ann).await;
    assert_eq!(tokens(&admin).await, whole);
    // Asked for anyway: it is read again and found unchanged.
    ann.run("select helper.reindex()").await;
    indexed(&ann).await;
    assert_eq!(tokens(&admin).await, whole);
    // New facts about it alone need no model.
    ann.run(&format!(
        "select helper.add_document('Manual', $t${text}$t$, 'kb_article', 'manual', '{{\"colour\": \"red\"}}')"
    ))
    .await;
    indexed(&ann).await;
    assert_eq!(tokens(&admin).await, whole);
    assert_eq!(ann.one::<String>("select metadata ->> 'colour' from helper.knowledge_sources", &[]).await, "red");

    // One paragraph changes: its chunk alone is embedded, though everything behind it moves.
    let before = strings(&ann, "select id::text from helper.knowledge_chunks order by ordinal").await;
    let changed = manual(30, 12, "The green gadget, which is somewhat longer to describe, costs twenty.");
    assert_eq!(add(&ann, "manual", "Manual", &changed).await, id);
    indexed(&ann).await;
    let after = strings(&ann, "select id::text from helper.knowledge_chunks order by ordinal").await;
    let kept = after.iter().filter(|id| before.contains(id)).count();
    assert_eq!((kept, after.len()), (before.len() - 1, before.len()));
    let extra = tokens(&admin).await - whole;
    assert!(extra > 0 && extra < whole / 8, "{extra} of {whole}");
    // What moved is cited at its new place.
    offsets_hold(&ann).await;
    let quotes = "select bool_and(c ->> 'quote' = substring(s.content from (c ->> 'start_offset')::int + 1 for (c ->> 'end_offset')::int - (c ->> 'start_offset')::int)), count(*) > 0 \
        from helper.answer('What does section number 29 speak of?') a, jsonb_array_elements(a.citations) c join helper.knowledge_sources s on s.id = (c ->> 'source_id')::uuid";
    let row = ann.query_one(quotes, &[]).await.unwrap();
    assert_eq!((row.get::<_, bool>(0), row.get::<_, bool>(1)), (true, true));

    // Another title is embedded with every chunk.
    let before = tokens(&admin).await;
    add(&ann, "manual", "Handbook", &changed).await;
    indexed(&ann).await;
    assert!(tokens(&admin).await > before + whole / 2);
    let orphans: i64 = admin
        .one(
            "select (select count(*) from helper.knowledge_vectors v full join helper.knowledge_chunks c on c.id = v.chunk_id where c.id is null or v.chunk_id is null) \
             + (select count(*) from helper.knowledge_terms t full join helper.knowledge_chunks c on c.id = t.chunk_id where c.id is null or t.chunk_id is null) \
             + (select count(*) from helper.knowledge_inputs)",
            &[],
        )
        .await;
    assert_eq!(orphans, 0);
}

/// Every chunk is the document's characters between its offsets, and so is everything that search returns.
async fn offsets_hold(session: &Session) {
    let wrong = strings(
        session,
        "select c.id::text from helper.knowledge_chunks c join helper.knowledge_sources s on s.id = c.source_id \
         where c.content is distinct from substring(s.content from c.start_offset + 1 for c.end_offset - c.start_offset)",
    )
    .await;
    assert_eq!(wrong, Vec::<String>::new());
}

#[tokio::test]
async fn offsets_count_characters_whatever_the_script() {
    let (_cluster, _admin, ann) = start("").await;
    let texts = [
        "Pengembalian dana 💸 dilakukan dalam 30 hari.\r\n\r\nHubungi kami — kapan saja.\r\nTerima kasih!",
        "# Überschrift\n\nDie Größe „XL“ kostet 20 €. Straße und Fluß. 👩‍👩‍👧‍👦 Familie.\n\n- erstens\n- zweitens\n",
        "日本語の文章です。返品は三十日以内に受け付けます。\n\n送料は無料です。",
        "e\u{301}te\u{301} combine\u{301}. Second sentence with e\u{301}.",
    ];
    for (n, text) in texts.iter().enumerate() {
        add(
            &ann,
            &format!("t{n}"),
            "Text",
            &format!("{text}\n\n{}", "More words follow here in order to fill it. ".repeat(60)),
        )
        .await;
    }
    assert_eq!(indexed(&ann).await, 4);
    offsets_hold(&ann).await;
    let row = ann
        .query_one(
            "select count(*), bool_and(r.content = substring(s.content from r.start_offset + 1 for r.end_offset - r.start_offset)) \
             from helper.search('words in order', k => 20) r join helper.knowledge_sources s on s.id = r.source_id",
            &[],
        )
        .await
        .unwrap();
    assert!(row.get::<_, i64>(0) > 0);
    assert!(row.get::<_, bool>(1));
    let answered: Value =
        ann.one("select to_jsonb(a) from helper.answer('Berapa hari pengembalian dana?') a", &[]).await;
    for citation in answered["citations"].as_array().unwrap() {
        let at = |name: &str| citation[name].as_i64().unwrap() as i32;
        let quote: String = ann
            .one(
                "select substring(content from $2 + 1 for $3 - $2) from helper.knowledge_sources where id::text = $1",
                &[&citation["source_id"].as_str().unwrap(), &at("start_offset"), &at("end_offset")],
            )
            .await;
        assert_eq!(quote, citation["quote"].as_str().unwrap());
    }
}

#[tokio::test]
async fn a_document_is_searchable_as_one_version_or_not_at_all() {
    let (cluster, _admin, ann) = start("").await;
    let version = |word: &str| manual(40, 0, "x").replace("speaks", word);
    add(&ann, "doc", "Doc", &version("alphaword")).await;
    indexed(&ann).await;
    let total: i64 = ann.one("select count(*) from helper.knowledge_chunks", &[]).await;
    let watcher = cluster.user(ANN).await;
    // While it is indexed anew, whoever looks sees all of the old version or all of the new one.
    add(&ann, "doc", "Doc", &version("betaword")).await;
    let state = "select s.status, (select count(*) from helper.knowledge_chunks c where c.content ~ 'alphaword'), \
        (select count(*) from helper.knowledge_chunks c where c.content ~ 'betaword'), s.content ~ 'alphaword', \
        exists (select from helper.search('alphaword', method => 'text')) from helper.knowledge_sources s";
    let mut looks = 0;
    until("the new version", async || {
        let row = watcher.query_one(state, &[]).await.unwrap();
        let (status, old, new, content_is_old): (String, i64, i64, bool) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        looks += 1;
        if status == "pending" {
            assert_eq!((new, content_is_old), (0, true), "a part of the new version is seen");
            assert!(old >= total - 1, "a part of the old version is gone: {old} of {total}");
            assert!(
                row.get::<_, bool>(4)
                    || watcher.one::<String>("select status from helper.knowledge_sources", &[]).await == "ready"
            );
            None
        } else {
            assert_eq!((old, content_is_old), (0, false));
            assert!(new >= total - 1);
            Some(())
        }
    })
    .await;
    assert!(looks > 1, "the old version was never looked at");
    // A version that cannot be read leaves the old one searchable.
    ann.run("begin; select helper.add_document('Doc', 'Third gammaword.', 'kb_article', 'doc'); rollback").await;
    assert_eq!(indexed(&ann).await, 1);
    assert_eq!(ann.one::<i64>("select count(*) from helper.search('gammaword', method => 'text')", &[]).await, 0);
    let id = strings(&ann, "select id::text from helper.knowledge_sources").await.remove(0);
    ann.run(&format!("select helper.remove_document('{id}')")).await;
    assert_eq!(ann.one::<i64>("select count(*) from helper.search('betaword')", &[]).await, 0);
    assert_eq!(ann.one::<i64>("select count(*) from helper.knowledge_chunks", &[]).await, 0);
    let error = ann.error(&format!("select helper.remove_document('{id}')")).await;
    assert_eq!(error.code().code(), "42704");
}

#[tokio::test]
async fn files_that_cannot_be_read_say_why_and_can_be_tried_again() {
    let (_cluster, admin, ann) = start("").await;
    let files: [(&str, &[u8], &str); 4] = [
        ("broken.txt", b"caf\xff\xfe\xfd bad \x80\x81 bytes", "broken.txt"),
        ("program.exe", b"MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff", "program.exe"),
        ("zeros.txt", b"text \x00\x00 with zeros \x00", "zeros.txt"),
        ("picture.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "picture.png"),
    ];
    for (name, bytes, _) in files {
        ann.one::<String>("select helper.add_file($1, $2)::text", &[&name, &bytes]).await;
    }
    ann.one::<String>("select helper.add_file('good.txt', 'Good text about refunds.')::text", &[]).await;
    assert_eq!(indexed(&ann).await, 1);
    for (name, ..) in files {
        let row = ann
            .query_one("select status, error ->> 'sqlstate', error ->> 'message' from helper.knowledge_sources where title = $1", &[&name])
            .await
            .unwrap();
        let (status, state, message): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        println!("{name}: {state} {message}");
        assert_eq!((status.as_str(), state.as_str()), ("failed", "22023"), "{name}: {message}");
        assert!(!message.is_empty() && !message.contains("bytes bad"));
    }
    assert_eq!(ann.one::<i64>("select failed from helper.index_progress", &[]).await, 4);
    assert!(
        ann.notices().iter().any(|notice| notice.contains("4 of 5 documents could not be indexed")),
        "{:?}",
        ann.notices()
    );
    // Tried again, they fail again; what was wrong outside them is put right by it.
    assert_eq!(ann.one::<i64>("select helper.reindex(only_failed => true)", &[]).await, 4);
    assert_eq!(indexed(&ann).await, 1);
    assert_eq!(ann.one::<i64>("select failed from helper.index_progress", &[]).await, 4);
    admin.run("update helper.knowledge_inputs set content = 'Now it is text.' where source_id = (select id from helper.knowledge_sources where title = 'broken.txt')").await;
    let id = strings(&ann, "select id::text from helper.knowledge_sources where title = 'broken.txt'").await.remove(0);
    assert_eq!(ann.one::<i64>(&format!("select helper.reindex('{id}')"), &[]).await, 1);
    assert_eq!(indexed(&ann).await, 2);
    let error: Option<Value> =
        ann.one(&format!("select error from helper.knowledge_sources where id = '{id}'"), &[]).await;
    assert_eq!(error, None);
    // The jobs say it too.
    assert!(
        ann.one::<i64>(
            "select count(*) from helper.jobs where status = 'failed' and error ->> 'sqlstate' = '22023'",
            &[]
        )
        .await
            >= 4
    );
}

#[tokio::test]
async fn bad_arguments_are_refused_with_their_cause() {
    let (_cluster, _admin, ann) = start("").await;
    for (sql, state, message) in [
        ("helper.add_document(null, 'x')", "22023", "title is null"),
        ("helper.add_document('', 'x')", "22023", "title is empty"),
        ("helper.add_document(E' \\n\\t', 'x')", "22023", "title is empty"),
        ("helper.add_document('x', null)", "22023", "content is null"),
        ("helper.add_document('x', '')", "22023", "content is empty"),
        ("helper.add_document('x', E' \\n\\t \\r')", "22023", "content is empty"),
        ("helper.add_document(repeat('x', 1001), 'x')", "22023", "title has 1001 characters, at most 1000 are allowed"),
        ("helper.add_document('x', 'x', null)", "22023", "source type \"\" is not valid"),
        ("helper.add_document('x', 'x', 'No Good')", "22023", "source type \"No Good\" is not valid"),
        ("helper.add_document('x', 'x', metadata => '[]')", "22023", "metadata is not a JSON object"),
        ("helper.add_document('x', 'x', metadata => null)", "22023", "metadata is not a JSON object"),
        (
            "helper.add_document('x', 'x', language => 'english')",
            "22023",
            "language \"english\" is not a two-letter code",
        ),
        (
            "helper.add_document('x', 'x', workspace => '00000000-0000-7000-8000-000000000000')",
            "42704",
            "workspace \"00000000-0000-7000-8000-000000000000\" does not exist",
        ),
        ("helper.add_document('x', E'x\\u0000')", "42601", ""),
        ("helper.add_document('x', 'x', metadata => '{\"a\": \"\\u0000\"}')", "22P05", ""),
        ("helper.add_file(null, 'x')", "22023", "title is null"),
        ("helper.add_file('x.txt', null)", "22023", "content is null"),
        ("helper.add_file('x.txt', '')", "22023", "content is empty"),
        ("helper.remove_document(null)", "42704", "document \"\" does not exist"),
        ("helper.search(null)", "22023", "query is null"),
        ("helper.search('')", "22023", "query is empty"),
        ("helper.search(E' \\n ')", "22023", "query is empty"),
        ("helper.search('x', k => 0)", "22023", "k is 0, expected 1 to 1000"),
        ("helper.search('x', k => -5)", "22023", "k is -5, expected 1 to 1000"),
        ("helper.search('x', k => 1001)", "22023", "k is 1001, expected 1 to 1000"),
        ("helper.search('x', method => 'magic')", "22023", "search method \"magic\" does not exist"),
        ("helper.search('x', filter => '[]')", "22023", "filter is not a JSON object"),
        ("helper.search('x', source_types => array['a', null])", "22023", "source_types holds a null"),
        ("helper.search(repeat('x', 8001))", "22023", "query has more than 8000 characters"),
        ("helper.ask(null)", "22023", "question is null"),
        ("helper.ask(' ')", "22023", "question is empty"),
        ("helper.ask(repeat('x', 8001))", "22023", "question has more than 8000 characters"),
        ("helper.ask('x', mode => 'nope')", "42704", "mode \"nope\" does not exist"),
        ("helper.ask('x', model => 'nope')", "42704", "model \"nope\" does not exist"),
        ("helper.ask('x', options => '7')", "22023", "options is not a JSON object"),
        ("helper.ask('x', options => '{\"k\": 0}')", "22023", "option \"k\" is not between 1 and 50"),
        ("helper.ask('x', options => '{\"k\": \"8\"}')", "22023", "option \"k\" is not between 1 and 50"),
        ("helper.ask('x', options => '{\"nope\": 1}')", "22023", "option \"nope\" does not exist"),
        (
            "helper.ask('x', options => '{\"source_types\": [1]}')",
            "22023",
            "option \"source_types\" is not a list of strings",
        ),
        ("helper.embed(null)", "22023", "input is null"),
        ("helper.embed('')", "22023", "input is empty"),
        ("helper.embed('x', 'nope')", "42704", ""),
        ("helper.embed_many(null)", "22023", "inputs is null"),
        ("helper.embed_many(array['x', null])", "22023", "input 2 is null"),
        ("helper.count_tokens(null)", "22023", "input is null"),
        ("helper.chunk(null)", "22023", "content is null"),
        ("helper.chunk('x', 1)", "22023", "max_tokens is 1, expected 16 to 8192"),
        ("helper.chunk('x', 100, 90)", "22023", "overlap_tokens is 90, expected 0 to half of max_tokens"),
    ] {
        let error = ann.error(&format!("select {sql}")).await;
        assert_eq!(error.code().code(), state, "{sql}: {}", error.message());
        assert!(message.is_empty() || error.message() == message, "{sql}: {}", error.message());
        assert!(
            !error.message().ends_with('.') && error.message().chars().next().unwrap().is_lowercase(),
            "{}",
            error.message()
        );
    }
    assert_eq!(ann.one::<i64>("select count(*) from helper.knowledge_sources", &[]).await, 0);
    assert_eq!(ann.one::<i64>("select count(*) from helper.conversations", &[]).await, 0);
}

#[tokio::test]
async fn documents_beyond_the_limit_are_refused() {
    let (_cluster, admin, ann) = start("").await;
    // 200 MB, as a file and as a text.
    for call in [
        "helper.add_file('big.txt', convert_to(repeat('0123456789', 20 * 1024 * 1024), 'UTF8'))",
        "helper.add_document('big', repeat('0123456789', 20 * 1024 * 1024))",
    ] {
        let error = ann.error(&format!("select {call}")).await;
        assert_eq!(code(&error), ("53400", "document has 200 MB, at most 50 MB are allowed"));
        assert_eq!(error.hint(), Some("An administrator can raise helper_ai.max_document_size."));
    }
    admin.run("alter system set helper_ai.max_document_size = '10kB'").await;
    admin.run("select pg_reload_conf()").await;
    let big = format!("select helper.add_document('x', repeat('word ', {}))", 2048 + 1);
    until("the new limit", async || ann.batch_execute(&big).await.err()).await;
    ann.run("select helper.add_document('x', repeat('a b c d e ', 1000))").await;
    assert!(indexed(&ann).await > 0);
    // Rows of an attached table that are too large are left out with a warning; the application's insert goes on.
    admin
        .run(&format!(
            "create table public.notes (id int primary key, t text, c text); set request.jwt.claims = '{}'; \
             select helper.attach_table('public.notes', 't', 'c'); insert into public.notes values (1, 'big', repeat('word ', 3000)), (2, 'small', 'Small.')",
            json!({ "sub": ANN })
        ))
        .await;
    assert!(admin.notices().iter().any(|notice| notice.contains("too large")), "{:?}", admin.notices());
    assert_eq!(
        strings(&ann, "select external_id from helper.knowledge_sources where source_type = 'table_row'").await,
        ["2"]
    );
}

#[tokio::test]
async fn language_is_detected_and_words_are_stemmed() {
    let (_cluster, _admin, ann) = start("").await;
    add(&ann, "id", "Kebijakan", "Pembeli dapat mengembalikan barang yang rusak. Uang akan dikembalikan dalam tiga puluh hari setelah barang kami terima di gudang.").await;
    add(&ann, "en", "Policy", "Customers may return broken parcels. The refunds are paid within thirty days after we have received the goods in the warehouse.").await;
    ann.run("select helper.add_document('Petunjuk', 'Surat surat', 'kb_article', 'given', language => 'id')").await;
    assert_eq!(indexed(&ann).await, 3);
    let languages =
        strings(&ann, "select external_id || ' ' || coalesce(language, '?') from helper.knowledge_sources order by 1")
            .await;
    assert_eq!(languages, ["en en", "given id", "id id"]);
    for (query, expected) in [
        ("pengembalian", "id"),
        ("barangnya", "id"),
        ("mengembalikannya", "id"),
        ("refund", "en"),
        ("parcel", "en"),
        ("returning customer", "en"),
        ("PARCELS", "en"),
    ] {
        let found = strings(&ann, &format!("select s.external_id from helper.search('{query}', method => 'text') r join helper.knowledge_sources s on s.id = r.source_id")).await;
        assert_eq!(found.first().map(String::as_str), Some(expected), "{query}: {found:?}");
    }
    assert_eq!(strings(&ann, "select title from helper.search('zzzzz', method => 'text')").await, Vec::<String>::new());
    // Filters.
    assert_eq!(
        strings(&ann, "select title from helper.search('refund', source_types => '{contact}')").await,
        Vec::<String>::new()
    );
    assert_eq!(
        strings(&ann, "select title from helper.search('refund', filter => '{\"a\": 1}')").await,
        Vec::<String>::new()
    );
    ann.run("select helper.add_document('Tagged', 'A tagged text about refunds.', metadata => '{\"a\": 1, \"b\": {\"c\": [1, 2]}}')").await;
    indexed(&ann).await;
    assert_eq!(strings(&ann, "select title from helper.search('refund', filter => '{\"b\": {\"c\": [2]}}', source_types => '{uploaded_doc}')").await, ["Tagged"]);
}

#[tokio::test]
async fn attached_tables_are_followed() {
    let (_cluster, admin, ann) = start("").await;
    let acme: String = ann.one("select helper.current_workspace()::text", &[]).await;
    let bolt: String = ann.one("select helper.create_workspace('Bolt')::text", &[]).await;
    admin
        .run(&format!(
            "create table public.articles (shop text, nr int, headline text, body text, price numeric, team uuid, primary key (shop, nr)); \
             insert into public.articles values ('a/b', 1, 'First', 'First body about tulips.', 9.5, '{acme}'), ('a', 2, 'Second', 'Second body about roses.', null, '{bolt}'), ('a', 3, null, ' ', 1, '{acme}'); \
             set request.jwt.claims = '{}'",
            json!({ "sub": ANN })
        ))
        .await;
    let attach = "select helper.attach_table('public.articles', 'headline', 'body', 'article', metadata => '{price}', workspace_column => 'team')";
    assert_eq!(admin.one::<i64>(attach, &[]).await, 3);
    let error = admin.error(attach).await;
    assert_eq!(error.code().code(), "42710");
    let list = async || {
        strings(&admin, "select external_id || ' ' || title || ' ' || coalesce(metadata ->> 'price', '-') || ' ' || (select w.name from helper.workspaces w where w.id = workspace_id) from helper.knowledge_sources order by 1").await
    };
    assert_eq!(list().await, ["a%2Fb/1 First 9.5 Acme", "a/2 Second - Bolt"]);
    indexed(&ann).await;
    let search = async |query: &str, workspace: &str| {
        strings(&ann, &format!("select title from helper.search('{query}', '{workspace}', method => 'text')")).await
    };
    assert_eq!(search("tulips", &acme).await, ["First"]);
    assert_eq!(search("roses", &acme).await, Vec::<String>::new());
    assert_eq!(search("roses", &bolt).await, ["Second"]);

    // Insert, update, delete; many rows in one statement; what is rolled back never was.
    admin.run(&format!("insert into public.articles select 'c', n, 'Many ' || n, 'Lilies ' || n, n, '{acme}' from generate_series(1, 20) n")).await;
    assert_eq!(list().await.len(), 22);
    admin.run("begin; delete from public.articles; update public.articles set body = ''; insert into public.articles values ('x', 1, 'X', 'X', 1, gen_random_uuid()); truncate public.articles; rollback").await;
    assert_eq!(list().await.len(), 22);
    admin.run("delete from public.articles where shop = 'c' and nr > 2").await;
    assert_eq!(list().await, ["a%2Fb/1 First 9.5 Acme", "a/2 Second - Bolt", "c/1 Many 1 1 Acme", "c/2 Many 2 2 Acme"]);
    admin.run("update public.articles set body = 'Now about orchids.', price = 10 where nr = 1 and shop <> 'c'").await;
    // A new key is a new document, the old one goes; swapped keys stay two.
    admin.run("update public.articles set nr = nr + 100 where shop = 'c'").await;
    assert_eq!(
        list().await,
        ["a%2Fb/1 First 10 Acme", "a/2 Second - Bolt", "c/101 Many 1 1 Acme", "c/102 Many 2 2 Acme"]
    );
    // A row that moves takes its document along; one that loses text or workspace loses it.
    admin.run(&format!("update public.articles set team = '{bolt}' where shop = 'a/b'; update public.articles set body = null where nr = 101; update public.articles set team = null where nr = 102")).await;
    assert_eq!(list().await, ["a%2Fb/1 First 10 Bolt", "a/2 Second - Bolt"]);
    indexed(&ann).await;
    assert_eq!(search("orchids", &acme).await, Vec::<String>::new());
    assert_eq!(search("tulips", &bolt).await, Vec::<String>::new());
    assert_eq!(search("orchids", &bolt).await, ["First"]);
    // The rows of one merge or upsert.
    admin.run(&format!("insert into public.articles values ('a', 2, 'Second again', 'Roses again.', 5, '{bolt}'), ('d', 1, 'Fourth', 'Violets.', 4, '{acme}') on conflict (shop, nr) do update set headline = excluded.headline, body = excluded.body, price = excluded.price")).await;
    assert_eq!(list().await, ["a%2Fb/1 First 10 Bolt", "a/2 Second again 5 Bolt", "d/1 Fourth 4 Acme"]);
    admin.run("truncate public.articles").await;
    assert_eq!(list().await, Vec::<String>::new());

    // Detached, it is not followed; its documents go, or stay as ordinary ones.
    admin.run(&format!("insert into public.articles values ('a', 1, 'One', 'One body.', 1, '{acme}')")).await;
    assert_eq!(admin.one::<i64>("select helper.detach_table('public.articles', keep_documents => true)", &[]).await, 1);
    admin.run("delete from public.articles").await;
    assert_eq!(list().await, ["a/1 One 1 Acme"]);
    assert_eq!(
        strings(&admin, "select tgname::text from pg_trigger where tgrelid = 'public.articles'::regclass").await,
        Vec::<String>::new()
    );
    // One workspace for all rows, and a key that is named.
    admin.run("create table public.faq (q text, a text); insert into public.faq values ('How?', 'So.')").await;
    assert_eq!(
        admin
            .error(&format!("select helper.attach_table('public.faq', 'q', 'a', workspace => '{acme}')"))
            .await
            .code()
            .code(),
        "22023"
    );
    admin
        .run(&format!(
            "select helper.attach_table('public.faq', 'q', 'a', 'faq', key => '{{q}}', workspace => '{acme}')"
        ))
        .await;
    assert_eq!(list().await, ["How? How? - Acme", "a/1 One 1 Acme"]);
    assert_eq!(admin.one::<i64>("select helper.detach_table('public.faq')", &[]).await, 1);
    assert_eq!(list().await, ["a/1 One 1 Acme"]);
    for (call, state) in [
        ("helper.attach_table(null, 'q', 'a')", "22023"),
        ("helper.attach_table('public.faq', 'nope', 'a', key => '{q}')", "42704"),
        ("helper.attach_table('public.faq', 'q', 'a', 'No Good', key => '{q}')", "22023"),
        ("helper.attach_table('public.faq', 'q', 'a', key => '{q}', workspace_column => 'q')", "22023"),
        ("helper.attach_table('helper.messages', 'content', 'content')", "22023"),
        ("helper.attach_table('pg_catalog.pg_views', 'viewname', 'definition')", "22023"),
        ("helper.detach_table(null)", "22023"),
    ] {
        assert_eq!(admin.error(&format!("select {call}")).await.code().code(), state, "{call}");
    }
}

#[tokio::test]
async fn what_is_given_again_while_its_indexing_ends_is_indexed_again() {
    let (cluster, admin, ann) = start("").await;
    // It waits, and nobody indexes it.
    let worker = cluster.admin().await;
    worker.claims(&json!({ "sub": ANN })).await;
    worker.run("begin").await;
    let id = add(&worker, "a", "A thing", "All there is to say.").await;
    worker.run("delete from helper.job_queue; commit").await;
    // As the worker does when it stores a document.
    worker.run(&format!("begin; select from helper.knowledge_sources where id = '{id}' for no key update")).await;
    let again = cluster.user(ANN).await;
    let pid = again.pid().await;
    let sql = format!("select helper.reindex('{id}')");
    let waits = async {
        until("the other to wait", async || {
            let sql = "select true from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'";
            admin.query_opt(sql, &[&pid]).await.unwrap()
        })
        .await;
        worker
            .run(&format!(
                "update helper.knowledge_sources set status = 'ready', content = 'All there is to say.' where id = '{id}'; \
                 delete from helper.knowledge_inputs where source_id = '{id}'; commit"
            ))
            .await;
    };
    tokio::join!(again.run(&sql), waits);
    until("it to be indexed", async || {
        let sql = format!(
            "select true from helper.knowledge_sources where id = '{id}' and status = 'ready' and chunk_count = 1"
        );
        ann.query_opt(&sql, &[]).await.unwrap()
    })
    .await;
}

/// Plans are kept, and made of what is known of a table: of one that has just been emptied that is nothing. Whichever way
/// it was emptied, a row of thousands is written without reading the others.
#[tokio::test]
async fn what_is_known_of_empty_tables_makes_nobody_read_all_of_them_for_each_row() {
    const ROWS: i64 = 4000;
    let (cluster, admin, _) = start("autovacuum = off").await;
    admin
        .run(&format!(
            "create table public.many (id integer primary key, body text not null); \
             insert into public.many select n, 'Thing ' || n from generate_series(1, {ROWS}) n"
        ))
        .await;
    let touched = "select coalesce(sum(i.idx_blks_hit + i.idx_blks_read), 0)::bigint from pg_statio_user_indexes i \
        where i.schemaname = 'helper' and i.relname in ('knowledge_sources', 'knowledge_inputs', 'jobs', 'job_queue')";
    let mut fewest = None;
    for emptied in ["select 1", "analyze", "vacuum", "vacuum analyze", "analyze"] {
        admin.run(emptied).await;
        let session = cluster.admin().await;
        session.claims(&json!({ "sub": ANN })).await;
        let before: i64 = session.one(touched, &[]).await;
        // Taken back, so that nobody indexes them.
        session
            .run(
                "begin; select helper.attach_table('public.many', 'id', 'body'); \
                 select pg_stat_force_next_flush(); rollback",
            )
            .await;
        let after: i64 = session.one(touched, &[]).await;
        let each = (after - before) / ROWS;
        let fewest = *fewest.get_or_insert(each);
        assert!(each <= fewest + 2, "after {emptied}: {each} pages of indexes for each row, {fewest} before");
    }
}

#[tokio::test]
async fn waiting_for_the_index_says_what_cannot_come() {
    let (_cluster, admin, ann) = start("").await;
    assert_eq!(indexed(&ann).await, 0);
    // Its own transaction's documents come only after it.
    ann.run("begin; select helper.add_document('x', 'x')").await;
    let error = ann.error("select helper.wait_indexed()").await;
    assert_eq!(error.code().code(), "55000");
    assert_eq!(error.hint(), Some("Commit, then call helper.wait_indexed."));
    ann.run("rollback").await;
    assert_eq!(ann.one::<i64>("select helper.wait_indexed(null, '1 second')", &[]).await, 0);
    // A subtransaction's are its transaction's.
    ann.run("begin; savepoint s; select helper.add_document('x', 'x'); release s").await;
    assert_eq!(ann.error("select helper.wait_indexed()").await.code().code(), "55000");
    ann.run("rollback").await;
    ann.run("select helper.add_document('Held', repeat('Held text. ', 50), 'kb_article', 'held')").await;
    indexed(&ann).await;
    admin.run("begin; update helper.knowledge_sources set status = 'pending'; insert into helper.knowledge_inputs select workspace_id, id, 'New text.', false from helper.knowledge_sources; commit").await;
    // Pending without a job: nobody comes.
    let begin = std::time::Instant::now();
    let error = ann.error("select helper.wait_indexed(timeout => '300 milliseconds')").await;
    assert_eq!(error.code().code(), "57014");
    assert!(begin.elapsed().as_secs() < 5);
    assert_eq!(error.detail(), Some("0 are indexed, 1 wait, 0 failed."));
    // The statement's own time counts too, and a cancel.
    ann.run("set statement_timeout = '200ms'").await;
    assert_eq!(ann.error("select helper.wait_indexed()").await.code().code(), "57014");
    ann.run("reset statement_timeout; select helper.reindex()").await;
    assert_eq!(indexed(&ann).await, 1);
}
