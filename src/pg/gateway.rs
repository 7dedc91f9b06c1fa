//! A connection to the gateway: requests out, frames in, never blocking but in a wait that can be interrupted.

use crate::core::error::{Error, Result};
use crate::core::wire::{self, Frame, Frames, Hello, Item, PROTOCOL, Reply, Request, Tag};
use crate::pg::{shared, wait};
use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The socket's name in the data directory, which is every server process' working directory.
pub const SOCKET: &str = "helper_ai.sock";

/// How long a call waits for a gateway that is being restarted.
const PATIENCE: Duration = Duration::from_millis(3000);

thread_local! {
    static IDLE: RefCell<Option<Link>> = const { RefCell::new(None) };
}

/// A connection. Dropping it cancels whatever is under way on it.
pub struct Link {
    stream: UnixStream,
    frames: Frames,
    out: Vec<u8>,
    sent: usize,
    next: u32,
}

fn gone() -> Error {
    Error::not_ready("the helper_ai gateway went away during the call")
        .hint("It is restarted at once; try again. The server log says more.")
}

impl Link {
    /// Connects at once or fails; both hellos are exchanged before the first reply is read.
    pub fn open() -> std::io::Result<Link> {
        let stream = UnixStream::connect(SOCKET)?;
        stream.set_nonblocking(true)?;
        let mut link = Link { stream, frames: Frames::default(), out: Vec::new(), sent: 0, next: 1 };
        let hello = Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").into() };
        link.out = wire::encode(Tag::Hello, 0, &hello).map_err(std::io::Error::other)?;
        Ok(link)
    }

    /// Queues a request and returns its id.
    pub fn request(&mut self, request: &Request) -> Result<u32> {
        let id = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        let frame = wire::encode(Tag::Request, id, request)?;
        self.out.extend_from_slice(&frame);
        self.flush()?;
        Ok(id)
    }

    /// Writes as much as the socket takes.
    pub fn flush(&mut self) -> Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(gone()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(gone()),
            }
        }
        self.out.clear();
        // The memory of one large document is not kept for all the small ones after it.
        self.out.shrink_to(1 << 20);
        self.sent = 0;
        Ok(())
    }

    /// What a wait needs to know of the socket.
    pub fn interest(&self) -> (i32, bool) {
        (self.stream.as_raw_fd(), self.sent < self.out.len())
    }

    /// The next frame that is here already, or `None`.
    pub fn poll(&mut self) -> Result<Option<Frame>> {
        loop {
            while let Some(frame) = self.frames.next()? {
                if frame.tag != Tag::Hello {
                    return Ok(Some(frame));
                }
                let hello: Hello = wire::decode(&frame.body)?;
                if hello.protocol != PROTOCOL {
                    return Err(Error::not_ready("the helper_ai gateway is of another version")
                        .detail(format!(
                            "The library is {} (protocol {PROTOCOL}), the gateway is {} (protocol {}).",
                            env!("CARGO_PKG_VERSION"),
                            hello.version,
                            hello.protocol
                        ))
                        .hint("Restart the server after installing a new version."));
                }
            }
            let mut buffer = [0; 65536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(gone()),
                Ok(count) => self.frames.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(gone()),
            }
        }
    }

    fn next(&mut self) -> Result<Frame> {
        loop {
            self.flush()?;
            if let Some(frame) = self.poll()? {
                return Ok(frame);
            }
            wait::interruptible(Some(self.interest()), None);
        }
    }
}

/// The session's connection, made if need be. A gateway that is just being restarted is waited for.
fn connect() -> Result<Link> {
    shared::check_preloaded()?;
    if let Some(mut link) = IDLE.take() {
        // A gateway that was restarted since has closed it.
        if matches!(link.poll(), Ok(None)) {
            return Ok(link);
        }
    }
    let begin = Instant::now();
    loop {
        match Link::open() {
            Ok(link) => return Ok(link),
            Err(error) if begin.elapsed() > PATIENCE => {
                return Err(Error::not_ready("the helper_ai gateway is not running")
                    .detail(format!("Connecting to its socket gave: {error}."))
                    .hint("The server log says why; the settings helper_ai.gateway_path and helper_ai.model_path tell where it looks."));
            }
            Err(_) => {
                wait::interruptible(None, Some(Duration::from_millis(20)));
            }
        }
    }
}

/// Sends one request and waits for its end; every part of a streamed reply goes to `each`.
pub fn ask(request: &Request, mut each: impl FnMut(Item) -> Result<()>) -> Result<Reply> {
    let mut link = connect()?;
    let id = link.request(request)?;
    let outcome = loop {
        let frame = link.next()?;
        if frame.id != id {
            continue;
        }
        match frame.tag {
            Tag::Item => each(wire::decode(&frame.body)?)?,
            Tag::End => break Ok(wire::decode(&frame.body)?),
            Tag::Error => break Err(wire::decode(&frame.body)?),
            Tag::Hello | Tag::Request | Tag::Cancel => return Err(Error::bug("unexpected frame from the gateway")),
        }
    };
    // Only a connection on which nothing is under way is kept; any other way out closes it, which cancels.
    IDLE.set(Some(link));
    outcome
}
