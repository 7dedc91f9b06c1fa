//! A connection to the gateway: requests out, frames in, never blocking but in a wait that can be interrupted.

use crate::core::error::{Error, Result};
use crate::core::wire::{self, Frame, Frames, Hello, Item, PROTOCOL, Reply, Request, Tag};
use crate::pg::{shared, wait};
use pgrx::pg_sys;
use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
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
    greeted: bool,
}

const GONE: &str = "the helper_ai gateway went away during the call";

/// The gateway ended before it answered.
pub fn gone() -> Error {
    Error::not_ready(GONE)
}

fn try_again() -> Error {
    gone().hint("It is restarted at once; try again. The server log says more.")
}

impl Link {
    /// Connects at once or fails; both hellos are exchanged before the first reply is read.
    pub fn open() -> std::io::Result<Link> {
        let stream = connect_now()?;
        let mut link = Link { stream, frames: Frames::default(), out: Vec::new(), sent: 0, next: 1, greeted: false };
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

    /// Ends a request that is under way.
    pub fn cancel(&mut self, id: u32) -> Result<()> {
        let frame = wire::encode(Tag::Cancel, id, &())?;
        self.out.extend_from_slice(&frame);
        self.flush()
    }

    /// Writes as much as the socket takes.
    pub fn flush(&mut self) -> Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(self.farewell()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(self.farewell()),
            }
        }
        self.out.clear();
        // The memory of one large document is not kept for all the small ones after it.
        self.out.shrink_to(1 << 20);
        self.sent = 0;
        Ok(())
    }

    /// Why the other end takes no more: its hello may say.
    fn farewell(&mut self) -> Error {
        loop {
            match self.poll() {
                Ok(Some(_)) => {}
                Ok(None) => return try_again(),
                Err(error) => return error,
            }
        }
    }

    /// Whether the gateway's hello has come, so that it is known to be of our version.
    pub fn greeted(&self) -> bool {
        self.greeted
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
                self.greeted = true;
            }
            let mut buffer = [0; 65536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(try_again()),
                Ok(count) => self.frames.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(try_again()),
            }
        }
    }

    fn next(&mut self, end: Option<Instant>) -> Result<Frame> {
        loop {
            self.flush()?;
            if let Some(frame) = self.poll()? {
                return Ok(frame);
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Error::not_ready("the helper_ai gateway does not answer").hint(
                    "It is busy or stopped. It may be killed at any time: it is restarted at once and loses nothing.",
                ));
            }
            wait::interruptible(Some(self.interest()), left);
        }
    }
}

/// Address of a Unix socket, `sockaddr_un`.
#[repr(C)]
struct Address {
    family: u16,
    path: [u8; 108],
}

unsafe extern "C" {
    fn socket(family: i32, kind: i32, protocol: i32) -> i32;
    #[link_name = "connect"]
    fn connect_socket(socket: i32, address: *const Address, length: u32) -> i32;
}

/// Connects at once or fails. The standard library's way would wait, deaf to every interrupt, for a gateway that is
/// stopped and has as many connections waiting as the system allows.
fn connect_now() -> std::io::Result<UnixStream> {
    const UNIX: u16 = 1;
    const STREAM_NONBLOCK_CLOEXEC: i32 = 1 | 0o4000 | 0o2_000_000;
    let mut address = Address { family: UNIX, path: [0; 108] };
    address.path[..SOCKET.len()].copy_from_slice(SOCKET.as_bytes());
    // SAFETY: the address is one, with its length, and the descriptor belongs to the stream as soon as there is one.
    unsafe {
        let fd = socket(UNIX.into(), STREAM_NONBLOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let stream = UnixStream::from_raw_fd(fd);
        if connect_socket(fd, &raw const address, size_of::<Address>() as u32) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(stream)
    }
}

/// The session's connection, made if need be. A gateway that is just being restarted is waited for.
fn connect(begin: Instant, patience: Duration) -> Result<Link> {
    shared::check_preloaded()?;
    if let Some(mut link) = IDLE.take() {
        // A gateway that was restarted since has closed it.
        if matches!(link.poll(), Ok(None)) {
            return Ok(link);
        }
    }
    loop {
        match Link::open() {
            Ok(link) => return Ok(link),
            // SAFETY: a look at the server's state.
            Err(_) if unsafe { pg_sys::RecoveryInProgress() } => {
                return Err(Error::not_ready("the helper_ai gateway does not run on a standby server")
                    .hint("Ask the primary server."));
            }
            Err(error) if begin.elapsed() > patience => {
                let problem = shared::read(|state| state.gateway_problem);
                let detail = match problem.text() {
                    "" => format!("Connecting to its socket gave: {error}."),
                    problem => problem.to_owned(),
                };
                return Err(Error::not_ready("the helper_ai gateway is not running")
                    .detail(detail)
                    .hint("The server log says more. helper_ai.gateway_path tells where the program is; empty means next to the server's programs."));
            }
            Err(_) => {
                wait::interruptible(None, Some(Duration::from_millis(20)));
            }
        }
    }
}

/// One step of a reply.
pub enum Step {
    /// A part of it.
    Item(Item),
    /// Its end.
    End(Reply),
}

/// A request under way whose reply is taken step by step. Dropping it cancels.
pub struct Exchange {
    link: Option<Link>,
    id: u32,
}

impl Exchange {
    /// Sends a request.
    pub fn start(request: &Request) -> Result<Exchange> {
        let mut link = connect(Instant::now(), PATIENCE)?;
        let id = link.request(request)?;
        Ok(Exchange { link: Some(link), id })
    }

    /// Waits for the next step; after the end, or an error, there is none.
    pub fn next(&mut self) -> Result<Step> {
        let mut link = self.link()?;
        loop {
            let frame = link.next(None)?;
            if frame.id == self.id {
                return self.step(link, &frame);
            }
        }
    }

    /// The next step if it is here already.
    pub fn poll(&mut self) -> Result<Option<Step>> {
        let mut link = self.link()?;
        link.flush()?;
        while let Some(frame) = link.poll()? {
            if frame.id == self.id {
                return self.step(link, &frame).map(Some);
            }
        }
        self.link = Some(link);
        Ok(None)
    }

    fn link(&mut self) -> Result<Link> {
        self.link.take().ok_or_else(|| Error::bug("a reply has ended before"))
    }

    fn step(&mut self, link: Link, frame: &Frame) -> Result<Step> {
        match frame.tag {
            Tag::Item => {
                self.link = Some(link);
                Ok(Step::Item(wire::decode(&frame.body)?))
            }
            Tag::End => {
                IDLE.set(Some(link));
                Ok(Step::End(wire::decode(&frame.body)?))
            }
            Tag::Error => {
                IDLE.set(Some(link));
                Err(wire::decode(&frame.body)?)
            }
            Tag::Hello | Tag::Request | Tag::Cancel => Err(Error::bug("unexpected frame from the gateway")),
        }
    }
}

/// Asks for what can be asked for twice: a gateway that ended in the middle is asked again, once it is back.
pub fn ask_again(request: &Request) -> Result<Reply> {
    match ask(request, |_| Ok(())) {
        Err(error) if error.message == GONE => ask(request, |_| Ok(())),
        other => other,
    }
}

/// Sends one request and waits for its end; every part of a streamed reply goes to `each`.
pub fn ask(request: &Request, each: impl FnMut(Item) -> Result<()>) -> Result<Reply> {
    converse(request, None, |_| {}, each)
}

/// The same for a request that somebody may have to pay for: `sent` is told when the gateway has it, and when it turns out
/// that it was never read.
pub fn ask_telling(request: &Request, sent: impl FnMut(bool), each: impl FnMut(Item) -> Result<()>) -> Result<Reply> {
    converse(request, None, sent, each)
}

/// Asks how the gateway is; one that does not say so soon is not well.
pub fn status() -> Result<Reply> {
    converse(&Request::Status, Some(Duration::from_secs(1)), |_| {}, |_| Ok(()))
}

fn converse(
    request: &Request,
    most: Option<Duration>,
    mut sent: impl FnMut(bool),
    mut each: impl FnMut(Item) -> Result<()>,
) -> Result<Reply> {
    let begin = Instant::now();
    let patience = most.unwrap_or(PATIENCE);
    loop {
        let mut link = connect(begin, patience)?;
        match exchange(&mut link, request, most.map(|most| begin + most), &mut sent, &mut each) {
            Ok(outcome) => {
                // Only a connection on which nothing is under way is kept; any other way out closes it, which cancels.
                IDLE.set(Some(link));
                return outcome;
            }
            // One that was being killed still took the connection, but has not said a word nor read the request.
            Err(error) if error == try_again() && !link.greeted => {
                sent(false);
                if begin.elapsed() >= patience {
                    return Err(error);
                }
                wait::interruptible(None, Some(Duration::from_millis(10)));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sends a request and waits for its end. After an error something may still be under way on the connection.
fn exchange(
    link: &mut Link,
    request: &Request,
    end: Option<Instant>,
    sent: &mut impl FnMut(bool),
    each: &mut impl FnMut(Item) -> Result<()>,
) -> Result<Result<Reply>> {
    let id = link.request(request)?;
    sent(true);
    loop {
        let frame = link.next(end)?;
        if frame.id != id {
            continue;
        }
        match frame.tag {
            Tag::Item => each(wire::decode(&frame.body)?)?,
            Tag::End => return Ok(Ok(wire::decode(&frame.body)?)),
            Tag::Error => return Ok(Err(wire::decode(&frame.body)?)),
            Tag::Hello | Tag::Request | Tag::Cancel => return Err(Error::bug("unexpected frame from the gateway")),
        }
    }
}
