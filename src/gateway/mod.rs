//! The program `helper_ai_gateway`: requests of the database in, replies out. It holds no state that matters.

pub mod batch;
pub mod http;
pub mod model;
pub mod parse;
pub mod schema;
pub mod server;

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the program was told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    socket: PathBuf,
    model: PathBuf,
    authorities: Option<PathBuf>,
    threads: usize,
}

impl Arguments {
    fn read(words: &[String]) -> Option<Self> {
        let mut arguments = Arguments::default();
        for pair in words.chunks(2) {
            let [name, value] = pair else { return None };
            match name.as_str() {
                "--socket" => arguments.socket = value.into(),
                "--model" => arguments.model = value.into(),
                "--ca" => arguments.authorities = Some(value.into()),
                "--threads" => arguments.threads = value.parse().ok()?,
                _ => return None,
            }
        }
        (arguments.socket != PathBuf::new() && arguments.model != PathBuf::new()).then_some(arguments)
    }
}

/// The program: `serve` for the database, `parse` for one document in a process of its own.
pub fn main(words: Vec<String>) -> ExitCode {
    match words.first().map(String::as_str) {
        Some("serve") => match Arguments::read(&words[1..]) {
            Some(arguments) => serve(arguments),
            None => usage(),
        },
        Some("parse") => ExitCode::from(u8::try_from(parse::child_main()).unwrap_or(1)),
        Some("--version") => {
            println!("helper_ai_gateway {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: helper_ai_gateway serve --socket FILE --model DIRECTORY [--threads N] [--ca FILE]\nThe extension starts this program; there is no need to run it by hand."
    );
    ExitCode::from(2)
}

fn serve(arguments: Arguments) -> ExitCode {
    // Whoever started us holds the other end of our standard input: when it ends, however it ends, so do we, even stopped.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        std::process::exit(0);
    });
    let threads = if arguments.threads > 0 {
        arguments.threads
    } else {
        std::thread::available_parallelism().map_or(1, usize::from)
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("helper_ai gateway: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let settings = match &arguments.authorities {
        Some(file) => http::Settings::default().trust(file),
        None => Ok(http::Settings::default()),
    };
    let settings = settings.unwrap_or_else(|error| {
        // Local answers, and providers with certificates of the usual authorities, need none of them.
        eprintln!("helper_ai gateway: {error}");
        http::Settings::default()
    });
    let batcher = batch::Batcher::start(&arguments.model, threads);
    let gateway = server::Gateway::new(batcher, parse::Limits::default(), http::Providers::new(settings));
    match runtime.block_on(gateway.serve(&arguments.socket)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("helper_ai gateway: cannot listen on \"{}\": {error}", arguments.socket.display());
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_need_socket_and_model() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(Arguments::read(&words("--socket s --model m --threads 3")).is_some_and(|a| a.threads == 3));
        assert!(
            Arguments::read(&words("--socket s --model m --ca c")).is_some_and(|a| a.authorities == Some("c".into()))
        );
        assert!(Arguments::read(&words("--socket s")).is_none());
        assert!(Arguments::read(&words("--socket s --model m --threads")).is_none());
        assert!(Arguments::read(&words("--socket s --model m --other x")).is_none());
    }
}
