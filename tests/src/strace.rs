//! Faults at exact places: a system call that is a process's last, or that fails.
//!
//! `strace` stops a thread when it enters a call and counts the calls of each thread by themselves, so "the third write"
//! is the third of whichever thread gets there first. A process that is killed on entering a call has done everything
//! before that call, and not the call.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::process::{Process, tool, until_true};

/// What happens at a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    call: String,
    /// In `strace`'s words: what is done, and at which of the calls.
    injected: String,
}

impl Fault {
    /// SIGKILL on entering the `nth` such call of a thread, counted from 1.
    #[must_use]
    pub fn kill(call: &str, nth: u64) -> Self {
        Self { call: call.to_owned(), injected: format!("signal=KILL:when={nth}") }
    }

    /// The `nth` such call fails, and no other.
    #[must_use]
    pub fn once(call: &str, errno: &str, nth: u64) -> Self {
        Self { call: call.to_owned(), injected: format!("error={errno}:when={nth}") }
    }

    /// The `nth` such call fails, and all that follow.
    #[must_use]
    pub fn from(call: &str, errno: &str, nth: u64) -> Self {
        Self { call: call.to_owned(), injected: format!("error={errno}:when={nth}+") }
    }

    fn arguments(&self) -> [String; 4] {
        let Self { call, injected } = self;
        ["-e".to_owned(), format!("trace={call}"), "-e".to_owned(), format!("inject={call}:{injected}")]
    }
}

/// A way to start a process with `strace` beside it: the process stays a child of whoever starts it.
#[derive(Clone, Debug)]
pub struct Beside {
    arguments: Vec<String>,
}

impl Beside {
    /// With a fault.
    #[must_use]
    pub fn fault(fault: &Fault) -> Self {
        Self::new("/dev/null", fault.arguments())
    }

    /// With a log of these calls; see [`most_calls`].
    #[must_use]
    pub fn log(path: &Path, calls: &[&str]) -> Self {
        Self::new(&path.display().to_string(), ["-e".to_owned(), format!("trace={}", calls.join(","))])
    }

    fn new<const N: usize>(output: &str, more: [String; N]) -> Self {
        // Not with --seccomp-bpf, which is faster: strace 6.1 then does not come to a fault beyond the first call.
        let mut arguments: Vec<String> =
            ["-D", "-f", "-qq", "-e", "signal=none", "-o", output].map(str::to_owned).to_vec();
        arguments.extend(more);
        Self { arguments }
    }

    /// `strace`, to which the program and its arguments are to be added.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(tool("REVOCAST_STRACE"));
        command.args(&self.arguments);
        command
    }
}

/// An `strace` that joined a process late; dropping it lets the process go on without it.
#[derive(Debug)]
pub struct Tracer {
    process: Process,
}

impl Tracer {
    /// Joins all threads of a process.
    #[must_use]
    pub fn of_process(id: u32, fault: &Fault) -> Self {
        Self::attach(id, &fault.arguments(), "/dev/null", true)
    }

    /// Joins one thread, by its name.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn of_thread(id: u32, name: &str, fault: &Fault) -> Self {
        let named = |thread: &u32| {
            std::fs::read_to_string(format!("/proc/{id}/task/{thread}/comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let thread = threads(id).into_iter().find(named).unwrap_or_else(|| panic!("{id} has no thread {name}"));
        Self::attach(thread, &fault.arguments(), "/dev/null", false)
    }

    /// Joins all threads of a process and logs these calls, with 64 bytes of what is read and written, and with the
    /// names of the files.
    #[must_use]
    pub fn log(id: u32, path: &Path, calls: &[&str]) -> Self {
        let arguments = ["-y".to_owned(), "-s64".to_owned(), "-e".to_owned(), format!("trace={}", calls.join(","))];
        Self::attach(id, &arguments, &path.display().to_string(), true)
    }

    fn attach(id: u32, arguments: &[String], output: &str, whole: bool) -> Self {
        let joined = if whole { threads(id) } else { vec![id] };
        let mut command = Command::new(tool("REVOCAST_STRACE"));
        command.args(["-qq", "-e", "signal=none", "-o", output]).args(arguments).args(["-p", &id.to_string()]);
        if whole {
            command.arg("-f");
        }
        let process = Process::start("strace", &mut command);
        until_true("strace has joined", || joined.iter().all(|thread| is_traced(*thread)));
        Self { process }
    }

    /// Ends it in order: calls under way are finished, nothing is injected any more.
    pub fn leave(mut self) {
        if self.process.is_running() {
            let _ = self.process.stop();
        }
    }
}

/// The threads of a process; none if it is gone.
fn threads(id: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{id}/task")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether a thread is traced, or has ended: a fault may come before all threads are joined.
fn is_traced(thread: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else { return true };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
    field("TracerPid:") != "0" || field("State:").starts_with(['Z', 'X'])
}

/// How often a thread made each call, for the thread that made it most often.
#[must_use]
pub fn most_calls(log: &str) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in log.lines() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else { continue };
        // What is resumed was counted when it began.
        if let Some((call, _)) = call.trim_start().split_once('(')
            && call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            *counts.entry((thread, call)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in counts {
        let highest: &mut u64 = most.entry(call.to_owned()).or_default();
        *highest = count.max(*highest);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_thread_and_once() {
        let log = "12 write(1, \"a\", 1) = 1\n12 fsync(3 <unfinished ...>\n13 write(1, \"b\", 1) = 1\n\
                   12 <... fsync resumed>) = 0\n12 write(1, \"c\", 1) = 1\n13 +++ killed by SIGKILL +++\n";
        assert_eq!(most_calls(log), BTreeMap::from([("fsync".to_owned(), 1), ("write".to_owned(), 2)]));
    }
}
