//! Bodies of JSON lines, taken as they arrive: one line at a time is read, a batch at a time is written.
//!
//! A line that cannot be used is told by its number and passed over. What is written stays, whatever happens later:
//! such a body may be sent again, whole or from the line that a problem names.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body as HttpBody, Bytes, HttpBody as _};
use axum::http::StatusCode;
use revocast_core::limits::{ISSUED_LINE_BYTES_MAX, ISSUED_PROBLEMS_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::extract::Object;
use super::problem::Problem;

/// What lines are made into.
pub(super) trait Intake: Send {
    /// A line as it is written.
    type Line: DeserializeOwned + Send;
    /// What is written for it.
    type Item: Send;

    /// How many are written at a time.
    const BATCH: usize;

    /// What stands for a line; nothing if it needs no writing; or what is wrong with it.
    fn take(&mut self, line: Self::Line) -> Result<Option<Self::Item>, String>;

    /// Writes a batch, all or none of it; durable when this returns.
    fn write(&mut self, batch: Vec<Self::Item>) -> impl Future<Output = Result<(), Problem>> + Send;

    /// What became of all that was taken, as members of an object.
    fn done(&self) -> Map<String, Value>;
}

/// The members of `value`, which is an object of numbers.
pub(super) fn members(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(members)) => members,
        // Numbers and texts always serialize to an object.
        Ok(_) | Err(_) => Map::new(),
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct LineProblem {
    line: u64,
    detail: String,
}

/// How far a body was read.
#[derive(Default, Serialize, ToSchema)]
pub(super) struct Progress {
    /// Lines read, blank ones included, so that this is the number of the last.
    lines: u64,
    /// How many of them could not be used.
    refused: u64,
    /// The first of those.
    problems: Vec<LineProblem>,
}

impl Progress {
    fn refuse(&mut self, detail: String) {
        self.refused += 1;
        if self.problems.len() < ISSUED_PROBLEMS_MAX {
            self.problems.push(LineProblem { line: self.lines, detail });
        }
    }
}

/// Takes all lines of `body`, `idle` at most between two pieces of it.
///
/// A problem says what was done, and in `lines_done` the number of the line up to which everything is written or
/// refused.
pub(super) async fn take_all<I: Intake>(intake: &mut I, body: HttpBody, idle: Duration) -> Result<Progress, Problem> {
    let mut stream = Stream { intake, idle, progress: Progress::default(), batch: Vec::new(), durable: 0 };
    let read = stream.read(body).await;
    let Stream { progress, durable, .. } = stream;
    match read {
        Ok(()) => Ok(progress),
        Err(problem) => {
            let mut all = members(&progress);
            all.extend(intake.done());
            all.insert("lines_done".to_owned(), durable.into());
            Err(problem.members(all))
        }
    }
}

/// A body on its way into the ledger.
struct Stream<'a, I: Intake> {
    intake: &'a mut I,
    idle: Duration,
    progress: Progress,
    /// Read, and not written yet.
    batch: Vec<I::Item>,
    /// The number of the line up to which everything is written or refused.
    durable: u64,
}

impl<I: Intake> Stream<'_, I> {
    async fn read(&mut self, mut body: HttpBody) -> Result<(), Problem> {
        let mut lines = Lines::default();
        loop {
            let piece = match timeout(self.idle, next(&mut body)).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    // What is complete goes in; the line that was broken off does not, whatever it looks like.
                    self.write().await?;
                    let title = "the report ended early";
                    return Err(Problem::new(StatusCode::BAD_REQUEST, "stream-broken", title).detail(error.to_string()));
                }
                Err(_) => {
                    self.write().await?;
                    return Err(self.too_long("nothing came"));
                }
            };
            let mut rest: &[u8] = &piece;
            while lines.take(&mut rest) {
                self.line(lines.finish()).await?;
            }
        }
        if lines.is_begun() {
            self.line(lines.finish()).await?;
        }
        self.write().await
    }

    async fn line(&mut self, line: Line) -> Result<(), Problem> {
        self.progress.lines += 1;
        let taken = line.parse::<I::Line>().and_then(|line| match line {
            Some(line) => self.intake.take(line),
            None => Ok(None),
        });
        match taken {
            Ok(item) => self.batch.extend(item),
            Err(detail) => self.progress.refuse(detail),
        }
        if self.batch.len() == I::BATCH { self.write().await } else { Ok(()) }
    }

    async fn write(&mut self) -> Result<(), Problem> {
        if !self.batch.is_empty() {
            let batch = mem::take(&mut self.batch);
            let written = timeout(self.idle, self.intake.write(batch)).await;
            written.map_err(|_| self.too_long("the ledger did not answer"))??;
        }
        self.durable = self.progress.lines;
        Ok(())
    }

    fn too_long(&self, what: &str) -> Problem {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "the request took too long")
            .detail(format!("{what} for {} s", self.idle.as_secs()))
    }
}

/// The next piece of a body; trailers are passed over.
async fn next(body: &mut HttpBody) -> Option<Result<Bytes, axum::Error>> {
    loop {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(piece)) => return Some(Ok(piece)),
            Ok(Err(_trailers)) => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Cuts pieces into lines; holds one line at a time, and never more than its limit.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    bytes: usize,
}

/// One line without its end.
enum Line {
    Text(Vec<u8>),
    TooLong { bytes: usize },
}

impl Lines {
    /// Moves bytes of `piece` into the line; true when it is complete.
    fn take(&mut self, piece: &mut &[u8]) -> bool {
        let end = piece.iter().position(|&byte| byte == b'\n');
        let (part, rest) = match end {
            Some(end) => (&piece[..end], &piece[end + 1..]),
            None => (*piece, &[][..]),
        };
        self.bytes += part.len();
        let room = ISSUED_LINE_BYTES_MAX.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        *piece = rest;
        end.is_some()
    }

    const fn is_begun(&self) -> bool {
        self.bytes > 0
    }

    fn finish(&mut self) -> Line {
        let (line, bytes) = (mem::take(&mut self.line), mem::take(&mut self.bytes));
        if bytes > ISSUED_LINE_BYTES_MAX { Line::TooLong { bytes } } else { Line::Text(line) }
    }
}

impl Line {
    /// What it says; nothing if it is blank; or what is wrong with it.
    fn parse<T: DeserializeOwned>(self) -> Result<Option<T>, String> {
        let text = match self {
            Self::TooLong { bytes } => {
                return Err(format!("the line has {bytes} bytes, more than {ISSUED_LINE_BYTES_MAX}"));
            }
            Self::Text(text) => text,
        };
        if text.trim_ascii().is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&text).map(|Object(line)| Some(line)).map_err(|error| {
            // Its number among all lines is told beside.
            error.to_string().replace(" at line 1 column ", " at column ")
        })
    }
}
