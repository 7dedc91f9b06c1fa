//! The settings, `helper_ai.*`.

use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::CString;

pub static GATEWAY_PATH: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
pub static MODEL_PATH: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
pub static CA_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
pub static GATEWAY_THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static INDEXING_CONCURRENCY: GucSetting<i32> = GucSetting::<i32>::new(4);
pub static RUNNERS: GucSetting<i32> = GucSetting::<i32>::new(2);
pub static REPLY_CONCURRENCY: GucSetting<i32> = GucSetting::<i32>::new(256);
pub static MAX_DOCUMENT_SIZE: GucSetting<i32> = GucSetting::<i32>::new(50 * 1024);
pub static CHUNK_TOKENS: GucSetting<i32> = GucSetting::<i32>::new(200);
pub static CHUNK_OVERLAP: GucSetting<i32> = GucSetting::<i32>::new(24);
pub static VECTOR_WEIGHT: GucSetting<f64> = GucSetting::<f64>::new(0.5);
pub static API_ROLES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"anon, authenticated"));
pub static WORKSPACE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
pub static MAX_WEBHOOK_SIZE: GucSetting<i32> = GucSetting::<i32>::new(256);
pub static WORKFLOW_DEPTH: GucSetting<i32> = GucSetting::<i32>::new(-1);
pub static WORKFLOW_RUN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
pub static SQL_STEPS: GucSetting<bool> = GucSetting::<bool>::new(true);
pub static JOB_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(7 * 24 * 60);
pub static CALL_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(365 * 24 * 60);
pub static RUN_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(90 * 24 * 60);

/// Registers them all.
pub fn define() {
    GucRegistry::define_string_guc(
        c"helper_ai.gateway_path",
        c"Path of the program helper_ai_gateway.",
        c"Empty looks for it next to the server's own programs.",
        &GATEWAY_PATH,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"helper_ai.model_path",
        c"Directory of the local embedding model, laid out as Hugging Face does.",
        c"Holds tokenizer.json, config.json, and model.safetensors or onnx/model.onnx. Empty means helper_ai/all-MiniLM-L6-v2 in the server's share directory.",
        &MODEL_PATH,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"helper_ai.ca_file",
        c"File with certificates of authorities, in PEM, that providers are trusted by besides the public ones.",
        c"",
        &CA_FILE,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_int_guc(
        c"helper_ai.gateway_threads",
        c"Threads of the gateway that run the local model.",
        c"0 means as many as there are processors.",
        &GATEWAY_THREADS,
        0,
        256,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"helper_ai.indexing_concurrency",
        c"Bundles of documents that a database's worker indexes at once.",
        c"A bundle is a long document, or short ones of one workspace.",
        &INDEXING_CONCURRENCY,
        1,
        64,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"helper_ai.reply_concurrency",
        c"Replies of helper.ask_async that a database's worker has under way at once.",
        c"Providers have limits of their own.",
        &REPLY_CONCURRENCY,
        1,
        10000,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"helper_ai.runners",
        c"Most processes in each database that run what callers queue in SQL.",
        c"They are started when there is work and leave when there has been none for minutes. Each takes one of max_worker_processes, besides one for the launcher and one for each database's worker. One more comes while all of them are kept by statements that take long. With 0 queued calls of SQL functions wait.",
        &RUNNERS,
        0,
        crate::pg::shared::RUNNERS as i32,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"helper_ai.max_document_size",
        c"Largest document or file that is accepted.",
        c"",
        &MAX_DOCUMENT_SIZE,
        1,
        250 * 1024,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"helper_ai.chunk_tokens",
        c"Most tokens in a chunk, by the embedding model's own count.",
        c"Documents that are already indexed keep their chunks until they are indexed again.",
        &CHUNK_TOKENS,
        16,
        8192,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"helper_ai.chunk_overlap",
        c"Tokens that a chunk repeats of the one before it.",
        c"",
        &CHUNK_OVERLAP,
        0,
        4096,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_float_guc(
        c"helper_ai.vector_weight",
        c"Share of the embedding's score in a hybrid search; the rest is BM25's.",
        c"",
        &VECTOR_WEIGHT,
        0.0,
        1.0,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"helper_ai.api_roles",
        c"Roles that many people share, so that without JWT claims they are nobody.",
        c"A list separated by commas.",
        &API_ROLES,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"helper_ai.workspace",
        c"Workspace of calls that do not name one.",
        c"The id of a workspace that the caller is a member of.",
        &WORKSPACE,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"helper_ai.max_webhook_size",
        c"Largest body of a webhook that is accepted.",
        c"",
        &MAX_WEBHOOK_SIZE,
        1,
        16 * 1024,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_bool_guc(
        c"helper_ai.sql_steps",
        c"Whether admins of a workspace may write SQL into its workflows.",
        c"It runs as they, under row-level security; where anybody may sign up, it is more than an API gives them.",
        &SQL_STEPS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"helper_ai.workflow_depth",
        c"Workflows that led to this step, each started by an event of the one before.",
        c"Set by the extension while a run's steps are done, and what they have done later.",
        &WORKFLOW_DEPTH,
        -1,
        1000,
        GucContext::Suset,
        // It asks nobody for leave.
        GucFlags::NO_RESET_ALL,
    );
    GucRegistry::define_string_guc(
        c"helper_ai.workflow_run",
        c"Run of a workflow that led to what is done.",
        c"Set by the extension while a run's steps are done, and what they have done later.",
        &WORKFLOW_RUN,
        GucContext::Suset,
        // It asks nobody for leave.
        GucFlags::NO_RESET_ALL,
    );
    GucRegistry::define_int_guc(
        c"helper_ai.job_retention",
        c"How long the record of a finished job is kept.",
        c"",
        &JOB_RETENTION,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"helper_ai.call_retention",
        c"How long the record of a finished call of a tool is kept.",
        c"With it goes its idempotency key, which means a new call from then on.",
        &CALL_RETENTION,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"helper_ai.run_retention",
        c"How long the record of a workflow's run that has ended is kept.",
        c"With it goes its idempotency key, which means a new call from then on.",
        &RUN_RETENTION,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    // SAFETY: called from _PG_init with a string that lives for ever.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"helper_ai".as_ptr()) };
}

/// A text setting; empty where it is not set.
pub fn text(setting: &GucSetting<Option<CString>>) -> String {
    setting.get().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
}
