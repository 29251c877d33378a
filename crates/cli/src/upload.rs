//! Sends a long file to the server in parts, several on their way at a time, so that reading, parsing and committing
//! overlap, and a lost connection costs a part.
//!
//! Every line of the file becomes one line that is sent, blank where there is nothing to say, so that the server's
//! line numbers are those of the file. The server takes a part that it has already for nothing new: whatever broke
//! off is sent again, whole or from the line that is told.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal as _, Read as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use revocast_core::limits::ISSUED_LINE_BYTES_MAX;
use serde_json::{Value, json};

use crate::admin::{Answer, Api};
use crate::output::{Failure, Output};

/// Lines of a part: some hundred milliseconds of work, so little to repeat.
const PART_LINES: u64 = 10_000;

/// Bytes of a part, however long its lines are.
const PART_BYTES: usize = 4 << 20;

/// Parts on their way at a time: while one is committed, the next is parsed, and the third travels.
const IN_FLIGHT: usize = 3;

/// Pauses before a part is sent again. Their sum outlasts a restart of the server.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// The server asks to come back later, within this: it is waited for. Beyond it, somebody should know.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);

/// How often the server may put off one part.
const PUT_OFF_MAX: u32 = 100;

/// Refused lines that are told in words; the rest are only counted.
const PROBLEMS_MAX: usize = 100;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// What is sent at once.
pub struct Part {
    first: u64,
    lines: u64,
    body: Vec<u8>,
    refused: u64,
    expired: u64,
    problems: Vec<(u64, String)>,
}

impl Part {
    const fn new(first: u64) -> Self {
        Self { first, lines: 0, body: Vec::new(), refused: 0, expired: 0, problems: Vec::new() }
    }

    /// The number of the line that comes next.
    pub const fn next_line(&self) -> u64 {
        self.first + self.lines
    }

    /// The next line; `json` has no line break in it.
    pub fn push(&mut self, json: &[u8]) {
        self.body.extend_from_slice(json);
        self.skip();
    }

    /// The next line says nothing.
    pub fn skip(&mut self) {
        self.body.push(b'\n');
        self.lines += 1;
    }

    /// The next line speaks of something that is over.
    pub fn expired(&mut self) {
        self.expired += 1;
        self.skip();
    }

    /// The next line cannot be sent.
    pub fn refuse(&mut self, why: impl Into<String>) {
        self.refused += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push((self.next_line(), why.into()));
        }
        self.skip();
    }
}

/// A file, read line by line.
pub trait Source {
    /// Puts what comes next into `part`: at least one line, unless the file is at its end. Then false.
    fn next(&mut self, part: &mut Part) -> Result<bool, Failure>;
}

/// A file that holds what is sent.
pub struct RawLines {
    input: Input,
    line: Vec<u8>,
}

impl RawLines {
    /// Sends the lines of `input` as they stand.
    pub const fn new(input: Input) -> Self {
        Self { input, line: Vec::new() }
    }
}

impl Source for RawLines {
    fn next(&mut self, part: &mut Part) -> Result<bool, Failure> {
        // Longer lines are cut where the server refuses them anyway.
        let read = self.input.line(&mut self.line, ISSUED_LINE_BYTES_MAX + 1);
        if !read.map_err(|error| unreadable(part.next_line(), &error))? {
            return Ok(false);
        }
        part.push(&self.line);
        Ok(true)
    }
}

/// Says at which line a file broke off.
pub fn unreadable(line: u64, error: &dyn std::error::Error) -> Failure {
    Failure::new("unreadable-file", format!("line {line} cannot be read"), error)
}

/// The bytes of a file or of standard input.
pub struct Input {
    reader: Box<dyn BufRead>,
    bar: ProgressBar,
}

impl Input {
    /// Opens a file; `-` is standard input.
    pub fn open(path: &Path, output: Output) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            let reader = Box::new(BufReader::with_capacity(BUFFER_BYTES, std::io::stdin()));
            return Ok(Self { reader, bar: bar(output, None) });
        }
        let unreadable = |error: std::io::Error| {
            Failure::new("unreadable-file", format!("{} cannot be read", path.display()), &error).usage()
        };
        let file = File::open(path).map_err(unreadable)?;
        let about = file.metadata().map_err(unreadable)?;
        if about.is_dir() {
            return Err(Failure::plain("unreadable-file", format!("{} is a folder", path.display())).usage());
        }
        let bytes = about.is_file().then_some(about.len());
        Ok(Self { reader: Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), bar: bar(output, bytes) })
    }

    /// What shows how far it was read.
    pub fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// Reads a line without its end, of which at most `limit` bytes are kept; false at the end of the file.
    pub fn line(&mut self, line: &mut Vec<u8>, limit: usize) -> std::io::Result<bool> {
        line.clear();
        let mut read = self.reader.by_ref().take(limit as u64 + 1).read_until(b'\n', line)?;
        if read == 0 {
            return Ok(false);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if read > limit {
            read += self.reader.skip_until(b'\n')?;
            line.truncate(limit);
        }
        self.bar.inc(read as u64);
        Ok(true)
    }
}

/// A path in words.
pub fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() }
}

/// For people who watch: hidden where nobody does, and where a program reads.
fn bar(output: Output, bytes: Option<u64>) -> ProgressBar {
    if output.is_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{wide_bar} {bytes}/{total_bytes} {eta}  {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {elapsed}  {msg}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        // The templates stand above; a plain bar would do as well.
        Err(_) => bar,
    }
}

/// A file on its way to the server.
pub struct Upload<'a> {
    /// To which server.
    pub api: &'a Api,
    /// To which path of it.
    pub path: String,
    /// The counts that it answers, in the order in which they are told.
    pub counts: &'static [&'static str],
    /// The first line that is sent.
    pub from_line: u64,
    /// Whether lines are sent on although one was refused.
    pub keep_going: bool,
    /// What is said of lines that arrived: "registered".
    pub done: &'static str,
}

/// What became of a file.
pub struct Tally {
    /// Lines sent.
    pub lines: u64,
    /// What the parts came to, together.
    pub counts: Vec<(&'static str, u64)>,
    /// Refused lines, by their number in the file; the first of them.
    pub problems: Vec<(u64, String)>,
    /// Where to go on, if it was stopped at a line that was refused.
    pub stopped_before: Option<u64>,
}

impl Tally {
    /// A count by its name.
    pub fn count(&self, name: &str) -> u64 {
        self.counts.iter().find(|(found, _)| *found == name).map_or(0, |(_, count)| *count)
    }

    /// The same as JSON.
    pub fn value(&self) -> serde_json::Map<String, Value> {
        let problems: Vec<Value> =
            self.problems.iter().map(|(line, detail)| json!({ "line": line, "detail": detail })).collect();
        let mut members = serde_json::Map::new();
        members.insert("lines".to_owned(), self.lines.into());
        members.extend(self.counts.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())));
        members.insert("problems".to_owned(), problems.into());
        members
    }

    /// Says which lines were refused.
    pub fn refusal(&self, path: &Path, more: &str) -> Failure {
        let refused = self.count("refused");
        let mut detail = format!("{refused} lines of {} were refused{more}", name(path));
        for (line, what) in &self.problems {
            let _ = write!(detail, "\n  line {line}: {what}");
        }
        let rest = refused.saturating_sub(self.problems.len() as u64);
        if rest > 0 {
            let _ = write!(detail, "\n  and {rest} more");
        }
        let failure = Failure::plain("lines-refused", detail);
        match self.stopped_before {
            Some(line) => failure
                .help(format!("mend them and go on with: --from-line {line}; or repeat the whole with --keep-going")),
            None => failure,
        }
    }
}

/// What the threads that send share.
struct Shared<'a> {
    upload: &'a Upload<'a>,
    bar: &'a ProgressBar,
    stop: AtomicBool,
    state: Mutex<State>,
}

struct State {
    counts: Vec<(&'static str, u64)>,
    problems: Vec<(u64, String)>,
    /// First lines of parts that were read and are not done; with it, everything before the first is done.
    open: BTreeSet<u64>,
    failure: Option<Failure>,
}

impl Upload<'_> {
    /// Sends everything from the first line on.
    pub fn run(&self, source: &mut dyn Source, bar: &ProgressBar) -> Result<Tally, Failure> {
        let shared = Shared {
            upload: self,
            bar,
            stop: AtomicBool::new(false),
            state: Mutex::new(State {
                counts: self.counts.iter().map(|name| (*name, 0)).collect(),
                problems: Vec::new(),
                open: BTreeSet::new(),
                failure: None,
            }),
        };
        let (hand_over, parts) = sync_channel::<Part>(0);
        let parts = Mutex::new(parts);
        let read = thread::scope(|scope| {
            for _ in 0..IN_FLIGHT {
                scope.spawn(|| shared.send_all(&parts));
            }
            let read = self.read(source, &shared, |part| hand_over.send(part).is_ok());
            drop(hand_over);
            read
        });
        bar.finish_and_clear();
        let State { counts, mut problems, open, failure } =
            shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        problems.sort_unstable();
        problems.truncate(PROBLEMS_MAX);
        let (read, ended) = match read {
            Ok(next) => (next, None),
            Err((next, failure)) => (next, Some(failure)),
        };
        let done_before = open.first().copied().unwrap_or(read);
        if let Some(failure) = failure.or(ended) {
            // Nothing to say before the first line: the whole command is repeated.
            return Err(if done_before <= 1 {
                failure
            } else {
                let done = self.done;
                failure.help(format!(
                    "all lines before line {done_before} are {done}; go on with: --from-line {done_before}"
                ))
            });
        }
        // All before the first line that was refused is done.
        let stopped = shared.stop.load(Ordering::Relaxed);
        let stopped_before = problems.first().filter(|_| stopped).map(|(line, _)| *line);
        Ok(Tally { lines: done_before.saturating_sub(self.from_line), counts, problems, stopped_before })
    }

    /// Reads parts and hands them over. The number of the line where it ended, and how if not at the end.
    fn read(
        &self,
        source: &mut dyn Source,
        shared: &Shared<'_>,
        mut hand_over: impl FnMut(Part) -> bool,
    ) -> Result<u64, (u64, Failure)> {
        let mut skipped = Part::new(1);
        while skipped.next_line() < self.from_line {
            // Nothing of it is kept.
            skipped = Part::new(skipped.next_line());
            if !source.next(&mut skipped).map_err(|failure| (1, failure))? {
                return Ok(self.from_line);
            }
        }
        let mut next = skipped.next_line();
        loop {
            let mut part = Part::new(next);
            let mut ended = Ok(false);
            while part.lines < PART_LINES && part.body.len() < PART_BYTES && matches!(ended, Ok(false)) {
                ended = source.next(&mut part).map(|more| !more);
            }
            let (first, after) = (part.first, part.next_line());
            if part.lines > 0 {
                shared.state().open.insert(first);
                if shared.stop.load(Ordering::Relaxed) || !hand_over(part) {
                    return Ok(first);
                }
            }
            next = after;
            match ended {
                Ok(false) => {}
                Ok(true) => return Ok(next),
                Err(failure) => return Err((next, failure)),
            }
        }
    }
}

impl Shared<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_all(&self, parts: &Mutex<Receiver<Part>>) {
        loop {
            let next = parts.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(part) = next else { return };
            // What was handed over before the stop stays open, and is told as not done.
            if self.stop.load(Ordering::Relaxed) {
                continue;
            }
            match self.send(&part) {
                Ok(answer) => self.count(&part, &answer),
                Err((failure, done)) => {
                    self.stop.store(true, Ordering::Relaxed);
                    let mut state = self.state();
                    state.open.remove(&part.first);
                    state.open.insert(part.first + done);
                    state.failure.get_or_insert(failure);
                }
            }
        }
    }

    /// Sends a part, and again if it got lost on the way. A failure tells how many of its lines are done.
    fn send(&self, part: &Part) -> Result<Value, (Failure, u64)> {
        let (mut pauses, mut put_off) = (PAUSES.iter(), 0);
        loop {
            let (failure, done, retry_after) = match self.upload.api.post_lines(&self.upload.path, &part.body) {
                Ok(Answer { status: 200, value, .. }) => return Ok(value),
                Ok(Answer { status, value, retry_after }) => {
                    let done = value.get("lines_done").and_then(Value::as_u64).unwrap_or(0);
                    let failure = Api::refusal(status, &value);
                    // What a moment may change: an overload, a restart, a connection too slow.
                    if !matches!(status, 408 | 429 | 502..=504) {
                        return Err((failure, done));
                    }
                    (failure, done, retry_after)
                }
                Err(failure) => (failure, 0, None),
            };
            if self.stop.load(Ordering::Relaxed) {
                return Err((failure, done));
            }
            let pause = match retry_after {
                Some(pause) if pause <= RETRY_AFTER_MAX && put_off < PUT_OFF_MAX => {
                    put_off += 1;
                    self.bar.set_message(format!("the server asks to wait {} s", pause.as_secs()));
                    pause.max(PAUSES[0])
                }
                Some(_) => return Err((failure, done)),
                None => match pauses.next() {
                    Some(&pause) => pause,
                    None => return Err((failure, done)),
                },
            };
            thread::sleep(pause);
        }
    }

    fn count(&self, part: &Part, answer: &Value) {
        let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
        let mut state = self.state();
        let refused = part.refused + number("refused");
        for (name, count) in &mut state.counts {
            *count += number(name);
            match *name {
                "refused" => *count += part.refused,
                "expired" => *count += part.expired,
                _ => {}
            }
        }
        state.problems.extend(part.problems.iter().cloned());
        for problem in answer.get("problems").and_then(Value::as_array).into_iter().flatten() {
            let line = problem.get("line").and_then(Value::as_u64);
            if let (Some(line), Some(detail)) = (line, problem.get("detail").and_then(Value::as_str)) {
                state.problems.push((part.first + line - 1, detail.to_owned()));
            }
        }
        if state.problems.len() > 4 * PROBLEMS_MAX {
            state.problems.sort_unstable();
            state.problems.truncate(PROBLEMS_MAX);
        }
        state.open.remove(&part.first);
        if refused > 0 && !self.upload.keep_going {
            self.stop.store(true, Ordering::Relaxed);
        }
        let told: Vec<String> = state
            .counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        self.bar.set_message(told.join(", "));
    }
}
