//! The start of the gateway: which program with which arguments, and what it does not inherit.

use crate::pg::gateway::SOCKET;
use crate::pg::settings;
use pgrx::pg_sys;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The gateway as the settings want it.
#[derive(Clone, PartialEq)]
pub(super) struct Wanted {
    pub(super) program: PathBuf,
    model: PathBuf,
    authorities: String,
    threads: i32,
}

/// What they want now.
pub(super) fn wanted() -> Wanted {
    let program = settings::text(&settings::GATEWAY_PATH);
    let model = settings::text(&settings::MODEL_PATH);
    // SAFETY: both are NUL-terminated arrays that the server fills at its start.
    let (executable, share) = unsafe {
        let executable =
            std::ffi::CStr::from_ptr((&raw const pg_sys::my_exec_path).cast()).to_string_lossy().into_owned();
        let mut share = [0; pg_sys::MAXPGPATH as usize];
        pg_sys::get_share_path((&raw const pg_sys::my_exec_path).cast(), share.as_mut_ptr());
        (executable, std::ffi::CStr::from_ptr(share.as_ptr()).to_string_lossy().into_owned())
    };
    Wanted {
        program: if program.is_empty() {
            PathBuf::from(executable).with_file_name("helper_ai_gateway")
        } else {
            program.into()
        },
        model: if model.is_empty() { PathBuf::from(share).join("helper_ai/all-MiniLM-L6-v2") } else { model.into() },
        authorities: settings::text(&settings::CA_FILE),
        threads: settings::GATEWAY_THREADS.get(),
    }
}

/// Starts the gateway. Its standard input is a pipe that closes with us, however we end.
pub(super) fn start(wanted: &Wanted) -> std::io::Result<Child> {
    let mut command = Command::new(&wanted.program);
    command
        .arg("serve")
        .arg("--socket")
        .arg(SOCKET)
        .arg("--model")
        .arg(&wanted.model)
        .arg("--threads")
        .arg(wanted.threads.to_string());
    if !wanted.authorities.is_empty() {
        command.arg("--ca").arg(&wanted.authorities);
    }
    command.stdin(Stdio::piped());
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // The server's files, sockets and the postmaster's pipe are none of the gateway's business.
            close_range(3, u32::MAX, CLOSE_RANGE_CLOEXEC);
            setpgid(0, 0);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            let mut none = std::mem::MaybeUninit::<[u64; 16]>::zeroed();
            sigprocmask(SIG_SETMASK, none.as_mut_ptr().cast(), std::ptr::null_mut());
            Ok(())
        });
    }
    command.spawn()
}

const PR_SET_PDEATHSIG: i32 = 1;
const SIGKILL: usize = 9;
const SIG_SETMASK: i32 = 2;
const CLOSE_RANGE_CLOEXEC: i32 = 4;

unsafe extern "C" {
    fn close_range(first: u32, last: u32, flags: i32) -> i32;
    fn setpgid(pid: i32, group: i32) -> i32;
    fn prctl(option: i32, ...) -> i32;
    fn sigprocmask(how: i32, set: *const std::ffi::c_void, old: *mut std::ffi::c_void) -> i32;
}
