//! Reads untrusted documents in a child program: bytes come in, a document cut into chunks goes out. Short documents share
//! a child, and are read again one by one where it dies.
//!
//! The child is this same program. It bounds its own memory and time before it reads a byte, and can open no file; it has
//! an empty environment, its only ties to the world are three pipes, and it is killed when it takes too long or nobody
//! waits for it any more. Whatever becomes of it, it is an error of that document alone. Nothing that it sends is trusted.

mod child;

pub use child::child_main;

use crate::core::chunk::{Options, chunk};
use crate::core::error::{Error, Result};
use crate::core::wire::{Prepare, Prepared};
use crate::document::{self, Document};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

/// Most bytes kept of what a child says before it dies; it is only searched for the cause.
const MAX_COMPLAINT: u64 = 4096;

/// A document to read.
#[derive(Clone, Debug)]
pub struct Given {
    /// Name of the file or title, for the choice of format when `mime_type` is absent.
    pub name: String,
    /// Media type, such as `text/html`.
    pub mime_type: Option<String>,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// What a document may cost, and how many are read at a time.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The program to run as `program parse memory cpu`.
    pub program: PathBuf,
    /// Address space of a child, in bytes.
    pub memory_bytes: u64,
    /// Processor time of a child, in seconds.
    pub cpu_seconds: u64,
    /// Time from start to end of a child; waiting for a slot is left out.
    pub timeout: Duration,
    /// Most bytes that a child may send.
    pub output_bytes: u64,
    /// A permit for each child; clones of the limits share them.
    pub slots: Arc<Semaphore>,
}

impl Default for Limits {
    /// 1.5 GiB, 25 s of processor time, 30 s in all, two documents at a time.
    fn default() -> Self {
        Limits {
            // The image that is running, even when a newer package has replaced the file.
            program: PathBuf::from("/proc/self/exe"),
            memory_bytes: 1536 * 1024 * 1024,
            cpu_seconds: 25,
            timeout: Duration::from_secs(30),
            output_bytes: 512 * 1024 * 1024,
            slots: Arc::new(Semaphore::new(2)),
        }
    }
}

/// Reads documents, tells the language of each and cuts them into chunks. `count` says how many tokens the model makes of
/// a text; it runs on a thread of its own. Dropping the future kills the child.
pub async fn prepare(
    requests: Vec<Prepare>,
    count: impl Fn(&str) -> usize + Send + 'static,
    limits: &Limits,
) -> Vec<Result<Prepared>> {
    let expected = requests.len();
    let (given, wanted): (Vec<Given>, Vec<_>) = requests
        .into_iter()
        .map(|request| {
            let Prepare { name, mime_type, content, language, max_tokens, overlap_tokens, .. } = request;
            (Given { name, mime_type, content }, (language, max_tokens, overlap_tokens))
        })
        .unzip();
    let documents = read(given, limits).await;
    let cut = tokio::task::spawn_blocking(move || {
        let cut =
            |(document, (language, max_tokens, overlap_tokens)): (Result<Document>, (Option<String>, u32, u32))| {
                if max_tokens == 0 || overlap_tokens >= max_tokens {
                    return Err(Error::bad_argument("overlap of chunks must be smaller than their size")
                        .detail(format!("The size is {max_tokens} tokens, the overlap {overlap_tokens}.")));
                }
                let document = document?;
                let options = Options { max_tokens: max_tokens as usize, overlap_tokens: overlap_tokens as usize };
                // One that breaks our own code is one that cannot be indexed, and the others can.
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let language = language.or_else(|| document::language::of(&document));
                    let chunks = chunk(&document.text, &document.blocks, &options, &count);
                    (language, chunks)
                }));
                let (language, chunks) =
                    outcome.map_err(|_| Error::bug("cutting a document into chunks ended early"))?;
                Ok(Prepared { title: document.title, text: document.text, language, chunks })
            };
        documents.into_iter().zip(wanted).map(cut).collect()
    });
    cut.await.unwrap_or_else(|_| vec![Err(Error::bug("cutting documents into chunks ended early")); expected])
}

/// Reads documents in a child, which costs about 4 ms whatever it is given, so that short ones are read together. Where it
/// dies, each is read in a child of its own, to tell whose fault it was.
pub async fn read(given: Vec<Given>, limits: &Limits) -> Vec<Result<Document>> {
    let together = read_together(&given, limits).await;
    match together {
        Ok(documents) => documents,
        Err(error) if given.len() == 1 => vec![Err(error)],
        Err(_) => {
            let mut documents = Vec::with_capacity(given.len());
            for one in &given {
                let alone = read_together(std::slice::from_ref(one), limits).await;
                documents.push(alone.and_then(|mut documents| documents.pop().unwrap_or_else(|| Err(crashed()))));
            }
            documents
        }
    }
}

/// Reads documents in one child; an error where it did not come to its end.
async fn read_together(given: &[Given], limits: &Limits) -> Result<Vec<Result<Document>>> {
    let _slot = limits.slots.acquire().await.map_err(|_| Error::not_ready("gateway is stopping"))?;
    let heads: Vec<child::Head> =
        given.iter().map(|one| (one.name.as_str(), one.mime_type.as_deref(), one.content.len() as u64)).collect();
    let head = child::encode(&heads)?;
    let mut child = Command::new(&limits.program)
        .args(["parse", &limits.memory_bytes.to_string(), &limits.cpu_seconds.to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::not_ready("parser cannot be started").detail(format!("The system says: {error}.")))?;
    let ended = tokio::time::timeout(limits.timeout, talk(&mut child, &head, given, limits.output_bytes)).await;
    let Ok(ended) = ended else {
        // Reaped here, so that no dead child is left behind.
        let _ = child.kill().await;
        return Err(unreadable("parser took too long")
            .detail(format!("It was ended after {} seconds.", limits.timeout.as_secs_f32())));
    };
    let (output, complaint, status) =
        ended.map_err(|error| unreadable("parser was lost").detail(format!("The system says: {error}.")))?;
    if output.len() as u64 > limits.output_bytes {
        return Err(unreadable("its text is too long").detail(format!("Allowed are {} bytes.", limits.output_bytes)));
    }
    if !status.success() {
        return Err(unreadable(cause(status, &complaint)));
    }
    let documents = child::decode::<Vec<Result<Document>>>(&output).ok_or_else(crashed)?;
    let sound = documents.iter().flatten().all(is_sound);
    if sound && documents.len() == given.len() { Ok(documents) } else { Err(crashed()) }
}

/// Sends a child its documents and hears it out.
async fn talk(
    child: &mut Child,
    head: &[u8],
    given: &[Given],
    cap: u64,
) -> std::io::Result<(Vec<u8>, Vec<u8>, ExitStatus)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let send = async {
        if let Some(mut pipe) = stdin {
            // A child that died early closes the pipe; why it died is told by its end.
            let _ = pipe.write_all(&(head.len() as u64).to_le_bytes()).await;
            let _ = pipe.write_all(head).await;
            for one in given {
                let _ = pipe.write_all(&one.content).await;
            }
        }
    };
    let (_, output, complaint) = tokio::join!(send, hear(stdout, cap + 1), hear(stderr, MAX_COMPLAINT));
    let (output, complaint) = (output?, complaint?);
    // The pipes are closed by now, so that a child that has more to say ends as well.
    Ok((output, complaint, child.wait().await?))
}

async fn hear(pipe: Option<impl AsyncRead + Unpin>, cap: u64) -> std::io::Result<Vec<u8>> {
    let mut heard = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(cap).read_to_end(&mut heard).await?;
    }
    Ok(heard)
}

/// Why a child died. Its words may hold parts of the document, and never leave this function.
fn cause(status: ExitStatus, complaint: &[u8]) -> &'static str {
    let complaint = String::from_utf8_lossy(complaint);
    let ran_out = complaint.contains("memory allocation of") || status.code() == Some(child::OUT_OF_MEMORY);
    match status.signal() {
        _ if ran_out => "parser ran out of memory",
        _ if complaint.contains("overflowed its stack") => "it is nested too deeply",
        Some(signal) if signal == rustix::process::Signal::XCPU.as_raw() => "parser took too long",
        Some(signal) if signal == rustix::process::Signal::KILL.as_raw() => "parser was killed",
        _ => "parser crashed",
    }
}

fn crashed() -> Error {
    unreadable("parser crashed")
}

fn unreadable(cause: &str) -> Error {
    Error::bad_argument(format!("document could not be read: {cause}"))
        .hint("The file may be damaged or made to do harm; export it again or store its text instead.")
}

/// Whether what a child says of a text is true of it.
fn is_sound(document: &Document) -> bool {
    let mut at = 0;
    let in_order = document.blocks.iter().all(|block| {
        let is_in = at <= block.start
            && block.start < block.end
            && document.text.is_char_boundary(block.start)
            && document.text.is_char_boundary(block.end);
        at = block.end;
        is_in
    });
    in_order
        && !document.text.contains('\0')
        && !document.title.as_deref().unwrap_or_default().contains('\0')
        && document.language.as_deref().is_none_or(|code| code.len() == 2 && code.is_ascii())
}
